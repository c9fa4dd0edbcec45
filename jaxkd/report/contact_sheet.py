"""A page with pictures of cases as their source gives them, and lines of text."""
import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.contracts import Record
from jaxkd.data.source import IGNORED, Source
from jaxkd.data.volume import Volume
from jaxkd.report import html_page
from jaxkd.report.markup import Html, tag

TILE = 160  # width of a picture in pixels of the page; its file has up to four times as many
GREEN = (53, 208, 127)  # of boxes and of the edge of a label


def page(title: str, source: Source, split: Mapping[str, str], sections: Mapping[str, Sequence[str]],
         records: Mapping[int, Record]) -> str:
    """HTML text of pictures, {index of a case: its record}, and then of sections, {heading: lines}."""
    tiles = [_tile(source, i, split, record) for i, record in records.items()]
    texts = [tag('section', tag('h2', heading), tag('pre', '\n'.join(lines))) for heading, lines in sections.items()]
    return html_page.document(title, [tag('h1', title), tag('section', tag('h2', 'Pictures'), *tiles), *texts])


def _tile(source: Source, i: int, split: Mapping[str, str], record: Record) -> Html:
    """The pictures of a case, with its part of the split and its labels below."""
    label, case = record.get('label'), source.cases[i]
    said = ''
    if isinstance(label, np.ndarray) and label.ndim == 1:
        said = ', '.join(name for name, value in zip(source.labels, label) if value == 1) or 'no label'
    elif isinstance(label, (int, np.integer, np.ndarray)) and np.ndim(label) == 0 and int(label) >= 0:
        said = source.labels[int(label)]
    pictures = dict(_pictures(record))
    keys = f' ({", ".join(pictures)})' if len(pictures) > 1 else ''
    images = [tag('img', src=f'data:image/png;base64,{png}', width=TILE, alt=key) for key, png in pictures.items()]
    return tag('figure', *images, tag('figcaption', case.id, keys, tag('small', f'{split[case.id]} {said}')),
               style='display:inline-block; margin:0 1em 1em 0; vertical-align:top; max-width:100%')


def _pictures(record: Record) -> list[tuple[str, str]]:
    """(key, PNG) of the image, or of the slice of each volume that holds most of the label, else its middle."""
    label: Any = record.get('label')
    shown = []
    places = label.voxels if isinstance(label, Volume) else label if np.ndim(label) > 1 else None
    for key, value in record.items():
        volume = isinstance(value, Volume)
        if key in ('label', 'instances') or not (volume or key == 'image'):
            continue
        pixels: Any = np.asarray(value.voxels if volume else value)
        mask = None if places is None else np.where(places == IGNORED, 0, places)
        if mask is not None and mask.shape != pixels.shape[:mask.ndim]:
            mask = None
        if volume:
            in_slice = np.zeros(1) if mask is None else (mask > 0).sum((0, 1))
            z = int(in_slice.argmax()) if in_slice.any() else pixels.shape[2] // 2
            pixels, mask = (None if a is None else np.flipud(a[:, :, z].T) for a in (pixels, mask))
        shown.append((key, _png(pixels, mask, record.get('boxes', ()) if not volume else ())))
    return shown


def _png(pixels: Any, mask: Any, boxes: Any) -> str:
    """Grey [h,w] or colour from the 1st to the 99th percentile, with the edge of the label and boxes -> base64."""
    from PIL import Image, ImageDraw
    step = max(1, pixels.shape[1] // (2 * TILE))  # sharp on dense screens, and small
    pixels = pixels[::step, ::step].astype(np.float32)
    low, high = np.percentile(pixels, (1, 99))
    grey = (255 * np.clip((pixels - low) / max(float(high - low), 1e-6), 0, 1)).astype(np.uint8)
    rgb = grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, 2)
    if mask is not None:
        mask, edge = mask[::step, ::step], np.zeros(rgb.shape[:2], bool)
        edge[1:] |= mask[1:] != mask[:-1]
        edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
        rgb[edge] = GREEN
    picture = Image.fromarray(rgb)
    for _, x, y, w, h in boxes:
        ImageDraw.Draw(picture).rectangle([float(v) / step for v in (x, y, x + w, y + h)], outline=GREEN)
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG')
    return base64.b64encode(buffer.getvalue()).decode()
