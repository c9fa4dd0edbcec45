"""Images of one frame in BMP and TIFF, formats of some masks. Neither has checksums."""
import io
from typing import Any

import numpy as np

from jaxkd.data.formats import checks, image

ENDINGS = ('.bmp', '.tif', '.tiff')


def read(path: str, max_pixels: int) -> np.ndarray:
    """uint8 or uint16 [H,W], or uint8 [H,W,3]; a palette becomes its colours."""
    from PIL import BmpImagePlugin, TiffImagePlugin
    # The two plugins by name, as in jaxkd/data/formats/image.py.
    kind: Any = BmpImagePlugin.BmpImageFile if path.lower().endswith('.bmp') else TiffImagePlugin.TiffImageFile
    content = image.read_bytes(path, 8 * max_pixels + 2**24)
    with checks.reading(path):
        picture = kind(io.BytesIO(content))
        checks.check_pixels(picture.size, max_pixels, path)
        if getattr(picture, 'n_frames', 1) > 1:
            raise checks.bad(path, f'it holds {picture.n_frames} frames', 'Save the one that is meant')
        if picture.mode == 'I;16':
            return np.array(picture)
        if picture.mode not in ('1', 'L', 'P', 'RGB'):
            raise checks.bad(path, f'its pixels are of mode {picture.mode}', 'Save it as 8- or 16-bit grey or RGB')
        return np.array(picture.convert('L' if picture.mode in ('1', 'L') else 'RGB'))
