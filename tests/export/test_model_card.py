"""The card of a model says what the run knows, marks what it does not know, and hands on no id and no markup."""
import re

import pytest
import yaml

from jaxkd import errors
from jaxkd.export import model_card
from jaxkd.report import run_folder
from jaxkd.runtime import files
from tests.report.test_report import HOSTILE, LABELS, PATIENTS, make


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp('my run'), dict(reader=2.0, image_only=0.4, student=1.6))
    summary = files.read_json(folder / 'summary.json', '')
    summary['stages']['student']['composition'] = {
        'train': dict(labels={LABELS[0]: dict(positive=30, negative=60, uncertain=7, unmentioned=3)},
                      groups={'sex': {'F': 60, 'M': 37, 'X': 3}, 'site': {'A': 99, 'Elm Street': 1}}),
        'test': dict(labels={LABELS[0]: dict(positive=8, negative=2, uncertain=0, unmentioned=0)},
                     groups={'sex': {'F': 6, 'M': 2, 'X': 4}, 'site': {'A': 12}})}
    summary['stages']['student']['decision'] = dict(kind='multilabel', cases=10, labels={LABELS[0]: dict(
        cases=10, positives=4, slope=1.0, intercept=0.0,
        points=dict(sensitivity_95=dict(threshold=-0.25, sensitivity=0.75, specificity=0.5)))})
    summary['stages']['student']['source']['cohort'] = dict(found=250, used=240, skipped={'unreadable': 10})
    files.write_json(folder / 'summary.json', summary)
    return folder


@pytest.fixture(scope='module')
def card(folder):
    return model_card.write(folder, 'student', folder / 'card.md').read_text()


def rows(card, section):
    """{first cell: other cells} of all tables of a section."""
    part = card.split(f'\n## {section}\n')[1].split('\n## ')[0]
    cells = [line.strip('| ').split(' | ') for line in part.splitlines() if line.startswith('|')]
    return {c[0]: c[1:] for c in cells}


def test_the_head_is_what_hubs_read(folder, card):
    head = yaml.safe_load(card.split('---\n')[1])
    assert head['library_name'] == 'jaxkd' and head['pipeline_tag'] == 'image-classification'
    assert 'privileged-information' in head['tags']
    result, = head['model-index'][0]['results']
    assert result['task'] == {'type': 'image-classification'} and result['dataset']['split'] == 'test'
    value, = (m['value'] for m in result['metrics'] if m['type'] == 'roc_auc')
    assert value == pytest.approx(run_folder.read(folder).table('student')['auroc']['value'], abs=5e-5)


def test_numbers_of_the_run_stand_in_its_tables(card):
    use, data, results = (rows(card, s) for s in ('Intended use', 'Data', 'Results'))
    assert use['reads'] == ['image, and nothing else']
    assert use['needed in training alone'] == ['tokens (read by reader)']
    assert data['found'][0] == '250' and data['left out: unreadable'][0] == '10'
    assert data['training'] == ['100', '50'] and data['test'][1] == str(PATIENTS)
    assert data['Edema'] == ['7', '3'], 'the last table: uncertain, not mentioned'
    assert '30 of 90 (33 %)' in card and '8 of 10 (80 %)' in card
    assert re.fullmatch(r'0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)', results['AUROC'][0])
    assert results['view = PA'][0] == str(PATIENTS) and 'AUROC' in results['view = PA']
    assert {'ECE, bins of equal width', 'Brier score'} <= {*rows(card, 'Calibration')}
    assert rows(card, 'Calibration')['Edema'] == ['sensitivity 95', '\u22120.250', '0.750', '0.500']
    changed = rows(card, 'What the teacher changed')
    assert changed['student \u2212 image\\_only'][0] == 'no teacher'
    assert changed['student \u2212 image\\_only'][-1] == 'above 0'
    assert rows(card, 'Environment')['jax'] == ['0']


def test_few_cases_of_a_group_are_not_counted_in_public(card):
    groups = rows(card, 'Data')
    assert groups['sex = F'] == ['60', '6'] and groups['sex = M'] == ['37', '&lt; 5']
    assert groups['sex = X'] == ['&lt; 5'] * 2
    assert 'Elm Street' not in card


def test_what_only_people_know_is_marked(card):
    assert card.count(f'> **{model_card.BLANK}:**') == 5
    assert {'who is to use it', 'what it must not be used for', 'reference standard', 'contact'} <= {
        blank for blank in ('who is to use it', 'what it must not be used for', 'reference standard', 'contact')
        if re.search(rf'{model_card.BLANK}:\*\*[^\n]*{blank}', card)}
    assert 'One training with one seed (3)' in card and 'No data of another source was tested' in card


def test_the_licence_of_the_data_is_a_blank_unless_it_is_given(folder, card):
    assert 'the licence of the data' in card and 'Licence of the data' not in card
    given = model_card.text(run_folder.read(folder), 'student', 'CC-BY-4.0 (site|A)')
    assert 'Licence of the data: CC-BY-4.0 (site\\|A).' in given and 'the licence of the data' not in given


def test_no_id_no_path_and_no_markup(folder, card):
    assert '<script' not in card and HOSTILE not in card and 'Mass &lt;script&gt;' in card
    assert not re.search(r'\b[cp]\d+\b', card), 'neither a case nor a patient'
    assert str(folder.parent) not in card


def test_text_of_files_stays_in_its_cell():
    assert model_card._escape('a|b\nc \x1b[31m') == 'a\\|b c \\[31m'
    tree = {'a': 'x: "y"\n#', 'b': [{'c': 1.5, 'd': {'e': '007'}}, {'c': None}], 'f': ['\u00e9\U0001f600\x00', '-']}
    assert yaml.safe_load(model_card._yaml(tree)) == {**tree, 'a': 'x: "y"#', 'f': ['\u00e9\U0001f600', '-']}


def test_a_stage_that_is_not_there(folder):
    with pytest.raises(errors.MissingInput, match='no finished stage "studnt". Did you mean "student"'):
        model_card.write(folder, 'studnt', folder / 'x.md')
    assert not (folder / 'x.md').exists()
