"""The images of the report, as small PNG tiles: attention over radiographs, activation over slices of volumes."""
import base64
import io
import itertools
from typing import Any

import numpy as np

from jaxkd.report.figures import COLOURS, legend
from jaxkd.report.markup import Html, join, number, tag
from jaxkd.report.run_folder import Run

TILE, LARGE, EXAMPLES = 112, 168, 8  # pixels of a tile, of one of a segmentation; radiographs or scans shown
CASES = 16  # cases with slices
MISSING = 'not among its examples'
COARSE = 3  # positions along a side of an activation map, up to which it hardly localises
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
    examples: dict[tuple[str, str], dict[str, int]] = {}  # {(case, finding): {stage: row}}
    for s, a in stages.items():
        for i, (case, finding) in enumerate(zip(a['case'], a['finding'])):
            examples.setdefault((str(case), str(finding)), {}).setdefault(s, i)
    rows = []
    for (case, finding), row_of in list(examples.items())[:EXAMPLES]:
        first, i = next(iter(row_of.items()))
        cells = [_tile(stages[first]['image'][i], stages[first]['box'][i])]
        cells += [_tile(*(a[k][row_of[s]] for k in ('image', 'box', which))) if s in row_of else MISSING
                  for s, a in stages.items()]
        rows.append(_row(tag('th', finding, tag('small', case)), cells))
    return _tiles(('finding, case', 'image and box', *stages), rows)


def _row(head, cells):
    return tag('tr', head, *(tag('td', c) for c in cells))


def slices(run: Run) -> Html:
    """Every modality of a case side by side, then the first one under the activation map of each stage."""
    stages = run.slices
    examples = _by_case(stages)
    if not examples:
        return Html('')
    # modalities of the last stage first
    modalities = list(dict.fromkeys(str(m) for a in reversed(stages.values()) for m in a['modalities']))
    rows = []
    for case, row_of in sorted(examples.items(), key=lambda c: -len(c[1]))[:CASES]:  # first the cases of all stages
        first, i = next(iter(row_of.items()))
        a = stages[first]
        present = {str(m): a['image'][i, k] for k, m in enumerate(a['modalities']) if a['present'][i, k] > 0}
        cells = [_tile(present[m] / 255) if m in present else 'absent' for m in modalities]
        cells += [_activation(stages[s], row_of[s]) if s in row_of else MISSING for s in stages]
        true = tag('small', 'true: ', a['labels'][a['label'][i]])
        rows.append(_row(tag('th', case, tag('small', a['group'][i]), true), cells))
    return join([_coarse(stages), _tiles(('case', *modalities, *stages), rows)])


def _by_case(stages):
    """{case: {stage: its row in the arrays of the stage}}."""
    rows: dict[str, dict[str, int]] = {}
    for s, a in stages.items():
        for i, case in enumerate(map(str, a['case'])):
            rows.setdefault(case, {})[s] = i
    return rows


