"""Pictures of one frame in BMP and TIFF, which hold masks that PNG would hold too. Neither has checksums."""
import io

import numpy as np

from jaxkd.data.formats import checks, image

ENDINGS = ('.bmp', '.tif', '.tiff')


def read(path, max_pixels):
    """uint8 or uint16 [H,W], or uint8 [H,W,3]; a palette becomes the colours it stands for."""
    from PIL import BmpImagePlugin, TiffImagePlugin
    # The two plugins by name, as in jaxkd/data/formats/image.py.
    kind = BmpImagePlugin.BmpImageFile if path.lower().endswith('.bmp') else TiffImagePlugin.TiffImageFile
    content = image.contents(path, 8 * max_pixels + 2**24)
    with checks.reading(path):
        found = kind(io.BytesIO(content))
        if found.width * found.height > max_pixels:
            raise checks.bad(path, f'its header claims {found.width} x {found.height} pixels, more than max_pixels = '
                                   f'{max_pixels:,}', 'Raise max_pixels of the source if that is right')
        if getattr(found, 'n_frames', 1) > 1:
            raise checks.bad(path, f'it holds {found.n_frames} frames', 'Save the one that is meant')
        if found.mode == 'I;16':
            return np.array(found)
        if found.mode not in ('1', 'L', 'P', 'RGB'):
            raise checks.bad(path, f'its pixels are of mode {found.mode}', 'Save it as 8- or 16-bit grey or 8-bit RGB')
        return np.array(found.convert('L' if found.mode in ('1', 'L') else 'RGB'))
