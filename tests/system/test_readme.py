"""What the README shows works as it stands there, from outside the repository."""
import os
import pathlib
import re
import subprocess
import sys

from jaxkd.runtime import files

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text()


def blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', README, re.S)


def run(cwd, *args):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(cwd), str(ROOT)]))
    done = subprocess.run([sys.executable, '-m', 'jaxkd.main', *args], cwd=cwd, env=env, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout


def test_own_data_set_model_and_method(tmp_path):
    names = re.findall(r'`(my_package/\w+\.py|\w+_config\.py)`', README)
    code = blocks('python')
    assert len(names) == len(code) == 4
    (tmp_path / 'my_package').mkdir()
    for name, text in zip(names, code):
        (tmp_path / name).write_text(text)
    run(tmp_path, '--config', 'stripes_config.py', '--workdir', 'run', '--config.bootstrap=20')
    summary = files.read_json(tmp_path / 'run' / 'summary.json', '')
    assert summary['stages']['student']['finished'] and (tmp_path / 'run' / 'report.html').exists()


def test_own_folder(tmp_path):
    """The README's cases.csv, with enough patients to train on."""
    import numpy as np
    from PIL import Image
    head, first, second = re.search(r'```\n(patient_id.*?)```', README, re.S)[1].splitlines()
    (tmp_path / 'data' / 'images').mkdir(parents=True)
    rows = [head]
    rng = np.random.default_rng(0)
    for i in range(24):
        name = f'images/{i}.{"png" if i % 2 else "jpg"}'
        Image.fromarray(rng.integers(0, 255, (50, 40), np.uint8)).save(tmp_path / 'data' / name)
        line = (second if i % 2 else first).replace('p2' if i % 2 else 'p1', f'p{i}')
        rows.append(line.replace('images/b.jpg' if i % 2 else 'images/a.png', name).rsplit(',', 1)[0] + ',')
    (tmp_path / 'data' / 'cases.csv').write_text('\n'.join(rows))
    said = run(ROOT, '--config', 'configs/mmpkd_cxr.py:folder', f'--config.data.source.root={tmp_path / "data"}', '--dry_run')
    assert '(32, 224, 224, 1)' in said and 'folder: train' in said


def test_every_command_names_files_and_options_that_exist():
    for file in re.findall(r'--config ([\w/.]+)', README):
        assert file.startswith('runs/') or (ROOT / file).exists(), file
    for folder in re.findall(r'`(jaxkd/[\w/]+\.(?:py|png))`', README):
        assert (ROOT / folder).exists(), folder
    for link in re.findall(r'\]\(([^)]+)\)', README):
        assert (ROOT / link).exists(), link
