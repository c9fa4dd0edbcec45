"""One page over the runs of a folder: what it lists, what differs, what is said of a run that cannot be read."""
import re

import pytest

from jaxkd import __main__ as command
from jaxkd.report import several_runs
from jaxkd.runtime import files
from tests.report import test_report, test_segmentation


def make(folder):
    """A folder of runs: of images twice, of scans, one that only began, a damaged one, and a member one level below."""
    for name, skill in (('weak', 0.8), ('strong', 3.0)):
        test_report.make(folder / name, test_report.FULL | dict(student=skill))
        (folder / name / 'report.html').write_text('')
    test_segmentation.make(folder / 'heart', n=8)
    test_report.make(folder / 'seeds' / 'seed0', test_report.FULL)
    for name, content in (('began', dict(stages=['teacher'], teacher={})), ('empty', {})):
        files.write_json(folder / name / 'config.json', content)
    (folder / 'damaged').mkdir()
    (folder / 'damaged' / 'summary.json').write_text('{')
    (folder / 'no_run' / 'deep' / 'deeper').mkdir(parents=True)
    return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp('runs'))


@pytest.fixture(scope='module')
def page(folder):
    return several_runs.page(folder, several_runs.read(folder))


def rows(page, section):
    """The cells of each row of a section, as text."""
    part = re.search(f'<section id="{section}">.*?</section>', page, re.S)[0]
    return [re.findall('<t[hd]>(.*?)</t[hd]>', row, re.S) for row in re.findall('<tr>(.*?)</tr>', part, re.S)]


def test_every_run_below_the_folder_is_found(folder):
    found = several_runs.read(folder)
    assert list(found) == ['began', 'damaged', 'empty', 'heart', 'seeds/seed0', 'strong', 'weak']
    assert {name for name, run in found.items() if isinstance(run, Exception)} == {'damaged', 'empty'}


def test_a_row_for_each_stage_holds_the_numbers_of_its_summary(folder, page):
    head, *body = rows(page, 'results')
    assert head[:2] == ['run', 'stage'] and {'AUROC', 'Dice'} <= {*head} and 'Brier score' not in head
    summary = files.read_summary(folder / 'strong' / 'summary.json')['stages']
    shown = {row[1]: row for row in body if '>strong</a>' in row[0]}
    assert list(shown) == list(summary) and shown['student'][0] == '<a href="strong/report.html">strong</a>'
    for stage, entry in summary.items():
        auroc = entry['test']['best']['classification/auroc']
        assert shown[stage][head.index('AUROC')].startswith(f'{auroc["value"]:.3f}<small>')
        assert shown[stage][-1] == f'{auroc["n_patients"]}'
    assert all(row[head.index('Dice')] == '–' for row in shown.values())
    assert any(row[0] == 'heart' for row in body), 'without a report there is no link'


def test_what_has_no_results_is_said(page):
    said = dict(rows(page, 'without-results')[1:])
    assert said['began'] == 'no stage has finished' and 'summary.json cannot be read' in said['damaged']
    assert 'holds no run' in said['empty'] and {*said} == {'began', 'damaged', 'empty'}


def test_options_that_differ_are_shown_without_paths(tmp_path):
    test_segmentation.make(tmp_path / 'other_stages', n=6)
    for name, alpha in (('a', 0.5), ('b', 0.9)):
        test_report.make(tmp_path / name, test_report.FULL)
        config = files.read_json(tmp_path / name / 'config.json', '')
        config['student']['method']['alpha'] = alpha
        config['data'] = dict(source=dict(root=f'/home/{name}/patients'))
        files.write_json(tmp_path / name / 'config.json', config)
    page = several_runs.page(tmp_path, several_runs.read(tmp_path))
    assert rows(page, 'options-that-differ') == [['run', 'student.method.alpha'], ['a', '0.5'], ['b', '0.9']]
    assert '/home' not in page


def test_the_command_writes_the_page_of_a_run_or_of_several(folder, tmp_path, capsys):
    assert command.main(['report', str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / 'index.html') and (folder / 'index.html').is_file()
    assert command.main(['report', str(folder / 'weak')]) == 0
    assert (folder / 'weak' / 'report.html').stat().st_size > 0
    for nothing in (tmp_path, tmp_path / 'nowhere'):
        assert command.main(['report', str(nothing)]) == 66
        assert 'holds no run and none lies below it' in capsys.readouterr().err
