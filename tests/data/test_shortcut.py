"""The injection suite: exact counts, the same artefact for the same image for ever, nothing else touched."""
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.data import external, loader, pool, splits
from jaxkd.data.source import Case, Source
from jaxkd.data.sources import binary
from jaxkd.data.transforms import shortcut
from jaxkd.data.volume import FIXED

KINDS = ('noise', 'square_const', 'square_rand', 'tag', 'gain')


def options(**changes):
    return ConfigDict(shortcut.DEFAULTS | changes)


class Two(Source):
    name, note, labels, skipped = 'two', '', ('absent', 'present'), ()

    def __init__(self, n=2000, sex=()):
        self.targets = {'label': np.arange(n) % 2}
        self.cases = tuple(Case(f'c{i}', f'p{i}', groups={'sex': sex[i] if len(sex) else 'F'}) for i in range(n))


def assigned(source=None, part='train', **changes):
    source = source or Two()
    return shortcut.assign(options(**changes), source, {c.id: part for c in source.cases})


@pytest.mark.parametrize('p1, p0, phi', [(1.0, 0.0, 1.0), (0.95, 0.05, 0.9), (0.9, 0.1, 0.8), (0.75, 0.25, 0.5)])
def test_exact_counts_and_correlation(p1, p0, phi):
    found, y = assigned(rates=(p1, p0)).marked, Two().targets['label'] == 1
    assert found[y].sum() == round(p1 * 1000) and found[~y].sum() == round(p0 * 1000)
    assert np.corrcoef(found, y)[0, 1] == pytest.approx(phi, abs=0.005)


def test_flip_marks_five_percent_of_the_positives():
    found, y = assigned(rates=(0.05, 0.95)).marked, Two().targets['label'] == 1
    assert found[y].sum() == 50 and found[~y].sum() == 950


