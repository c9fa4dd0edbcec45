"""What a run knows for a reader, and what it keeps to itself."""
import pytest

from jaxkd.report import facts, glossary, html_page, run_folder
from jaxkd.report.markup import Html
from tests.report.test_report import FULL, Page, change, make


@pytest.fixture
def run(tmp_path):
    def made(**entry):
        folder = make(tmp_path, FULL)
        change(folder, 'summary.json', lambda s: s['stages']['student'].update(entry))
        return run_folder.read(folder)
    return made


@pytest.mark.parametrize('step, said', [(60, 'is its last'), (59, 'is 59 of 60'), (40, ''), (None, '')])
def test_a_score_that_was_still_rising_is_said(run, step, said):
    found = facts.rising(run(best=dict(step=step, score=0.7)), 'student')
    assert (said in found and 'still rising' in found) if said else found == ''


def test_a_last_step_that_nothing_selected_is_not_rising(run):
    assert facts.rising(run(best=dict(step=60, score=None), select=''), 'student') == ''


def test_the_flow_of_cases_adds_up(run):
    source = dict(name='s', cohort=dict(found=300, used=250, skipped={'no report': 50}))
    flow = facts.cohort_flow(run(source=source, cases=dict(train=100, val=10, test=120)), 'student')
    assert [row[:2] for row in flow] == [['found', '300'], ['left out: no report', '50'], ['usable', '250'],
                                         ['training', '100'], ['validation', '10'], ['test', '120'],
                                         ['in no part, set aside or left out by a transform', '20']]


def test_paths_of_a_config_are_left_out():
    tree = dict(source=dict(root='data/smith', table='cases.csv', name='folder'), init=dict(path=''),
                select='classification/auroc', no_decay=('bias$', '~/x'), other='/home/smith/a', up='../b', n=3,
                windows='C:\\Users\\smith')
    assert facts.without_paths(tree) == dict(
        source=dict(root=facts.PATH, table=facts.PATH, name='folder'), init=dict(path=''),
        select='classification/auroc', no_decay=['bias$', facts.PATH], other=facts.PATH, up=facts.PATH, n=3,
        windows=facts.PATH)


@pytest.mark.parametrize('text, shown', [
    ('/data/smith john/x y/a.png is damaged', 'a.png is damaged'), ('/data/smith/a.png is damaged', 'a.png is damaged'),
    ('/smith is no folder', 'smith is no folder'),
    ('damaged: ~/a/b.dcm', 'damaged: b.dcm'), ('../b/c.png', 'c.png'), ('C:\\d\\e.png', 'e.png'),
    ('1/2 of it', '1/2 of it'), ('and/or', 'and/or')])
def test_a_message_keeps_the_name_of_a_file_alone(text, shown):
    assert facts.without_folders(text) == shown


def test_words_that_are_on_the_page_are_explained():
    text = Page(glossary.section(Html('the AUROC and HD95 in mm of a white box'))).text
    assert 'Area under the ROC curve' in text and '95th percentile' in text and 'pointing' not in text
    assert 'brightest place' not in text, '"hit" is not in "white"'


def test_the_head_says_when_and_on_what(tmp_path):
    folder = make(tmp_path, FULL)

    def dated(summary):
        summary['machine'] = {'system': 'Linux x86_64', 'processor': 'A chip', 'cores': '2', 'memory': '24 GiB'}
        summary['versions'] |= {'jaxkd': '0.6.0', 'commit': '0123456789ab'}
        summary['stages']['reader']['date'], summary['stages']['student']['date'] = '2026-01-01', '2026-01-02'
    change(folder, 'summary.json', dated)
    text = Page(html_page.page(run_folder.read(folder))).text
    assert 'trained 2026-01-01 to 2026-01-02' in text and 'jaxkd 0.6.0 0123456789ab' in text
    assert 'machine Linux x86_64, A chip, 2 cores, 24 GiB' in text
