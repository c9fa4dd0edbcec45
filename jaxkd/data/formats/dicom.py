"""DICOM: a folder with one series of CT, MR or PT, one frame a file, or a single enhanced file of many frames."""
import collections
import dataclasses
import io
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import checks, image, inflate, pet
from jaxkd.runtime import log, versions

UNEVEN = 0.1  # spacings, of a slice from where even steps put it [our choice]
MODALITIES = ('CT', 'MR', 'PT')

# The only DICOM elements that are looked at: none of them says who the patient is.
_TAGS = ['SOPClassUID', 'ImageType', 'Modality', 'SeriesInstanceUID', 'ImagePositionPatient', 'ImageOrientationPatient',
         'PixelSpacing', 'Rows', 'Columns', 'NumberOfFrames', 'SamplesPerPixel', 'PhotometricInterpretation',
         'BitsAllocated', 'BitsStored', 'HighBit', 'PixelRepresentation', 'RescaleSlope', 'RescaleIntercept',
         'ModalityLUTSequence', 'Units', 'SharedFunctionalGroupsSequence', 'PerFrameFunctionalGroupsSequence',
         'PixelData']
_DEFLATED = b'1.2.840.10008.1.2.1.99'
_SECONDARY = '1.2.840.10008.5.1.4.1.1.7'  # Secondary Capture, a screenshot
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS to RAS
_UNITS = {'BQML': 'Bq/ml, no SUV', 'GML': 'g/ml, SUV by body weight', 'CNTS': 'counts, no SUV'}  # of PET
_reported: set[str] = set()  # kinds of files beside the slices, and units, that a line of this process was about


class Series(NamedTuple):
    """A folder of DICOM files, by its first."""

    path: str  # of the folder
    file: str  # the name of that file
    uid: str
    modality: str
    description: str  # SeriesDescription


@dataclasses.dataclass(frozen=True)
class _Slice:
    path: str
    series: str
    pixels: np.ndarray  # as stored, [rows,columns]
    position: np.ndarray  # [3], LPS mm of the first pixel
    across: np.ndarray  # [3,2], LPS mm from column to column, from row to row
    scale: tuple  # slope, intercept
    pet: dict[str, str]  # see formats/pet.py; {} where no SUV is asked for


def read(path: str, max_voxels: int, pet_units: str = '') -> tuple[np.ndarray, np.ndarray]:
    """Voxels [X,Y,Z] = [column,row,slice] of a series, or of one enhanced file, and their affine to RAS+.

    All slices in a folder are of the one series. Files that are no slices are passed over, and a line of the log counts
    them; so are copies of a slice. pet_units: 'suv' makes PET that is in Bq/ml SUV by body weight, see formats/pet.py.
    """
    slices, passed = _slices(path, max_voxels, pet_units == 'suv')
    if len(slices) < 2:
        others = ''.join(f'; {names[0]} is {kind}' for kind, names in passed.items())
        raise checks.bad(path, f'a series of slices has at least two files, it holds {len(slices)}{others}',
                         'Give the folder of a whole series, or a .nii.gz')
    first = slices[0]
    for other in slices:
        _check_same_series(first, other, path)
    normal = np.cross(*first.across.T)
    slices, copies = _without_copies(slices, normal / np.linalg.norm(normal))
    if copies:
        passed['a copy of another slice'] = copies
    _report(path, passed)
    voxels, affine = _assembled(slices, normal / np.linalg.norm(normal), path)
    if first.pet:
        voxels = voxels.astype(np.float32) * np.float32(pet.suv_factor([s.pet for s in slices], path))
    return voxels, affine


def sources(path: str) -> tuple[list[Any], np.ndarray]:
    """(data sets of the series or enhanced file that `read` took its voxels from, without pixels, in the order of the
    slices, or the one of an enhanced file; the frame of it that each slice is, int [slices]).
    """
    with checks.reading(path), checks.needs('pydicom', path):
        import pydicom
        slices, _ = _slices(path, 2**31, False)
        normal = np.cross(*slices[0].across.T)
        slices, _ = _without_copies(slices, normal / np.linalg.norm(normal))
        names = [s.path.partition(', frame ') for s in slices]
        if {frame for *_, frame in names} == {''}:
            return [pydicom.dcmread(file, stop_before_pixels=True) for file, *_ in names], np.arange(len(slices))
        return ([pydicom.dcmread(names[0][0], stop_before_pixels=True)],
                np.array([int(frame) - 1 for *_, frame in names]))


