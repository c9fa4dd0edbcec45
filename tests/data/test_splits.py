import collections
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config import schema
from jaxkd.data import splits
from jaxkd.data.source import Case

FRACTIONS = {'train': 0.7, 'val': 0.1, 'test': 0.2}


def cases_of(*patients, parts=None):
    return [Case(f'{i}.png', p, split=(parts or {}).get(i, '')) for i, p in enumerate(patients)]


HUNDRED = cases_of(*[f'p{i % 100}' for i in range(250)])


def parts_of(cases, split):
    return {name: {c.patient for c in cases if split[c.id] == name} for name in FRACTIONS}


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=200), st.integers(0, 5), st.randoms())
def test_by_patient_exact_and_independent_of_order(patients, seed, shuffler):
    patients = [*range(10), *patients]
    cases = cases_of(*map(str, patients))
    split = splits.make(cases, FRACTIONS, seed)
    splits.check(cases, split)
    parts, n = parts_of(cases, split), len(set(patients))
    for name in FRACTIONS:
        assert abs(len(parts[name]) - FRACTIONS[name] * n) <= 1
    assert not parts['train'] & parts['test'] and not parts['val'] & (parts['train'] | parts['test'])
    shuffler.shuffle(cases)
    assert splits.make(cases, FRACTIONS, seed) == split


def test_the_draw_is_pinned():
    """A drawn split must stay the same for ever, whatever libraries are installed."""
    split = splits.make(HUNDRED, FRACTIONS, 0)
    assert splits.fingerprint(split) == '30060758d9b81a068342e162cae19301152b983533f7c682b3e572affc2b7b97'
    assert splits.make(HUNDRED, FRACTIONS, 1) != split
    assert [len(p) for p in parts_of(HUNDRED, split).values()] == [70, 10, 20]


def test_given_parts_are_kept_and_whole_patients_follow():
    cases = cases_of(*'aabbccdefghijklmnop', parts={0: 'test', 2: 'train'})
    split = splits.make(cases, FRACTIONS, 0)
    assert split['0.png'] == split['1.png'] == 'test' and split['2.png'] == split['3.png'] == 'train'
    drawn = splits.make(cases, FRACTIONS, 0, given=False)
    assert drawn == splits.make(cases_of(*'aabbccdefghijklmnop'), FRACTIONS, 0)
    torn = cases_of(*'aab', parts={0: 'test', 1: 'train'})
    with pytest.raises(errors.BadData, match=r'0.png \(test\) and 1.png \(train\) belong to one patient'):
        splits.make(torn, FRACTIONS, 0)


def test_too_few_patients_and_bad_fractions():
    with pytest.raises(errors.BadData, match='"test" part of the split is empty: 2 patients'):
        splits.make(cases_of('a', 'b'), FRACTIONS, 0)
    everything = {i: 'train' for i in range(3)}
    with pytest.raises(errors.BadData, match='given'):
        splits.make(cases_of(*'abc', parts=everything), FRACTIONS, 0)
    assert set(splits.make(cases_of(*'abc'), {'train': 1.0, 'val': 0.0, 'test': 0.0}).values()) == {'train'}
    for bad in ({'train': 0.5, 'test': 0.4}, {'train': 1.2, 'test': -0.2}):
        with pytest.raises(errors.ConfigError, match='sum to 1'):
            splits.make(HUNDRED, bad)


def test_file_is_written_once(tmp_path):
    path = tmp_path / 'folds' / 'split.json'
    split = splits.make(HUNDRED, FRACTIONS, 0)
    splits.write(path, split, FRACTIONS, 0)
    before = path.read_bytes()
    splits.write(path, split, FRACTIONS, 0)
    assert path.read_bytes() == before and splits.read(path) == split
    assert {k: json.loads(before)[k] for k in ('fractions', 'seed', 'fingerprint')} == {
        'fractions': FRACTIONS, 'seed': 0, 'fingerprint': splits.fingerprint(split)}
    with pytest.raises(errors.CannotWrite, match='another split'):
        splits.write(path, splits.make(HUNDRED, FRACTIONS, 1), FRACTIONS, 1)


