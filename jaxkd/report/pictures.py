"""The images of the report: attention over radiographs, activation over slices of volumes, segmented scans.

A tile is an SVG of layers: the picture as JPEG, once for all tiles of a row, over it a map or a mask that goes away
while the pointer is on it, then lines. Its units are the pixels of the picture, so that it can be drawn at any size.
The slices of a volume stand in one picture, one below the other, of which a tile shows one.
"""
import base64
import hashlib
import io
import itertools
from typing import Any, NamedTuple

import numpy as np

from jaxkd.report.figures import COLOURS, legend
from jaxkd.report.markup import Html, join, number, tag
from jaxkd.report.run_folder import Run

LARGEST, OUTLINED, EXAMPLES = 320, 336, 8  # pixels of a side of a picture, of an outline; radiographs or scans shown
HEAT = 48  # pixels of a side of a map, which is smooth
CASES, STACKS = 16, 6  # cases with slices; those with all of them
MISSING = 'not among its examples'
COARSE = 3  # positions along a side of an activation map, up to which it hardly localises
SLICES_NOTE = (
    'The axial slice through the middle of each crop, anterior up, the patient\'s right on the left; one row a case. '
    'Of each subgroup the first test cases, then the first that a stage gets wrong or right. Each picture is scaled by '
    'itself, and so is each map of activation, from 0: compare places, not brightness. Of the first cases a slider '
    'steps through slices from end to end. A map shows what speaks for the '
    'predicted class at the few positions that the network has before its pooling, laid over the first of the '
    'pictures; it is no outline. What the stages do not read is shown all the same.')


def attention(run: Run, which: str, drawn: set[str] | None = None) -> Html:
    """Images with a true box, and one map of every stage over them.

    drawn: the pictures that are on the page already, to which these are added.
    """
    stages, drawn = {s: a for s, a in run.examples.items() if which in a}, set() if drawn is None else drawn
    if not stages:
        return Html('')
    examples: dict[tuple[str, str], dict[str, int]] = {}  # {(case, finding): {stage: row}}
    for s, a in stages.items():
        for i, (case, finding) in enumerate(zip(a['case'], a['finding'])):
            examples.setdefault((str(case), str(finding)), {}).setdefault(s, i)
    rows = []
    for (case, finding), row_of in list(examples.items())[:EXAMPLES]:
        first, i = next(iter(row_of.items()))
        base, box = _base(stages[first]['image'][i]), stages[first]['box'][i]
        if base.again.drawn in drawn:
            base = base.again._replace(again=base.again)
        drawn.add(base.again.drawn)
        cells = [_tile(base, _box_line(base, box))]
        for s, a in stages.items():
            cells.append(tag('div', _tile(base.again, _heat(base, a[which][row_of[s]], lowest=True),
                                          _box_line(base, box)),
                             tag('small', _probability(run, s, case, finding))) if s in row_of else MISSING)
        rows.append(_row(tag('th', finding, tag('small', run.shown(case))), cells))
    return _tiles(('finding, case', 'image and box', *stages), rows)


def _probability(run, stage, case, finding):
    """What a stage said of a finding in a case."""
    p = run.predictions.get(stage)
    if p is None or finding not in p.labels or case not in p.cases:
        return ''
    return f'probability {p.probability[list(p.cases).index(case), p.labels.index(finding)]:.2f}'


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
    rows: list[Html] = []
    for case, row_of in sorted(examples.items(), key=lambda c: -len(c[1]))[:CASES]:  # first the cases of all stages
        first, i = next(iter(row_of.items()))
        a = stages[first]
        stacked = 'stack' in a and len(rows) < STACKS
        present = {str(m): _base(a['stack'][i, k] if stacked else a['image'][i, k])
                   for k, m in enumerate(a['modalities']) if a['present'][i, k] > 0}
        cells = [_tile(present[m]) if m in present else 'absent' for m in modalities]
        cells += [_activation(stages[s], row_of[s], present, stacked) if s in row_of else MISSING for s in stages]
        true = tag('small', 'true: ', a['labels'][a['label'][i]])
        rows.append(_row(tag('th', run.shown(case), tag('small', a['group'][i]), true,
                             _slider(a['stack'].shape[2]) if stacked else ''), cells))
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
        'first. A slider steps through the slices of the first from end to end of the true classes.')),
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
        rows = [_scan(run, stages, shown, key, case, row_of) for case, row_of in scans
                if any(s in row_of for s in shown)]
        if rows:
            labels = map(str, stages[shown[0]]['labels'][1:])
            sections.append(join([tag('h3', f'{heading}{f": {evaluator}" if evaluator else ""}'), tag('p', note),
                                  legend(dict(zip(labels, itertools.cycle(COLOURS)))) if key == 'predicted' else '',
                                  _tiles(('scan', 'image', *shown), rows)]))
    return sections


