import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import report_sections
from jaxkd.data.source import Case, Source
from jaxkd.data.transforms import affine, contrast, image, labels, text

RNG = np.random.default_rng(0)
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for infection

 FINDINGS:

 There is no focal consolidation, pleural effusion or pneumothorax.  Bilateral
 nodular opacities most likely represent nipple shadows.

 IMPRESSION:

 No acute cardiopulmonary process.

 RECOMMENDATION(S):  Chest CT.
"""


def make(module, asset=None, **given):
    hp = ConfigDict({**module.DEFAULTS, **given})
    return (module.build(hp, asset) if asset is not None else module.build(hp)).apply


FITS = ['crop', 'letterbox', 'squash']


def boxes_of(*rows):
    return np.array(rows, np.float32).reshape(-1, 5)


# image


@pytest.mark.parametrize('fit, corners', [('crop', (104.75, 48.57, 155.07, 119.01)),
                                          ('letterbox', (106.72, 65.97, 143.37, 117.28)),
                                          ('squash', (105.66, 65.97, 149.69, 117.28))])
def test_worked_boxes(fit, corners):
    record = {'image': np.zeros((3056, 2544), np.uint8), 'boxes': boxes_of([2, 1200, 900, 500, 700])}
    (label, x, y, w, h), = make(image, fit=fit)(record)['boxes']
    assert label == 2
    np.testing.assert_allclose((x, y, x + w, y + h), corners, atol=0.006)


@given(st.integers(40, 300), st.integers(40, 300), st.sampled_from(FITS), st.data())
@settings(max_examples=150, deadline=None)
def test_boxes_stay_on_their_pixels(width, height, fit, data):
    """A white rectangle, resampled, lies where its mapped box says, to a pixel."""
    x, y = data.draw(st.integers(0, width - 20)), data.draw(st.integers(0, height - 20))
    w, h = data.draw(st.integers(15, width - x)), data.draw(st.integers(15, height - y))
    pixels = np.zeros((height, width), np.uint8)
    pixels[y:y + h, x:x + w] = 255
    record = {'image': pixels, 'boxes': boxes_of([0, x, y, w, h]), 'masks': pixels[None]}
    found = make(image, size=64, fit=fit)(record)
    assert found['image'].shape == (64, 64, 1) and found['masks'].shape == (len(found['boxes']), 64, 64)
    assume(len(found['boxes']) and found['boxes'][0, 3:].min() > 3)
    _, left, top, right, bottom = found['boxes'][0]
    right, bottom = left + right, top + bottom
    for mask in (found['image'][..., 0] > 0.5, found['masks'][0] > 127):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        ends = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        np.testing.assert_allclose(ends, (left, top, right, bottom), atol=1.01)


def test_boxes_cut_by_the_border():
    record = {'image': np.zeros((100, 200), np.uint8), 'boxes': boxes_of(
        [0, 100, 10, 20, 20], [1, 0, 0, 40, 100], [2, 30, 40, 40, 20], [3, 29, 40, 40, 20])}
    record['masks'] = np.stack([np.full((100, 200), i, np.uint8) for i in range(4)])
    found = make(image, size=100, resize=100)(record)  # the middle, columns 50 to 150
    # Half is kept, less is not.
    np.testing.assert_allclose(found['boxes'], [[0, 50, 10, 20, 20], [2, 0, 40, 20, 20]])
    assert found['masks'].shape == (2, 100, 100) and found['masks'][:, 0, 0].tolist() == [0, 2]
    assert len(record['boxes']) == 4 and record['image'].shape == (100, 200)  # the record given is untouched
    assert make(image)({'image': np.zeros((9, 9), np.uint8), 'boxes': boxes_of()})['boxes'].shape == (0, 5)


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('dtype, top', [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
@pytest.mark.parametrize('shape', [(90, 70), (70, 90, 3)])
@pytest.mark.parametrize('channels', [1, 3])
def test_range_and_shape(fit, dtype, top, shape, channels):
    transform = make(image, size=56, fit=fit, channels=channels)
    white = transform({'image': np.full(shape, top, dtype)})['image']
    assert white.shape == (56, 56, channels) and white.dtype == np.float32
    np.testing.assert_allclose(white[28, 28], 1, atol=1e-6)
    assert white.max() <= 1 and white.min() == (0 if fit == 'letterbox' else white.max())
    noise = transform({'image': (RNG.random(shape) * top).astype(dtype)})['image']
    assert noise.min() >= 0 and noise.max() <= 1 and noise.std() > 0.02


def test_values_do_not_depend_on_the_number_of_bits():
    pixels = RNG.integers(0, 256, (90, 70)).astype(np.uint8)
    transform = make(image, size=56)
    eight, sixteen, real = (transform({'image': p})['image'] for p in (
        pixels, pixels.astype(np.uint16) * 257, pixels.astype(np.float32) / 255))
    np.testing.assert_allclose(eight, sixteen, atol=1.1 / 255)
    np.testing.assert_allclose(sixteen, real, atol=1e-6)


def test_colour_to_grey_and_back():
    grey = RNG.integers(0, 256, (64, 64)).astype(np.uint8)
    colour = np.stack([grey] * 3, axis=-1)
    for channels in (1, 3):
        transform = make(image, size=64, fit='squash', channels=channels)
        one, other = (transform({'image': pixels})['image'] for pixels in (grey, colour))
        np.testing.assert_array_equal(one, other)
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[..., 1] = 255
    for one in (rgb, rgb.astype(np.uint16) * 257, (rgb / 255).astype(np.float32)):
        np.testing.assert_allclose(make(image, size=8)({'image': one})['image'], 0.587, atol=0.002)


def test_nothing_is_resampled_without_need():
    pixels = RNG.integers(0, 256, (64, 64)).astype(np.uint8)
    for options in ({'fit': 'squash'}, {'fit': 'letterbox'}, {'fit': 'crop', 'resize': 64}):
        np.testing.assert_array_equal(make(image, size=64, **options)({'image': pixels})['image'][..., 0],
                                      pixels.astype(np.float32) / 255)


def test_bad_images_and_options():
    transform = make(image, size=8)
    for bad in (np.full((9, 9), 1.5, np.float32), np.full((9, 9), np.nan, np.float32), np.zeros((9, 9)),
                np.zeros((9, 9), np.int16), np.zeros((9, 9, 4), np.uint8), np.zeros((2, 9, 9, 3), np.uint8)):
        with pytest.raises(errors.BadData):
            transform({'image': bad})
    for options in ({'fit': 'stretch'}, {'channels': 2}, {'size': 0}, {'resize': 100}):
        with pytest.raises(errors.ConfigError):
            make(image, **options)


# text


def test_sections_of_a_report():
    assert report_sections.sections(REPORT, 'impression').split() == ['No', 'acute', 'cardiopulmonary', 'process.']
    findings = report_sections.sections(REPORT, 'findings').split()
    assert findings[:3] == ['There', 'is', 'no'] and findings[-2:] == ['nipple', 'shadows.']
    both = report_sections.sections(REPORT, 'both').split()
    assert both == ['No', 'acute', 'cardiopulmonary', 'process.', *findings]
    for hidden in ('ascites', 'Chest', 'EXAMINATION'):
        assert hidden not in both


@pytest.mark.parametrize('report, both, findings, impression', [
    ('Findings: clear. Impression: normal.', 'normal. clear.', 'clear.', 'normal.'),
    ('impression : normal\nFINDINGS:clear', 'normal clear', 'clear', 'normal'),
    ('FINDINGS AND IMPRESSION: clear', 'clear', '', 'clear'),
    ('Findings/Impression: clear', 'clear', '', 'clear'),
    ('CONCLUSION: normal', 'normal', '', 'normal'),
    ('FINDINGS: a TECHNIQUE: b FINDINGS: c', 'a c', 'a c', ''),
    ('FINDINGS: a\nTECHNIQUE: b', 'a', 'a', ''),
    ('Heart size normal. These findings are new.', 'Heart size normal. These findings are new.', '', ''),
    ('INDICATION: cough. No edema.', 'INDICATION: cough. No edema.', '', ''),
    ('IMPRESSION:', '', '', ''),
    ('', '', '', ''),
])
def test_section_fallbacks(report, both, findings, impression):
    for section, expected in (('both', both), ('findings', findings), ('impression', impression)):
        assert report_sections.sections(report, section).split() == expected.split()


@dataclasses.dataclass
class Reports(Source):
    texts: tuple
    cases: tuple
    name: str = 'reports'
    read: int = 0

    def __getitem__(self, i):
        self.read += 1
        return {'text': self.texts[i]}


def reports(*texts, studies=None):
    return Reports(texts, tuple(Case(str(i), 'p', (studies or {}).get(i, '')) for i in range(len(texts))))


def fit(source, indices=None, **given):
    hp = ConfigDict({**text.DEFAULTS, **given})
    return text.fit(hp, source, range(len(source.cases)) if indices is None else indices, lambda x: x)


def test_vocabulary():
    source = reports('B b_a, c-1', 'b a', 'the test case zzz zzz zzz')
    assert fit(source, [0, 1]) == {'words': ['b', 'a', '1', 'c']}  # by count, then alphabet; no test words
    assert fit(source, [0, 1], vocab=5) == {'words': ['b', 'a']}  # ids 0 to 4
    twice = reports('a a', 'a a', 'b b b', studies={0: 's', 1: 's'})
    assert fit(twice) == {'words': ['b', 'a']} and twice.read == 2  # a study counts once, and is read once
    with pytest.raises(errors.BadData, match='section "findings"'):
        fit(reports('no header'), section='findings')

    class Quick(Reports):
        def text(self, i):
            return self.texts[i]
    quick = Quick(source.texts, source.cases)
    assert fit(quick) == fit(source) and quick.read == 0


def test_tokens():
    asset = {'words': ['no', 'edema', 'seen']}
    record = {'text': 'IMPRESSION: No EDEMA; new. FINDINGS: seen, seen', 'label': 1}
    tokens = make(text, asset, length=8)(record)['tokens']
    assert tokens.dtype == np.int32 and tokens.tolist() == [1, 3, 4, 2, 5, 5, 0, 0]
    assert make(text, asset, length=4)(record)['tokens'].tolist() == [1, 3, 4, 2]  # findings are cut first
    assert make(text, asset, length=3)({'text': ''})['tokens'].tolist() == [1, 0, 0]
    other = make(text, asset, length=3, section='findings', out='f')(record)
    assert other['f'].tolist() == [1, 5, 5] and other['label'] == 1 and 'tokens' not in other


def test_masked_terms_are_unknown_words():
    terms = ('COVID-19', 'pleural effusion', 'effusion')
    source = reports('Covid-19: pleural effusion, covid 190, pleural plaque. Effusion.')
    words = fit(source, mask_terms=terms)
    assert words == {'words': ['190', 'covid', 'plaque', 'pleural']}
    tokens = make(text, words, mask_terms=terms, length=12)(source[0])['tokens']
    assert tokens.tolist() == [1, 2, 2, 2, 2, 4, 3, 6, 5, 2, 0, 0]
    with pytest.raises(errors.ConfigError, match='mask_terms'):
        make(text, words, mask_terms=('--',))


@given(st.lists(st.text(max_size=80), min_size=1, max_size=5), st.integers(1, 12), st.integers(4, 20))
@settings(deadline=None)
def test_any_text_gives_ids_inside_the_table(texts, length, vocab):
    source = reports('word', *texts)
    asset = fit(source, vocab=vocab)
    transform = make(text, asset, length=length, vocab=vocab)
    for one in texts:
        tokens = transform({'text': one})['tokens']
        assert tokens.shape == (length,) and tokens[0] == 1 and tokens.min() >= 0 and tokens.max() < vocab
        used = np.flatnonzero(tokens)
        assert (used == np.arange(len(used))).all()  # padding only at the end


def test_text_options():
    for options in ({'section': 'all'}, {'length': 0}, {'vocab': 3}):
        with pytest.raises(errors.ConfigError):
            make(text, {'words': []}, **options)
    with pytest.raises(errors.ConfigError, match='smaller than the stored vocabulary'):
        make(text, {'words': ['a', 'b']}, vocab=4)
    assert make(text)({'text': 'any word'})['tokens'][:4].tolist() == [1, 2, 2, 0]  # shapes need no fit


# labels


@pytest.mark.parametrize('uncertain, blank, label, weight', [
    ('ignore', 'zeros', [1, 0, 0, 0], [1, 1, 0, 1]), ('ones', 'zeros', [1, 0, 1, 0], [1, 1, 1, 1]),
    ('zeros', 'ignore', [1, 0, 0, 0], [1, 1, 1, 0]), ('ignore', 'ignore', [1, 0, 0, 0], [1, 1, 0, 0])])
def test_label_policies(uncertain, blank, label, weight):
    raw = np.float32([1, 0, -1, np.nan])
    found = make(labels, uncertain=uncertain, blank=blank)({'label': raw})
    assert found['label'].tolist() == label and found['label_weight'].tolist() == weight
    assert found['label'].dtype == found['label_weight'].dtype == np.float32 and np.isnan(raw[3])


def test_bad_labels():
    for bad in ([2.0], [0.5], [np.inf]):
        with pytest.raises(errors.BadData, match='1, 0, -1 or nan'):
            make(labels)({'label': np.float32(bad)})
    for options in ({'uncertain': 'skip'}, {'blank': 'ones'}):
        with pytest.raises(errors.ConfigError, match='labels'):
            make(labels, **options)


# random ones


def test_affine_of_nothing_is_the_identity():
    pixels = RNG.random((40, 30, 2)).astype(np.float32)
    still = make(affine, degrees=0.0, scale=0.0, shift=0.0)({'image': pixels}, np.random.default_rng(0))
    np.testing.assert_allclose(still['image'], pixels, atol=1e-6)


def test_affine_moves_turns_and_scales_as_stated():
    y, x = np.mgrid[:64, :64] + 0.5

    def blob(cx, cy, width=3.0):
        return np.exp(-((x - cx)**2 + (y - cy)**2) / (2 * width**2)).astype(np.float32)[..., None]

    shifted = affine.warp(blob(32, 32), np.eye(2), (0.125, -0.0625))
    np.testing.assert_allclose(shifted, blob(40, 28), atol=1e-6)
    turn = np.deg2rad(90)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    np.testing.assert_allclose(affine.warp(blob(44, 32), matrix, (0, 0)), blob(32, 44), atol=1e-5)
    larger = affine.warp(blob(44, 32, 4), np.eye(2) / 1.5, (0, 0))
    np.testing.assert_allclose(larger, blob(50, 32, 6), atol=0.02)  # interpolation flattens the peak
    white = affine.warp(np.ones((64, 64, 1), np.float32), np.eye(2), (0.25, 0))
    assert (white[:, :16] == 0).all() and (white[:, 17:] == 1).all()  # black comes in


def test_affine_stays_within_its_limits():
    side = 101
    dot = np.zeros((side, side, 1), np.float32)
    dot[48:53, 78:83] = 1  # 30 px right of the centre
    y, x = np.mgrid[:side, :side] - side // 2
    turn = make(affine, scale=0.0, shift=0.0)
    grow = make(affine, degrees=0.0, shift=0.0)
    angles, radii = [], []
    for seed in range(200):
        one = turn({'image': dot}, np.random.default_rng(seed))['image'][..., 0]
        angles.append(np.degrees(np.arctan2((y * one).sum(), (x * one).sum())))
        one = grow({'image': dot}, np.random.default_rng(seed))['image'][..., 0]
        radii.append((x * one).sum() / one.sum() / 30)
    assert 9 < max(angles) < 10.3 and -10.3 < min(angles) < -9 and abs(np.mean(angles)) < 1.5
    assert 1.08 < max(radii) < 1.11 and 0.89 < min(radii) < 0.92


def test_affine_keeps_aligned_images_aligned():
    pixels = RNG.random((32, 32, 1)).astype(np.float32)
    record = {'image': pixels, 'ct': pixels, 'other': pixels}
    found = make(affine, keys=('image', 'ct'))(record, np.random.default_rng(3))
    np.testing.assert_array_equal(found['image'], found['ct'])
    assert found['other'] is pixels and record['image'] is pixels and (found['image'] != pixels).any()


def test_contrast():
    pixels = RNG.random((32, 32, 1)).astype(np.float32) * 0.4 + 0.3
    gains = []
    for seed in range(100):
        record = {'image': pixels, 'ct': pixels}
        found = make(contrast, keys=('image', 'ct'))(record, np.random.default_rng(seed))
        np.testing.assert_array_equal(found['image'], found['ct'])
        np.testing.assert_allclose(found['image'].mean(), pixels.mean(), atol=1e-5)
        gains.append(found['image'].std() / pixels.std())
        assert found['image'].dtype == np.float32
    assert 0.9 <= min(gains) < 0.92 and 1.08 < max(gains) <= 1.1001
    full = np.float32([[[0.0], [1.0]]])
    clipped = make(contrast, amount=0.9)({'image': full}, np.random.default_rng(0))['image']
    assert clipped.min() >= 0 and clipped.max() <= 1
    with pytest.raises(errors.ConfigError):
        make(contrast, amount=1.0)
    with pytest.raises(errors.ConfigError):
        make(affine, scale=1.0)


def test_transforms_pickle_and_repeat():
    record = {'image': RNG.random((64, 64, 1)).astype(np.float32), 'text': 'a b', 'label': np.float32([1])}
    for module in (affine, contrast):
        assert module.build(ConfigDict(module.DEFAULTS)).random
        one, two = make(module), pickle.loads(pickle.dumps(make(module)))
        a, b = (t(record, np.random.default_rng(5))['image'] for t in (one, two))
        np.testing.assert_array_equal(a, b)
        assert (a != one(record, np.random.default_rng(6))['image']).any()
    record['image'] = (record['image'][..., 0] * 255).astype(np.uint8)
    reader = make(text, {'words': ['a']}, mask_terms=('b',))
    for transform, key in ((reader, 'tokens'), (make(labels), 'label'), (make(image, size=32), 'image')):
        copy = pickle.loads(pickle.dumps(transform))
        np.testing.assert_array_equal(transform(record)[key], copy(record)[key])
