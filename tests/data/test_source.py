"""What a summary says of the cases of a part."""
import numpy as np

from jaxkd.data import source
from jaxkd.data.source import Case


class Labelled(source.Source):
    name, labels = 'labelled', ('Edema', 'Mass')
    cases = tuple(Case(f'c{i}', f'p{i}', groups={'site': f's{i}'} | ({'sex': 'F'} if i % 2 else {})) for i in range(20))
    values = np.array([[1, 0], [0, -1], [np.nan, 1], [1, 1]] * 5, np.float32)


def test_labels_and_groups_are_counted():
    counts = source.composition(Labelled(), [0, 1, 2])
    assert counts['labels'] == {'Edema': dict(positive=1, negative=1, uncertain=0, unmentioned=1),
                                'Mass': dict(positive=1, negative=1, uncertain=1, unmentioned=0)}
    assert counts['groups'] == {'site': {'s0': 1, 's1': 1, 's2': 1}, 'sex': {'': 2, 'F': 1}}


def test_many_values_of_a_column_are_not_named_one_by_one():
    sites = source.composition(Labelled(), range(20))['groups']['site']
    assert len(sites) == source.MOST_GROUPS + 1 and sites['others'] == 20 - source.MOST_GROUPS


def test_classes_are_counted_and_what_is_not_known_is_left_out():
    class Classes(Labelled):
        targets = {'label': np.array([0, 1, 1, -1] * 5, np.int32)}

    class Places(Labelled):
        values = None
    assert source.composition(Classes(), [1, 2, 3])['labels'] == {'Edema': dict(positive=0), 'Mass': dict(positive=2)}
    assert source.composition(Places(), [1])['labels'] == {} == source.composition(Places(), [])['groups']