def _assembled(slices: list[_Slice], normal: np.ndarray, path: str) -> tuple[np.ndarray, np.ndarray]:
    """(voxels, affine) of slices in the order of their heights along `normal`."""
    first, positions = slices[0], np.array([s.position for s in slices])
    gaps = np.diff(positions @ normal)
    if not len(gaps) or gaps.min() < checks.SPACINGS[0]:
        a, b = (slices[i] for i in (gaps.argmin(), gaps.argmin() + 1)) if len(gaps) else (first, first)
        raise checks.bad(path,
                         f'{os.path.basename(a.path)} and {os.path.basename(b.path)} are slices of the same place',
                         'Keep one acquisition, echo or time a folder')
    step = (positions[-1] - positions[0]) / (len(slices) - 1)  # not along the normal where the gantry was tilted
    deviations = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1)
    if deviations.max() > UNEVEN * np.linalg.norm(step):
        raise checks.bad(path, f'its {len(slices)} slices are not evenly spaced: the gaps are {gaps.min():.4g} to '
                               f'{gaps.max():.4g} mm, or they drift sideways',
                         'Copy the missing slices or resample it')
    affine = np.eye(4)
    affine[:3] = np.column_stack([first.across, step, positions[0]])
    affine = _FLIP @ affine
    shape = (*first.pixels.shape[::-1], len(slices))
    checks.check_affine(affine, shape, path)
    unscaled = all(s.scale == (1, 0) for s in slices)
    voxels = np.empty(shape, np.result_type(*[s.pixels.dtype for s in slices]) if unscaled else np.float32, order='F')
    for k, s in enumerate(slices):  # PT scales each slice differently
        voxels[:, :, k] = s.pixels.T if unscaled else inflate.scale(s.pixels.T, *s.scale)
    return voxels, affine


def is_dicom(data: bytes) -> bool:
    """Whether bytes begin as a DICOM file does, or as a data set without the header of Part 10."""
    return data[128:132] == b'DICM' or data[:2] in (b'\2\0', b'\10\0') and data[3:4] == b'\0' or data[:3] == b'\0\10\0'


def file_names(folder: str) -> list[str]:
    """The names of the DICOM files in a folder, in order. BadData for another file that is named as they are."""
    names = [n for n in sorted(os.listdir(folder)) if not n.startswith('.') and n != 'DICOMDIR'
             and not os.path.isdir(os.path.join(folder, n))]
    found = [name for name in names if is_dicom(_head(os.path.join(folder, name)))]
    for name in names:
        if name not in found and _named_as(name, found):
            raise checks.bad(os.path.join(folder, name), 'it is no DICOM file, though it is named as one')
    return found


def series_below(folder: str) -> list[Series]:
    """The folders with DICOM files below one, in the order of their paths. Links to folders are not followed."""
    out = []
    for path in sorted(path for path, _, names in os.walk(folder) if names):
        names = file_names(path)
        if names:
            file = os.path.join(path, names[0])
            with checks.reading(file):
                dataset = parse(image.read_bytes(file, 2**30), file,
                                ['SOPClassUID', 'Rows', 'SeriesInstanceUID', 'Modality', 'SeriesDescription'])
                uid, modality, description = (str(dataset.get(key) or '') for key in (
                    'SeriesInstanceUID', 'Modality', 'SeriesDescription'))
                out.append(Series(path, names[0], uid, modality, description))
    return out


def parse(data: bytes, path: str, tags: list[str]) -> Any:
    """The data set of the bytes of a file, with the elements `tags` alone.

    Without the header of Part 10 the encoding is that of its first elements: implicit or explicit, little or big
    endian.
    """
    with checks.needs('pydicom', path):
        import pydicom
    if _DEFLATED in data:  # pydicom would inflate it without a bound
        raise checks.bad(path, 'it is deflated', 'Save it uncompressed')
    if not is_dicom(data):
        raise checks.bad(path, 'it does not start as a DICOM file does')
    dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=tags, force=True)
    if 'TransferSyntaxUID' not in dataset.file_meta:
        if not dataset.get('SOPClassUID') and not dataset.get('Rows'):
            raise checks.bad(path, 'it has no header of Part 10 and no readable data set behind it',
                             'Rewrite it, e.g. with dcmconv')
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (pydicom.uid.ExplicitVRBigEndian if not little else
                                               pydicom.uid.ImplicitVRLittleEndian if implicit else
                                               pydicom.uid.ExplicitVRLittleEndian)
    return dataset