def _scan(run, stages, shown, key, case, row_of):
    """The row of a scan: the image, then the array `key` of each stage, cropped around truth and predictions."""
    layers = {s: {k: stages[s][k][i] for k in ('image', 'truth', 'predicted', key) if k in stages[s]}
              for s, i in row_of.items()}
    stacks = {s: _stack(stages[s], i) for s, i in row_of.items()} if key == 'predicted' else {}
    if all(stacks.values()) and len({a['image'].shape for a in stacks.values()}) == 1:
        layers = stacks
    box: tuple = (Ellipsis,)
    if len({a['image'].shape for a in layers.values()}) == 1:
        foreground = np.any([_class(a[k]) > 0 for a in layers.values() for k in ('truth', 'predicted')], 0)
        foreground = foreground.reshape(-1, *foreground.shape[-2:]).any(0)
        box = (Ellipsis, *_box(foreground)) if foreground.any() else box
    base = _base(next(iter(layers.values()))['image'][box])
    cells = [_tile(base, large=True)]
    for s in shown:
        if s in row_of:
            a, i = stages[s], row_of[s]
            caption = tag('small', f'Dice {number(float(a["dice"][i]))}, {a["rank"][i]}')
            own = _base(layers[s]['image'][box])
            own = base.again if own.drawn == base.drawn else own
            cells.append(tag('div', _tile(own, *_over(own, key, layers[s][key][box]),
                                          _outline(own, layers[s]['truth'][box]), large=True), caption))
        else:
            cells.append(MISSING)
    return _row(tag('th', run.shown(case), _slider(base.slices) if base.slices > 1 else ''), cells)


def _stack(a, i):
    """{'image', 'truth', 'predicted': [slice, h, w]} of scan i, {} of one without slices."""
    rows = np.flatnonzero(a['stack_row'] == i) if 'stack_row' in a else np.empty(0, int)
    if not len(rows) or not np.ptp(a['stack'][rows[0]], axis=1).any():  # of a single slice all are equal
        return {}
    return dict(zip(('image', 'truth', 'predicted'), a['stack'][rows[0]]))


