"""A shortcut: a feature that goes along with the class in training and means nothing. Put into images here, for
experiments.

The suite is the one proposed for the reconstruction of specialist teachers [our choice; the article names diffuse and
localised features, and texts in images as the typical example]. Sizes are those at 224 pixels a side and scale with it.

    noise         diffuse     x <- clip(x + N(0, sigma^2)), one draw for all channels
    square_const  localised   rows and columns 8 ... 23 <- value (0.5 % of the area; in volumes a cube)
    square_rand   localised   the same patch, its corner anywhere, fixed for an image
    tag           localised   the 8 x 24 letters PORT at the upper right <- value (in volumes on every slice)
    gain          diffuse     x <- clip(factor * x)
    attribute     no pixels   b is a group of the case, as 'sex=F'; parts are thinned out until the rates hold
    twin          3D shape    the image becomes the source's `twin` of it (SimBA: the same subject with the bias
                              deformation)

b in {0, 1} is who has it. Of the n1 cases of class 1 in a part exactly round(p1 n1) have it, of the other n0 exactly
round(p0 n0), those first in the order of a hash of (seed, id). What is drawn inside an image comes from Philox keyed
with (seed, crc32(id)). So an image has the same artefact in every epoch, arm, worker and host.

Put it into data.augment behind geometry ("constant" then is constant), or before an augmentation that shall act on it
as on the rest of the file. It draws nothing anew: where nothing else does, a frozen teacher's outputs are cached. b is
in no batch, unless `reveal` asks for it: then `bias` [B] int32, and `bias_weight` [B] = P(y) P(b) / P(y,b) within the
part (reweighing).
"""
import dataclasses
import functools
import zlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data.label_share import whole
from jaxkd.data.sources.binary import by_hash
from jaxkd.data.volume import FIXED

DEFAULTS = dict(
    kind='square_const',  # of the shortcut: noise, square_const, square_rand, tag, gain, attribute (a group) or twin
    rates=(1.0, 0.0),  # shares of class 1 and of class 0 that have the shortcut, in every part; attribute: () leaves
    # the cases as they are
    parts={},  # part of the split -> other rates, e.g. clean=(0.0, 0.0)
    attribute='',  # kind='attribute': the group of a case that is the shortcut, as 'view=AP Supine'
    keys=('image',),  # keys of images that get the artefact
    sigma=0.05,  # noise: standard deviation, in the units of the image
    factor=1.08,  # gain: factor of all values, above 0
    value=1.0,  # squares and tag: their value, in the units of the image
    limits=(0.0, 1.0),  # least and greatest value of an image, to which noise and gain are clipped
    size=16 / 224,  # squares: side, as a share of that of the image
    start=8 / 224,  # square_const: place of the corner, as a share of the image's side
    reveal=False,  # True: whether a case has the shortcut comes into the batch, as `bias` with `bias_weight`
    seed=0,  # another one chooses other cases and places
)
KINDS = ('noise', 'square_const', 'square_rand', 'tag', 'gain', 'attribute', 'twin')
_LETTERS = ('11110 01110 11110 11111', '10001 10001 10001 00100', '10001 10001 10001 00100', '11110 10001 11110 00100',
            '10000 10001 10100 00100', '10000 10001 10010 00100', '10000 01110 10001 00100')
