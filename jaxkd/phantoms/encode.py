"""Contents of files as bytes or text: pictures and tables."""
import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np


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