def test_damaged_and_edited_files(tmp_path):
    path = tmp_path / 'split.json'
    with pytest.raises(errors.MissingInput):
        splits.read(path)
    splits.write(path, {'a': 'train', 'b': 'test'}, FRACTIONS, 0)
    tree = json.loads(path.read_text())
    tree['split']['b'] = 'train'
    path.write_text(json.dumps(tree))
    with pytest.raises(errors.BadData, match='changed after it was written'):
        splits.read(path)
    path.write_text(json.dumps({'split': {'a': 'fold0', 'b': 'fold1'}}))  # made by hand, own names
    assert splits.read(path) == {'a': 'fold0', 'b': 'fold1'}
    for text in ('[]', '{}', '{"split": {}}', '{"split": {"a": 3}}', '{"split": ["a"]}', '"x"'):
        path.write_text(text)
        with pytest.raises(errors.BadData, match='not a split file'):
            splits.read(path)
    path.write_text('{"split": {"a"')
    with pytest.raises(errors.Damaged):
        splits.read(path)


def test_fingerprint_depends_on_content_alone():
    split = splits.make(HUNDRED)
    items = list(split.items())
    random.Random(0).shuffle(items)
    assert splits.fingerprint(dict(items)) == splits.fingerprint(split)
    moved = {**split, '0.png': 'val' if split['0.png'] != 'val' else 'test'}
    assert splits.fingerprint(moved) != splits.fingerprint(split)
    assert splits.fingerprint({'a': 'b'}) != splits.fingerprint({'a': 'c'})


def test_check_finds_a_planted_leak_and_a_changed_source():
    split = splits.make(HUNDRED)
    splits.check(HUNDRED, split)
    leak = next(c for c in HUNDRED if split[c.id] == 'test')
    with pytest.raises(errors.BadData, match=r'\((test|train)\) and .* belong to one patient') as e:
        splits.check(HUNDRED, {**split, leak.id: 'train'})
    assert leak.id in str(e.value) or leak.patient in {c.patient for c in HUNDRED if c.id in str(e.value)}
    with pytest.raises(errors.BadData, match=r'1 cases of the source are not in it \(first: 9.png\)'):
        splits.check(HUNDRED, {k: v for k, v in split.items() if k != '9.png'})
    with pytest.raises(errors.BadData, match=r'fold.json does.*: 1 cases in it are not in the source \(first: new'):
        splits.check(HUNDRED, {**split, 'new.png': 'train'}, 'fold.json')


def test_patients_of_a_teacher():
    split = splits.make(HUNDRED)
    digests = splits.patient_digests(case for case in HUNDRED if split[case.id] == 'train')
    assert len(digests) == 70 and digests == sorted(digests) and all(len(d) == 16 for d in digests)
    splits.refuse_overlap(digests, HUNDRED, split)
    other = splits.make(HUNDRED, seed=1)
    held_out = parts_of(HUNDRED, other)
    count = len(parts_of(HUNDRED, split)['train'] & (held_out['val'] | held_out['test']))
    with pytest.raises(errors.BadData, match=rf'trained on {count} patients that .* val/test part'):
        splits.refuse_overlap(digests, HUNDRED, other)
    splits.refuse_overlap(digests, HUNDRED, other, names=())
    assert 'p1' not in ' '.join(digests)


def test_of_a_run(tmp_path):
    hp = ConfigDict(schema.RUN['data']['split'])
    split = splits.load_or_draw(HUNDRED, hp, str(tmp_path))
    assert split == splits.make(HUNDRED) == splits.load_or_draw(HUNDRED, hp)
    assert split == splits.load_or_draw(HUNDRED, hp, str(tmp_path))
    other = ConfigDict({**hp, 'seed': 1})
    with pytest.raises(errors.ConfigError, match='other settings'):
        splits.load_or_draw(HUNDRED, other, str(tmp_path))
    with pytest.raises(errors.BadData, match='does not match the source'):
        splits.load_or_draw(HUNDRED[1:], hp, str(tmp_path))
    own = ConfigDict({**other, 'file': str(tmp_path / 'split.json')})
    assert splits.load_or_draw(HUNDRED, own, str(tmp_path / 'elsewhere')) == split
    with pytest.raises(errors.MissingInput):
        splits.load_or_draw(HUNDRED, ConfigDict({**hp, 'file': 'none.json'}))
    with pytest.raises(errors.ConfigError, match='must be three'):
        splits.load_or_draw(HUNDRED, ConfigDict({**hp, 'fractions': (0.5, 0.5)}))


# Stratified parts, folds, and groups left out.

def grouped(centers, images=1):
    """A patient for each letter, with so many images."""
    return [Case(f'{i}_{k}.png', f'p{i}', groups={'center': c, 'class': 'xyz'[i % 3]})
            for i, c in enumerate(centers) for k in range(images)]


