"""DICOM: one grey picture a file, such as a digitised mammogram or a mask drawn on it."""
import dataclasses
import os
import stat

import numpy as np

from jaxkd.data.formats import checks, dicom, image

# The only elements that are looked at. PatientID is what an archive calls a picture; dates and names are never read.
_HEAD = ['PatientID', 'SeriesInstanceUID', 'SeriesDescription', 'Rows', 'Columns', 'NumberOfFrames', 'SamplesPerPixel',
         'PhotometricInterpretation', 'BitsAllocated', 'BitsStored', 'HighBit', 'PixelRepresentation']


@dataclasses.dataclass(frozen=True)
class Head:
    """What the header of a file says, without its pixels."""

    path: str
    name: str  # PatientID
    series: str  # SeriesInstanceUID
    what: str  # SeriesDescription, in lower case
    shape: tuple  # rows, columns


def head(path):
    """The Head of a DICOM file; of the file no more than the header is read."""
    with checks.needs('pydicom', path):
        import pydicom
    with checks.reading(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise checks.bad(path, 'it is not a regular file', 'Take it out of the folder')
        d = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEAD)
        if not (d.get('Rows') and d.get('Columns')):
            raise checks.bad(path, 'it is no picture (no Rows, Columns)', 'Take it out of the folder')
        return Head(path, str(d.get('PatientID', '')), str(d.get('SeriesInstanceUID', '')),
                    str(d.get('SeriesDescription', '')).lower(), (int(d.Rows), int(d.Columns)))


def read(path, max_pixels=image.MAX_PIXELS):
    """uint8 or uint16 [H,W], as stored; MONOCHROME1 is turned so that larger is brighter."""
    with checks.reading(path):
        d = dicom.opened(path, 2 * max_pixels + 2**24, [*_HEAD, 'PixelData'])
        if d.get('NumberOfFrames') not in (None, 1):
            raise checks.bad(path, 'it has several frames', 'Save the one that is meant')
        grey = d.PhotometricInterpretation in ('MONOCHROME1', 'MONOCHROME2') and d.SamplesPerPixel == 1
        if not grey or d.BitsAllocated not in (8, 16) or d.PixelRepresentation:
            raise checks.bad(path, 'its pixels are not grey, unsigned, of 8 or 16 bits', 'Convert it')
        if not 1 <= d.Rows * d.Columns <= max_pixels:
            raise checks.bad(path, f'its header claims {d.Rows} x {d.Columns} pixels, more than max_pixels = {max_pixels:,}',
                             'Raise max_pixels of the source if that is right')
        pixels = dicom.decoded(d, path).astype(np.uint8 if d.BitsAllocated == 8 else np.uint16, copy=False)
        if d.PhotometricInterpretation == 'MONOCHROME1':
            pixels = pixels.dtype.type(2 ** int(d.BitsStored) - 1) - pixels
        return np.ascontiguousarray(pixels)
