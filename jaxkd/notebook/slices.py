"""Volumes side by side in a notebook: one slider moves through all of them, another one fades the overlay."""
import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.data.volume import Volume
from jaxkd.notebook.page import Page
from jaxkd.report.figures import COLOURS, legend
from jaxkd.report.markup import Html, tag

WIDTH, SLICES = 256, 64  # most pixels of a slice, most slices of a volume: of more, every second, third ... is shown
MOVE = ("for (const i of document.querySelectorAll('img')) "
        "i.style.top = -Math.round(this.value * (i.dataset.n - 1)) * i.dataset.h + 'px'")
FADE = "for (const i of document.querySelectorAll('img.overlay')) i.style.opacity = this.value"


def show(volumes: Any, overlay: Any = None, window: tuple[float, float] | None = None) -> Page:
    """volumes: an array [D,H,W], a Volume (axial slices, the patient's right on the left), or {name: one of these},
    which may differ in size: the slider goes from the first slice of each to its last.
    overlay: classes in whole numbers, 0 transparent and 255 ignored, of the shape of one of the volumes, over each that
    has it; or {name of a volume: such an array}. window: lowest and highest value shown; None takes the 1st and the
    99th percentile of each volume. Raises BadData for other shapes.
    """
    stacks = {name: _stack(v) for name, v in (volumes if isinstance(volumes, Mapping) else {'': volumes}).items()}
    if isinstance(overlay, Mapping):
        overlays = {name: _stack(v) for name, v in overlay.items()}
    else:
        shared = None if overlay is None else _stack(overlay)
        overlays = {} if shared is None else {n: shared for n, a in stacks.items() if a.shape == shared.shape}
    wrong = [n for n, a in overlays.items() if n not in stacks or stacks[n].shape != a.shape]
    if wrong or overlay is not None and not overlays:
        raise errors.BadData(f'The overlay{f" of {wrong[0]}" if wrong else ""} has the shape of no volume: '
                             f'{ {n: a.shape for n, a in stacks.items()} }.')
    columns = [tag('figure', _strips(a, overlays.get(name), window), tag('figcaption', name), style='margin:0 1em 0 0')
               for name, a in stacks.items()]
    deepest = max(len(a[:: _step(a)]) for a in stacks.values())
    sliders = [_slider('slice', MOVE, 1 / max(1, deepest - 1), 0.5)] if deepest > 1 else []
    sliders += [_slider('overlay', FADE, 0.05, 0.5)] if overlays else []
    classes = sorted({int(v) for a in overlays.values() for v in np.unique(a)} - {0, 255})
    key = legend({f'class {c}': COLOURS[(c - 1) % len(COLOURS)] for c in classes}) if classes else Html('')
    return Page.of('slices', [tag('div', *columns, style='display:flex; flex-wrap:wrap'), *sliders, key])


def _stack(volume: Any) -> np.ndarray:
    """[D,H,W] of a Volume or an array of two or three axes."""
    if isinstance(volume, Volume):
        return np.flip(np.asarray(volume.voxels).transpose(2, 1, 0), 1)
    a = np.asarray(volume)
    a = a[None] if a.ndim == 2 else a[..., 0] if a.ndim == 4 and a.shape[-1] == 1 else a
    if a.ndim != 3:
        raise errors.BadData(f'A volume has the axes [D,H,W], this array has the shape {a.shape}.')
    return a


def _step(a: np.ndarray) -> int:
    return -(-len(a) // SLICES)


def _strips(a: np.ndarray, overlay: np.ndarray | None, window: tuple[float, float] | None) -> Html:
    """The slices of a volume below each other in one picture, of which a frame shows one; the overlay likewise."""
    kept = a[::_step(a)].astype(np.float32)
    low, high = window or np.percentile(kept, (1, 99))
    grey = (255 * np.clip((kept - low) / max(float(high - low), 1e-6), 0, 1)).astype(np.uint8)
    scale = WIDTH / max(a.shape[1:])
    height, width = (max(1, round(n * scale)) for n in a.shape[1:])
    pictures = [_picture(grey, 'L', '', height, width)]
    if overlay is not None:
        painted = overlay[::_step(a)].astype(np.int64)
        rgb = [tuple(int(c[i:i + 2], 16) for i in (1, 3, 5)) for c in COLOURS]
        visible = (painted > 0) & (painted != 255)
        rgba = np.concatenate([np.array(rgb, np.uint8)[(painted - 1) % len(rgb)],
                               255 * visible[..., None].astype(np.uint8)], -1)
        pictures.append(_picture(rgba, 'RGBA', 'overlay', height, width))
    return tag('div', *pictures, style=f'position:relative; overflow:hidden; width:{width}px; height:{height}px')


def _picture(slices: np.ndarray, mode: str, kind: str, height: int, width: int) -> Html:
    from PIL import Image
    buffer, n = io.BytesIO(), len(slices)
    Image.fromarray(slices.reshape(-1, *slices.shape[2:]), mode).save(buffer, 'PNG', optimize=True)
    top = -round(0.5 * (n - 1)) * height
    style = (f'position:absolute; left:0; top:{top}px; width:{width}px; height:{n * height}px; max-width:none; '
             f'image-rendering:pixelated; opacity:{0.5 if kind else 1}')
    return tag('img', class_=kind, src=f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}',
               style=style, alt=kind or 'slices', **{'data-n': n, 'data-h': height})


def _slider(name: str, handler: str, step: float, value: float) -> Html:
    return tag('label', name, ' ', tag('input', type='range', min=0, max=1, step=f'{step:.6g}', value=value,
                                       oninput=handler), style='display:inline-block; margin:.5em 1em .5em 0')
