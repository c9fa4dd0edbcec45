"""The images of the report, as small PNG tiles: attention over radiographs, activation over slices of volumes."""
import base64
import io
import itertools
from typing import Any

import numpy as np

from jaxkd.report.figures import COLOURS, legend
from jaxkd.report.markup import Html, join, number, tag
from jaxkd.report.run_folder import Arrays, Run

TILE, LARGE, EXAMPLES = 112, 168, 8  # pixels of a tile, of one of a segmentation; radiographs or scans shown
CASES = 16  # of which slices are shown
COARSE = 3  # positions in a side of a map of activation: as few hardly tell a place
SLICES_NOTE = (
    'The axial slice through the middle of each crop, anterior up, the patient\'s right on the left; one row a case. '
    'Of each subgroup the first test cases, then the first that a stage gets wrong or right. Each picture is scaled by '
    'itself, and so is each map of activation, from 0: compare places, not brightness. A map shows what speaks for the '
    'predicted class at the few positions that the network has before its pooling, laid over the first of the '
    'pictures; it is no outline. What the stages do not read is shown all the same.')


def attention(run: Run, which: str) -> Html:
    """Images with a true box, and one map of every stage over them."""
    stages = {s: a for s, a in run.examples.items() if which in a}
    if not stages:
        return Html('')
    chosen: dict[tuple[str, ...], tuple[Arrays, int]] = {}  # the first stage that has an example gives its picture
    for a in stages.values():
        for i, shown in enumerate(zip(a['case'], a['finding'])):
            chosen.setdefault(tuple(map(str, shown)), (a, i))
    rows = []
    for key, (a, i) in list(chosen.items())[:EXAMPLES]:
        cells = [_tile(a['image'][i], a['box'][i])]
        for other in stages.values():
            at = [j for j, k in enumerate(zip(other['case'], other['finding'])) if tuple(map(str, k)) == key]
            cells.append(_tile(*(other[k][at[0]] for k in ('image', 'box', which))) if at else 'not among its examples')
        rows.append(tag('tr', tag('th', key[1], tag('small', key[0])), *(tag('td', c) for c in cells)))
    return _tiles(('finding, case', 'image and box', *stages), rows)


def slices(run: Run) -> Html:
    """Every modality of a case side by side, then the first one under the activation map of each stage."""
    stages = run.slices
    chosen: dict[str, dict[str, int]] = {}
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


SEGMENTS = {  # array: (heading, what it shows)
    'predicted': ('Predictions', (
        'Colour is what a stage predicts, the white line is the true outline, in the slice with most of the true '
        'classes. Of each stage the worst, middle and best scans by its own Dice; those that all stages kept come '
        'first.')),
    'energy': ('Feature energy', (
        'The mean square over the channels of the last features, each from 0 to its own largest value: compare places, '
        'not brightness. The white line is the true outline.')),
    'cam': ('Class activation', (
        'What speaks for the class of the patient, from 0 to its own largest value, at the few positions that the '
        'network has before its pooling. The white line is the true outline.'))}


