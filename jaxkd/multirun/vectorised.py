"""Several seeds of one stage in one program: networks are trained side by side.

The train step of one network is mapped over a leading axis of members (jax.vmap), which is divided among the devices.
Seeds change the initial weights alone: data order, augmentation and dropout are those of the config's seed, so the
member of that seed is the network that `jaxkd train` gives, up to rounding. Nothing is saved: this answers how much
weights at random decide. On CPU cores the members take as long as one after the other; accelerators were not measured.
"""
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors, evaluation, parallel, stages
from jaxkd.data import loader
from jaxkd.runtime import log


class Members(NamedTuple):
    """What `train` gives."""

    scores: dict[int, dict[str, float]]  # {seed: {evaluator/metric: value}} on the validation part, at the last step
    states: Any  # TrainState whose arrays have a leading axis of members, in the order of the seeds
    seconds: float  # of training, without the first step, which compiles


def train(run_config: ConfigDict, name: str, seeds: Sequence[int], workdir: str) -> Members:
    """Train stage `name` of a resolved config for each of these seeds. workdir: holds the stages that it learns from.

    ConfigError for seeds that do not divide among the devices or come twice, and for a stage that does not start from
    weights at random or whose step depends on validation; NonFinite.
    """
    stage = stages.build(run_config, name, workdir)
    _check(stage, seeds)
    keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32) + np.uint32(stage.config.seed))
    init = parallel.jit(jax.vmap(stage.method.init))
    step = parallel.jit(jax.vmap(stage.method.train_step, in_axes=(0, None, None)), donate_argnums=0)
    with log.waiting(f'{name}: compiling {len(seeds)} networks in one program'):
        states = parallel.split_members(init(keys))
    data: Any = loader.train_loader(stage.data, stage.config.batch, stage.seed, 0, stage.cached_outputs,
                                    stage.exchanged)
    began = time.perf_counter()
    try:
        for n in range(stage.total):
            states, metrics = step(states, stage.frozen, parallel.replicate(next(data)))
            if n == 0:
                jax.block_until_ready(states)
                began = time.perf_counter()
        losses = parallel.to_host(metrics['loss'].value)
    finally:
        data.close()
    seconds = time.perf_counter() - began
    if not np.isfinite(losses).all():
        bad = [seed for seed, loss in zip(seeds, losses) if not np.isfinite(loss)]
        raise errors.NonFinite(f'{name}: the loss of seeds {bad} is not finite at step {stage.total}. Lower optim.lr '
                               'or set optim.clip.')
    scores = {seed: evaluation.validate(stage, jax.tree.map(lambda a, i=i: a[i], states))
              for i, seed in enumerate(seeds)}
    return Members(scores, states, seconds)


def _check(stage: stages.Stage, seeds: Sequence[int]) -> None:
    hp = stage.config
    if len({*seeds}) < len(seeds) or not seeds:
        raise errors.ConfigError(f'seeds {tuple(seeds)} must be different numbers, one or more.')
    parallel.check_members(len(seeds))
    if any(stages.starts_from_weights(network.init) for network in (hp, *hp.networks.values())):
        raise errors.ConfigError(f'{stage.name}.init: networks that start from the same weights do not differ by seed. '
                                 'Unset it.')
    if stage.method.solve or hp.optim.schedule == 'plateau':
        raise errors.ConfigError(f'{stage.name}: a closed form or a schedule by validation is not trained as one of '
                                 'several members. Use python -m jaxkd.multirun --seeds.')
