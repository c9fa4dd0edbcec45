"""Studies that are stacks of slices, and sources made of them: a case is a slice, or the volume that the slices make.

A source gives `survey` its studies and a reader, which reads a study whole,

    read(study, image=True) -> image [Z,H,W] (None unless asked for), label uint8 [Z,H,W], affine [4,4] or None

and gives `assemble` what came of it. Labels are surveyed at the start, so that groups can say which slices have any.
"""
import concurrent.futures
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import mask_values, volume
from jaxkd.data.source import IGNORED, Case, Source
from jaxkd.data.sources.shared import case_files, loading_errors
from jaxkd.data.sources.shared.loading_errors import FileSource
from jaxkd.runtime import log

Slices = tuple[np.ndarray | None, np.ndarray, np.ndarray | None]  # image, label [Z,H,W], affine [4,4]
Reader = Callable[..., Slices]
PERCENTILES = 2, 98  # of the voxels of a volume, that it is clipped to


@dataclasses.dataclass(frozen=True)
class Study:
    """A volume, or the slices that make one."""

    id: str
    patient: str
    groups: dict
    files: tuple  # (image, label) or what else the reader asks for
    split: str = ''
    frame: int | None = None


@dataclasses.dataclass
class Stacks(FileSource):
    """A source of slices or volumes (see jaxkd/data/source.py); serves other sources of studies too."""

    name: str
    cases: tuple
    places: tuple  # for each case (index into studies, slice or None)
    studies: tuple
    read: Reader  # (Study, image=True) -> image [Z,H,W] or None, label uint8 [Z,H,W], affine [4,4] or None
    labels: tuple
    skipped: tuple = ()
    note: str = ''

    def __post_init__(self) -> None:
        self.recent = Recent(functools.partial(_study, self.studies, self.read))

    def __getitem__(self, i: int) -> dict[str, Any]:
        study, z = self.places[i]
        pixels, label, affine = self.recent(study)
        if z is None:
            pair = {'image': pixels, 'label': label}
            return {k: volume.Volume(a.T, affine) for k, a in pair.items()} | {'case': self.cases[i].id}
        spacing = np.full(3, np.nan) if affine is None else volume.spacing(affine)[::-1]
        return dict(image=pixels[z].copy(), label=label[z].copy(), spacing=spacing.astype(np.float32),
                    case=self.cases[i].id)

    def paths(self, i: int) -> tuple[str, ...]:
        return self.studies[self.places[i][0]].files

    def without(self, bad: Mapping[int, str]) -> Self:
        """The same source less the studies of the cases {index: reason}: part of a stack is no volume."""
        reasons: dict[int, str] = {}
        for i, reason in bad.items():
            reasons.setdefault(self.places[i][0], reason)
        keep = [i for i, (study, _) in enumerate(self.places) if study not in reasons]
        left_out = tuple((self.studies[s].id, reason) for s, reason in reasons.items())
        return dataclasses.replace(self, cases=tuple(self.cases[i] for i in keep), skipped=self.skipped + left_out,
                                   places=tuple(self.places[i] for i in keep))


class Recent:
    """The last few results of a function of one argument. Threads that ask for the same wait for one of them to read
    it.
    """

    def __init__(self, read: Callable[[Any], Any], limit: int = 8) -> None:
        self.read, self.limit, self.lock = read, limit, threading.Lock()
        self.futures: dict[Any, concurrent.futures.Future] = {}

    def __call__(self, key: Any) -> Any:
        with self.lock:
            future = self.futures.pop(key, None)
            mine = future is None
            self.futures[key] = future = future or concurrent.futures.Future()  # the last one again
            while len(self.futures) > self.limit:
                del self.futures[next(iter(self.futures))]
        if mine:
            try:
                future.set_result(self.read(key))
            except BaseException as e:
                with self.lock:
                    self.futures.pop(key, None)
                future.set_exception(e)
        return future.result()

    def __reduce__(self) -> tuple:
        return Recent, (self.read, self.limit)


def check(hp: ConfigDict, source_name: str) -> None:
    """Options that sources of studies share."""
    dims = hp.get('dims', 2)
    loading_errors.check_options(source_name, hp)
    if dims not in (2, 3):
        raise errors.ConfigError(f'{source_name}: dims = {dims} is neither 2 (a case is a slice) nor 3 (a volume).')
    if hp.foreground and dims == 3:
        raise errors.ConfigError(f'{source_name}: foreground = True chooses slices, and with dims = 3 there are none. '
                                 'Unset one.')
    loading_errors.check_root(source_name, hp.root, 'the data set')