def kind_of(dataset: Any) -> str:
    """What a data set is, such as 'RT Structure Set Storage (RTSTRUCT)'."""
    import pydicom
    meta = dataset.file_meta.get('MediaStorageSOPClassUID', '')
    name = pydicom.uid.UID(str(dataset.get('SOPClassUID') or meta)).name[:64]
    return f'{name or "DICOM without a class"} ({str(dataset.get("Modality", "no Modality"))[:16]})'


def is_grey(dataset: Any) -> bool:
    """Whether a pixel is one grey value; MONOCHROME1 says how it is shown, not what it is."""
    return dataset.SamplesPerPixel == 1 and dataset.PhotometricInterpretation in ('MONOCHROME1', 'MONOCHROME2')


def kind_of_pixels(dataset: Any) -> str:
    """What pixels are, for errors, such as 'PALETTE COLOR, 1 x 8 bits'."""
    return f'{str(dataset.PhotometricInterpretation)[:32]}, {dataset.SamplesPerPixel} x {dataset.BitsAllocated} bits'


def decode_pixels(dataset: Any, path: str, frames: int = 1) -> np.ndarray:
    """The pixels [rows,columns], or [frames,rows,columns] of several, as stored; colour [rows,columns,3] as RGB.

    Their size was looked at before.
    """
    import pydicom
    syntax, stored, high = dataset.file_meta.TransferSyntaxUID, dataset.BitsStored, dataset.get('HighBit')
    if not 1 <= stored <= dataset.BitsAllocated or high not in (None, stored - 1):
        raise checks.bad(path, f'its BitsAllocated {dataset.BitsAllocated}, BitsStored {stored} and HighBit {high} do '
                               'not say where the bits of a pixel are', 'Convert it')
    if syntax.is_compressed and not _has_decoder(syntax, stored):
        raise errors.ConfigError(f'{path}: its compression ({syntax.name}, {stored} bits) needs a decoder that is not '
                                 f'installed. {versions.install("dicom")}, or decompress it, e.g. with gdcmconv --raw.')
    samples = dataset.SamplesPerPixel
    size = frames * dataset.Rows * dataset.Columns * samples
    if len(dataset.PixelData) > 1.1 * size * dataset.BitsAllocated / 8 + checks.SLACK:
        raise checks.bad(path, 'it has more data than pixels')
    pixels = pydicom.pixels.pixel_array(dataset, raw=samples == 1)
    if pixels.shape != (frames, dataset.Rows, dataset.Columns, samples)[frames == 1:4 if samples > 1 else 3]:
        raise checks.bad(path, f'its pixels have shape {pixels.shape}')
    return pixels


def _has_decoder(syntax: Any, bits: int) -> bool:
    """Whether a decoder is installed; Pillow alone reads JPEG of 8 bits."""
    import pydicom
    plugins = pydicom.pixels.get_decoder(syntax).available_plugins
    return bool({*plugins} - ({'pillow'} if syntax == pydicom.uid.JPEGExtended12Bit and bits > 8 else set()))


def _slices(path: str, max_voxels: int, suv: bool) -> tuple[list[_Slice], dict[str, list[str]]]:
    """(the slices of a file or a folder, {kind: names of the files that are none})."""
    folder, names = os.path.split(path)[0], [os.path.basename(path)]
    if os.path.isdir(path):
        folder, names = path, sorted(n for n in os.listdir(path) if not n.startswith('.'))
    slices: list[_Slice] = []
    passed: dict[str, list[str]] = collections.defaultdict(list)
    foreign: list[tuple[str, str]] = []  # (name, series) of what is no slice, '' where it is no DICOM file
    for name in names:
        file, remaining = os.path.join(folder, name), max_voxels - sum(s.pixels.size for s in slices)
        with checks.reading(file):
            if stat.S_ISDIR(os.stat(file).st_mode):
                passed['a folder'].append(name)
            elif not is_dicom(_head(file)):
                passed['no DICOM file'].append(name)
                foreign.append((name, ''))
            else:
                dataset = parse(image.read_bytes(file, 8 * max_voxels + 2**26), file,
                                [*_TAGS, *(pet.TAGS if suv else ())])
                if kind := _no_slice(dataset, file):
                    passed[kind].append(name)
                    foreign += [] if 'localizer' in kind else [(name, str(dataset.get('SeriesInstanceUID', '')))]
                else:
                    slices += _frames(dataset, file, remaining, suv)
    slice_names = [os.path.basename(s.path) for s in slices]
    for name, series in foreign:
        if series in {s.series for s in slices} or not series and _named_as(name, slice_names):
            raise checks.bad(os.path.join(folder, name), f'it is {next(k for k, n in passed.items() if name in n)}, '
                             'though it is named or numbered as the slices beside it',
                             'Copy it again from where it came, or take it out of the folder')
    return slices, passed


