"""The command line of phantoms: list, write, sheet and their errors."""
import ast
import pathlib

import pytest
from matplotlib.figure import Figure

from jaxkd.config import plugins
from jaxkd.phantoms import __main__ as command

PACKAGE = pathlib.Path(command.__file__).parents[1]
CT = ['--size', '32', '--depth', '16', '--spacing', '5', '5', '5']
ABDOMEN = ['--size', '32', '--depth', '8', '--field', '60', '60', '60']


@pytest.mark.parametrize('layout, options, files', [
    ('masks', ['--patients', '1', '--domain', 'B', '--size', '32', '--slices', '6', '6'],
     ['masks/p000000_ED_03.png', 'images/p000000_ES_03.png']),
    ('folder', ['--patients', '1', '--size', '32'], ['cases.csv', 'boxes.csv', 'images/p000000_i0.png']),
    ('paired', ['--patients', '2', *ABDOMEN], ['p000001/ct.nii.gz', 'prior.csv']),
    ('dualphase', ['--patients', '1', *CT], ['p000000/nct.nii.gz', 'cases.csv'])])
def test_layouts_are_written_with_the_options_of_the_command(tmp_path, layout, options, files):
    assert command.main(['write', '--layout', layout, '--out', str(tmp_path), *options]) == 0
    assert all((tmp_path / file).is_file() for file in files)


@pytest.mark.parametrize('organ, options', [
    ('brain', ['--size', '16', '18', '16', '--subjects', '1']),
    ('breast', ['--size', '64', '--rows', '1', '--columns', '1']),
    ('heart', ['--size', '32']), ('pancreas', ABDOMEN), ('pulmonary', CT),
    ('thorax', ['--size', '32', '--rows', '1', '--columns', '2'])])
def test_contact_sheets_are_drawn(tmp_path, monkeypatch, organ, options):
    save = Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path, dpi: save(figure, path, dpi=dpi / 8))
    assert command.main(['sheet', '--organ', organ, '--out', str(tmp_path / 'sheet.png'), *options]) == 0
    assert (tmp_path / 'sheet.png').read_bytes()[:4] == b'\x89PNG'


def test_a_sheet_that_cannot_be_written_is_named(tmp_path, capsys):
    path = str(tmp_path / 'none' / 'sheet.png')
    options = ['--size', '32', '--rows', '1', '--columns', '1']
    assert command.main(['sheet', '--organ', 'thorax', '--out', path, *options]) == 73
    assert 'sheet.png' in capsys.readouterr().err


def test_lists_name_every_organ_and_layout_with_a_line(capsys):
    assert command.main(['list']) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith('  ')}
    assert set(lines) == {*command.organs(), *plugins.names(command.LAYOUTS)}
    assert len(command.organs()) == 6 and all(len(line) > 40 for line in lines.values())


@pytest.mark.parametrize('command_line', [['write', '--layout', name] for name in plugins.names(command.LAYOUTS)]
                         + [['sheet', '--organ', name] for name in command.organs()])
def test_help_lists_the_options_and_says_what_they_are(command_line, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([*command_line, '--help'])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and '--out' in text and 'default: ' in text
    assert ('--patients' in text) == (command_line[0] == 'write')
    options = {word.strip('[]') for word in text.partition('\n\n')[0].split() if word.startswith('[--')}
    undocumented = {'--seed', '--rows', '--columns', '--subjects'}
    assert all(f'{option[2:]}: ' in text for option in options - undocumented), options


@pytest.mark.parametrize('command_line, message', [
    (['write', '--layout', 'acd', '--out', 'x', '--patients', '1'], 'Did you mean "acdc"'),
    (['write', '--layout', 'acdc', '--out', 'x', '--patients', '1', '--frames', '5'], 'frames=5'),
    (['write', '--layout', 'dualphase', '--out', 'x', '--patients', '1', '--size', '40'], 'size=40'),
    (['write', '--layout', 'paired', '--out', 'x', '--patients', '0'], 'patients=0'),
    (['write', '--layout', 'simba', '--out', 'x', '--patients', '4'], 'patients=4'),
    (['sheet', '--organ', 'breas', '--out', 'x'], 'Did you mean "breast"'),
    (['sheet', '--organ', 'heart', '--out', 'x', '--size', '8'], 'size=8'),
    (['sheet', '--organ', 'pancreas', '--out', 'x', '--subgroup', 'hard'], 'subgroup')])
def test_a_bad_value_is_said_in_one_line(command_line, message, capsys):
    assert command.main(command_line) == 2
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error


@pytest.mark.parametrize('command_line, message', [
    ([], 'command'), (['draw'], 'invalid choice'), (['write'], 'Layouts: acdc'), (['sheet'], 'Organs: brain'),
    (['write', '--layout', 'acdc', '--out', 'x'], '--patients'),
    (['write', '--layout', 'acdc', '--out', 'x', '--patients', 'two'], 'invalid int'),
    (['write', '--layout', 'fumpe', '--out', 'x', '--patients', '1', '--warp', '2'], 'unrecognized')])
def test_a_bad_command_line_is_refused(command_line, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(command_line)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_nothing_imports_phantoms_but_phantoms_and_organs_know_no_layout():
    for path in PACKAGE.rglob('*.py'):
        inside = path.is_relative_to(PACKAGE / 'phantoms')
        if not inside and 'phantoms' not in path.read_text():
            continue
        names = [name for name in _imports(path) if name.startswith('jaxkd.phantoms')]
        assert inside or not names, (path, names)
        if inside and path.parent.name not in ('layouts', 'phantoms'):
            layouts = [name for name in names if name.startswith('jaxkd.phantoms.layouts')]
            others = [name for name in names if name.split('.')[2] not in (path.parent.name, 'common', 'encode')]
            assert not layouts and not others, (path, names)
