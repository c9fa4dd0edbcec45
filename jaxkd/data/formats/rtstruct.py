"""DICOM RTSTRUCT: contours of regions, drawn on the slices of a series, as masks on the grid of that series.

A voxel is inside where a ray from its middle crosses the contours of its slice an odd number of times: a contour within
another one is a hole, whether the file says XOR, has two contours, or joins them by a channel. [our choice]
"""
import collections
import dataclasses
from typing import Any

import numpy as np

from jaxkd.data.formats import checks, dicom, image

_TAGS = ['SOPClassUID', 'Modality', 'StructureSetROISequence', 'ROIContourSequence',
         'ReferencedFrameOfReferenceSequence']
_MAX_BYTES = 2**28
_FILLED = 'CLOSED_PLANAR', 'CLOSEDPLANAR_XOR'  # kinds of contours that have an inside
OFF_PLANE = 0.1  # of the distance of two slices, that a contour may lie beside one [our choice]


@dataclasses.dataclass(frozen=True)
class Contours:
    """A mask that is drawn as contours."""

    path: str  # of the RTSTRUCT
    region: str  # ROIName
    series: str  # the folder of the series that it is drawn on

    def __str__(self) -> str:
        return f'{self.path} ({self.region})'


def path_of(mask: 'str | Contours') -> str:
    """The file of a mask, which is a path or Contours."""
    return mask.path if isinstance(mask, Contours) else mask


def regions(path: str) -> tuple[list[str], list[str]]:
    """(names of the regions, SeriesInstanceUIDs of the series that they are drawn on) of an RTSTRUCT."""
    with checks.reading(path):
        dataset = _parse(path)
        series = [str(item.SeriesInstanceUID) for frame in dataset.get('ReferencedFrameOfReferenceSequence') or ()
                  for study in frame.get('RTReferencedStudySequence') or ()
                  for item in study.get('RTReferencedSeriesSequence') or ()]
        return [str(roi.get('ROIName', '')) for roi in dataset.get('StructureSetROISequence') or ()], series


def read(path: str, region: str, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """bool [X,Y,Z] = [column,row,slice]: what lies within the contours of a region.

    shape, affine: of the series, as `dicom.read` gives them. BadData names contours that do not lie on its slices.
    """
    with checks.reading(path):
        contours = _contours(_parse(path), region, path)
        crossings = _Crossings(shape)
        to_index = np.linalg.inv(affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])  # from LPS, as DICOM has it
        for n, contour in enumerate(contours, 1):
            points = _points(contour, path, f'contour {n} of {len(contours)} of {region}')
            index = (points @ to_index[:3, :3].T + to_index[:3, 3]).round(6)  # rounding decides no pixel
            z = int(np.rint(index[:, 2].mean()))
            if (off := np.abs(index[:, 2] - z).max()) > OFF_PLANE or not 0 <= z < shape[2]:
                place = (f'it lies {off:.2g} of the distance of two slices beside the nearest one' if off > OFF_PLANE
                         else f'its slice {z} is none of the {shape[2]} of the series')
                raise checks.bad(path, f'contour {n} of {len(contours)} of {region} is not on a slice of the series: '
                                       f'{place}', 'Export the contours on the slices of that series')
            if (outside := max(-index[:, :2].min(), *(index[:, :2] - shape[:2]).max(axis=0))) > 1:
                raise checks.bad(path, f'contour {n} of {len(contours)} of {region} reaches {outside:.0f} pixels out '
                                       'of its slice', 'Export the contours of the series that lies there')
            crossings.add(index[:, :2], z)
        return crossings.inside()


def _parse(path: str) -> Any:
    dataset = dicom.parse(image.read_bytes(path, _MAX_BYTES), path, _TAGS)
    if dataset.get('Modality') != 'RTSTRUCT':
        raise checks.bad(path, f'it is {dicom.kind_of(dataset)}, no RTSTRUCT',
                         'Convert it to a mask in .nii.gz or .nrrd, or take it out of the folder')
    return dataset


def _contours(dataset: Any, region: str, path: str) -> list[Any]:
    """The items of ContourSequence of a region."""
    names = collections.defaultdict(list)
    for roi in dataset.get('StructureSetROISequence') or ():
        names[str(roi.get('ROIName', ''))].append(str(roi.ROINumber))
    if len(names.get(region, ())) != 1:
        raise checks.bad(path, f'it has {len(names.get(region, ()))} regions called "{region}"; its regions are '
                               f'{", ".join(names) or "none"}', 'Name another one')
    contours = [contour for item in dataset.get('ROIContourSequence') or ()
                if str(item.ReferencedROINumber) == names[region][0] for contour in item.get('ContourSequence') or ()]
    if not contours:
        raise checks.bad(path, f'nothing is drawn of {region}', 'Draw it, or remove the case')
    return contours


def _points(contour: Any, path: str, label: str) -> np.ndarray:
    """float64 [n,3], LPS mm."""
    kind, data = str(contour.get('ContourGeometricType', '')), np.array(contour.ContourData, float)
    if kind not in _FILLED:
        raise checks.bad(path, f'{label} is {kind[:32] or "of no kind"}, which has no inside', 'Export closed contours')
    if len(data) % 3 or len(data) < 9 or not np.isfinite(data).all():
        raise checks.bad(path, f'{label} has {len(data)} numbers, not three for each of its points')
    return data.reshape(-1, 3)


class _Crossings:
    """Where the rows of pixels of a volume cross contours."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.counts = np.zeros((shape[0], shape[1], shape[2]), np.uint8)  # crossings before each column, modulo 2

    def add(self, polygon: np.ndarray, z: int) -> None:
        """polygon: float64 [n,2], column and row; whole numbers are the middles of pixels."""
        columns, rows, _ = self.counts.shape
        start, end = polygon, np.roll(polygon, -1, axis=0)
        # An edge crosses the middles of the rows in [lowest, highest): a corner on a row counts for one of its edges.
        lowest, highest = (np.clip(np.ceil(f(start[:, 1], end[:, 1])), 0, rows).astype(int)
                           for f in (np.minimum, np.maximum))
        edge = np.repeat(np.arange(len(polygon)), highest - lowest)
        first = np.repeat(np.cumsum(highest - lowest) - (highest - lowest), highest - lowest)
        row = lowest[edge] + np.arange(len(edge)) - first
        slope = (end - start)[edge]
        crossing = start[edge, 0] + (row - start[edge, 1]) * slope[:, 0] / slope[:, 1]
        column = np.clip(np.ceil(crossing), 0, columns).astype(int)
        row, column = row[column < columns], column[column < columns]
        np.add.at(self.counts[:, :, z], (column, row), 1)

    def inside(self) -> np.ndarray:
        """bool [X,Y,Z]."""
        return np.logical_xor.accumulate(self.counts & 1, axis=0)
