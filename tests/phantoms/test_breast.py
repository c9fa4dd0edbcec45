"""The breast phantom, its source, and the transforms of mammograms."""
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from sklearn.metrics import roc_auc_score

from jaxkd import errors
from jaxkd.data import splits, transform
from jaxkd.data.transforms import breast as crop
from jaxkd.data.transforms import flip, image
from jaxkd.phantoms import breast, common
from jaxkd.phantoms.breast import anatomy, findings, lesions, renderer


def _source(**changes):
    return breast.build(ConfigDict({**breast.DEFAULTS, **changes}))


def _crop(record, **changes):
    return crop.build(ConfigDict({**crop.DEFAULTS, **changes})).apply(record)


def _keys(count, **options):
    return [(p, *renderer.facts(0, p, **options).images[0]) for p in range(count)]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 5), st.integers(0, 500), st.floats(0, 1), st.sampled_from(tuple(renderer.KINDS)))
def test_render_is_pure_and_boxes_enclose_masks(seed, patient, difficulty, kind):
    side, view = renderer.facts(seed, patient, kind).images[0]
    one = renderer.render(seed, patient, side, view, 96, difficulty, kind)
    renderer.render(seed + 1, patient + 1, *renderer.facts(seed + 1, patient + 1).images[0])
    two = renderer.render(seed, patient, side, view, 96, difficulty, kind)
    for key in ('image', 'boxes', 'masks'):
        np.testing.assert_array_equal(one[key], two[key])
    lesions = renderer.facts(seed, patient, kind).lesions[side]
    assert (one['image'].dtype == np.uint16 and one['image'].shape == (96, 77)
            and one['masks'].shape == (len(lesions), 96, 77))
    assert [b[0] for b in one['boxes']] == [0 if lesion.malignant else -1 for lesion in lesions]
    for (_, x, y, w, h), mask in zip(one['boxes'].astype(int), one['masks'], strict=True):
        rows, columns = np.nonzero(mask)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x, y, x + w, y + h)


@pytest.mark.parametrize('size', [64, 100, 256])
def test_sizes_show_the_same_scene(size):
    """The lesion has the same place and the breast the same brightness."""
    for key in _keys(3, kind='mass'):
        reference, case = (renderer.render(0, *key, s, 0.2, 'mass') for s in (128, size))
        shown = case['boxes'][:, 1:] * 128 / size
        assert np.abs(shown - reference['boxes'][:, 1:]).max() < 3 + 3 * 128 / size
        assert abs(case['image'].mean() / reference['image'].mean() - 1) < 0.1


@pytest.mark.parametrize('kind', findings.KINDS)
def test_probabilities_of_descriptors_sum_to_one_and_each_has_a_risk_and_a_picture(kind):
    values = findings.VALUES[kind]
    assert sum(p for p, _ in values.values()) == pytest.approx(1)
    for first, (_, seconds) in values.items():
        assert sum(seconds.values()) == pytest.approx(1)
        for second in seconds:
            assert np.isfinite(findings.logit(kind, first, second))


def test_risk_by_hand():
    """Oval, circumscribed: -0.4 - 2.2; the worst word counts: irregular-distortion, ill-defined-spiculated: 0.6 +
    1.7.
    """
    assert findings.logit('mass', 'OVAL', 'CIRCUMSCRIBED') == pytest.approx(-2.6)
    assert findings.logit('mass', 'IRREGULAR-ARCHITECTURAL_DISTORTION', 'ILL_DEFINED-SPICULATED') == pytest.approx(2.3)
    rows = [{'abnormality type': 'mass', 'mass shape': 'OVAL', 'mass margins': 'CIRCUMSCRIBED'},
            {'abnormality type': 'mass', 'mass shape': 'IRREGULAR', 'mass margins': 'SPICULATED'}]
    a, b = 1 / (1 + np.exp(2.6)), 1 / (1 + np.exp(-2.3))
    assert findings.risk(rows) == pytest.approx(1 - (1 - a) * (1 - b))


@pytest.mark.parametrize('kind', findings.KINDS)
def test_the_ceiling_is_what_many_lesions_give(kind):
    lesions = [findings.draw(np.random.default_rng(i), kind, 1) for i in range(6000)]
    truth = [lesion.malignant for lesion in lesions]
    risk = np.array([findings.logit(kind, lesion.first, lesion.second) for lesion in lesions])
    ceiling = findings.ceiling((kind,))
    assert 0.8 < ceiling < 0.9 and roc_auc_score(truth, risk) == pytest.approx(ceiling, abs=0.015)
    assert np.mean(truth) == pytest.approx(np.mean(findings.sigmoid(risk)), abs=0.02)
    grade = np.array([lesion.assessment for lesion in lesions])
    rate = [np.mean(np.array(truth)[grade == g]) for g in (2, 3, 4, 5)]
    assert rate[0] < 0.03 and rate == sorted(rate) and rate[3] > 0.9  # BI-RADS, more informative than the descriptors
    assert roc_auc_score(truth, risk + 1.2 * np.where(grade == 0, 4, grade)) > ceiling + 0.01