def survey(source_name: str, studies: Sequence[Study], read: Reader, on_error: str
           ) -> tuple[list[Study], list[np.ndarray], list[tuple[str, str]]]:
    """(studies, counts, skipped): voxels of each class in each slice, int [Z,K], of the studies whose labels load."""
    def count_labels(study: Study) -> np.ndarray | errors.JaxkdError:
        try:
            label = read(study, image=False)[1]
        except (errors.BadData, errors.MissingInput) as e:
            return e
        return np.stack([np.bincount(plane.ravel(), minlength=256) for plane in label])
    with concurrent.futures.ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        results = list(log.progress(pool.map(count_labels, studies), f'{source_name}: reading labels', len(studies)))
    bad = [(study.id, e) for study, e in zip(studies, results) if isinstance(e, Exception)]
    if bad and on_error == 'fail':
        raise bad[0][1]
    valid = [(study, n) for study, n in zip(studies, results) if not isinstance(n, Exception)]
    return [s for s, _ in valid], [n for _, n in valid], [(name, str(e)) for name, e in bad]


def assemble(source_name: str, studies: Sequence[Study], counts: Sequence[np.ndarray], read: Reader, hp: ConfigDict,
             labels: Sequence[str], skipped: Sequence[tuple[str, str]], note: str = '',
             first: Mapping[str, int] | None = None) -> Source:
    """The Stacks of studies that `survey` went through. first: {study id: number of its first slice}, for ids.

    hp: root, on_error, foreground, and dims where a case may be a volume.
    """
    mask_values.report_absent(source_name, labels, {k for n in counts for k in np.flatnonzero(n.sum(0)).tolist()})
    cases = []
    places: list[tuple[int, int | None]] = []
    for s, (study, n) in enumerate(zip(studies, counts)):
        if hp.get('dims', 2) == 3:
            cases.append(Case(study.id, study.patient, study.id, study.split, study.groups))
            places.append((s, None))
            continue
        for z, labelled in enumerate(n[:, 1:IGNORED].any(1).tolist()):  # type: ignore[arg-type]
            if labelled or not hp.foreground:
                groups = {**study.groups, 'foreground': 'yes' if labelled else 'no'}
                name = f'{study.id}_slice_{z + (first or {}).get(study.id, 0)}'
                cases.append(Case(name, study.patient, study.id, study.split, groups))
                places.append((s, z))
    source = Stacks(source_name, tuple(cases), tuple(places), tuple(studies), read, tuple(labels), tuple(skipped), note)
    return loading_errors.usable(source, hp.on_error, hp.root)


def locate(names: Collection[str], stem: str, folder: str) -> str:
    """The path of `stem`.nii.gz or .nii among the names of a folder, in any letter case."""
    name = case_files.locate([name for name in names if name.lower().endswith(('.nii.gz', '.nii'))], stem, folder)
    if not name:
        raise errors.MissingInput(f'{folder} has no {stem}.nii.gz. Copy it there, or take the folder out.')
    return os.path.join(folder, name)


def same_grid(pixels: tuple[int, ...], label: tuple[int, ...], study: Study) -> None:
    """BadData unless two shapes agree."""
    if pixels != label:
        raise errors.BadData(f'{study.files[1]} is {" x ".join(map(str, label))}, its image '
                             f'{" x ".join(map(str, pixels))}. Copy both again from where they came.')


def _study(studies: Sequence[Study], read: Reader, s: int) -> Slices:
    return read(studies[s])


def scale(voxels: np.ndarray) -> np.ndarray:
    """float32 in [0,1] of a volume: clipped to its 2nd and 98th percentile [published], then scaled; a flat one is
    0.
    """
    values = voxels.astype(np.float64 if voxels.dtype.itemsize == 8 else np.float32)
    low, high = np.percentile(values, PERCENTILES).astype(values.dtype)  # type: ignore[type-var]
    if not high > low:
        return np.zeros(values.shape, np.float32)
    return ((np.clip(values, low, high) - low) / (high - low)).astype(np.float32, copy=False)