@given(st.integers(4, 60), st.floats(0, 1), st.floats(0, 1), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_counts_hold_for_any_rates_in_every_part(n, p1, p0, seed):
    source = Two(n)
    split = {c.id: ('train', 'test', 'clean')[i % 3] for i, c in enumerate(source.cases)}
    found = shortcut.assign(options(rates=(p1, p0), parts=dict(clean=(0.0, 0.0)), seed=seed), source, split)
    part = np.array([split[c.id] for c in source.cases])
    for name, rates in (('train', (p1, p0)), ('test', (p1, p0)), ('clean', (0, 0))):
        for y, rate in zip((1, 0), rates):
            rows = (part == name) & (source.targets['label'] == y)
            assert found.marked[rows].sum() == round(rate * rows.sum())
    assert found.keep.all()


def test_marks_do_not_depend_on_the_order_of_cases():
    source = Two(200)
    turned = Two(200)
    turned.cases, turned.targets = source.cases[::-1], {'label': source.targets['label'][::-1]}
    a, b = assigned(source, rates=(0.7, 0.2)).marked, assigned(turned, rates=(0.7, 0.2)).marked
    np.testing.assert_array_equal(a, b[::-1])


def test_reweighing_of_the_specification():
    """At balanced classes and 0.95 / 0.05: 0.526 in the majority cells, 10 in the minority ones."""
    found = assigned(rates=(0.95, 0.05))
    y = Two().targets['label'] == 1
    np.testing.assert_allclose(found.weight[y == found.marked], 0.5263, atol=1e-4)
    np.testing.assert_allclose(found.weight[y != found.marked], 10.0, atol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape', [(64, 64, 1), (64, 64, 3), (12, 40, 44, 1)])
def test_the_same_image_has_the_same_artefact(kind, shape):
    x = np.random.default_rng(0).uniform(0.2, 0.6, shape).astype(np.float32)
    before = x.copy()
    a, b = (shortcut.inject(x, options(kind=kind), (3, 5)) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(x, before)  # the image in memory stays clean
    assert a.dtype == x.dtype and a.shape == x.shape and (a != x).any()
    if kind in ('noise', 'square_rand'):
        assert (shortcut.inject(x, options(kind=kind), (3, 6)) != a).any()


@pytest.mark.parametrize('kind', KINDS)
def test_fixed_point_volumes_are_changed_alike(kind):
    x = np.random.default_rng(0).uniform(0.2, 0.6, (8, 40, 44, 1)).astype(np.float32)
    fixed = np.round(x * FIXED).astype(np.int16)
    found = shortcut.inject(fixed, options(kind=kind), (0, 1))
    assert found.dtype == np.int16
    np.testing.assert_allclose(found / FIXED, shortcut.inject(fixed / np.float32(FIXED), options(kind=kind), (0, 1)),
                               atol=1.1 / FIXED)


def test_square_const_at_224_pixels():
    """Rows and columns 8 to 23, 256 pixels of each channel, 0.51 % of the area."""
    x = np.full((224, 224, 3), 0.5, np.float32)
    found = shortcut.inject(x, options())
    for c in range(3):
        rows, columns = np.nonzero(found[..., c] != 0.5)
        assert len(rows) == 256 and (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 23, 8, 23)
    assert found.max() == 1.0


def test_square_rand_reaches_every_corner():
    x = np.zeros((224, 224, 1), np.float32)
    corners = np.array([np.argwhere(shortcut.inject(x, options(kind='square_rand'), (0, k)))[0] for k in range(2000)])
    assert corners[:, :2].min() == 0 and corners[:, :2].max() == 208


def test_noise_is_one_draw_for_all_channels_of_the_given_size():
    x = np.full((224, 224, 3), 0.5, np.float32)
    noise = shortcut.inject(x, options(kind='noise')) - x
    np.testing.assert_array_equal(noise[..., 0], noise[..., 2])
    assert noise.std() == pytest.approx(0.05, rel=0.02)


def test_gain_and_tag():
    x = np.full((224, 224, 1), 0.95, np.float32)
    assert shortcut.inject(x, options(kind='gain')).max() == 1.0
    assert shortcut.inject(x / 2, options(kind='gain'))[0, 0, 0] == pytest.approx(0.475 * 1.08)
    tag = shortcut.inject(np.zeros((224, 224, 1), np.float32), options(kind='tag'))[..., 0]
    np.testing.assert_array_equal(tag[1:9, -25:-1], shortcut.TAG)
    assert tag.sum() == shortcut.TAG.sum()
    with pytest.raises(errors.ConfigError, match='does not fit'):
        shortcut.inject(np.zeros((8, 64, 1), np.float32), options(kind='tag'))


def test_an_attribute_is_thinned_out_to_exact_rates_and_equal_classes():
    rng = np.random.default_rng(0)
    source = Two(600, rng.choice(['F', 'M'], 600, p=(0.3, 0.7)))
    found = assigned(source, kind='attribute', attribute='sex=F', rates=(0.8, 0.2))
    y = source.targets['label'] == 1
    kept = {c: found.keep & (y == c) for c in (True, False)}
    assert kept[True].sum() == kept[False].sum() > 50
    for c, rate in ((True, 0.8), (False, 0.2)):
        assert (found.marked & kept[c]).sum() == round(rate * kept[c].sum())
    assert (found.marked == (np.array([s.groups['sex'] for s in source.cases]) == 'F')).all()
    assert assigned(source, kind='attribute', attribute='sex=F', rates=()).keep.all()
    with pytest.raises(errors.ConfigError, match='no cases'):
        assigned(source, kind='attribute', attribute='sex=X')


class Images(Source):
    """A few images with several labels, some of them uncertain or not mentioned, up to two of a patient."""

    name, note, labels, skipped = 'images', '', ('a', 'b'), ()

    def __init__(self, n=120):
        rng = np.random.default_rng(1)
        self.values = rng.choice([1.0, 0.0, -1.0, np.nan], (n, 2), p=(0.3, 0.5, 0.1, 0.1)).astype(np.float32)
        self.cases = tuple(Case(f'c{i:03d}', f'p{i // 2}') for i in range(n))

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        return dict(image=rng.uniform(0.2, 0.8, (32, 32)).astype(np.float32), label=self.values[i],
                    case=self.cases[i].id,
                    boxes=np.float32([[0, 1, 1, 5, 5], [1, 8, 8, 4, 4]]), masks=np.ones((2, 32, 32), np.uint8))


def source(monkeypatch, **changes):
    """Those images as two classes of label b."""
    import sys
    import types
    monkeypatch.setitem(sys.modules, 'toy.images',
                        types.SimpleNamespace(DEFAULTS=dict(n=120), build=lambda hp: Images(hp.n)))
    return binary.build(config.options('data/sources',
                                       dict(dict(name='binary', of=dict(name='toy.images'), finding='b'), **changes),
                                       'x')[1])


def test_binary_balances_and_takes_one_image_of_a_patient(monkeypatch):
    found = source(monkeypatch)
    y = found.targets['label']
    assert y.sum() * 2 == len(y) and len({c.patient for c in found.cases}) == len(y)
    raw = np.array([Images().values[i, 1] for i in found.index])
    np.testing.assert_array_equal(raw, y)  # neither uncertain nor blank ones
    record = found[0]
    np.testing.assert_array_equal(record['boxes'], [[1, 8, 8, 4, 4]])
    assert record['label'] == y[0] and len(record['masks']) == 1
    assert found.cases[0].groups['class'] in ('absent', 'present')


def test_binary_policies(monkeypatch):
    everything = source(monkeypatch, one=False, balance=False, uncertain='ones', blank='zeros')
    assert len(everything) == 120
    raw = Images().values[:, 1]
    np.testing.assert_array_equal(everything.targets['label'], np.isin(raw, (1, -1)))
    assert source(monkeypatch, most=5).targets['label'].sum() == 5
    for wrong in (dict(finding='c'), dict(uncertain='maybe'), dict(of=dict(name='jaxkd.phantoms.brain'))):
        with pytest.raises(errors.ConfigError):
            source(monkeypatch, **{**wrong})


def data(monkeypatch, **changes):
    source(monkeypatch)
    given = dict(source=dict(name='binary', of=dict(name='toy.images'), finding='b'), transforms=('image',),
                 augment=('shortcut',),
                 image=dict(size=32, fit='squash'), split=dict(fractions=(0.5, 0.2, 0.3), stratify=('class',),
                                                               reserve=('clean', 0.3)),
                 shortcut=dict(rates=(1.0, 0.0), parts=dict(clean=(0.0, 0.0))), external=dict(
                     clean=dict(shortcut=dict(rates=(0.0, 0.0), parts={})),
                     flip=dict(shortcut=dict(rates=(0.0, 1.0), parts={}))))
    return pool.build(config.resolve(ConfigDict(dict(data={**given, **changes}))).data)


def test_clean_data_is_the_raw_pipeline_bit_by_bit(monkeypatch):
    with_it, raw = data(monkeypatch), data(monkeypatch, augment=())
    clean = external.external_dataset(with_it, 'clean')
    for i in range(len(raw.source.cases)):
        np.testing.assert_array_equal(clean[i]['image'], raw[i]['image'])
    assert clean.source is with_it.source and clean.memory is with_it.memory  # read once


def test_images_of_training_and_evaluation_carry_the_same_artefact(monkeypatch):
    found = data(monkeypatch)
    batch = next(loader.train_loader(found, 4, 0))
    assert not {'bias', 'bias_weight', 'twin'} & set(batch)  # nobody is told
    for image, index in zip(batch['image'], batch['index']):
        np.testing.assert_array_equal(image, found[int(index)]['image'])
        assert (image[1:3, 1:3] == 1).all() == bool(found.source.targets['label'][index])
    plans = [d.transforms.assignments['shortcut'] for d in (found, external.external_dataset(found, 'flip'))]
    test = found.partition.indices('test')
    assert (plans[0].marked[test] != plans[1].marked[test]).all()
    assert not plans[0].marked[[i for i, c in enumerate(found.source.cases)
                                if found.partition.split[c.id] == 'clean']].any()


def test_bias_is_in_a_batch_where_it_is_asked_for(monkeypatch):
    found = data(monkeypatch, shortcut=dict(rates=(1.0, 0.0), reveal=True))
    batch = next(loader.train_loader(found, 8, 0))
    np.testing.assert_array_equal(batch['bias'], batch['label'])
    y = found.source.targets['label'][found.partition.indices('train')]
    # b is y: P(y)
    np.testing.assert_allclose(batch['bias_weight'], [(y == c).mean() for c in batch['label']], rtol=1e-6)


def test_nothing_is_drawn_anew_so_teachers_may_be_cached(monkeypatch):
    found = data(monkeypatch)
    assert not found.transforms.augments({'image'})
    moved = data(monkeypatch, augment=('affine', 'shortcut')).transforms
    assert moved.augments({'image'}) and not moved.augments({'label', 'table'})


def test_twins_take_the_place_of_the_image():
    record = dict(index=np.int32(1), t1=np.zeros((2, 2, 2, 1), np.float32), twin=np.ones((2, 2, 2, 1), np.float32))
    found = assigned(Two(4), kind='twin', keys=('t1',))
    hp = options(kind='twin', keys=('t1',))
    marked = shortcut.apply(record, assignment=found, hp=hp)
    assert found.marked[1] and marked['t1'].all() and 'twin' not in marked and not record['t1'].any()
    assert not shortcut.apply(record | dict(index=np.int32(0)), assignment=found, hp=hp)['t1'].any()
    with pytest.raises(errors.BadData, match='twins'):
        shortcut.apply({k: v for k, v in record.items() if k != 'twin'}, assignment=found, hp=hp)


@pytest.mark.parametrize('wrong', [dict(kind='circle'), dict(rates=(1.0,)), dict(rates=(1.2, 0.0))])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(errors.ConfigError):
        assigned(Two(10), **wrong)


def test_a_source_without_known_classes_is_refused():
    with pytest.raises(errors.ConfigError, match='binary'):
        shortcut.assign(options(), Images(), {})


def reserved(fraction=0.2, **how):
    cases = [Case(f'c{i}', f'p{i // 2}', groups={'class': str(i // 2 % 2)}) for i in range(400)]
    how = dict(fractions=dict(train=0.6, val=0.1, test=0.3)) | how
    return cases, splits.make(cases, **how), splits.make(cases, **how, reserve=('clean', fraction))


@pytest.mark.parametrize('how', [{}, dict(stratify=('class',)), dict(folds=4, fold=1)])
def test_a_reserved_part_comes_out_of_training_alone(how):
    cases, without, found = reserved(**how)
    moved = {c for c in without if without[c] != found[c]}
    assert moved and all(without[c] == 'train' and found[c] == 'clean' for c in moved)
    patients = {part: {c.patient for c in cases if found[c.id] == part} for part in ('train', 'clean', 'val', 'test')}
    assert sum(map(len, patients.values())) == 200  # nobody is in two parts
    assert len(patients['clean']) == pytest.approx(0.2 * (len(patients['clean']) + len(patients['train'])), abs=1)


def test_a_planted_duplicate_patient_is_refused():
    cases, _, found = reserved()
    cases[0] = dataclasses.replace(cases[0], patient=next(c.patient for c in cases if found[c.id] != found['c0']))
    with pytest.raises(errors.BadData):
        splits.check(cases, found)


@pytest.mark.parametrize('reserve', [('clean',), ('train', 0.1), ('clean', 1.5), ('not a name', 0.1)])
def test_impossible_reservations_are_refused(reserve):
    with pytest.raises(errors.ConfigError, match='reserve'):
        splits.make(reserved()[0], reserve=reserve)
