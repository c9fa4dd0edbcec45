"""Variants compose, and what --list, :help and --options print is true."""
import functools
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors, main
from jaxkd.config import loading, variants

CONFIGS = sorted(pathlib.Path('configs').glob('*.py'))


def plus(c):
    """One more
    python -m jaxkd.main --config x.py:plus --config.a=1
    """
    c.n += 1


def double(c):
    """Twice as many
    python -m jaxkd.main --config x.py:double --config.b=2
    """
    c.n *= 2


TABLE = dict(plus=plus, double=double, both=(plus, double))


@pytest.mark.parametrize('arg, n', [('', 3), ('plus', 4), ('plus,double', 8), ('double,plus', 7), ('both', 8),
                                    ('both,plus', 8),
                                    ('plus,both', 8)])
def test_variants_apply_from_left_to_right_and_once(arg, n):
    assert config.variant(ConfigDict(dict(n=3)), TABLE, arg).n == n


def test_an_unknown_variant_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(errors.ConfigError, match='no variant "duble". Did you mean "double"'):
        config.variant(ConfigDict(), TABLE, 'plus,duble')
    with pytest.raises(errors.ConfigError,
                       match=r'configs/mmpkd_mammo.py: There is no variant "mia". Did you mean "mias"'):
        config.load('configs/mmpkd_mammo.py:cbis,mia')


def test_a_variant_of_a_config_without_variants_is_refused(tmp_path):
    (tmp_path / 'x.py').write_text('from jaxkd import config\ndef get_config(arg=""):\n'
                                   '    return config.load("configs/sikd_acdc.py")\n')
    saved = config.load(f'{tmp_path}/x.py')
    (tmp_path / 'config.json').write_text(config.dump(saved))
    assert config.load(tmp_path / 'config.json') == saved
    for name in ('x.py', 'config.json'):
        with pytest.raises(errors.ConfigError, match=f'{name} has no variants, also no "smoke". Remove the colon'):
            config.load(f'{tmp_path}/{name}:smoke')


def test_names_of_combined_variants_are_their_compositions():
    for combined, parts in (('covid_encoders', 'covid,encoders'), ('mimic_bert', 'mimic,bert'),
                            ('external', 'mimic,other_archives')):
        assert config.load(f'configs/mmpkd_cxr.py:{combined}') == config.load(f'configs/mmpkd_cxr.py:{parts}')


def test_small_runs_of_an_archive_compose():
    mixed = config.load('configs/mmpkd_cxr.py:covid,controls,smoke')
    assert mixed.data.source.name == 'covid' and mixed.kd_shuffled.length == '8 steps' and mixed.bootstrap == 50
    assert mixed.kd_shuffled.model == mixed.student.model


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_each_docstring_says_what_it_is_and_a_command_that_exists(path, capsys):
    module = loading.import_file(path)
    entries = {'': module.base} | module.VARIANTS
    assert main.main(['--config', f'{path}:help']) == 0
    page = capsys.readouterr().out
    assert all(len(line) < 320 for line in page.splitlines())
    for name, entry in entries.items():
        for change in entry if isinstance(entry, tuple) else (entry,):
            assert len(variants._summary(change)) > 3
        command = re.search(rf'  :?{name} .*\n +(python -m jaxkd\.\w+ --config {path}\S*( .*)?)\n', page + '\n')
        assert command, name
        given = re.search(rf'--config {path}:?(\S*)', command[1])[1]
        assert given == name or name in given.split(','), command[1]
        resolved = config.load(f'{path}:{given}')
        for key in re.findall(r'--config\.([\w.]+)=', command[1]):
            functools.reduce(lambda node, part: node[part], key.split('.'), resolved)  # every key exists


def test_all_config_files_are_listed(capsys, tmp_path):
    assert main.main(['--list']) == 0
    page = capsys.readouterr().out
    for path in CONFIGS:
        assert str(path) in page and all(f':{name}' in page for name in loading.import_file(path).VARIANTS)
    (tmp_path / 'mine.py').write_text('"""Mine."""\ndef get_config(arg=""):\n    return None\n')
    assert main.main(['--list', str(tmp_path), 'configs/cpmn_pe.py']) == 0
    assert 'mine.py: Mine' in (page := capsys.readouterr().out) and ':cad_pe' in page and 'mmpkd' not in page
    assert main.main(['--list', 'configs/cpmn.py']) == 2 and '"configs/cpmn_pe.py"' in capsys.readouterr().err


