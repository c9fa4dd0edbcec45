"""Labels for few: who has one, and that nothing else tells of the others."""
import collections
import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.data import label_share, loader, prepare, splits
from jaxkd.data.pool import DataPool
from jaxkd.data.source import HIDDEN, Case, Source
from jaxkd.data.transforms import labels, shortcut
from jaxkd.data.volume import Volume
from jaxkd.data.volume import Volume as Scan


class Classes(Source):
    """One class a case, two cases a patient, of classes that are unequally frequent."""

    name, labels, tasks = 'classes', ('common', 'rare'), {'grade': ('low', 'high')}

    def __init__(self, n=400):
        self.cases = tuple(Case(f'c{i}', f'p{i // 2}') for i in range(n))
        self.targets = {'label': np.int32([i // 2 % 20 == 7 for i in range(n)]), 'grade': np.int32([1] * n)}

    def __getitem__(self, i):
        return {'label': self.targets['label'][i], 'grade': self.targets['grade'][i]}


def choice(**options):
    split = dict(seed=0)
    return ConfigDict(dict(train='train', val='val', test='test', split=split,
                           labels=dict(dict(share=1.0, patients=0, stratify=True), **options)))


def labelled(source, split, **options):
    """{part: labelled patients}."""
    known, found = label_share.labelled(source, split, choice(**options)), collections.defaultdict(set)
    for case, chosen in zip(source.cases, known):
        if chosen:
            found[split[case.id]].add(case.patient)
    return found


SOURCE = Classes()
SPLIT = splits.make(SOURCE.cases, {'train': 0.6, 'val': 0.2, 'test': 0.2})


def test_a_smaller_share_is_part_of_a_larger_one_and_the_test_part_is_whole():
    found = [labelled(SOURCE, SPLIT, share=share) for share in (0.05, 0.1, 0.5, 0.9)]
    for smaller, larger in zip(found, found[1:]):
        assert smaller['train'] < larger['train'] and smaller['val'] < larger['val']
    assert [(len(f['train']), len(f['val']), len(f['test'])) for f in found] == [
        (6, 2, 40), (12, 4, 40), (60, 20, 40), (108, 36, 40)]
    assert label_share.labelled(SOURCE, SPLIT, choice()) is None
    by_number = labelled(SOURCE, SPLIT, patients=6)
    assert by_number == found[0]


@pytest.mark.parametrize('share', [0.1, 0.25, 0.5])
def test_classes_keep_their_shares_and_all_cases_of_a_patient_follow(share):
    rare = {case.patient for case, y in zip(SOURCE.cases, SOURCE.targets['label']) if y}
    part = {case.patient for case in SOURCE.cases if SPLIT[case.id] == 'train'}
    chosen = labelled(SOURCE, SPLIT, share=share)['train']
    assert abs(len(chosen & rare) - share * len(part & rare)) <= 0.5
    known = label_share.labelled(SOURCE, SPLIT, choice(share=share))
    assert (known[::2] == known[1::2]).all()


def test_a_draw_that_is_blind_does_not_change_with_labels():
    other = Classes()
    other.targets = {**other.targets, 'label': 1 - other.targets['label']}
    drawn = [label_share.labelled(s, SPLIT, choice(share=0.1, stratify=blind)).tolist()
             for blind in (False, True) for s in (SOURCE, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_stratum_of_several_findings_is_the_rarest():
    source = types.SimpleNamespace(targets={}, labels=('a', 'b'), cases=[Case(f'c{i}', f'p{i}') for i in range(4)],
                                   values=np.float32([[1, 0], [1, 1], [1, -1], [0, np.nan]]))
    assert label_share._strata(source) == {'p0': 'a', 'p1': 'b', 'p2': 'a'}
    source.values, source.targets = None, {'pe': np.int32([1, 0, 0, -1])}  # with labels of places
    assert label_share._strata(source) == {'p0': 'pe=1', 'p1': 'pe=0', 'p2': 'pe=0'}


@pytest.mark.parametrize('options, message', [
    (dict(share=0.0), r'data.labels.share = 0.0 must lie in \(0, 1\]'),
    (dict(share=1.5), 'data.labels.share'),
    (dict(patients=-1), 'data.labels.patients'),
    (dict(share=0.5, patients=3), 'both say how many patients have labels'),
    (dict(patients=121), 'data.labels.patients = 121: the training part has 120 patients'),
])
def test_shares_that_cannot_be_are_refused(options, message):
    with pytest.raises(errors.ConfigError, match=message):
        label_share.labelled(SOURCE, SPLIT, choice(**options))


def test_a_source_that_hides_labels_tells_none_of_them():
    hidden = np.arange(400) < 10
    source = label_share.HiddenLabels(SOURCE, label_share.LabelMask(hidden, ('grade',)))
    assert set(source.targets['label'][:10]) == set(source.targets['grade'][:10]) == {-1}
    np.testing.assert_array_equal(source.targets['label'][10:], SOURCE.targets['label'][10:])
    assert source[3] == {'label': -1, 'grade': -1} and source[10] == SOURCE[10]
    assert label_share.whole(source) is SOURCE is label_share.whole(SOURCE)


def test_every_kind_of_label_is_hidden():
    scan = Scan(np.ones((2, 3, 4), np.uint8), np.eye(4))
    record = dict(image=np.ones((4, 4)), label=np.float32([1, 0, np.nan]), boxes=np.ones((2, 5), np.float32),
                  masks=np.ones((2, 4, 4), np.uint8), text='report')
    found = label_share.hide(record)
    assert found['label'].tolist() == [HIDDEN] * 3 and not len(found['boxes']) and not len(found['masks'])
    assert found['image'] is record['image'] and found['text'] == 'report'
    assert (label_share.hide(dict(label=np.ones((4, 4), bool)))['label'] == 255).all()
    found = label_share.hide(dict(label=scan, instances=scan))
    assert isinstance(found['label'], Volume) and (found['label'].voxels == 255).all()
    assert not found['instances'].voxels.any()
    found = label_share.hide(dict(label=np.float32([1, 0]), label_weight=np.ones(2, np.float32)))
    assert not found['label'].any() and not found['label_weight'].any()


def test_a_hidden_finding_has_no_weight_under_any_policy():
    for uncertain in ('ignore', 'ones', 'zeros'):
        for blank in ('zeros', 'ignore'):
            found = labels.apply({'label': np.float32([HIDDEN, 1])}, uncertain, blank)
            assert found['label'].tolist() == [0, 1] and found['label_weight'].tolist() == [0, 1]


def resolved(**changes):
    data = dict(source=dict(name='jaxkd.phantoms.thorax', patients=24, size=32), transforms=('image', 'text', 'labels'),
                augment=('contrast',), image=dict(size=32, fit='squash'), text=dict(length=16, vocab=64),
                labels=dict(share=0.2))
    return config.resolve(ConfigDict(dict(data={**data, **changes}, stages=()))).data


def test_a_dataset_hides_labels_wherever_its_cases_come_from(tmp_path):
    whole = DataPool().get(resolved(labels=dict(share=1.0)))
    prepare.prepare(resolved(labels=dict(share=1.0)), tmp_path)  # one store serves all shares
    for changes in ({}, dict(cache='disk', folder=str(tmp_path))):
        data = DataPool().get(resolved(**changes))
        rows = data.partition.indices('train')
        known = np.isin(rows, data.partition.labelled(rows))
        batch, stream = data.batch(rows), next(loader.train_loader(data, 8, 0))
        np.testing.assert_array_equal(batch['label'][known], whole.batch(rows)['label'][known])
        assert known.any() and not known.all()
        told = dict(zip(rows, known))
        for found, cases in ((batch, rows), (stream, stream['index'].tolist()), (data.text_only.batch(rows), rows)):
            hidden = np.array([not told[i] for i in cases])
            assert not found['label'][hidden].any() and not found['label_weight'][hidden].any()
        np.testing.assert_array_equal(batch['image'], whole.batch(rows)['image'])
        assert set(data.partition.indices('val')) < set(whole.partition.indices('val'))
        assert data.partition.indices('test') == whole.partition.indices('test')
        assert (data.source.values[[i for i in rows if not told[i]]] == HIDDEN).all()


def test_the_order_of_training_cases_is_that_of_all_labels_unless_only_labelled_ones_are_drawn():
    def order(**options):
        return next(loader.train_loader(DataPool().get(resolved(labels=options)), 16, 3))['index'].tolist()
    assert order(share=0.2) == order(share=1.0)
    data = DataPool().get(resolved(labels=dict(share=0.2, only=True)))
    rows = data.partition.train_indices()
    assert rows == data.partition.labelled(data.partition.indices('train')) != data.partition.indices('train')


def test_what_rotation_moves_in_is_hidden_too(tmp_path):
    from tests.data import test_labelled
    label = np.zeros((32, 32), int)
    label[8:24, 8:24] = 1
    test_labelled.masks_of(tmp_path, label, (32, 32), n=12)
    data = DataPool().get(config.resolve(ConfigDict(dict(stages=(), data=dict(
        source=dict(name='masks', root=str(tmp_path), labels=('background', 'organ', 'tumour'), values=(0, 1, 2)),
        transforms=('image',), augment=('affine',), image=dict(size=16, fit='squash'),
        affine=dict(labels=('label',), degrees=40.0), labels=dict(share=0.4))))).data)
    batch = next(loader.train_loader(data, 32, 0))
    hidden = ~np.isin(batch['index'], data.partition.labelled(data.partition.indices('train')))
    assert hidden.any() and (batch['label'][hidden] == 255).all()
    assert not hidden.all() and (batch['label'][~hidden] != 255).all()


def test_the_split_says_who_has_labels_and_notices_others(tmp_path):
    for share in (0.2, 0.5):
        data = DataPool().get(resolved(labels=dict(share=share)), tmp_path)
        stored = json.loads((tmp_path / 'split.json').read_text())
        rows = data.partition.labelled([*data.partition.indices('train'), *data.partition.cases_of('val')])
        assert stored['labelled'][f'share={share}'] == sorted(data.source.id(i) for i in rows)
    assert {*stored['labelled']['share=0.2']} < {*stored['labelled']['share=0.5']}
    with pytest.raises(errors.ConfigError, match='with share=0.2 other cases had labels when it was written'):
        DataPool().get(resolved(labels=dict(share=0.2, stratify=False)), tmp_path)


def test_the_artefact_belongs_to_the_image_and_its_weights_to_the_labels_that_are_known():
    hp = ConfigDict(dict(shortcut.DEFAULTS, name='shortcut', rates=(0.9, 0.2)))
    source = label_share.HiddenLabels(SOURCE, label_share.LabelMask(np.arange(400) % 5 != 0))
    other = Classes()
    flipped = np.where(source.mask.hidden, 1 - other.targets['label'], other.targets['label'])
    marks, hidden = (shortcut.assign(hp, s, SPLIT) for s in (SOURCE, source))
    np.testing.assert_array_equal(marks.marked, hidden.marked)
    assert (hidden.weight[source.mask.hidden] == 1).all() and (hidden.weight != marks.weight).any()
    assert flipped.any()