CENTERS = st.text('ABC', min_size=40, max_size=150)
SPLIT = {'train': 0.6, 'val': 0.15, 'test': 0.25}


def patients_by_stratum(cases, names):
    found = collections.defaultdict(set)
    for case in cases:
        found[tuple(case.groups[n] for n in names)].add(case.patient)
    return found


def counted(cases, split, patients):
    """{part: how many of these patients}."""
    return collections.Counter({c.patient: split[c.id] for c in cases if c.patient in patients}.values())


@settings(deadline=None)
@given(CENTERS, st.integers(0, 5), st.randoms(), st.sampled_from([('center',), ('class',), ('class', 'center')]))
def test_every_part_gets_its_share_of_every_stratum(centers, seed, shuffler, names):
    cases = grouped(centers, 2)
    split = splits.make(cases, SPLIT, seed, stratify=names)
    splits.check(cases, split)
    strata = patients_by_stratum(cases, names)
    for patients in [*strata.values(), set.union(*strata.values())]:
        count = counted(cases, split, patients)
        for part, fraction in SPLIT.items():
            assert abs(count[part] - fraction * len(patients)) < 1, (part, count, len(patients))
    shuffler.shuffle(cases)
    assert splits.make(cases, SPLIT, seed, stratify=names) == split


def test_strata_of_one_patient_are_still_divided():
    """Sixty strata of one patient: cut one by one, all would be trained on."""
    cases = [Case(str(i), f'p{i}', groups={'site': f'{i:03}'}) for i in range(60)]
    split = splits.make(cases, {'train': 0.5, 'val': 0.2, 'test': 0.3}, stratify=('site',))
    assert collections.Counter(split.values()) == {'train': 30, 'val': 12, 'test': 18}
    alone = {splits.make(cases, FRACTIONS, seed, stratify=('site',))['0'] for seed in range(30)}
    assert alone == {'train', 'val', 'test'}, 'no stratum always falls to the same part'


def test_a_worked_stratified_draw():
    """10 of A and 5 of B in halves: 5 of A each; of B 2 and 3, so that it is 7 and 8 of 15."""
    cases = grouped('A' * 10 + 'B' * 5)
    split = splits.make(cases, {'train': 0.5, 'test': 0.5}, stratify=('center',))
    strata = patients_by_stratum(cases, ('center',))
    assert counted(cases, split, strata['A',]) == {'train': 5, 'test': 5}
    assert sorted(counted(cases, split, strata['B',]).values()) == [2, 3]
    alike = grouped('A' * 15)
    assert splits.make(alike, FRACTIONS, 3) != splits.make(alike, FRACTIONS, 3, stratify=('class',))


def test_the_stratum_of_a_patient_is_that_of_the_first_case():
    cases = [Case(f'{i}_{k}', f'p{i}', groups={'center': 'AB'[k]}) for i in range(20) for k in range(2)]
    split = splits.make(cases, SPLIT, stratify=('center',))
    only_a = [c for c in cases if c.groups['center'] == 'A']
    assert {c.id: split[c.id] for c in only_a} == splits.make(only_a, SPLIT, stratify=('center',))


@settings(deadline=None)
@given(CENTERS, st.integers(2, 7), st.integers(0, 5), st.sampled_from([(), ('center',), ('class', 'center')]))
def test_over_the_folds_each_patient_is_tested_once(centers, k, seed, names):
    cases = grouped(centers, 2)
    tested, chosen = [], []
    strata = patients_by_stratum(cases, names)
    for fold in range(k):
        split = splits.make(cases, SPLIT, seed, stratify=names, folds=k, fold=fold)
        splits.check(cases, split)
        parts = parts_of(cases, split)
        assert set.union(*parts.values()) == {c.patient for c in cases}
        rest = len(parts['train']) + len(parts['val'])
        assert abs(len(parts['val']) - rest * 0.2) < 1, 'train : val = 0.6 : 0.15'
        for patients in [*strata.values(), set.union(*strata.values())]:
            assert abs(counted(cases, split, patients)['test'] - len(patients) / k) < 1
        tested += sorted(parts['test'])
        chosen.append(parts['val'])
        assert splits.make(cases[::-1], SPLIT, seed, stratify=names, folds=k, fold=fold) == split
    assert len(tested) == len(set(tested)) == len(centers)
    assert len(set(map(frozenset, chosen))) == k, 'each fold has validation patients of its own'