def test_a_list_without_a_folder_of_configs_has_those_of_the_package(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(['--list']) == 0
    assert capsys.readouterr().out.startswith('jaxkd:cpkd_ct_mri: CPKD')


def test_options_are_printed_with_their_meaning(capsys):
    assert main.main(['--config', 'configs/mmpkd_cxr.py:smoke', '--options', 'student.optim',
                      '--config.student.optim.lr=0.5']) == 0
    lines = dict(line.split(' = ', 1) for line in capsys.readouterr().out.splitlines())
    assert lines['student.optim.lr'].startswith('0.5 ') and 'from 0' in lines['student.optim.warmup']
    assert main.main(['--config', 'configs/mmpkd_cxr.py:smoke', '--options']) == 0
    page = capsys.readouterr().out
    for name, meaning in (('student.batch = 16', 'over all devices'), ('data.affine.degrees = 10.0', 'rotation'),
                          ('data.source.name = ', 'a file of jaxkd/data/sources'),
                          ('data.split.stratify = ()', 'equal shares'),
                          ("student.teachers.report.outputs = ", 'what is cached'), ('seed = 0', 'initial weights')):
        assert re.search(rf'^{re.escape(name)}.*# .*{meaning}', page, re.M), name
    assert main.main(['--config', 'configs/mmpkd_cxr.py:smoke', '--options', 'student.optm']) == 2
    assert 'Did you mean "optim"' in capsys.readouterr().err


def test_help_is_short_and_says_where_to_look(capsys):
    with pytest.raises(SystemExit, match='0'):
        main.main(['--help'])
    page = capsys.readouterr().out
    assert len(page.splitlines()) < 40 and all(word in page for word in ('--list', ':help', '--options', '--dry_run',
                                                                         '75 interrupted'))
    with pytest.raises(SystemExit, match='2'):
        main.main([])
    assert '--list' in capsys.readouterr().err


def test_the_overview_of_a_run_fits_a_screen():
    for path in CONFIGS:
        page = config.overview(config.load(path), str(path), ['seed=1'])
        assert len(page.splitlines()) < 15 and '--config.seed=1' in page and f'config: {path}' in page


@pytest.mark.parametrize('change, message', [
    (dict(data=dict(elsewhere={})), 'no key "elsewhere". It is called "external" now'),
    (dict(data=dict(affine=dict(chance=0.5))), 'data.affine has no key "chance". It is called "prob" now'),
    (dict(data=dict(source=dict(name='thorax'))),
     'No data/sources called "thorax". It is called "jaxkd.phantoms.thorax" now'),
    (dict(student=dict(method=dict(name='segment'))), 'No methods called "segment". It is called "segmentation" now'),
    (dict(student=dict(evals=dict(classify={}))), 'No evaluators called "classify". It is called "classification" now'),
    (dict(student=dict(evals=dict(mine=dict(name='depth')))), 'It is called "prediction_depth" now'),
    (dict(student=dict(select='localise/auprc')), 'select names "localise", .*It is called "localisation" now'),
    (dict(stages=('teacher', 'shuffled')), 'stages lists "shuffled", .*It is called "kd_shuffled" now'),
    (dict(student=dict(teachers=dict(report=dict(stage='other')))),
     'stage "other".*It is called "image_only_seed1000" now'),
])
def test_what_earlier_versions_called_otherwise_is_refused_with_its_new_name(change, message):
    """Also in the config.json of an old run."""
    given = config.load('configs/mmpkd_cxr.py:controls,smoke')
    given.update(ConfigDict(change))
    with pytest.raises(errors.ConfigError, match=message):
        config.resolve(given)


def test_overrides_know_new_names():
    with pytest.raises(errors.ConfigError, match='the config has no key "same". It is called "kd_same_modality" now'):
        config.load('configs/mmpkd_mammo.py', ['same.batch=3'])


@pytest.mark.parametrize('overrides', [
    ('student.model.channels=(4, 8)', 'student.model.dropout=0.5', 'student.model.name=unet'),
    ('student.model.name=unet', 'student.model.channels=(4, 8)', 'student.model.dropout=0.5'),
    ('student.evals.classification.overlap=0.25', 'student.model.dropout=0.5', 'student.model.channels=(4, 8)',
     'student.evals.classification.name=segmentation', 'student.model.name=unet')])
def test_options_of_a_plug_in_named_beside_them_hold_in_any_order(overrides):
    student = config.load('configs/mmpkd_cxr.py', overrides).student
    assert (student.model.name, student.model.channels, student.model.dropout) == ('unet', (4, 8), 0.5)
    assert 'patch' not in student.model and student.evals.classification.get('overlap', 0.25) == 0.25
