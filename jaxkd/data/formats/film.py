"""DICOM: one picture a file, such as a digitised mammogram, its mask, or a colour photograph."""
import dataclasses
import os
import stat

import numpy as np

from jaxkd.data.formats import checks, dicom, image
from jaxkd.runtime import log

# The only elements that are read. In these archives PatientID is the name of the image; dates and names are not read.
_HEAD = ['SOPClassUID', 'Modality', 'PatientID', 'SeriesInstanceUID', 'SeriesDescription', 'Rows', 'Columns',
         'NumberOfFrames', 'SamplesPerPixel', 'PhotometricInterpretation', 'BitsAllocated', 'BitsStored', 'HighBit',
         'PixelRepresentation', 'PlanarConfiguration']
_COLOURS = 'RGB', 'YBR_FULL', 'YBR_FULL_422', 'YBR_ICT', 'YBR_RCT'  # of three samples of 8 bits
_reported: set[str] = set()  # what a line of this process was about


@dataclasses.dataclass(frozen=True)
class Head:
    """The header of a file, without its pixels."""

    path: str
    name: str  # PatientID
    series: str  # SeriesInstanceUID
    description: str  # SeriesDescription, in lower case
    shape: tuple  # rows, columns


def head(path: str) -> Head:
    """The Head of a DICOM file; the pixels are not read."""
    with checks.needs('pydicom', path):
        import pydicom
    with checks.reading(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise checks.bad(path, 'it is not a regular file', 'Take it out of the folder')
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEAD)
        if not (dataset.get('Rows') and dataset.get('Columns')):
            raise checks.bad(path, 'it is no picture (no Rows, Columns)', 'Take it out of the folder')
        return Head(path, str(dataset.get('PatientID', '')), str(dataset.get('SeriesInstanceUID', '')),
                    str(dataset.get('SeriesDescription', '')).lower(), (int(dataset.Rows), int(dataset.Columns)))


def read(path: str, max_pixels: int = image.MAX_PIXELS) -> np.ndarray:
    """uint8 or uint16 [H,W] of a grey file, as stored; MONOCHROME1 is inverted, so that larger is brighter."""
    pixels = decode(image.read_bytes(path, image.max_bytes(max_pixels)), path, max_pixels)[0]
    if pixels.ndim > 2:
        raise checks.bad(path, 'it is coloured', 'Convert it to grey')
    return pixels


def decode(data: bytes, path: str, max_pixels: int) -> tuple[np.ndarray, int]:
    """(pixels as of `read`, or RGB uint8 [H,W,3], BitsStored where it is below 16 in pixels of 16 bits, else 0).

    Signed values begin at 0, at the lowest that BitsStored can hold. data: the bytes of the file.
    """
    with checks.reading(path):
        dataset = dicom.parse(data, path, [*_HEAD, 'PixelData'])
        if not (dataset.get('Rows') and dataset.get('Columns')):
            raise checks.bad(path, f'it is no picture ({dicom.kind_of(dataset)})', 'Remove its row')
        if dataset.get('NumberOfFrames') not in (None, 1):
            raise checks.bad(path, 'it has several frames', 'Save the one that is meant')
        checks.check_pixels((dataset.Columns, dataset.Rows), max_pixels, path)
        if dataset.SamplesPerPixel == 3 and dataset.PhotometricInterpretation in _COLOURS and (
                dataset.BitsAllocated == 8 and not dataset.PixelRepresentation):
            return np.ascontiguousarray(dicom.decode_pixels(dataset, path)), 0
        if not dicom.is_grey(dataset) or dataset.BitsAllocated not in (8, 16):
            raise checks.bad(path, f'its pixels are {dicom.kind_of_pixels(dataset)}, which are not read',
                             'Save it as grey of 8 or 16 bits or as RGB of 8')
        pixels = dicom.decode_pixels(dataset, path)
        if dataset.PixelRepresentation:
            pixels = _unsigned(pixels, int(dataset.BitsStored), path)
        dtype = np.uint8 if dataset.BitsAllocated == 8 else np.uint16
        pixels = pixels.astype(dtype, copy=False)
        if dataset.PhotometricInterpretation == 'MONOCHROME1':
            pixels = np.asarray(2 ** int(dataset.BitsStored) - 1, pixels.dtype) - pixels
        return np.ascontiguousarray(pixels), int(dataset.BitsStored) % 16 if dtype == np.uint16 else 0


def _unsigned(pixels: np.ndarray, bits: int, path: str) -> np.ndarray:
    """int32 [H,W] from 0, of signed pixels of `bits` bits: grey 0 of the file becomes the middle."""
    if 'signed' not in _reported:
        _reported.add('signed')
        log.info(f'{path}: its pixels are signed, {pixels.min()} to {pixels.max()} of {bits} bits; black is '
                 f'{-2**(bits - 1)}. Other pictures with signed pixels get no line.')
    return pixels.astype(np.int32) + 2**(bits - 1)
