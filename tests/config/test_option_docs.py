"""Options explain themselves: the comment beside a default is its meaning in the reference and in `jaxkd options`."""
import collections
import importlib
import inspect
import re

import pytest

from jaxkd import optim
from jaxkd.config import catalogue, dotted, plugins, schema
from jaxkd.config.option_docs import comments, meanings

MODULE = '''"""Options of a test."""
OTHERS = dict(
    size=3,  # pixels
    kind='a',  # a or b
)
# first: of the line below; second: likewise
LINE = dict(first=1, second=2, third=3)
DEFAULTS = dict(
    OTHERS | dict(size=4),
    one=1,  # text; more: of the same
    a=1, b=0, c=0, d=0,  # a: first; b, c: both
    # of them
    nested=dict(x=1, y=2),  # x: across; y: down
    open={},  # name -> value
    plain=0,
    bare=0)
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / 'options_of_a_test.py').write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module('options_of_a_test')


def test_a_comment_belongs_to_its_line_or_names_the_options_it_is_of(module):
    assert comments(module, 'LINE') == {'first': 'of the line below', 'second': 'likewise', 'third': ''}
    assert comments(module, 'DEFAULTS') == {
        'size': 'pixels', 'kind': 'a or b', 'one': 'text; more: of the same', 'a': 'first', 'b': 'both of them',
        'c': 'both of them', 'd': '', 'nested': 'x: across; y: down', 'nested.x': 'across', 'nested.y': 'down',
        'open': 'name -> value', 'plain': '', 'bare': ''}


def test_a_loss_explains_its_own_options_and_those_of_every_loss():
    page = catalogue.options('distillation/hint')
    assert "student = 'pooled'  # tap of the student" in page
    assert "regressor = True    # a trained linear map" in page


def tables():
    """(name, module, defaults, {key: meaning}) of every table of options that `jaxkd options` knows."""
    for name, table in catalogue.TABLES.items():
        yield name, schema, getattr(schema, table), comments(schema, table)
    yield 'optim', optim, optim.DEFAULTS, comments(optim, 'DEFAULTS')
    for kind in catalogue.TITLES:
        for name in catalogue._files(kind):
            module = plugins.load(kind, name)
            yield f'{kind}/{name}', module, vars(module).get('DEFAULTS', {}), meanings(kind, module)


def faults(name, module, defaults, found):
    """What is wrong with the meanings of a table, a line each."""
    source = ' '.join(re.sub(r'\s+#', '', inspect.getsource(module)).split())
    options = collections.defaultdict(list)
    for key in dotted(defaults):
        if not (text := found.get(key, '')):
            yield f'{name}: {key} has no meaning. Write a comment beside its default'
        for sentence in re.split(r'(?<=[.;]) ', text):
            if len(sentence) > 100:
                yield f'{name}: {key} has a sentence of {len(sentence)} characters: {sentence}'
        parent, _, own = key.rpartition('.')
        options[parent, text].append(own)
    for (_, text), keys in options.items():
        if text and len(keys) > 1 and f'{", ".join(keys)}: ' not in source:
            yield (f'{name}: {", ".join(keys)} have one meaning, "{text}". Give each its own, or write '
                   f'"{", ".join(keys)}: {text}"')


def test_every_option_has_a_meaning_of_its_own():
    found = [*tables()]
    assert len(found) > 90 and sum(len(dotted(defaults)) for _, _, defaults, _ in found) > 800
    assert not (wrong := [line for table in found for line in faults(*table)]), '\n'.join(wrong)


def test_missing_shared_and_long_meanings_are_found(module):
    one, two = 'x' * 101, 'two'
    assert [*faults('t', module, dict(a=1, b=2), dict(a=one, b=two))] == [
        f't: a has a sentence of 101 characters: {one}']
    assert [line.split(': ')[1][:10] for line in faults('t', module, dict(a=1, e=2, f=0), dict(a=two, e=two))] == [
        'f has no m', 'a, e have ']
    assert not [*faults('t', module, dict(b=1, c=2), dict(b=two, c=two))]  # as its comment says
    assert not [*faults('t', module, dict(b=1, n=dict(b=2)), {'b': two, 'n.b': two})]