def test_folds_ignore_the_parts_of_the_archive():
    plain, marked = cases_of(*map(str, range(30))), cases_of(*map(str, range(30)), parts={i: 'test' for i in range(25)})
    assert splits.make(marked, folds=5, fold=2) == splits.make(plain, folds=5, fold=2)
    assert splits.make(plain, folds=5, fold=2) != splits.make(plain, seed=1, folds=5, fold=2)
    without = splits.make(plain, {'train': 0.8, 'val': 0.0, 'test': 0.2}, folds=5)
    assert collections.Counter(without.values()) == {'train': 24, 'test': 6}


@settings(deadline=None)
@given(CENTERS, st.integers(0, 3), st.sampled_from([(), ('class',)]))
def test_a_group_is_left_out_whole(centers, seed, names):
    cases = grouped(centers, 2)
    for center in set(centers):
        if centers.count(center) > len(centers) - 20:
            continue
        split = splits.make(cases, SPLIT, seed, stratify=names, leave_out=f'center={center}')
        splits.check(cases, split)
        assert all((split[c.id] == 'test') == (c.groups['center'] == center) for c in cases)
        parts = parts_of(cases, split)
        assert abs(len(parts['val']) - 0.2 * (len(centers) - centers.count(center))) <= 1
        assert splits.make(cases[::-1], SPLIT, seed, stratify=names, leave_out=f'center={center}') == split


@pytest.mark.parametrize('options, error, says', [
    (dict(leave_out='center=D'), errors.ConfigError, 'no case has the center "D".*A, B'),
    (dict(leave_out='centre=A'), errors.ConfigError,
     r'split.leave_out: .*no group "centre". Did you mean "center"\? Known: center, class\.$'),
    (dict(leave_out='center'), errors.ConfigError, 'as in "center=A"'),
    (dict(stratify=('clas',)), errors.ConfigError,
     r'split.stratify: .*no group "clas". Did you mean "class"\? Known: center, class\.$'),
    (dict(stratify=('size',)), errors.ConfigError, r'split.stratify: .*no group "size". Known: center, class\.$'),
    (dict(leave_out='center=A', folds=3), errors.ConfigError, '3 folds and for leave_out'),
    (dict(folds=3, fold=3), errors.ConfigError, 'fold 3 of 3 folds is not possible'),
    (dict(folds=1), errors.ConfigError, 'Set folds to 2 or more'),
    (dict(fold=2), errors.ConfigError, 'or both to 0'),
    (dict(folds=41), errors.BadData, '40 patients are too few for 41 folds'),
    (dict(folds=2, fractions={'train': 0.0, 'val': 0.5, 'test': 0.5}), errors.ConfigError, 'nothing to train on'),
])
def test_impossible_options(options, error, says):
    with pytest.raises(error, match=says):
        splits.make(grouped('AB' * 20), **options)


def test_a_patient_of_two_centers_cannot_be_left_out():
    torn = [*grouped('AB' * 20), Case('again.png', 'p0', groups={'center': 'B'})]
    with pytest.raises(errors.BadData, match=r'0_0.png \(center "A"\) and again.png \(center "B"\) belong to one'):
        splits.make(torn, leave_out='center=A')
    everything = [c for c in grouped('A' * 9)]
    with pytest.raises(errors.BadData, match='"train" part of the split is empty: 0 patients are not tested'):
        splits.make(everything, leave_out='center=A')
    with pytest.raises(errors.ConfigError, match='no group "center". It has no groups at all'):
        splits.make(HUNDRED, leave_out='center=A')


def test_a_run_of_one_fold(tmp_path):
    hp = ConfigDict({**schema.RUN['data']['split'], 'folds': 4, 'fold': 1})
    split = splits.load_or_draw(HUNDRED, hp, tmp_path)
    assert split == splits.make(HUNDRED, folds=4, fold=1) == splits.load_or_draw(HUNDRED, hp, tmp_path)
    kept = json.loads((tmp_path / 'split.json').read_text())
    assert (kept['folds'], kept['fold'], kept['leave_out']) == (4, 1, '')
    with pytest.raises(errors.ConfigError, match='other settings'):
        splits.load_or_draw(HUNDRED, ConfigDict({**hp, 'fold': 2}), tmp_path)
    with pytest.raises(errors.ConfigError, match='folds and leave_out have nothing to draw'):
        splits.load_or_draw(HUNDRED, ConfigDict({**hp, 'file': str(tmp_path / 'split.json')}), tmp_path / 'other')