SEGMENTS = {  # array: (heading, note)
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
    """Scans with the prediction, the feature energy and the class activation of every stage that has these arrays."""
    stages = run.segments(evaluator)
    order: dict[str, int] = {}  # the first of each rank, then the second of each
    for a in stages.values():
        ranks = list(a['rank'])
        for i, case in enumerate(map(str, a['case'])):
            order[case] = min(order.get(case, i), ranks[:i].count(ranks[i]))
    scans = sorted(_by_case(stages).items(), key=lambda c: (-len(c[1]), order[c[0]]))
    scans = scans[:EXAMPLES // 2 if evaluator else EXAMPLES]
    sections = []
    for key, (heading, note) in SEGMENTS.items():
        shown = [s for s, a in stages.items() if key in a]
        rows = [_scan(stages, shown, key, case, row_of) for case, row_of in scans if any(s in row_of for s in shown)]
        if rows:
            labels = map(str, stages[shown[0]]['labels'][1:])
            sections.append(join([tag('h3', f'{heading}{f": {evaluator}" if evaluator else ""}'), tag('p', note),
                                  legend(dict(zip(labels, itertools.cycle(COLOURS)))) if key == 'predicted' else '',
                                  _tiles(('scan', 'image', *shown), rows)]))
    return sections


def _scan(stages, shown, key, case, row_of):
    """The row of a scan: the image, then the array `key` of each stage, cropped around truth and predictions."""
    examples = [(stages[s], i) for s, i in row_of.items()]
    box = (slice(None), slice(None))
    if len({a['image'].shape[1:] for a, _ in examples}) == 1:
        foreground = np.any([_class(a[k][i]) > 0 for a, i in examples for k in ('truth', 'predicted')], 0)
        box = _box(foreground) if foreground.any() else box
    a, i = examples[0]
    cells = [_large(a['image'][i][box])]
    for s in shown:
        if s in row_of:
            a, i = stages[s], row_of[s]
            caption = tag('small', f'Dice {number(float(a["dice"][i]))}, {a["rank"][i]}')
            cells.append(tag('div', _large(a['image'][i][box], a['truth'][i][box], **{key: a[key][i][box]}), caption))
        else:
            cells.append(MISSING)
    return _row(tag('th', case), cells)


def _box(foreground):
    """A square around a bool mask [H, W], 1.5 times its larger side, within the picture."""
    ends = [(np.flatnonzero(foreground.any(axis))[[0, -1]] + (0, 1)) for axis in (1, 0)]
    side = max(48, int(1.5 * max(b - a for a, b in ends)))
    starts = [int(np.clip((a + b - side) // 2, 0, max(n - side, 0))) for (a, b), n in zip(ends, foreground.shape)]
    return tuple(slice(start, start + side) for start in starts)


def _class(label):
    return np.where(label == 255, 0, label)


def _large(image, truth=None, predicted=None, energy=None, cam=None):
    """A slice [H, W] uint8 under colours of classes or a map, with the outline of the truth at the size of the tile."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from PIL import Image
    size = LARGE, round(LARGE * image.shape[0] / image.shape[1])

    def scaled(a: np.ndarray, resampling: Any) -> np.ndarray:
        return np.asarray(Image.fromarray(a).resize(size, resampling))
    rgb = np.repeat(scaled(image, Image.Resampling.BILINEAR)[..., None] / 255, 3, axis=2)
    if predicted is not None:
        label = scaled(_class(predicted).astype(np.uint8), Image.Resampling.NEAREST)
        colours = np.array([(0, 0, 0), *map(to_rgb, COLOURS)])[np.where(label, (label - 1) % len(COLOURS) + 1, 0)]
        rgb = np.where(label[..., None] > 0, 0.5 * rgb + 0.5 * colours, rgb)
    for heat, opacity in ((energy, 1.0), (cam, 0.45)):
        if heat is not None:
            heat = scaled(np.asarray(heat, np.float32) / max(float(heat.max()), 1e-12), Image.Resampling.BILINEAR)
            rgb = (1 - opacity) * rgb + opacity * colormaps['inferno'](heat)[..., :3]
    if truth is not None:
        label = scaled(_class(truth).astype(np.uint8), Image.Resampling.NEAREST)
        edge = np.zeros(label.shape, bool)
        edge[1:] |= label[1:] != label[:-1]
        edge[:, 1:] |= label[:, 1:] != label[:, :-1]
        rgb = np.where(edge[..., None], 1.0, rgb)
    return _svg(Image.fromarray((255 * rgb).astype(np.uint8)), class_='tile large')


def _coarse(stages):
    """A note on stages with coarse maps; runs of earlier versions do not hold the shape of their maps."""
    shapes = {s: a['map_shape'].tolist() for s, a in stages.items() if 'map_shape' in a and a['has_cam'].any()}
    coarse = [f'{s} ({x} x {y} in the slice, {z} slices)' for s, (z, y, x) in shapes.items() if min(y, x) <= COARSE]
    return tag('p', f'So few positions have the maps of {", ".join(coarse)} that they hardly tell a place: read '
                    'nothing into where they are bright.', class_='note') if coarse else Html('')


def _activation(a, i):
    """The tile of a stage with its prediction."""
    best = a['probability'][i].argmax()
    mark = '\u2713' if best == a['label'][i] else '\u2717'
    tile = (_tile(a['image'][i, 0] / 255, heat=a['cam'][i]) if a['has_cam'][i] else 'no map')
    return tag('div', tile if a['present'][i, 0] else 'absent',
               tag('small', f'{mark} {a["labels"][best]} {a["probability"][i, best]:.2f}'))


def _tiles(head, rows):
    head = tag('tr', *(tag('th', h) for h in head))
    return tag('div', tag('table', tag('thead', head), tag('tbody', *rows), class_='tiles'), class_='wide')


def _tile(image, box=None, heat=None):
    """Image [H, W] in 0 to 1, a map [H, W] over it, and the box as a vector line."""
    from matplotlib import colormaps
    from PIL import Image
    height = round(TILE * image.shape[0] / image.shape[1])
    rgb = np.repeat(np.clip(image, 0, 1)[..., None], 3, axis=2)
    if heat is not None:
        low = heat.min() if box is not None else 0
        heat = (heat - low) / max(float(heat.max() - low), 1e-12)
        rgb = 0.55 * rgb + 0.45 * colormaps['inferno'](heat)[..., :3]
    tile = Image.fromarray((255 * rgb).astype(np.uint8)).resize((TILE, height), Image.Resampling.BILINEAR)
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