def _named_as(name: str, slices: Sequence[str]) -> bool:
    """Whether a file is named as a slice: with the ending of DICOM, or as the slices but for its digits."""
    stem, *stems = (re.sub(r'\d+', '', n) for n in (name, *slices))
    return name.lower().endswith(('.dcm', '.ima')) or stem in stems


def _head(path: str) -> bytes:
    """The first bytes of a regular file."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise checks.bad(path, 'it is not a regular file', 'Take it out of the folder')
    with open(path, 'rb') as f:
        return f.read(132)


def _no_slice(dataset: Any, path: str) -> str:
    """What a data set is that is no slice of a series; '' for a slice."""
    types, modality = tuple(dataset.get('ImageType') or ()), dataset.get('Modality')
    if 'MOSAIC' in types:
        raise checks.bad(path, 'it is a Siemens mosaic, all slices of a volume tiled in one picture',
                         'Convert it with dcm2niix')
    if 'LOCALIZER' in types:
        return 'a localizer'
    screenshot = str(dataset.get('SOPClassUID', '')).startswith(_SECONDARY) and 'ImagePositionPatient' not in dataset
    if not dataset.get('Rows') or screenshot or modality and modality not in MODALITIES:
        return kind_of(dataset)
    return ''


def _report(path: str, passed: dict[str, list[str]]) -> None:
    """A line about files that were passed over, once in a process for each kind of them."""
    kinds = {kind: names for kind, names in passed.items() if names != ['DICOMDIR'] and kind not in _reported}
    _reported.update(kinds)
    if kinds:
        listed = ', '.join(f'{len(names)} x {kind}, e.g. {names[0]}' for kind, names in kinds.items())
        log.info(f'{path}: not used beside its slices: {listed}. Other folders with such files get no line.')


def _without_copies(slices: list[_Slice], normal: np.ndarray) -> tuple[list[_Slice], list[str]]:
    """(slices by their height, names of those left out): of slices equal in place, pixels and scale one is kept."""
    heights = np.array([s.position for s in slices]) @ normal
    kept: list[_Slice] = []
    copies = []
    for s in (slices[i] for i in np.argsort(heights, kind='stable')):
        if kept and (s.scale == kept[-1].scale and np.array_equal(s.position, kept[-1].position)
                     and np.array_equal(s.pixels, kept[-1].pixels)):
            copies.append(os.path.basename(s.path))
        else:
            kept.append(s)
    return kept, copies


def _frames(dataset: Any, path: str, remaining: int, suv: bool) -> Iterator[_Slice]:
    """The slices of a data set: one, or the frames of an enhanced one."""
    frames = int(dataset.get('NumberOfFrames') or 1)
    if dataset.get('Modality') == 'PT' and (units := str(dataset.get('Units') or 'no Units')[:16]) not in _reported:
        _reported.add(units)
        log.info(f'{path}: PET in {units}{f" ({_UNITS[units]})" if units in _UNITS else ""}. '
                 f'{"They become SUV by body weight" if suv else "Values are taken as they are"}; other PET in it gets '
                 'no line.')
    _check_pixels(dataset, path, frames, remaining)
    per_frame = dataset.get('PerFrameFunctionalGroupsSequence')
    if not per_frame:
        groups: list[dict[str, Any]] = [{}]
        if frames > 1:
            raise checks.bad(path, f'it has several frames ({frames}) and does not say where each of them lies',
                             'Convert it to .nii.gz, or to one frame a file')
    elif len(per_frame) != frames:
        raise checks.bad(path, f'it has {frames} frames and describes {len(per_frame)}')
    else:
        shared = (dataset.get('SharedFunctionalGroupsSequence') or [{}])[0]
        groups = [{**_elements(shared), **_elements(frame)} for frame in per_frame]
    pixels = decode_pixels(dataset, path, frames).reshape(frames, dataset.Rows, dataset.Columns)
    for k, (plane, group) in enumerate(zip(pixels, groups)):
        yield _placed(group if per_frame else dataset, plane, str(dataset.SeriesInstanceUID),
                      f'{path}, frame {k + 1}' if frames > 1 else path,
                      pet.facts(dataset) if suv and dataset.get('Modality') == 'PT' else {})


def _elements(groups: Any) -> dict[str, Any]:
    """{keyword: value} of what the functional groups of a frame say of its place and its scale."""
    out = {}
    for name, keys in (('PlanePositionSequence', ('ImagePositionPatient',)),
                       ('PlaneOrientationSequence', ('ImageOrientationPatient',)),
                       ('PixelMeasuresSequence', ('PixelSpacing',)),
                       ('PixelValueTransformationSequence', ('RescaleSlope', 'RescaleIntercept'))):
        for item in (groups.get(name) or ())[:1]:
            out.update({key: item.get(key) for key in keys})
    return out


def _check_pixels(dataset: Any, path: str, frames: int, remaining: int) -> None:
    """BadData unless the pixels are grey ones that this module reads, and not too many."""
    if dataset.get('Modality') not in MODALITIES:
        raise checks.bad(path, 'it is not a CT, MR or PT slice (no Modality)', 'Take it out of the folder')
    if not is_grey(dataset) or dataset.BitsAllocated not in (8, 16):
        raise checks.bad(path, f'its pixels are {kind_of_pixels(dataset)}, not grey of 8 or 16 bits',
                         'Convert the series to .nii.gz')
    if dataset.get('ModalityLUTSequence'):
        raise checks.bad(path, 'a table, not a slope, turns its pixels into values', 'Convert the series to .nii.gz')
    if not 1 <= frames * dataset.Rows * dataset.Columns <= remaining:
        raise checks.bad(path,
                         f'with its {dataset.Rows} x {dataset.Columns} pixels the series has more than max_voxels',
                         'Raise max_voxels of the source if that is right')


def _placed(place: Any, pixels: np.ndarray, series: str, path: str, pet_facts: dict[str, str]) -> _Slice:
    """The slice of pixels [rows,columns]; place: its data set or functional groups."""
    if place.get('ImagePositionPatient') is None or place.get('ImageOrientationPatient') is None:
        raise checks.bad(path, 'it does not say where it lies (ImagePositionPatient, ImageOrientationPatient)',
                         'Take it out of the folder')
    cosines = np.array(place.get('ImageOrientationPatient'), float).reshape(2, 3)
    if not np.allclose(cosines @ cosines.T, np.eye(2), atol=1e-3):
        raise checks.bad(path, 'its rows and columns are not perpendicular')
    if place.get('PixelSpacing') is None:
        raise checks.bad(path, 'it has no PixelSpacing', 'Take it out of the folder, or convert the series to .nii.gz')
    down, right = sides = [float(s) for s in place.get('PixelSpacing')]  # from row to row, from column to column
    if not 0 < min(sides) <= max(sides) < math.inf:
        raise checks.bad(path, f'its PixelSpacing is {sides}')
    scale = tuple(default if (value := place.get(key)) is None else float(value)
                  for key, default in (('RescaleSlope', 1.0), ('RescaleIntercept', 0.0)))
    if not np.isfinite(scale).all() or scale[0] == 0:
        raise checks.bad(path, f'its scale is {scale[0]} and {scale[1]}')
    position = np.array(place.get('ImagePositionPatient'), float).reshape(3)
    return _Slice(path, series, pixels, position, cosines.T * (right, down), scale, pet_facts)


def _check_same_series(a: _Slice, b: _Slice, folder: str) -> None:
    """Two slices of one series, or BadData."""
    for equal, problem in ((a.series == b.series, 'two series (SeriesInstanceUID)'),
                       (a.pixels.shape == b.pixels.shape, 'slices of two sizes'),
                       (np.abs(a.across - b.across).max() < 1e-4 * np.abs(a.across).max(),
                        'slices of two orientations or pixel spacings')):
        if not equal:
            raise checks.bad(folder,
                             f'it holds {problem}, e.g. {os.path.basename(a.path)} and {os.path.basename(b.path)}',
                             'Keep one series a folder')
