"""The wheel and the sdist hold what they must: the package, the configs, the command."""
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import jaxkd
from jaxkd.runtime import versions

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = ('jaxkd', 'configs', 'launch')
FILES = ('pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE', 'CHANGELOG.md', 'constraints.txt')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The folder of the wheel and the sdist, built of a copy so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp('package')
    for name in PYTHON:
        shutil.copytree(ROOT / name, folder / 'src' / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in FILES:
        shutil.copy(ROOT / name, folder / 'src' / name)
    for kind, program in (('wheel', 'build_wheel'), ('sdist', 'build_sdist')):
        done = subprocess.run([sys.executable, '-c', f'import sys; from setuptools import build_meta; '
                               f'build_meta.{program}({str(folder)!r})'], cwd=folder / 'src', capture_output=True,
                              text=True)
        assert done.returncode == 0, f'{kind}: {done.stderr[-2000:]}'
    return folder


def sources(name):
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / name).rglob('*') if path.is_file()
            and '__pycache__' not in path.parts}


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_its_configs(built, tmp_path):
    (wheel,) = built.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if '.dist-info/' not in name}
        entry = next(name for name in archive.namelist() if name.endswith('entry_points.txt'))
        assert 'jaxkd = jaxkd.__main__:run' in archive.read(entry).decode()
        assert archive.read(entry.replace('entry_points.txt', 'METADATA')).decode().startswith(
            f'Metadata-Version: 2.4\nName: {versions.DISTRIBUTION}\nVersion: {jaxkd.__version__}\n')
        archive.extractall(tmp_path)
    assert names == sources('jaxkd') | sources('launch') | {f'jaxkd/{name}' for name in sources('configs')}
    program = ('import jaxkd, sys; from jaxkd import config; from jaxkd.config import loading\n'
               'assert loading.packaged_folder().parent.name == "jaxkd", loading.packaged_folder()\n'
               'print(*config.load("jaxkd:mmpkd_cxr:smoke").stages)\n'
               'jaxkd.command("list configs")')
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(tmp_path)),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'teacher image_only self_training kd_shuffled student' in done.stdout and 'jaxkd:specialist: ' in done.stdout


@pytest.mark.slow
def test_an_sdist_holds_what_the_wheel_is_built_of(built):
    (sdist,) = built.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert {*FILES}.union(*map(sources, PYTHON)) <= names
