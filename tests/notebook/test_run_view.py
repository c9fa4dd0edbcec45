"""What a notebook reads of a run is what its files hold; frames need no other file."""
import csv
import json
import pathlib
import re
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

import jaxkd
from jaxkd import config, errors, runner
from jaxkd.notebook import page
from tests.fixtures import disc


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A run of three stages on few discs."""
    few = dict(length='2 steps', eval_every='1 step', log_every='1 step', batch=16)
    vit = few | dict(model=dict(name='vit', width=16, depth=1, heads=2, patch=16))
    text = few | dict(model=dict(name='text', width=16, depth=1, heads=2, length=16, vocab=64))
    run = disc.config(teacher=text, image_only=vit, student=vit)
    run['data']['source']['cases'], run['bootstrap'] = 80, 10
    folder = tmp_path_factory.mktemp('view') / 'run'
    runner.run(config.resolve(ConfigDict(config.tuples(run))), folder)
    return folder


def records(table):
    """Rows as dicts of a DataFrame or a record array."""
    if isinstance(table, np.recarray):
        return [dict(zip(table.dtype.names, row)) for row in table.tolist()]
    return table.to_dict('records')


@pytest.fixture(params=['installed', 'absent'])
def pandas(request, monkeypatch):
    """With pandas where it is installed, and without it."""
    if request.param == 'absent':
        monkeypatch.setitem(sys.modules, 'pandas', None)
        monkeypatch.setattr(page.importlib.util, 'find_spec', lambda name: None)
    else:
        pytest.importorskip('pandas')


def test_metrics_are_those_of_the_summary(folder, pandas):
    run, summary = jaxkd.open_run(folder), json.loads((folder / 'summary.json').read_text())['stages']
    rows = records(run.metrics)
    assert {(r['stage'], r['step'], r['metric']) for r in rows} == {
        (s, w, m) for s, e in summary.items() for w, t in e['test'].items() for m in t}
    for r in rows:
        expected = summary[r['stage']]['test'][r['step']][r['metric']]['value']
        assert r['value'] == expected or expected is None and np.isnan(r['value'])
    assert run.metric('student', 'classification/auroc') == (
        summary['student']['test']['best']['classification/auroc']['value'])
    assert run.stages == ['teacher', 'image_only', 'student'] and 'student' in repr(run)


def test_predictions_are_those_of_the_files(folder, pandas):
    rows = records(jaxkd.open_run(folder).predictions)
    assert {r['stage'] for r in rows} == {'teacher', 'image_only', 'student'}
    with open(folder / 'predictions' / 'student_test.csv') as f:
        expected = list(csv.DictReader(f))
    mine = [r for r in rows if r['stage'] == 'student']
    assert [r['case'] for r in mine] == [r['case'] for r in expected]
    for column in ('label/disc', 'weight/disc', 'probability/disc'):
        np.testing.assert_allclose([r[column] for r in mine], [float(r[column]) for r in expected], rtol=1e-6)


def test_every_piece_is_a_frame_that_needs_no_other_file(folder):
    run = jaxkd.open_run(folder)
    pieces = dict(show=run, curves=run.curves(), roc=run.roc(), calibration=run.calibration(), maps=run.maps(),
                  report=run.report(), case=run.view('case1'))
    for name, piece in pieces.items():
        shown = piece._repr_html_()
        assert shown.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;') and shown.count('<iframe') == 1, name
        assert not re.search(r'(src|href)=&quot;(?!data:|#)', shown), name
    assert 'class_' not in pieces['roc'].html and '<svg' in pieces['roc'].html and '<svg' in pieces['curves'].html
    assert 'data:image/jpeg' in pieces['maps'].html and 'data:image/png' in pieces['case'].html
    assert 'holds nothing to show here' in run.slices().html


def test_a_piece_is_saved_as_a_page(folder, tmp_path):
    jaxkd.open_run(folder).show().save(tmp_path / 'a.html')
    assert (tmp_path / 'a.html').read_text().startswith('<!DOCTYPE html>')


def test_what_is_not_there_is_a_sentence(folder, tmp_path):
    run = jaxkd.open_run(folder)
    for ask, words in ((lambda: run.metric('studnt', 'x'), 'Did you mean "student"'),
                       (lambda: run.metric('student', 'classification/auc'), 'Did you mean "classification/auroc"'),
                       (lambda: run.record('case 1'), 'Did you mean')):
        with pytest.raises(errors.ConfigError, match=words):
            ask()
    with pytest.raises(errors.MissingInput):
        jaxkd.open_run(tmp_path)


def test_an_unfinished_run_has_empty_tables(tmp_path):
    (tmp_path / 'config.json').write_text('{"stages": ["student"], "student": {}}')
    run = jaxkd.open_run(tmp_path)
    assert len(run.metrics) == len(run.predictions) == 0 and 'no stage is finished' in repr(run)


def test_what_the_page_on_notebooks_names_is_there(folder):
    page = (pathlib.Path(__file__).parents[2] / 'docs/how_to/notebooks.md').read_text()
    names = {*re.findall(r'\brun\.(\w+)', page)}
    assert len(names) >= 10 and all(name in dir(jaxkd.open_run(folder)) for name in names)
