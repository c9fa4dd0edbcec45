import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import splits
from jaxkd.data.source import Case

FRACTIONS = {'train': 0.7, 'val': 0.1, 'test': 0.2}


def cases_of(*patients, parts=None):
    return [Case(f'{i}.png', p, split=(parts or {}).get(i, '')) for i, p in enumerate(patients)]


HUNDRED = cases_of(*[f'p{i % 100}' for i in range(250)])


def parts_of(cases, split):
    return {name: {c.patient for c in cases if split[c.id] == name} for name in FRACTIONS}


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
    with pytest.raises(errors.BadData, match=r'fold.json does.*1 cases in it are not .*\(first: new'):
        splits.check(HUNDRED, {**split, 'new.png': 'train'}, 'fold.json')


def test_patients_of_a_teacher():
    split = splits.make(HUNDRED)
    digests = splits.patient_digests(HUNDRED, split, 'train')
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
    hp = ConfigDict({'fractions': (0.7, 0.1, 0.2), 'seed': 0, 'given': True, 'file': ''})
    split = splits.of(HUNDRED, hp, str(tmp_path))
    assert split == splits.make(HUNDRED) == splits.of(HUNDRED, hp) == splits.of(HUNDRED, hp, str(tmp_path))
    other = ConfigDict({**hp, 'seed': 1})
    with pytest.raises(errors.ConfigError, match='other settings'):
        splits.of(HUNDRED, other, str(tmp_path))
    with pytest.raises(errors.BadData, match='does not match the source'):
        splits.of(HUNDRED[1:], hp, str(tmp_path))
    own = ConfigDict({**other, 'file': str(tmp_path / 'split.json')})
    assert splits.of(HUNDRED, own, str(tmp_path / 'elsewhere')) == split
    with pytest.raises(errors.MissingInput):
        splits.of(HUNDRED, ConfigDict({**hp, 'file': 'none.json'}))
    with pytest.raises(errors.ConfigError, match='must be three'):
        splits.of(HUNDRED, ConfigDict({**hp, 'fractions': (0.5, 0.5)}))