def test_an_archive_of_findings():
    """Rates of kinds, images, lesions; subtlety is independent of pathology."""
    patients = [renderer.facts(0, p) for p in range(3000)]
    sides = [side for patient in patients for side in patient.lesions.values()]
    lesions = [lesion for side in sides for lesion in side]
    assert np.mean([lesion.kind == 'mass' for lesion in lesions]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([len(patient.images) for patient in patients]) == pytest.approx(1.75 * 1.12, abs=0.05)
    assert np.mean([len(side) for side in sides]) == pytest.approx(1.19, abs=0.03)
    subtle = np.array([lesion.subtlety for lesion in lesions])
    assert roc_auc_score([lesion.malignant for lesion in lesions], subtle) == pytest.approx(0.5, abs=0.03)
    mixed = [{lesion.malignant for lesion in side} for side in sides]
    assert sum(len(m) == 2 for m in mixed) > 50


def _shown(first, second, kind='mass', subtlety=5, size=128, place=(0.5, 0.5, 0.6, 0.25, 0.3, 0.5, 0.5, 0.5)):
    """The path of a lesion, cm [H,W], its mask and its centre in pixels."""
    layers = anatomy.build_layers(renderer.facts(0, 1).anatomy, 'CC', common.rng(0, 1, 2), size)
    layers.mass, layers.calcium = np.zeros((2, *layers.path.shape), np.float32)
    lesion = findings.Lesion(kind, 1, first, second, False, 4, subtlety, place)
    centre = lesions.place(lesion, layers)
    mask = lesions.paint(lesion, layers, centre, 1.0, common.rng(0, 1, 3))
    return layers.mass + layers.calcium, mask, np.array(centre) / layers.px


def _rim(first, second):
    """(rise of the edge in pixels, spread of the outline, fraction of the signal beyond 1.6 radii)."""
    shown, mask, (cx, cy) = _shown(first, second, size=256)
    y, x = np.mgrid[:shown.shape[0], :shown.shape[1]]
    r, angle = np.hypot(x + 0.5 - cx, y + 0.5 - cy), np.arctan2(y + 0.5 - cy, x + 0.5 - cx)
    radius = np.sqrt(mask.sum() / np.pi)
    sectors = [(np.abs(np.angle(np.exp(1j * (angle - a)))) < 0.05)
               for a in np.linspace(-np.pi, np.pi, 40, endpoint=False)]
    far = [r[s & mask].max(initial=0) for s in sectors]
    bulk = shown[mask].mean()
    edge = np.mean([np.mean((shown[s] > 0.15 * bulk) & (shown[s] < 0.7 * bulk) & (r[s] < 1.6 * radius))
                    for s in sectors])
    return edge, np.std(far) / radius, np.clip(shown, 0, None)[r > 1.6 * radius].sum() / np.clip(shown, 0, None).sum()


def test_words_change_the_picture_as_they_say():
    plain, lobes = _rim('ROUND', 'CIRCUMSCRIBED'), _rim('LOBULATED', 'CIRCUMSCRIBED')
    blurred, spiked, rough = _rim('ROUND', 'ILL_DEFINED'), _rim('ROUND', 'SPICULATED'), _rim('IRREGULAR',
                                                                                             'CIRCUMSCRIBED')
    assert blurred[0] > 1.5 * plain[0]  # the edge rises more slowly
    assert plain[1] < 0.05 < lobes[1] and rough[1] > 0.1  # the outline bends
    assert spiked[2] > 0.03 > 3 * plain[2]  # lines leave the mass
    shown, _, _ = _shown('ROUND', 'CIRCUMSCRIBED')
    assert shown.min() < -0.02  # the halo
    faint, _, _ = _shown('ROUND', 'CIRCUMSCRIBED', subtlety=1)
    assert shown.max() > 1.8 * faint.max()


def test_calcifications_are_arranged_as_they_are_called():
    def extent(first, second):
        shown, mask, _ = _shown(first, second, 'calcification', size=256)
        rows, columns = np.nonzero(shown > 0.004)
        spread = np.sqrt(np.linalg.eigvalsh(np.cov(rows, columns))) * 20 / 256
        return spread, shown, mask
    cluster, _, _ = extent('PLEOMORPHIC', 'CLUSTERED')
    line, _, _ = extent('PUNCTATE', 'LINEAR')
    scattered, _, _ = extent('PUNCTATE', 'DIFFUSELY_SCATTERED')
    assert cluster[1] < 0.8 and line[1] > 3 * line[0] and scattered[0] > 1.0
    _, shown, _ = extent('AMORPHOUS', 'CLUSTERED')
    _, sharp, _ = extent('PLEOMORPHIC', 'CLUSTERED')
    assert sharp.max() > 2 * shown.max()  # amorphous ones are faint


def test_a_lesion_shows_where_its_mask_is():
    """Image with the lesion minus image without: large inside the mask, near 0 outside."""
    for key in _keys(12):
        bare, case = (renderer.render(0, *key, 128, 0.3, draw=d) for d in (False, True))
        change = np.abs(case['image'].astype(int) - bare['image'].astype(int))
        union = case['masks'].any(0)
        assert change[union].mean() > 20 * (change[~union].mean() + 1)
        np.testing.assert_array_equal(case['masks'], bare['masks'])


def test_more_density_is_brighter_and_muscle_is_in_mlo_alone():
    mean, muscle = {}, {}
    for patient in range(60):
        truth = renderer.facts(0, patient)
        for view in renderer.VIEWS:
            layers = anatomy.build_layers(truth.anatomy, view, common.rng(0, patient, 2), 96)
            mean.setdefault(truth.anatomy.density, []).append(layers.gland[layers.inside].mean())
            muscle.setdefault(view, []).append(layers.muscle.sum())
    means = [np.mean(mean[d]) for d in (1, 2, 3, 4)]
    assert means == sorted(means) and means[3] > 2.5 * means[0]
    assert max(muscle['CC']) == 0 and min(muscle['MLO']) > 0


def test_the_source_knows_its_cases_without_rendering():
    source = _source(patients=40, size=64)
    again = pickle.loads(pickle.dumps(source))
    for i in (0, len(source) - 1):
        record = source[i]
        np.testing.assert_array_equal(record['image'], again[i]['image'])
        assert record['table'] == source.table(i)
        assert record['label'].tolist() == [float(any(r['pathology'] == 'MALIGNANT' for r in source.table(i)))]
    assert {c.groups['view'] for c in source.cases} == {'CC', 'MLO'} and len({c.patient for c in source.cases}) == 40
    splits.check(source.cases, splits.make(source.cases))
    assert all(cell and isinstance(cell, str) for i in range(len(source)) for row in source.table(i)
               for cell in row.values())
    masses = _source(patients=20, kind='mass', size=64)
    assert {row['abnormality type'] for i in range(len(masses)) for row in masses.table(i)} == {'mass'}


# Transforms.

def test_the_breast_is_found_turned_to_the_left_and_its_lesions_stay_on_it():
    for key in _keys(25):
        case = renderer.render(0, *key, 128, 0.5)
        inside, step = crop.breast(case['image'], 400)
        columns = np.flatnonzero(inside.any(0))
        assert step == 1 and crop._chest_wall_right(inside[:, columns[0]:columns[-1] + 1]) == (key[1] == 'RIGHT')
        cropped = _crop(case)
        assert cropped['image'].dtype == np.float32 and cropped['image'].min() == 0 and cropped['image'].max() == 1
        assert len(cropped['boxes']) == len(case['boxes']) == len(cropped['masks'])
        np.testing.assert_allclose(cropped['boxes'][:, 3:], case['boxes'][:, 3:], atol=2)
        height, width = cropped['image'].shape
        assert height < 128 or width < 102
        assert cropped['image'][:, :width // 5].mean() > cropped['image'][:, -width // 5:].mean()


def test_a_box_follows_flip_crop_and_letterbox_like_its_pixels():
    """Against a mask of the box that is transformed as the image is: its bounds are those of the box.
    """
    rng = np.random.default_rng(0)
    for key in _keys(12):
        case = renderer.render(0, *key, 512, 0.4)
        h, w = case['image'].shape
        inside = np.argwhere(case['image'] > 15000)
        y, x = inside[rng.integers(len(inside))]
        x, y = max(0, x - 40), max(0, y - 30)
        bw, bh = min(80, w - x), min(60, h - y)
        mask = np.zeros((1, h, w), np.uint8)
        mask[0, y:y + bh, x:x + bw] = 1
        record = dict(case, boxes=np.float32([[0, x, y, bw, bh]]), masks=mask)
        letterboxed = image.build(ConfigDict({**image.DEFAULTS, 'size': 224, 'fit': 'letterbox'})).apply(_crop(record))
        rows, columns = np.nonzero(letterboxed['masks'][0])
        _, left, top, wide, high = letterboxed['boxes'][0]
        np.testing.assert_allclose([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
                                   [left, top, left + wide, top + high], atol=1.0)


@pytest.mark.parametrize('fit, corners', [('letterbox', (106.72, 65.97, 143.37, 117.28)),
                                          ('crop', (104.75, 48.57, 155.07, 119.01)),
                                          ('squash', (105.66, 65.97, 149.69, 117.28))])
def test_box_of_the_specification(fit, corners):
    """2544 x 3056 (w x h), box 1200, 900, 500, 700, to 224 pixels."""
    window = image.window_of(2544, 3056, 224, fit, 256)
    boxes, valid = image.map_boxes(np.float32([[0, 1200, 900, 500, 700]]), window, 224)
    _, x, y, w, h = boxes[0]
    np.testing.assert_allclose((x, y, x + w, y + h), corners, atol=0.35 if fit == 'crop' else 0.01)
    assert valid.all()


def test_boxes_beyond_the_crop_are_dropped_with_their_masks():
    case = renderer.render(0, *_keys(1)[0], 128)
    far = np.zeros((1, *case['image'].shape), np.uint8)
    column = 0 if case['image'][:, 0].max() < 5000 else case['image'].shape[1] - 8
    far[0, :6, column:column + 8] = 1
    record = dict(case, boxes=np.concatenate([case['boxes'], [[0, column, 0, 8, 6]]]).astype(np.float32),
                  masks=np.concatenate([case['masks'], far]))
    assert len(_crop(record)['masks']) == len(case['masks']) == len(_crop(record)['boxes'])


def test_an_image_without_a_breast_is_named():
    with pytest.raises(errors.BadData, match='Case x: no breast'):
        _crop(dict(image=np.full((64, 64), 7, np.uint16), case='x'))
    with pytest.raises(errors.BadData, match='is grey'):
        _crop(dict(image=np.zeros((64, 64, 3), np.uint8)))
    with pytest.raises(errors.ConfigError, match='percentiles'):
        _crop({}, percentiles=(90.0, 10.0))


def test_otsu_separates_two_classes():
    values = np.array([0.0] * 50 + [1.0] * 20 + [9.0] * 30)
    np.testing.assert_array_equal(crop.otsu(values), values == 9)
    assert not crop.otsu(np.full(9, 3.0)).any()


def test_grey_values_of_all_types_give_one_picture():
    wide = renderer.render(0, *_keys(1)[0], 128)['image']
    a, b = (_crop(dict(image=x))['image'] for x in (wide, wide.astype(np.float32) / 65535))
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('key', [('LEFT', 'CC'), ('RIGHT', 'MLO')])
def test_what_is_found_in_the_breast_and_the_square_goes_back_to_the_mammogram(key):
    source = _source(patients=4)
    record = next(source[i] for i, k in enumerate(source._keys) if k[1:3] == key)
    hp = ConfigDict(dict(transforms=('breast', 'image'), augment=(), breast=crop.DEFAULTS,
                         image={**image.DEFAULTS, 'size': 224}))
    hp.image.fit = 'letterbox'
    transforms = transform.build(hp, {}, {})
    after = record
    for step in transforms.prepare:
        after = step.apply(after)
    trace = transforms.trace(record, after)
    restored = transforms.inverse(after['image'][..., 0], trace)
    assert restored.shape == record['image'].shape and restored.dtype == np.float32
    bright = record['image'] > np.percentile(record['image'], 60)
    # a mirrored or shifted one would not be
    assert np.corrcoef(restored[bright], record['image'][bright].astype(float))[0, 1] > 0.97
    assert set(np.unique(transforms.inverse((after['image'][..., 0] > 0.5).astype(np.uint8), trace))) == {0, 1}


def test_flip_turns_all_keys_alike():
    record = dict(image=np.arange(24.0, dtype=np.float32).reshape(4, 6, 1),
                  label=np.arange(24, dtype=np.uint8).reshape(4, 6))
    build = lambda **k: flip.build(ConfigDict({**flip.DEFAULTS, 'labels': ('label',), **k})).apply  # noqa: E731
    rng = np.random.default_rng(0)
    down = build(vertical=1.0)(record, rng)
    np.testing.assert_array_equal(down['image'], record['image'][::-1])
    np.testing.assert_array_equal(down['label'], record['label'][::-1])
    across = build(vertical=0.0, horizontal=1.0)(record, rng)
    np.testing.assert_array_equal(across['image'], record['image'][:, ::-1])
    turned = [build()(record, rng)['image'][0, 0, 0] != 0 for _ in range(400)]
    assert np.mean(turned) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(errors.ConfigError, match='vertical'):
        build(vertical=2.0)
