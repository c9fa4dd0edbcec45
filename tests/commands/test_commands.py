"""The command jaxkd: every command has a short help at once, lists are complete, configs come with the package."""
import ast
import importlib
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from jaxkd import __main__ as command
from jaxkd import command as in_process
from jaxkd import config, errors, main
from jaxkd.commands import doctor
from jaxkd.config import catalogue, loading, plugins

ROOT = pathlib.Path(__file__).parents[2]


def test_help_lists_every_command_and_its_module_has_a_main(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(['--help'])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and 'exit codes: 0 finished' in said
    for name, (module, about) in command.MODULES.items():
        assert re.search(rf'^  {name} +{re.escape(about)}$', said, re.M)
        assert callable(importlib.import_module(module).main)
    assert '\n  list ' in said and '\n  options ' in said


@pytest.mark.parametrize('name', [*command.MODULES, *command.FUNCTIONS])
def test_every_help_is_short(name, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([name, '--help'])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and 3 <= len(said.splitlines()) <= 60 and said.count('exit codes: 0 finished') == 1


@pytest.mark.parametrize('shell', ['bash', 'zsh'])
def test_completion_knows_every_command_and_its_options(shell, capsys):
    pytest.importorskip('shtab')
    assert command.main(['--print_completion', shell]) == 0
    script = capsys.readouterr().out
    assert {*command.MODULES, *command.FUNCTIONS} <= {*re.findall(r'\w+', script)}
    for name, (module, _) in command.MODULES.items():
        options = {o for action in importlib.import_module(module).build_parser()._actions
                   for o in action.option_strings}
        assert len(options) > 1 and all(option in script for option in options), name
    assert command.main(['--print_completion', 'ksh']) == 2 and 'zsh' in capsys.readouterr().err


def test_the_command_finds_modules_of_the_working_directory(tmp_path):
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'gate.py').write_text('"""A gate."""\nDEFAULTS = dict(height=3)  # m\n')
    program = ('import sys; sys.path = [p for p in sys.path if p] + ' + repr([str(ROOT)]) +
               '; from jaxkd.__main__ import run; run()')
    done = subprocess.run([sys.executable, '-c', program, 'options', 'own.gate'], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0 and 'height' in done.stdout, done.stderr


def test_no_help_imports_jax():
    """In one process, as each module stays imported."""
    program = ('import sys, contextlib, io\n'
               'from jaxkd import __main__ as command\n'
               'for name in [*command.MODULES, *command.FUNCTIONS]:\n'
               '    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n'
               '        command.main([name, "--help"])\n'
               '    assert "jax" not in sys.modules, name')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_wrong_commands_end_in_2(capsys):
    for argv in (['nonsense'], ['list', '--nonsense'], ['options']):
        with pytest.raises(SystemExit) as ended:
            command.main(argv)
        assert ended.value.code == 2
    assert command.main(['options', 'vitt']) == 2
    assert 'Did you mean "vit"?' in capsys.readouterr().err
    for line in ('options vitt', 'train --nonsense', 'list "--a b"'):
        with pytest.raises(RuntimeError, match=f'{line}: exit code 2'):
            in_process(line)
    in_process('train --help')


@pytest.mark.parametrize('line, meant', [
    ('tran', 'There is no command "tran". Did you mean "train"?'),
    ('train --dryrun', 'unknown: --dryrun. Did you mean "--dry_run"?'),
    ('train --wrokdir=runs/a', 'Did you mean "--workdir=runs/a"?'),
    ('train --student.batch=8', 'Did you mean "--config.student.batch=8"?'),
    ('train --config.student.batch 8', 'Did you mean "--config.student.batch=VALUE"?'),
    ('check DIR --data.source.root=x', 'Did you mean "--config.data.source.root=x"?'),
    ('train --zzz', 'Values of the config are set as --config.data.workers=4'),
])
def test_a_wrong_word_is_told_what_was_meant(line, meant, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(line.split())
    assert ended.value.code == 2 and meant in capsys.readouterr().err


@pytest.mark.parametrize('line, meant', [
    ('list method', 'There is no list of "method". Did you mean "methods"?'),
    ('options models/unett', 'Did you mean "unet"?'),
    ('options student.model', 'jaxkd options configs/mmpkd_cxr.py student.model'),
    ('options configs/specialist.py:smoke specialist.optimm', 'Did you mean "optim"?'),
    ('options specialist.py', 'Did you mean "configs/specialist.py"?'),
    ('status nowhere', 'nowhere holds no sweep, there is no manifest.json'),
])
def test_a_wrong_name_is_told_what_was_meant(line, meant, capsys):
    assert command.main(line.split()) in (2, 66)
    assert meant in capsys.readouterr().err


def test_data_is_short_for_the_root_of_the_source(tmp_path, capsys):
    from jaxkd.data import prepare
    from jaxkd.multirun import __main__ as multirun
    from jaxkd.runtime import cli
    for module in (main, prepare, multirun):
        args = ['--config', 'c', '--workdir', 'w'] if module is not prepare else ['--config', 'c']
        assert cli.parse(module.build_parser(), [*args, '--data', 'DIR', '--config.seed=1'])[1] == [
            'seed=1', 'data.source.root=DIR']
        assert cli.parse(module.build_parser(), args)[1] == []
    assert main.main(['--config', 'jaxkd:mmpkd_cxr:folder,tiny', '--data', str(tmp_path / 'none'), '--dry_run']) == 66
    assert f'data.source.root="{tmp_path / "none"}" is not a folder' in capsys.readouterr().err


def test_options_are_also_those_of_a_config(capsys):
    assert command.main(['options', 'jaxkd:specialist:smoke', 'bootstrap', 'data.split.folds']) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(r'bootstrap = 50 +# .*\ndata.split.folds = 0 +# .*\n', said)
    assert command.main(['options', 'configs/specialist.py']) == 0
    assert 'specialist.optim.lr = ' in capsys.readouterr().out
    assert command.main(['list', 'losses']) == 0
    assert capsys.readouterr().out.startswith('losses of the method distil:\n')


def test_the_list_names_every_config_variant_and_plug_in(capsys):
    assert main.main(['--list']) == 0
    said = capsys.readouterr().out
    assert command.main(['list']) == 0 and capsys.readouterr().out == said
    for path in sorted((ROOT / 'configs').glob('*.py')):
        for variant in loading.import_file(path).VARIANTS:
            block = said.partition(f'configs/{path.name}: ')[2].partition('\n\n')[0]
            assert f'\n  :{variant} ' in block, (path, variant)
    for kind, title in catalogue.TITLES.items():
        block = said.partition(f'\n{title}:\n')[2].partition('\n\n')[0].rstrip('\n').splitlines()
        names = [line.split()[0] for line in block]
        assert kind == 'phantoms' or names == list(plugins.names(kind))
        assert all(len(line.split(None, 1)) == 2 and len(line) < 150 for line in block), title
    assert command.main(['list', 'methods']) == 0
    assert capsys.readouterr().out.splitlines()[0] == 'methods:'


def test_a_summary_is_the_first_sentence(tmp_path):
    file = tmp_path / 'a.py'
    for text, summary in (('One. Two.', 'One'), ('A of B (C et al., D).', 'A of B (C et al., D)'),
                          ('A line\nthat goes on.\n\nMore.', 'A line that goes on'), ('x ' * 100, ('x ' * 55) + '...')):
        file.write_text(f'"""{text}"""\n')
        assert catalogue.summary(file) == summary


def test_options_show_every_default_with_its_comment(capsys):
    for kind in ('models', 'methods', 'evaluators', 'data/transforms', 'data/sources'):
        for name in plugins.names(kind):
            said = catalogue.options(f'{kind}/{name}')
            for key in vars(plugins.load(kind, name)).get('DEFAULTS', {}):
                assert re.search(rf'^  {key}[ .]', said, re.M), (kind, name, key)
    assert command.main(['options', 'image', 'optim', 'stage', 'jaxkd.phantoms.thorax', 'tests.fixtures.disc']) == 0
    said = capsys.readouterr().out
    assert re.search(r"^  fit = 'crop' +# crop .*, letterbox .* or squash ", said, re.M)
    assert 'weight_decay = ' in said and 'eval_every = ' in said and '  contrast = 0.35' in said
    with pytest.raises(errors.ConfigError, match='no options of "nothing_like_it"'):
        catalogue.options('nothing_like_it')


def test_a_config_of_the_package_is_named_from_anywhere(tmp_path, monkeypatch, capsys):
    expected = config.load(ROOT / 'configs' / 'specialist.py')
    monkeypatch.chdir(tmp_path)
    assert config.load('jaxkd:specialist').to_dict() == expected.to_dict()
    assert config.load('jaxkd:specialist:smoke', ['seed=3']).bootstrap == 50
    assert main.main(['--config', 'jaxkd:mmpkd_cxr:help']) == 0
    said = capsys.readouterr().out
    assert '--config jaxkd:mmpkd_cxr:smoke\n' in said and 'configs/' not in said
    assert command.main(['list', 'configs']) == 0 and 'jaxkd:mmpkd_cxr: MMPKD' in capsys.readouterr().out
    for spec, words in (('jaxkd:mmpkd_cx', 'Did you mean "mmpkd_cxr"'), ('jaxkd:', 'has no config "jaxkd:"'),
                        ('mmpkd_cxr.py', 'Did you mean "jaxkd:mmpkd_cxr"'), ('jaxkd:specialist:x', 'no variant "x"')):
        with pytest.raises(errors.ConfigError, match=re.escape(words)):
            config.load(spec)


def test_the_doctor_knows_every_extra_and_trains_a_step(capsys):
    declared = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    assert {*doctor.EXTRAS} == {*declared}
    assert command.main(['doctor']) == 0
    said = capsys.readouterr().out
    assert 'self-test: passed' in said and 'GiB free in' in said and re.search('^  test +yes', said, re.M)


def test_the_doctor_sees_a_restore_that_differs(monkeypatch):
    from jaxkd import checkpoint
    restore = checkpoint.Checkpointer.restore
    monkeypatch.setattr(checkpoint.Checkpointer, 'restore', lambda self, state, *rest: (  # zeros, as given
        (state, {}) if self.manager.all_steps() else restore(self, state, *rest)))
    assert command.main(['doctor']) == errors.Damaged.code


def test_the_doctor_tells_what_there_is_where_the_device_is_not(monkeypatch, capsys):
    from jaxkd import parallel

    def none():
        raise errors.ConfigError('no such device here')
    monkeypatch.setattr(parallel, 'check_devices', none)
    assert command.main(['doctor']) == 2
    out, err = capsys.readouterr()
    assert 'versions   ' in out and 'none that can be used' in out and 'GiB free in' in out and '\n  cuda12 ' in out
    assert 'error: no such device here' in err and 'self-test' not in out


def test_the_package_is_imported_without_anything_else():
    program = 'import sys, jaxkd; assert not {"jax", "numpy", "flax"} & {*sys.modules}'
    subprocess.run([sys.executable, '-c', program], check=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    exported = [n.name for n in ast.parse((ROOT / 'jaxkd/__init__.py').read_text()).body
                if isinstance(n, ast.FunctionDef)]
    assert exported == ['command', 'open_run', 'show_slices']