TAG = np.zeros((8, 24), bool)
TAG[:7] = [[c == '1' for letter in row.split() for c in letter + '0'] for row in _LETTERS]


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What is decided of all cases, in the order of the source."""

    marked: np.ndarray  # bool [n]: b
    keep: np.ndarray  # bool [n]: false where thinning out an attribute leaves a case aside
    key: np.ndarray  # uint32 [n]: crc32 of the id
    weight: np.ndarray  # float32 [n]: P(y) P(b) / P(y,b) of the case's part


def assign(hp: ConfigDict, source: Any, split: dict[str, str]) -> Assignment:
    """Raises ConfigError for rates, kinds and attributes that do not exist, or labels that are not one class of a
    case.
    """
    if hp.kind not in KINDS:
        raise errors.ConfigError(f'shortcut.kind = "{hp.kind}".{errors.nearest(hp.kind, KINDS)}')
    if 'label' not in source.targets:
        raise errors.ConfigError(f'shortcut: source "{source.name}" has no single class for each case that is known '
                                 'beforehand. Put it into a source "binary", which makes two classes of one of its '
                                 'findings.')
    y = np.asarray(whole(source).targets['label']) == 1  # the artefact belongs to the image, labelled or not
    known = np.asarray(source.targets['label']) >= 0
    ids = [case.id for case in source.cases]
    part = np.array([split[i] for i in ids])
    marked, keep, weight = _attribute(hp, source), np.ones(len(ids), bool), np.ones(len(ids), np.float32)
    for name in np.unique(part):
        rates = _rates(hp, hp.parts.get(name, hp.rates))
        cells = [np.flatnonzero((part == name) & (y == c)) for c in (1, 0)]
        if hp.kind == 'attribute' and rates:
            keep[part == name] = False
            keep[_thinned(cells, marked, rates, hp.seed, ids, name)] = True
        elif hp.kind != 'attribute':
            for rows, rate in zip(cells, rates):
                marked[by_hash(rows, hp.seed, lambda i: ids[i])[:round(rate * len(rows))]] = True
        in_part = (part == name) & keep & known
        for c in (False, True):
            for b in (False, True):
                cell = in_part & (y == c) & (marked == b)
                if cell.any():
                    independent = (y[in_part] == c).mean() * (marked[in_part] == b).mean()
                    weight[cell] = independent / (cell.sum() / in_part.sum())
    return Assignment(marked, keep, np.array([zlib.crc32(i.encode()) for i in ids], np.uint32), weight)


def build(hp: ConfigDict, assignment: Assignment) -> Transform:
    """Random, since it belongs into augment; but the same each time, in evaluation too: the artefact belongs to the
    image.
    """
    if not (hp.sigma >= 0 and hp.factor > 0 and 0 < hp.size <= 1 and 0 <= hp.start < 1 and hp.limits[0] < hp.limits[1]):
        raise errors.ConfigError('shortcut: sigma must not be negative, factor must be positive, size in (0,1], start '
                                 'in [0,1), limits rising.')
    keys, mark = tuple(hp['keys']), functools.partial(apply, assignment=assignment, hp=hp.copy_and_resolve_references())
    return Transform(mark, random=True, eval_mode=mark, reads=(*keys, 'twin', 'index'), repeats=True,
                     writes=(*keys, *(('bias', 'bias_weight') if hp.reveal else ())))


def apply(record: Record, rng: np.random.Generator | None = None, *, assignment: Assignment, hp: ConfigDict) -> Record:
    """Images [*places,C] under `keys` of the cases that are marked, float or fixed-point int16."""
    i = int(record['index'])
    record = {**record}
    twin = record.pop('twin', None)
    if assignment.marked[i]:
        for key in hp['keys']:
            if hp.kind == 'twin' and twin is None:
                raise errors.BadData('shortcut.kind = "twin": the source gives no twin of a case. Set its option '
                                     'twins.')
            record[key] = twin if hp.kind == 'twin' else inject(record[key], hp, (hp.seed, int(assignment.key[i])))
    if hp.reveal:
        record |= {'bias': np.int32(assignment.marked[i]), 'bias_weight': assignment.weight[i]}
    return record


def inject(x: np.ndarray, hp: ConfigDict, key: tuple[int, int] = (0, 0)) -> np.ndarray:
    """x [*places,C] -> the same shape and dtype, with the artefact of hp.kind; `key` is what its draws depend on."""
    unit = FIXED if np.issubdtype(x.dtype, np.integer) else 1
    low, high = (v * unit for v in hp.limits)
    rng, places = np.random.Generator(np.random.Philox(key=key)), np.array(x.shape[:-1])
    if hp.kind == 'noise':
        noise = rng.standard_normal(x.shape[:-1], np.float32)[..., None] * np.float32(hp.sigma * unit)
        return np.clip(x + noise, low, high).astype(x.dtype)
    if hp.kind == 'gain':
        return np.clip(x * np.float32(hp.factor), low, high).astype(x.dtype)
    x = x.copy()
    if hp.kind in ('square_const', 'square_rand'):
        side = np.maximum(1, np.round(hp.size * places)).astype(int)
        start = (np.round(hp.start * places).astype(int) if hp.kind == 'square_const'
                 else rng.integers(0, places - side + 1))
        x[tuple(slice(a, a + n) for a, n in zip(start, side))] = hp.value * unit
    elif hp.kind == 'tag':
        scale = max(1, round(places[-1] / 224))
        glyph = np.kron(TAG, np.ones((scale, scale), bool))
        rows, columns = glyph.shape
        if (places[-2:] < (rows + 1, columns + 1)).any():
            raise errors.ConfigError(f'shortcut: a tag of {rows} x {columns} does not fit an image of {places[-2]} x '
                                     f'{places[-1]}.')
        x[..., 1:rows + 1, -columns - 1:-1, :][..., glyph, :] = hp.value * unit
    return x


def _rates(hp, rates):
    rates = tuple(rates)
    if hp.kind == 'attribute' and not rates:
        return ()
    if len(rates) != 2 or not all(0 <= r <= 1 for r in rates):
        raise errors.ConfigError(f'shortcut.rates = {rates} must be two probabilities, P(b=1 | y=1) and P(b=1 | y=0).')
    return rates


def _attribute(hp, source):
    """bool [n]: the cases of the group that hp.attribute names; none for other kinds."""
    marked = np.zeros(len(source.cases), bool)
    if hp.kind == 'attribute':
        name, _, value = hp.attribute.partition('=')
        marked[:] = [case.groups.get(name) == value for case in source.cases]
        if not marked.any() or marked.all():
            known = sorted({f'{k}={v}' for case in source.cases for k, v in case.groups.items()})
            raise errors.ConfigError(f'shortcut.attribute = "{hp.attribute}" is of {"all" if marked.any() else "no"} '
                                     f'cases.{errors.nearest(hp.attribute, known)}')
    return marked


def _thinned(cells, marked, rates, seed, ids, part):
    """Rows to keep so that the rates hold exactly, both classes equally large and as many cases as possible."""
    ordered = [[by_hash(rows[marked[rows] == b], seed, lambda i: ids[i]) for b in (True, False)] for rows in cells]
    fits = [[n for n in range(len(yes) + len(no) + 1) if round(rate * n) <= len(yes) and n - round(rate * n) <= len(no)]
            for (yes, no), rate in zip(ordered, rates)]
    count = max(set(fits[0]) & set(fits[1]))
    if not count:
        raise errors.BadData(f'shortcut: the rates {rates} leave no case in the part "{part}". Choose rates that its '
                             'cases can have, or () to leave them as they are.')
    return [i for (yes, no), rate in zip(ordered, rates)
            for i in (*yes[:round(rate * count)], *no[:count - round(rate * count)])]


PLUGIN = TransformPlugin(assign=assign)
