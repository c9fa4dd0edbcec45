"""The notebooks of colab/ run top to bottom at their small setting, and say what the commands say."""
import json
import pathlib
import re
import tomllib

import numpy as np
import pytest

from jaxkd import predict
from jaxkd.runtime import files

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'colab').glob('*.ipynb'))


def cells(path):
    return json.loads(path.read_text())['cells']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_complete_and_without_outputs(path):
    content = json.loads(path.read_text())
    code = [cell for cell in content['cells'] if cell['cell_type'] == 'code']
    assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in code)
    assert [cell['metadata'].get('tags') for cell in code].count(['parameters']) == 1
    text = '\n'.join(''.join(cell['source']) for cell in content['cells'])
    assert f'/colab/{path.name})' in text and 'pinned.txt' in text and text.count('What you should see') >= 4
    assert not re.search(r'\._[a-z]|import _[a-z]', ' '.join(''.join(c['source']) for c in code))  # nothing private
    assert all(kind in ('code', 'markdown') for kind in {cell['cell_type'] for cell in content['cells']})
    assert path.stat().st_size < 20_000


def test_the_install_cell_of_all_notebooks_is_one():
    assert len({next(''.join(c['source']) for c in cells(path) if 'pinned.txt' in ''.join(c['source'])
                     and c['cell_type'] == 'code') for path in NOTEBOOKS}) == 1 and len(NOTEBOOKS) == 5


def test_badges_lead_to_the_repository_that_pyproject_names():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    repository = project['urls']['Repository'].removeprefix('https://github.com/')
    assert re.fullmatch(r'[\w.-]+/[\w.-]+', repository)
    pages = [path for path in (ROOT / 'README.md', *NOTEBOOKS, *sorted((ROOT / 'docs').rglob('*.md')))]
    links = {path: re.findall(r'github(?:\.com)?/([\w.-]+/[\w.-]+)/(?:blob|tree|raw|actions)/', path.read_text())
             for path in pages}
    assert all(link == repository for found in links.values() for link in found), links
    assert all(len(links[path]) == 1 for path in NOTEBOOKS)


def executed(name, folder, **parameters):
    """(text that the notebook printed, number of frames and pages shown); its parameters set to these values."""
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    notebook = nbformat.read(ROOT / 'colab' / f'{name}.ipynb', as_version=4)
    cell = next(c for c in notebook.cells if c.metadata.get('tags') == ['parameters'])
    for key, value in parameters.items():
        cell.source, count = re.subn(rf'^{key} = [^#\n]*', f'{key} = {value!r}  ', cell.source, flags=re.M)
        assert count == 1, key
    nbclient.NotebookClient(notebook, timeout=400, kernel_name='python3',
                            resources={'metadata': {'path': str(folder)}}).execute()
    outputs = [output for c in notebook.cells if c.cell_type == 'code' for output in c.outputs]
    printed = ''.join(o.text for o in outputs if o.output_type == 'stream')
    return printed, sum('text/html' in o.get('data', {}) for o in outputs)


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))


@pytest.mark.slow
def test_five_minutes(tmp_path, kernel):
    printed, shown = executed('1_five_minutes', tmp_path, SMALL=True)
    run, table = (float(number) for number in re.findall(r'macro AUROC of the \w+ +([\d.]+)', printed))
    summary = files.read_json(tmp_path / 'runs/five_minutes/summary.json', '')
    assert run == summary['stages']['student']['test']['best']['classification/auroc']['value']
    assert table == pytest.approx(run, abs=1e-6) and shown >= 4 and 'devices' in printed
    difference = re.search(r'largest difference of (\d+) images: (\S+)', printed)
    assert int(difference[1]) == len([*(tmp_path / 'new_images/images').iterdir()]) and float(difference[2]) < 1e-5
    assert predict.main(['--run', str(tmp_path / 'runs/five_minutes'), '--input', str(tmp_path / 'new_images/images'),
                         '--output', str(tmp_path / 'by_command'), '--overlays']) == 0
    assert (tmp_path / 'by_command/predictions.csv').read_text() == (tmp_path / 'predicted/predictions.csv').read_text()


@pytest.mark.slow
def test_volumes(tmp_path, kernel):
    printed, shown = executed('2_volumes', tmp_path, SMALL=True, STAGES='mri,cpkd')
    pairs = re.findall(r'accuracy ([\d.]+), that of the run ([\d.]+)', printed)
    assert len(pairs) == 2 and all(a == b for a, b in pairs) and shown >= 4


@pytest.mark.slow
def test_own_images(tmp_path, kernel):
    printed, shown = executed('3_own_images', tmp_path, SMALL=True, PATIENTS=40)
    assert 'preset: tiny' in printed or '64' in printed
    assert 'none: the first files of all cases differ' in printed and shown >= 4
    assert (tmp_path / 'runs/own_images/report.html').exists()


@pytest.mark.slow
def test_gain_map(tmp_path, kernel):
    printed, shown = executed('5_gain_map', tmp_path, SMALL=True, SHARES='0.5,1.0', ARMS='image_only,student', SEEDS=1)
    results = files.read_json(tmp_path / 'runs/gain_map/gains.json', '')
    assert results['regimes'][0]['text'] in printed and '2 members, 6 stages to train' in printed and shown >= 1
    labelled = [point['labelled'] for point in results['points']]
    assert labelled[0] < labelled[1] == float(re.findall(r'^(\d+) labelled patients: [+−]', printed, re.M)[1])


@pytest.mark.slow
def test_many_seeds_on_several_devices(tmp_path, kernel):
    printed, shown = executed('4_tpu', tmp_path, SMALL=True, SEEDS=4, VIRTUAL_DEVICES=2)
    alone, among = (float(x) for x in re.search(r'alone ([\d.]+), among 4 ([\d.]+)', printed).groups())
    assert among == pytest.approx(alone, abs=0.02) and '2 x cpu' in printed
    shapes = [tuple(map(int, re.findall(r'\d+', s))) for s in re.findall(r'\((2, [\d, ]*)\)', printed)]
    assert len(shapes) >= 2 and len(re.findall(r'^seed \d: ', printed, re.M)) == 4 and shown >= 1
    assert np.isfinite([alone, among]).all()