def segments(run: Run, evaluator: str = '') -> list[Html]:
    """Scans with the prediction, the feature energy and the class activation of every stage, as far as they are
    there.
    """
    stages = run.segments(evaluator)
    scans: dict[str, dict[str, int]] = {}
    turn: dict[str, int] = {}
    for s, a in stages.items():
        ranks = list(a['rank'])
        for i, case in enumerate(map(str, a['case'])):
            scans.setdefault(case, {})[s] = i
            # the first of each rank, then the second of each
            turn[case] = min(turn.get(case, i), ranks[:i].count(ranks[i]))
    chosen = sorted(scans.items(), key=lambda c: (-len(c[1]), turn[c[0]]))[:EXAMPLES // 2 if evaluator else EXAMPLES]
    shown = []
    for what, (heading, note) in SEGMENTS.items():
        of = [s for s, a in stages.items() if what in a]
        rows = [_scan(stages, of, what, case, at) for case, at in chosen if any(s in at for s in of)]
        if rows:
            first = stages[of[0]]
            classes = dict(zip(map(str, first['labels'][1:]), itertools.cycle(COLOURS))) if what == 'predicted' else {}
            shown.append(join([tag('h3', f'{heading}{f": {evaluator}" if evaluator else ""}'), tag('p', note),
                               legend(classes) if classes else '', _tiles(('scan', 'image', *of), rows)]))
    return shown


def _scan(stages, of, what, case, at):
    """One row: the image, then what each stage makes of it, all cut alike around the truth and the predictions."""
    there = [(stages[s], i) for s, i in at.items()]
    sizes = {a['image'].shape[1:] for a, _ in there}
    some = np.any([_class(a[k][i]) > 0 for a, i in there for k in ('truth', 'predicted')],
                  0) if len(sizes) == 1 else None
    box = _box(some) if some is not None and some.any() else (slice(None), slice(None))
    a, i = there[0]
    cells = [_large(a['image'][i][box])]
    for s in of:
        if s in at:
            a, i = stages[s], at[s]
            said = tag('small', f'Dice {number(float(a["dice"][i]))}, {a["rank"][i]}')
            cells.append(tag('div', _large(a['image'][i][box], a['truth'][i][box], **{what: a[what][i][box]}), said))
        else:
            cells.append('not among its examples')
    return tag('tr', tag('th', case), *(tag('td', c) for c in cells))


def _box(some):
    """A square around what is there, with half as much beside it, as far as the picture goes."""
    ends = [(np.flatnonzero(some.any(axis))[[0, -1]] + (0, 1)) for axis in (1, 0)]
    side = max(48, int(1.5 * max(b - a for a, b in ends)))
    starts = [int(np.clip((a + b - side) // 2, 0, max(n - side, 0))) for (a, b), n in zip(ends, some.shape)]
    return tuple(slice(start, start + side) for start in starts)


def _class(label):
    return np.where(label == 255, 0, label)


def _large(image, truth=None, predicted=None, energy=None, cam=None):
    """A slice [H,W] uint8 under colours of classes or a map, with the outline of the truth as sharp as the tile."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from PIL import Image
    size = LARGE, round(LARGE * image.shape[0] / image.shape[1])

    def scaled(a: np.ndarray, how: Any) -> np.ndarray:
        return np.asarray(Image.fromarray(a).resize(size, how))
    shown = np.repeat(scaled(image, Image.Resampling.BILINEAR)[..., None] / 255, 3, axis=2)
    if predicted is not None:
        found = scaled(_class(predicted).astype(np.uint8), Image.Resampling.NEAREST)
        colours = np.array([(0, 0, 0), *map(to_rgb, COLOURS)])[np.where(found, (found - 1) % len(COLOURS) + 1, 0)]
        shown = np.where(found[..., None] > 0, 0.5 * shown + 0.5 * colours, shown)
    for heat, share in ((energy, 1.0), (cam, 0.45)):
        if heat is not None:
            heat = scaled(np.asarray(heat, np.float32) / max(float(heat.max()), 1e-12), Image.Resampling.BILINEAR)
            shown = (1 - share) * shown + share * colormaps['inferno'](heat)[..., :3]
    if truth is not None:
        true = scaled(_class(truth).astype(np.uint8), Image.Resampling.NEAREST)
        edge = np.zeros(true.shape, bool)
        edge[1:] |= true[1:] != true[:-1]
        edge[:, 1:] |= true[:, 1:] != true[:, :-1]
        shown = np.where(edge[..., None], 1.0, shown)
    return _svg(Image.fromarray((255 * shown).astype(np.uint8)), class_='tile large')


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
    tile = Image.fromarray((255 * shown).astype(np.uint8)).resize((TILE, high), Image.Resampling.BILINEAR)
    line = Html('')
    if box is not None:
        x, y, w, h = (f'{float(v) * TILE / image.shape[1]:.1f}' for v in box)
        line = tag('rect', x=x, y=y, width=w, height=h, fill='none', stroke='#35d07f')
    return _svg(tile, line)


def _svg(tile, line='', class_='tile'):
    """A picture as large as its pixels, of 64 colours, with an SVG element over it."""
    png = io.BytesIO()
    tile.quantize(64).save(png, 'PNG', optimize=True)
    data = base64.b64encode(png.getvalue()).decode()
    picture = tag('image', href=f'data:image/png;base64,{data}', width=tile.width, height=tile.height)
    return tag('svg', picture, line, class_=class_, viewBox=f'0 0 {tile.width} {tile.height}')
