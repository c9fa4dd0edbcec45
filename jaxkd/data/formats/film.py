"""DICOM: one grey picture a file, such as a digitised mammogram or a mask drawn on it."""
import dataclasses
import io
import os
import stat

import numpy as np

from jaxkd.data import image
from jaxkd.data.formats import checks

# The only elements that are looked at. PatientID is what an archive calls a picture; dates and names are never read.
_HEAD = ['PatientID', 'SeriesInstanceUID', 'SeriesDescription', 'Rows', 'Columns', 'NumberOfFrames', 'SamplesPerPixel',
         'PhotometricInterpretation', 'BitsAllocated', 'BitsStored', 'HighBit', 'PixelRepresentation']
_DEFLATED = b'1.2.840.10008.1.2.1.99'


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
    with checks.needs('pydicom', path):
        import pydicom
    data = image.contents(path, 2 * max_pixels + 2**24)
    if _DEFLATED in data[:4096]:  # pydicom would inflate it without a bound
        raise checks.bad(path, 'it is deflated', 'Save it uncompressed')
    with checks.reading(path):
        d = pydicom.dcmread(io.BytesIO(data), specific_tags=[*_HEAD, 'PixelData'])
        if d.get('NumberOfFrames') not in (None, 1):
            raise checks.bad(path, 'it has several frames', 'Save the one that is meant')
        grey = d.PhotometricInterpretation in ('MONOCHROME1', 'MONOCHROME2') and d.SamplesPerPixel == 1
        if not grey or d.BitsAllocated not in (8, 16) or d.PixelRepresentation:
            raise checks.bad(path, 'its pixels are not grey, unsigned, of 8 or 16 bits', 'Convert it')
        if not 1 <= d.Rows * d.Columns <= max_pixels:
            raise checks.bad(path, f'its header claims {d.Rows} x {d.Columns} pixels, more than max_pixels = {max_pixels:,}',
                             'Raise max_pixels of the source if that is right')
        syntax = d.file_meta.TransferSyntaxUID
        if syntax.is_compressed and not pydicom.pixels.get_decoder(syntax).is_available:
            raise checks.bad(path, f'its compression ({syntax.name}) needs a decoder that is not installed',
                             'Decompress it, e.g. with gdcmconv --raw')
        pixels = pydicom.pixels.pixel_array(d, raw=True)
        if pixels.shape != (d.Rows, d.Columns):
            raise checks.bad(path, f'its pixels have shape {pixels.shape}', 'Copy it again from where it came')
        pixels = pixels.astype(np.uint8 if d.BitsAllocated == 8 else np.uint16, copy=False)
        if d.PhotometricInterpretation == 'MONOCHROME1':
            pixels = pixels.dtype.type(2 ** int(d.BitsStored) - 1) - pixels
        return np.ascontiguousarray(pixels)
