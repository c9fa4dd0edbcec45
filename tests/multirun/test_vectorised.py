"""Seeds in one program: the member of a seed is the network that training alone gives."""
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors, evaluation, parallel, stages, train
from jaxkd.multirun import vectorised
from tests.fixtures import disc


def resolved(**changes):
    few = dict(length='4 steps', eval_every='4 steps', log_every='4 steps', batch=16,
               model=dict(name='vit', width=16, depth=1, heads=2, patch=16)) | changes
    run = disc.config(image_only=few)
    run['data']['source']['cases'], run['stages'] = 120, ('image_only',)
    return config.resolve(ConfigDict(config.tuples(run)))


def test_a_member_is_the_network_of_its_seed(tmp_path):
    run_config, seeds = resolved(), (0, 3) if jax.device_count() < 3 else range(jax.device_count())
    members = vectorised.train(run_config, 'image_only', seeds, tmp_path)
    stage = stages.build(run_config, 'image_only', tmp_path)
    state, _ = train.train(stage, tmp_path, tensorboard=False)
    first, second = (jax.tree.map(lambda a, i=i: a[i], members.states) for i in (0, 1))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(first.params)):
        np.testing.assert_allclose(a, b, atol=2e-4)
    assert not np.allclose(jax.tree.leaves(first.params)[0], jax.tree.leaves(second.params)[0], atol=1e-3)
    alone = evaluation.validate(stage, state)
    assert members.scores[0] == pytest.approx(alone, abs=0.02) and [*members.scores] == [*seeds]
    assert int(second.step) == 4


def test_members_that_cannot_be_trained_together_are_refused(tmp_path, monkeypatch):
    with pytest.raises(errors.ConfigError, match='different numbers'):
        vectorised.train(resolved(), 'image_only', (1, 1), tmp_path)
    with pytest.raises(errors.ConfigError, match='by validation'):
        vectorised.train(resolved(optim=dict(schedule='plateau')), 'image_only', (0,), tmp_path)
    monkeypatch.setattr(parallel.jax, 'device_count', lambda: 4)
    with pytest.raises(errors.ConfigError, match='6 seeds do not divide among 4 devices. The nearest .* 8'):
        parallel.check_members(6)
