"""What MLflow is handed is what the folder of a run holds. A recording client stands for MLflow, or MLflow itself."""
import collections
import json
import sys
import types

import pytest

from jaxkd import __main__ as command
from jaxkd.commands import track
from jaxkd.report import run_folder

Metric = collections.namedtuple('Metric', 'key value timestamp step')
Param = collections.namedtuple('Param', 'key value')
FACTS = dict(other_networks={}, uses_teacher=False, plain=True, provenance='')


@pytest.fixture
def folder(tmp_path):
    """One finished stage and one that trains."""
    run = tmp_path / "patient's run"
    run.mkdir()
    (run / 'config.json').write_text(json.dumps(dict(
        stages=['teacher', 'student'], teacher=dict(batch=8, model=dict(name='vit'), note='x' * 900), student={})))
    (run / 'summary.json').write_text(json.dumps(dict(stages=dict(teacher=FACTS | dict(
        finished=True, best=dict(step=4), last=dict(step=6), test=dict(best={
            'classification/auroc': dict(value=0.75, low=0.5, high=None), 'x/dice/a>b': dict(value=None)}))))))
    lines = [dict(stage='teacher', step=2, loss=1.5, aux=None), dict(stage='student', step=1, loss=2.0),
             dict(stage='teacher', step=4, **{'classification/auroc': 0.7})]
    (run / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    (run / 'report.html').write_text('<html></html>')
    return run


class Client:
    """The part of MlflowClient that is used."""

    def __init__(self):
        self.runs, self.experiments = {}, {}

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name):
        self.experiments[name] = types.SimpleNamespace(experiment_id=f'e{len(self.experiments)}')
        return self.experiments[name].experiment_id

    def search_runs(self, ids, query):
        return [types.SimpleNamespace(info=types.SimpleNamespace(run_id=i)) for i, run in self.runs.items()
                if query == f"tags.`jaxkd.key` = '{run['tags']['jaxkd.key']}'"]

    def delete_run(self, run_id):
        del self.runs[run_id]

    def create_run(self, experiment_id, tags, run_name):
        run_id = f'{run_name}, {len(self.runs)}'
        self.runs[run_id] = dict(tags=tags, params={}, metrics=[], artifacts=[])
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def log_batch(self, run_id, params=(), metrics=()):
        assert len(params) <= 100 and len(metrics) <= 1000
        self.runs[run_id]['params'] |= {p.key: p.value for p in params}
        self.runs[run_id]['metrics'] += metrics

    def log_artifact(self, run_id, path):
        self.runs[run_id]['artifacts'].append(path)

    def set_terminated(self, run_id, status):
        self.runs[run_id]['status'] = status


def test_options_curves_and_test_metrics_are_handed_on(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mlflow', types.ModuleType('mlflow'))
    monkeypatch.setitem(sys.modules, 'mlflow.entities', types.SimpleNamespace(Metric=Metric, Param=Param))
    client = Client()
    for _ in range(2):  # the second time replaces the first
        names = track.write(run_folder.read(folder), client, 'mine')
        assert names == [f'{folder.name}/teacher', f'{folder.name}/student']
    teacher, student = client.runs.values()
    assert teacher['params'] == {'batch': '8', 'model.name': 'vit', 'note': 'x' * 500}
    assert {(m.key, m.value, m.step) for m in teacher['metrics']} == {
        ('loss', 1.5, 2), ('classification/auroc', 0.7, 4), ('test/best/classification/auroc', 0.75, 4),
        ('test/best/classification/auroc/low', 0.5, 4)}
    assert [(m.key, m.value) for m in student['metrics']] == [('loss', 2.0)]
    assert (teacher['status'], student['status']) == ('FINISHED', 'RUNNING')
    assert teacher['artifacts'] == [str(folder / 'report.html')] and teacher['tags']['jaxkd.stage'] == 'teacher'


def test_without_mlflow_and_without_a_run_it_is_a_sentence(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'mlflow', None)
    assert command.main(['track', str(folder)]) == 2
    assert "pip install 'jaxkd-medical[mlflow]'" in capsys.readouterr().err
    assert command.main(['track', str(tmp_path)]) == 66


def test_mlflow_takes_it(folder, tmp_path, monkeypatch, capsys):
    mlflow = pytest.importorskip('mlflow')
    monkeypatch.chdir(tmp_path)  # where MLflow puts the artifacts of a database
    uri = f'sqlite:///{tmp_path}/mlflow.db'
    assert command.main(['track', str(folder), '--uri', uri]) == command.main(['track', str(folder), '--uri', uri]) == 0
    client = mlflow.MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name('jaxkd').experiment_id])
    assert sorted(r.info.run_name for r in runs) == [f'{folder.name}/student', f'{folder.name}/teacher']
