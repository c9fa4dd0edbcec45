"""DICOM: one grey image a file, such as a digitised mammogram or its mask."""
import dataclasses
import os
import stat

import numpy as np

from jaxkd.data.formats import checks, dicom, image

# The only elements that are read. In these archives PatientID is the name of the image; dates and names are not read.
_HEAD = ['SOPClassUID', 'Modality', 'PatientID', 'SeriesInstanceUID', 'SeriesDescription', 'Rows', 'Columns',
         'NumberOfFrames', 'SamplesPerPixel', 'PhotometricInterpretation', 'BitsAllocated', 'BitsStored', 'HighBit',
         'PixelRepresentation']


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
    """uint8 or uint16 [H,W], as stored; MONOCHROME1 is inverted, so that larger is brighter."""
    return decode(image.read_bytes(path, image.max_bytes(max_pixels)), path, max_pixels)[0]


def decode(data: bytes, path: str, max_pixels: int) -> tuple[np.ndarray, int]:
    """(pixels as of `read`, BitsStored where it is below 16 in pixels of 16 bits, else 0), of the bytes of a file."""
    with checks.reading(path):
        dataset = dicom.parse(data, path, [*_HEAD, 'PixelData'])
        if not (dataset.get('Rows') and dataset.get('Columns')):
            raise checks.bad(path, f'it is no picture ({dicom.kind_of(dataset)})', 'Remove its row')
        if dataset.get('NumberOfFrames') not in (None, 1):
            raise checks.bad(path, 'it has several frames', 'Save the one that is meant')
        grey = dataset.PhotometricInterpretation in ('MONOCHROME1', 'MONOCHROME2') and dataset.SamplesPerPixel == 1
        if not grey or dataset.BitsAllocated not in (8, 16) or dataset.PixelRepresentation:
            raise checks.bad(path, 'its pixels are not grey, unsigned, of 8 or 16 bits', 'Convert it')
        checks.check_pixels((dataset.Columns, dataset.Rows), max_pixels, path)
        dtype = np.uint8 if dataset.BitsAllocated == 8 else np.uint16
        pixels = dicom.decode_pixels(dataset, path).astype(dtype, copy=False)
        if dataset.PhotometricInterpretation == 'MONOCHROME1':
            pixels = np.asarray(2 ** int(dataset.BitsStored) - 1, pixels.dtype) - pixels
        return np.ascontiguousarray(pixels), int(dataset.BitsStored) % 16 if dtype == np.uint16 else 0
