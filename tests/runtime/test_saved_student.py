"""Deployed variables that are read without orbax are those that orbax reads."""
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxkd import checkpoint, errors
from jaxkd.inference import deployed
from jaxkd.runtime import saved_student
from jaxkd.state import TrainState

READ = """
import sys
from jaxkd.runtime import saved_student
from jaxkd.inference import deployed
saved_student.stage_metadata = lambda folder: dict(config=dict(mode='max'))
print(deployed.saved_weights(sys.argv[1])[1], 'orbax' in sys.modules)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two steps, of which the first has the better score."""
    path, rng = tmp_path_factory.mktemp('saved') / 'student', np.random.default_rng(0)
    saver = checkpoint.Checkpointer(path)
    saver.write_metadata(dict(config=dict(mode='max'), data={}))
    for step in (1, 2):
        params = {'head': {'kernel': rng.normal(size=(3, 5, 2)).astype(np.float32), 'bias': np.float32(step)},
                  'half': rng.normal(size=7).astype(ml_dtypes.bfloat16)}
        stats = {'batch_stats': {'norm': {'mean': rng.normal(size=4).astype(np.float32)}}}
        saver.save(step, TrainState(np.int32(step), {'student': params}, {'student': stats}, {}, {}, {}, {}), {},
                   1 / step)
    saver.close()
    return path


@pytest.fixture(autouse=True)
def of_any_config(monkeypatch):
    monkeypatch.setattr(saved_student, 'stage_metadata', lambda folder: dict(config=dict(mode='max')))


@pytest.mark.parametrize('which', ['best', 'last', '2'])
def test_variables_are_those_that_orbax_reads_bit_for_bit(folder, which):
    (ours, step), (theirs, expected) = saved_student.read(folder, which), checkpoint.load_student(folder, None, which)
    assert step == expected == (1 if which == 'best' else 2)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == np.asarray(b).tobytes()


def test_orbax_is_not_imported_for_an_intact_step(folder):
    done = subprocess.run([sys.executable, '-c', READ, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['1', 'False']


@pytest.mark.parametrize('part', ['student', 'about'])
def test_a_flipped_bit_is_damage_as_orbax_says_it(folder, part, tmp_path):
    copied = tmp_path / 'student'
    subprocess.run(['cp', '-r', folder, copied], check=True)
    for path in [p for p in (copied / '1' / part).rglob('*') if p.is_file()]:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(errors.Damaged, match='1 (is damaged|cannot be read)'):
        deployed.saved_weights(copied)


def test_a_step_that_is_not_there_is_named(folder):
    with pytest.raises(errors.MissingInput, match='has no step "3"'):
        deployed.saved_weights(folder, '3')
