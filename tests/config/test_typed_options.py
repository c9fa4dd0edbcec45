"""Messages name options as they are typed, wherever in the config they stand."""
import importlib
import re

import pytest
from ml_collections import ConfigDict

from jaxkd import __main__ as command
from jaxkd import errors
from jaxkd.config import plugins, typed_options
from jaxkd.data import source

OPTIONS = dict(name='folder', root='', images='', masks='', empty_text='fail', labels=(), of=dict(reports='', root2=''))


@pytest.mark.parametrize('message, typed', [
    ('is empty. Write it, or set empty_text="ok".', 'is empty. Write it, or set --config.KEY.empty_text="ok".'),
    ('folder: root "" is not a folder. Set it to', 'folder: --config.KEY.root="" is not a folder. Set it to'),
    ('Set root to the folder', 'Set --config.KEY.root to the folder'),
    ('Set root, images, masks or labels to the', 'Set --config.KEY.root, --config.KEY.images, --config.KEY.masks or '
                                               '--config.KEY.labels to the'),
    ('list "nan" in labels of the source if', 'list "nan" in --config.KEY.labels if'),
    ('set images of the source to', 'set --config.KEY.images to'), ('which labels of the source names',) * 2,
    ('Set KEY.labels=A', 'Set --config.KEY.labels=A'),
    ('Set --config.KEY.labels=A', 'Set --config.KEY.labels=A'),
    ('the inner one: reports=x', 'the inner one: --config.KEY.of.reports=x'),
    ('/data/root=1/images/masks.png: its labels are 1', '/data/root=1/images/masks.png: its labels are 1'),
    ('the root of images and masks. Set these to', 'the root of images and masks. Set these to'),
])
def test_worked(message, typed):
    assert typed_options.typed(message, OPTIONS, 'KEY') == typed


def test_a_name_that_stands_twice_stays():
    twice = dict(name='binary', seed=0, of=dict(name='folder', seed=0))
    assert typed_options.typed('set seed=1', twice, 'data.source') == 'set seed=1'
    assert typed_options.typed('set seed=1', {}, 'data.source') == 'set seed=1'


@pytest.mark.parametrize('name', [n for n in plugins.names('data/sources')
                                  if 'root' in getattr(plugins.load('data/sources', n), 'DEFAULTS', {})])
def test_a_folder_that_is_not_there_is_named_with_the_option(name, tmp_path):
    module = importlib.import_module(f'jaxkd.data.sources.{name}')
    hp = ConfigDict(dict(module.DEFAULTS, name=name, root=str(tmp_path / 'nowhere')))
    for key in ('data.source', 'data.external.other.source'):
        with pytest.raises(errors.JaxkdError, match=re.escape(f'--config.{key}.')):
            source.build(hp, key)


def test_the_command_says_what_to_type(tmp_path, capsys):
    (tmp_path / 'cases.csv').write_text('patient_id,image,Edema\np1,a.png,1\n')
    assert command.main(['check', str(tmp_path)]) == 65
    assert 'set --config.data.source.empty_text="ok"' in capsys.readouterr().err
    assert command.main(['train', '--config', 'jaxkd:mmpkd_cxr:folder,tiny', '--dry_run']) == 66
    assert 'folder: --config.data.source.root="" is not a folder' in capsys.readouterr().err
