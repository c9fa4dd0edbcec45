"""Contents of files: pictures, tables, DICOM."""
import contextlib
import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxkd.data.formats import checks
from jaxkd.runtime import files

_EMPTY = ('StudyDate', 'StudyTime', 'AccessionNumber', 'PatientBirthDate', 'PatientSex', 'ReferringPhysicianName')


def picture(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    """The bytes of a file of a kind that Pillow writes ('jpeg', 'png'); pixels uint8 or uint16 [H,W], or uint8
    [H,W,3].
    """
    from PIL import Image
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def table(columns: Sequence[str], rows: Iterable[Sequence]) -> str:
    """The text of a .csv file: the names of the columns, then the rows."""
    text = io.StringIO(newline='')
    csv.writer(text, lineterminator='\n').writerows([columns, *rows])
    return text.getvalue()


@contextlib.contextmanager
def buffered(path: str | os.PathLike) -> Iterator[io.BytesIO]:
    """A buffer for a library to write to, which then becomes the file `path` in one step. Raises CannotWrite."""
    buffer = io.BytesIO()
    yield buffer
    files.write(path, buffer.getvalue())


def write_dicom(path: str | os.PathLike, pixels: np.ndarray, storage: str, **elements: object) -> None:
    """Write one DICOM file of grey pixels, uint8 or uint16 [H,W].

    storage: what pydicom calls its class, 'CTImageStorage'. elements: further elements by keyword. Raises ConfigError
    without pydicom, CannotWrite.
    """
    with checks.needs('pydicom', path):
        import pydicom
    d, bits = pydicom.Dataset(), pixels.dtype.itemsize * 8
    elements = dict(dict.fromkeys(_EMPTY, ''), SOPClassUID=getattr(pydicom.uid, storage), Rows=pixels.shape[0],
                    Columns=pixels.shape[1], SamplesPerPixel=1, PhotometricInterpretation='MONOCHROME2',
                    BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=0) | elements
    for key, value in elements.items():
        setattr(d, key, value)
    content = pixels.astype(pixels.dtype.newbyteorder('<')).tobytes()
    d.PixelData = content + b'\0' * (len(content) % 2)
    d.file_meta = pydicom.dataset.FileMetaDataset()
    d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    with buffered(path) as buffer:
        d.save_as(buffer, enforce_file_format=True)
