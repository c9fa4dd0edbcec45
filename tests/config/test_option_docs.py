"""Options explain themselves: the comment beside a default is its meaning in the reference and in `jaxkd options`."""
import importlib

import pytest

from jaxkd.config import catalogue
from jaxkd.config.option_docs import comments

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
