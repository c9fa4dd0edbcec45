"""The images of the report, as small PNG tiles: attention over radiographs, activation over slices of volumes."""
import base64
import io

import numpy as np

from jaxkd.report.markup import Html, join, tag

TILE, EXAMPLES = 112, 8  # pixels of a tile, radiographs shown
CASES = 16  # of which slices are shown
COARSE = 3  # positions in a side of a map of activation: as few hardly tell a place
SLICES_NOTE = (
    'The axial slice through the middle of each crop, anterior up, the patient\'s right on the left; one row a case. '
    'Of each subgroup the first test cases, then the first that a stage gets wrong or right. Each picture is scaled by '
    'itself, and so is each map of activation, from 0: compare places, not brightness. A map shows what speaks for the '
    'predicted class at the few positions that the network has before its pooling, laid over the first of the '
    'pictures; it is no outline. What the stages do not read is shown all the same.')


def attention(run, which):
    """Images with a true box, and one map of every stage over them."""
    stages = {s: a for s, a in run.examples.items() if which in a}
    if not stages:
        return Html('')
    chosen = {}  # the first stage that has an example gives its picture
    for a in stages.values():
        for i, key in enumerate(zip(a['case'], a['finding'])):
            chosen.setdefault(tuple(map(str, key)), (a, i))
    rows = []
    for key, (a, i) in list(chosen.items())[:EXAMPLES]:
        cells = [_tile(a['image'][i], a['box'][i])]
        for other in stages.values():
            at = [j for j, k in enumerate(zip(other['case'], other['finding'])) if tuple(map(str, k)) == key]
            cells.append(_tile(*(other[k][at[0]] for k in ('image', 'box', which))) if at else 'not among its examples')
        rows.append(tag('tr', tag('th', key[1], tag('small', key[0])), *(tag('td', c) for c in cells)))
    return _tiles(('finding, case', 'image and box', *stages), rows)


def slices(run):
    """Every modality of a case side by side, then the first one under the activation map of each stage."""
    stages, chosen = run.slices, {}
    for s, a in stages.items():
        for i, case in enumerate(a['case']):
            chosen.setdefault(str(case), {})[s] = i
    if not chosen:
        return Html('')
    backwards = [*stages.values()][::-1]  # those of the last stage first
    modalities = list(dict.fromkeys(str(m) for a in backwards for m in a['modalities']))
    rows = []
    for case, at in sorted(chosen.items(), key=lambda c: -len(c[1]))[:CASES]:  # those that all stages have come first
        s, i = next(iter(at.items()))
        a = stages[s]
        known = {str(m): (a['image'][i, k], a['present'][i, k] > 0) for k, m in enumerate(a['modalities'])}
        cells = [_tile(known[m][0] / 255) if known.get(m, (0, False))[1] else 'absent' for m in modalities]
        cells += [_activation(stages[s], at[s]) if s in at else 'not among its examples' for s in stages]
        true = tag('small', 'true: ', a['labels'][a['label'][i]])
        rows.append(tag('tr', tag('th', case, tag('small', a['group'][i]), true), *(tag('td', c) for c in cells)))
    return join([_coarse(stages), _tiles(('case', *modalities, *stages), rows)])


def _coarse(stages):
    """Which stages have maps too coarse to tell a place; runs of before this was stored say nothing."""
    shapes = {s: a['map_shape'].tolist() for s, a in stages.items() if 'map_shape' in a and a['has_cam'].any()}
    found = [f'{s} ({x} x {y} in the slice, {z} slices)' for s, (z, y, x) in shapes.items() if min(y, x) <= COARSE]
    if not found:
        return Html('')
    return tag('p', f'So few positions have the maps of {", ".join(found)} that they hardly tell a place: read nothing '
                    'into where they are bright.', class_='note')


def _activation(a, i):
    """The tile of one stage, and what it says of the case."""
    best = a['probability'][i].argmax()
    mark = '\u2713' if best == a['label'][i] else '\u2717'
    said = tag('small', f'{mark} {a["labels"][best]} {a["probability"][i, best]:.2f}')
    if not a['present'][i, 0]:
        return tag('div', 'absent', said)
    return tag('div', _tile(a['image'][i, 0] / 255, heat=a['cam'][i]) if a['has_cam'][i] else 'no map', said)


def _tiles(head, rows):
    head = tag('tr', *(tag('th', h) for h in head))
    return tag('div', tag('table', tag('thead', head), tag('tbody', *rows), class_='tiles'), class_='wide')


def _tile(image, box=None, heat=None):
    """Image [H,W] in [0,1], a map [H,W] over it, and the box as a line that stays sharp."""
    from matplotlib import colormaps
    from PIL import Image
    high = round(TILE * image.shape[0] / image.shape[1])
    shown = np.repeat(np.clip(image, 0, 1)[..., None], 3, axis=2)
    if heat is not None:
        low = heat.min() if box is not None else 0
        heat = (heat - low) / max(float(heat.max() - low), 1e-12)
        shown = 0.55 * shown + 0.45 * colormaps['inferno'](heat)[..., :3]
    tile = Image.fromarray((255 * shown).astype(np.uint8)).resize((TILE, high), Image.Resampling.BILINEAR).quantize(64)
    png = io.BytesIO()
    tile.save(png, 'PNG', optimize=True)
    line = Html('')
    if box is not None:
        x, y, w, h = (f'{float(v) * TILE / image.shape[1]:.1f}' for v in box)
        line = tag('rect', x=x, y=y, width=w, height=h, fill='none', stroke='#35d07f')
    data = base64.b64encode(png.getvalue()).decode()
    picture = tag('image', href=f'data:image/png;base64,{data}', width=TILE, height=high)
    return tag('svg', picture, line, class_='tile', viewBox=f'0 0 {TILE} {high}')