def _box(foreground):
    """A square around a bool mask [H, W], 1.5 times its larger side, within the picture."""
    ends = [(np.flatnonzero(foreground.any(axis))[[0, -1]] + (0, 1)) for axis in (1, 0)]
    side = max(48, int(1.5 * max(b - a for a, b in ends)))
    starts = [int(np.clip((a + b - side) // 2, 0, max(n - side, 0))) for (a, b), n in zip(ends, foreground.shape)]
    return tuple(slice(start, start + side) for start in starts)


def _class(label):
    return np.where(label == 255, 0, label)


class _Base(NamedTuple):
    """A picture with its size in pixels; `slices`: how many lie in it, one below the other."""

    drawn: Html
    again: Any  # the same without its data, for further tiles
    width: int
    height: int
    slices: int
    scale: float  # pixels of the picture to one of what was read


def _base(image):
    """[H, W] or [slices, H, W], uint8 or 0 to 1."""
    from PIL import Image
    grey = image if image.dtype == np.uint8 else (255 * np.clip(image, 0, 1)).astype(np.uint8)
    slices, (height, width) = (len(grey) if grey.ndim == 3 else 1), grey.shape[-2:]
    picture = Image.fromarray(grey.reshape(-1, width))
    if (factor := LARGEST / max(height, width)) < 1:
        width, height = max(1, round(width * factor)), max(1, round(height * factor))
        picture = picture.resize((width, height * slices), Image.Resampling.BILINEAR)
    data = _data(picture, 'JPEG', quality=82)
    name = f'p{hashlib.blake2b(data.encode(), digest_size=6).hexdigest()}'
    drawn = tag('image', id=name, href=data, width=width, height=height * slices)
    base = _Base(drawn, None, width, height, slices, width / grey.shape[-1])
    return base._replace(again=base._replace(drawn=tag('use', href=f'#{name}')))


def _heat(base, heat, lowest=False, class_='over'):
    """A map over a picture: [H, W] or [slices, H, W], from 0 or its lowest value to its largest."""
    from matplotlib import colormaps
    from PIL import Image
    heat = np.asarray(heat, np.float32)
    low = float(heat.min()) if lowest else 0.0
    scaled = (heat - low) / max(float(heat.max()) - low, 1e-12)
    planes = scaled if scaled.ndim == 3 else scaled[None]
    size = tuple(min(HEAT, n) for n in planes.shape[:0:-1])
    small = np.concatenate([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in planes])
    rgb = Image.fromarray((255 * colormaps['inferno'](small)[..., :3]).astype(np.uint8))
    return tag('image', href=_data(rgb, 'JPEG', quality=85, subsampling=0), width=base.width,
               height=base.height * base.slices, preserveAspectRatio='none', class_=class_)


def _over(base, key, values):
    """The layers of an array of SEGMENTS."""
    if key != 'predicted':
        return [_heat(base, values, class_='full' if key == 'energy' else 'over')]
    label = _resized(_class(values).astype(np.uint8), base)
    colours = np.array([(0, 0, 0), *([int(c[i:i + 2], 16) for i in (1, 3, 5)] for c in COLOURS)], np.uint8)
    index = np.where(label, (label.astype(int) - 1) % len(COLOURS) + 1, 0)
    return [_mask(base, np.concatenate([colours[index], 255 * (label[..., None] > 0)], -1), 'over')]


def _outline(base, truth):
    """The edges of the classes as a white line; of slices in each."""
    label = _resized(_class(truth).astype(np.uint8), base)
    edge = np.zeros(label.shape, bool)
    edge[1:] |= label[1:] != label[:-1]
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[::len(label) // base.slices] = False  # where the next slice begins
    return _mask(base, np.repeat(255 * edge[..., None], 4, -1), '')


def _resized(label, base):
    from PIL import Image
    size = OUTLINED, max(1, round(OUTLINED * base.height / base.width)) * base.slices
    return np.asarray(Image.fromarray(label.reshape(-1, label.shape[-1])).resize(size, Image.Resampling.NEAREST))


def _mask(base, rgba, class_):
    from PIL import Image
    picture = Image.fromarray(rgba.astype(np.uint8))
    return tag('image', href=_data(picture, 'PNG', optimize=True), width=base.width, height=base.height * base.slices,
               preserveAspectRatio='none', class_=class_)


def _box_line(base, box):
    """x, y, w, h in pixels of what was read."""
    x, y, w, h = (f'{float(v) * base.scale:.1f}' for v in box)
    return tag('rect', x=x, y=y, width=w, height=h, fill='none', stroke='#35d07f',
               **{'stroke-width': f'{base.width / 150:.2f}'})


def _tile(base, *layers, large=False):
    """An SVG of a picture and what lies over it; of slices the middle one."""
    attributes = {'data-slices': base.slices} if base.slices > 1 else {}
    first = base.height * (base.slices // 2)
    return tag('svg', base.drawn, *layers, class_='tile large' if large else 'tile',
               viewBox=f'0 {first} {base.width} {base.height}', **attributes)


def _slider(slices):
    """Steps through the slices of a row, by the script of the page."""
    return tag('input', type='range', min=0, max=slices - 1, value=slices // 2, hidden='hidden',
               **{'aria-label': 'slice'})


def _data(picture, kind, **options):
    """The picture as a data: address."""
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return f'data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}'


def _coarse(stages):
    """A note on stages with coarse maps; runs of earlier versions do not hold the shape of their maps."""
    shapes = {s: a['map_shape'].tolist() for s, a in stages.items() if 'map_shape' in a and a['has_cam'].any()}
    coarse = [f'{s} ({x} x {y} in the slice, {z} slices)' for s, (z, y, x) in shapes.items() if min(y, x) <= COARSE]
    return tag('p', f'So few positions have the maps of {", ".join(coarse)} that they hardly tell a place: read '
                    'nothing into where they are bright.', class_='note') if coarse else Html('')


def _activation(a, i, present, stacked):
    """The tile of a stage with its prediction."""
    best = a['probability'][i].argmax()
    mark = '\u2713' if best == a['label'][i] else '\u2717'
    key = 'cam_stack' if stacked and 'cam_stack' in a else 'cam'
    own = _base(a['stack' if key == 'cam_stack' else 'image'][i, 0])
    shared = present.get(str(a['modalities'][0]))
    base = own.again if shared and shared.drawn == own.drawn else own
    tile = ('absent' if not a['present'][i, 0] else 'no map' if not a['has_cam'][i] else
            _tile(base, _heat(base, a[key][i])))
    return tag('div', tile, tag('small', f'{mark} {a["labels"][best]} {a["probability"][i, best]:.2f}'))


def _tiles(head, rows):
    cells = tag('tr', *(tag('th', h) for h in head))
    return tag('div', tag('table', tag('thead', cells), tag('tbody', *rows)), class_='wide tiles',
               style=f'--columns:{len(head) - 1}')
