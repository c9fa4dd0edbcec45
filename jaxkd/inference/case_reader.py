"""From the files of a case to what the network reads: the reading of the sources and the transforms of the run."""
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxkd import errors
from jaxkd.contracts import Record
from jaxkd.data import volume
from jaxkd.data.dataset import narrow
from jaxkd.data.formats import image, nifti, picture
from jaxkd.data.sources.shared import image_archive, slice_stacks
from jaxkd.data.transform import Trace, Transforms
from jaxkd.inference.case_files import SLICES, CaseFiles
from jaxkd.inference.deployed import Deployed
from jaxkd.runtime import log


@dataclasses.dataclass(frozen=True)
class FileGrid:
    """The grid of the file that masks are written for."""

    kind: str  # 'picture', 'slices' (NIfTI, slice by slice), 'nifti', 'nrrd' or 'dicom' (a series)
    path: str
    shape: tuple[int, ...]  # [H,W] of a picture or of each slice, [X,Y,Z] of a volume
    affine: np.ndarray | None = None  # float64 [4,4] of slices, in the order of the file's axes
    like: volume.Volume | None = None  # of volumes, without voxels

    @property
    def unit(self) -> tuple[float, str]:
        """(ml of a voxel, 'volume_ml'), or (1, 'pixels') of a picture."""
        affine = self.affine if self.like is None else self.like.affine
        return (1.0, 'pixels') if affine is None else (abs(float(np.linalg.det(affine[:3, :3]))) / 1000, 'volume_ml')


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A case as the network reads it, and how a prediction for each place goes back to its file."""

    case: dict[str, Any]  # {input: [...]} of a network that reads whole cases, and 'present' where the run had flags
    scan: dict[str, np.ndarray]  # {input: [D,H,W,...]} for sliding windows; a picture is a stack of one
    grid: FileGrid | None
    traces: tuple[Trace, ...]  # one of a volume, or of each slice
    volumetric: bool
    transforms: Transforms
    name: str

    @property
    def present(self) -> dict[str, float]:
        """{input: 1 or 0} where the run had such flags."""
        return {key: float(value) for key, value in self.case.get('present', {}).items()}

    def to_file_grid(self, values: np.ndarray) -> np.ndarray:
        """Label map uint8 [D,H,W] or probability float [D,H,W] of the network's grid -> [X,Y,Z] of a volume, [Z,H,W] of
        slices, on the grid of the file. ConfigError where the transforms do not lead back to it.
        """
        assert self.grid is not None
        if self.volumetric:
            return self.transforms.to_file_grid(values, self.traces[0], self.grid.shape, self.name)
        return self.transforms.slices_to_file_grid(values, self.traces, self.grid.shape, self.name)


def read(deployed: Deployed, files: CaseFiles) -> Prepared:
    """The files of a case -> Prepared. BadData, MissingInput: the fault of this case."""
    try:
        return _read(deployed, files)
    except errors.BadData as e:
        known = files.name in str(e) or any(path in str(e) for path in files.paths(deployed.files))
        raise e if known else errors.BadData(f'Case {files.name}: {e}') from e
    except MemoryError as e:
        raise errors.BadData(f'Case {files.name} does not fit into memory. Crop it.') from e


def _read(deployed: Deployed, files: CaseFiles) -> Prepared:
    kinds = deployed.files.kinds
    pictures = [key for key in files.values if kinds[key] == 'picture']
    stacks = [key for key in pictures if files.values[key].lower().endswith(SLICES)]
    if stacks:
        if len(stacks) < len(files.values):
            raise errors.BadData(f'Case {files.name} mixes volumes and pictures. Give all inputs in one form.')
        return _slices(deployed, files)
    record: Record = {key: _value(deployed, kinds[key], value, files.texts) for key, value in files.values.items()}
    grid = None
    if volumes := [key for key in kinds if kinds[key] == 'volume' and key in record]:
        grid = _volume_grid(files.values[volumes[0]], record[volumes[0]])
    elif pictures:
        grid = FileGrid('picture', files.values[pictures[0]], record[pictures[0]].shape[:2])
    record['case'] = files.name
    if files.centre:
        record['centre'] = {key: np.array(files.centre) for key in volumes}
    extra = {'label': grid.like} if grid and grid.like is not None else {}
    for key in deployed.inputs:
        if key in kinds and key not in record and not volumes:
            raise errors.BadData(f'Case {files.name} has no {key}. Fill in its cell of the table.')
    prepared, trace = deployed.transforms.apply(record, extra)
    arrays = network_arrays(deployed, prepared)
    scan = arrays if volumes else {key: a[None] for key, a in arrays.items() if key != 'present'}
    return Prepared(network_arrays(deployed, deployed.transforms.evaluate(prepared)),
                    {k: a for k, a in scan.items() if k != 'present'}, grid, (trace,), bool(volumes),
                    deployed.transforms, files.name)


def _slices(deployed: Deployed, files: CaseFiles) -> Prepared:
    """The slices of NIfTI files of one grid, along the third axis, as sources of slices take them."""
    reading, stacks = deployed.reading, {}
    for key, path in files.values.items():
        form = reading.volume.get('nifti_form', 'auto')
        voxels, affine = nifti.load(path, volume.MAX_VOXELS, placed=False, form=form)
        stacks[key] = (reading.scale or _default_scale(reading.source))(voxels).T
    if len({a.shape[:3] for a in stacks.values()}) > 1:
        raise errors.BadData(f'Case {files.name}: its inputs differ in shape. Give files of one grid.')
    first = next(iter(stacks.values()))
    planes = ({key: a[z] for key, a in stacks.items()} | {'case': files.name}
              for z in range(len(first)))
    records, traces = zip(*map(deployed.transforms.apply, planes))
    arrays = [network_arrays(deployed, record) for record in records]
    return Prepared(network_arrays(deployed, deployed.transforms.evaluate(records[0])),
                    {key: np.stack([a[key] for a in arrays]) for key in deployed.inputs},
                    FileGrid('slices', next(iter(files.values.values())), first.shape[1:3], affine), traces, False,
                    deployed.transforms, files.name)


def _value(deployed: Deployed, kind: str, value: Any, texts: bool) -> Any:
    """What the source of the training cases would have put into the record."""
    reading = deployed.reading
    if kind == 'picture':
        if os.path.isdir(value):
            raise errors.BadData(f'{value} is a folder. This network reads pictures and, slice by slice, NIfTI files: '
                                 'convert the series.')
        return (reading.read_picture or picture.read)(value, image.MAX_PIXELS)
    if kind == 'volume':
        read = volume.read(value, **reading.volume)
        return dataclasses.replace(read, voxels=reading.scale(read.voxels)) if reading.scale else read
    if kind == 'text' and not texts:
        return '\n'.join(image.read_lines(value, image_archive.MAX_TEXT_BYTES)).strip()
    return value


def _volume_grid(path: str, read: volume.Volume) -> FileGrid:
    series = os.path.isdir(path) or path.lower().endswith(('.dcm', '.ima'))
    kind = 'dicom' if series else 'nrrd' if path.lower().endswith('.nrrd') else 'nifti'
    return FileGrid(kind, path, read.voxels.shape, like=volume.without_voxels(read))


def network_arrays(deployed: Deployed, record: Record) -> dict[str, Any]:
    """{input: array, 'present': {input: 0 or 1} where there are flags} with the types of a batch."""
    if missing := [key for key in deployed.inputs if not isinstance(record.get(key), (np.ndarray, np.generic))]:
        raise errors.ConfigError(f'{deployed.name}: the transforms of the run make no "{missing[0]}" of a case.')
    present = {k: v for k, v in record.get('present', {}).items() if k in deployed.inputs}
    arrays = {key: record[key] for key in deployed.inputs} | ({'present': present} if present else {})
    return jax.tree.map(narrow, arrays)


@functools.cache
def _default_scale(source: str) -> Callable[[np.ndarray], np.ndarray]:
    log.info(f'the source "{source}" does not say how it scales volumes: each is clipped to percentiles '
             f'{slice_stacks.PERCENTILES} and brought to [0,1]')
    return slice_stacks.scale
