"""SMIL: meta-learning with inputs that are missing (Ma, Ren, Zhao, Tulyakov, Wu, Peng, AAAI 2021 [published]).

    theta' = theta - inner grad_theta L(x_kept; theta)                            one step, of the student alone
    L      = L(x_kept; theta') + L(x_kept; theta) + sum_i fused_i mean (h_i(x_kept; theta') - sg h_i(x; theta'))^2
             + complete L(x; theta')

L(x; theta) is the loss of the labels (cross-entropy of classes, binary cross-entropy of labels that may be present
together); x_kept is the case without the inputs outside `keep`, x the case as it is; h_1, h_2 are the fused features of
the model `smil`, which makes those of a missing input of centroids and adds noise (jaxkd/models/smil.py). The gradient
of L goes through the inner step (second order). Weights of centroids and noise are meta-learned: the inner step does
not change them [published]. Squared gaps are means over cases that have an input outside `keep`.

Before the first step the centroids of each input are fitted by k-means to its features in the training cases that have
it. Features that are trained on move away from them: start from a trained network (`init`), and freeze the encoders of
inputs that may be missing (`optim.freeze`), as the published code does.

[published, code] inner = 0.001 and fused = (0.01, 0.01), the terms, one step, cross-entropy of both parameters. [our
choice] labels that may be present together, the stop-gradient, noise in every pass of training, `complete` (the
article's outer loss is that of complete cases, its code has none). The inner gradient is that of the cases of all
devices, with microbatches of one microbatch; what `optim.freeze` names takes the inner step and not the outer. Labels
that <stage>.trim leaves out still count in the inner step.
"""
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from jaxkd import errors, losses, parallel, steps
from jaxkd.contracts import Method
from jaxkd.data.dataset import Dataset
from jaxkd.methods import supervised
from jaxkd.models import smil as model
from jaxkd.runtime import log
from jaxkd.state import Context, Mean, Progress, TrainState, label_kind, valid_mask
from jaxkd.training import modalities

DEFAULTS = dict(
    keep=(),  # inputs that every case has; (): the first of the stage
    inner=0.001,  # step size of the inner step, 0 or more
    fused=(0.01, 0.01),  # weights of the squared gaps of both fused features
    complete=0.0,  # weight of the loss of the cases with all inputs that they have; 0: none
)
PROVENANCE = (
    'Published: missing features as convex combinations of centroids, learned noise on fused features, an inner step '
    'on incomplete inputs that is differentiated through. From the public code: weights, one step, both '
    'cross-entropies, squared gaps of fused features. Our choice: expectations of the noise in tests, the '
    'stop-gradient of complete features, the loss of complete cases.')
META = ('weights_', 'noise')  # names of parameters that the inner step does not change
PASSES = ('before', 'complete')  # outputs beside those of the adapted student on the kept inputs


@dataclasses.dataclass(frozen=True)
class Meta(steps.Recipe):
    """The recipe whose outputs are those of a student after an inner step."""

    keep: tuple[str, ...] = ()

    def measure(self, params: dict, stats: dict, method_state: Any, frozen: dict, batch: dict, key: PRNGKeyArray,
                progress: Progress) -> tuple[steps.Metrics, dict, Any]:
        network, keys = self.context.networks['student'], jax.random.split(key, 3)
        kept = modalities.only(batch, network.inputs, self.keep)

        def run(weights, seen, key):
            return network.apply({'params': weights, **stats['student']}, seen, train=True, key=key)

        def first_loss(weights):
            out, _ = run(weights, kept, keys[0])
            loss = label_loss(out, batch, self.keep)
            return loss.total / jnp.maximum(parallel.psum(jax.lax.stop_gradient(loss.weight)), 1e-12), out

        gradient, before = jax.grad(first_loss, has_aux=True)(params['student'])
        adapted = stepped(params['student'], parallel.psum(gradient), self.hp.inner)
        out, _ = run(adapted, kept, keys[1])
        complete, new = run(adapted, batch, keys[2])
        outputs = {'student': out, 'before': before, 'complete': complete}
        metrics, method_state = self.trimmed_metrics(outputs, {}, batch, method_state, progress)
        return metrics, {'student': new}, jax.lax.stop_gradient(method_state)

    def metrics(self, outputs: dict, heads: Mapping[str, Callable], batch: dict, method_state: Any
                ) -> tuple[steps.Metrics, Any]:
        return super().metrics({name: outputs['student'] for name in PASSES} | outputs, heads, batch, method_state)


def stepped(params: dict, gradient: dict, size: float) -> dict:
    """The parameters after a step of plain gradient descent, those of META unchanged."""
    return {name: part if name.startswith(META) else jax.tree.map(lambda p, g: p - size * g, part, gradient[name])
            for name, part in params.items()}


def label_loss(out: Mapping[str, Any], batch: Mapping[str, Any], reads: Sequence[str]) -> Mean:
    """The loss of the labels of cases that have any of the inputs `reads`."""
    options = ConfigDict(dict(kind=label_kind(batch['label']), smoothing=0.0, confidence=0.0, focal=0.0, weight=''))
    return supervised.terms(dict(out), {}, {}, dict(batch), options, reads)['sup']


def terms(student: dict, passes: dict, heads: dict, batch: dict, hp: ConfigDict, keep: Sequence[str] = (),
          others: Sequence[str] = ()) -> dict[str, Mean]:
    """student: outputs on the inputs `keep` after the inner step; passes: before it, and after it on all inputs."""
    both = valid_mask(batch, keep) * (valid_mask(batch, others) > 0)
    values = {'sup': label_loss(student, batch, keep), 'inner': label_loss(passes['before'], batch, keep)}
    values |= {name: Mean.of(losses.squared_error(student[name], jax.lax.stop_gradient(passes['complete'][name])), both)
               for name in ('fused1', 'fused2')}
    return values | {'complete': label_loss(passes['complete'], batch, (*keep, *others))}


def weights(hp: ConfigDict, progress: Progress) -> dict:
    return {'sup': 1.0, 'inner': 1.0, 'fused1': hp.fused[0], 'fused2': hp.fused[1], 'complete': hp.complete}


def solve(state: TrainState, dataset: Dataset, predict: Callable[..., Any], names: Sequence[str],
          seed: int) -> TrainState:
    """The state with centroids of the features of each input; predict: the Predictor of the student."""
    outputs = predict('train', (*(f'feature_{name}' for name in names), 'present')).outputs
    stats = state.stats['student']
    fitted = {}
    for m, name in enumerate(names):
        features = outputs[f'feature_{name}'][outputs['present'][:, m] > 0]
        old = stats['centroids'][f'{name}_centroids']
        if len(features) < len(old):
            raise errors.BadData(f'smil: {len(features)} training cases have "{name}", too few for {len(old)} '
                                 f'centroids. Set model.clusters to {max(1, len(features))} or less.')
        fitted[f'{name}_centroids'] = jnp.asarray(centroids(features, len(old), seed), old.dtype)
        log.info(f'smil: {len(old)} centroids of {len(features)} cases with "{name}"')
    return dataclasses.replace(state, stats={**state.stats, 'student': {**stats, 'centroids': fitted}})


def centroids(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-means [count,d] of features [n,d]."""
    from sklearn.cluster import KMeans
    return KMeans(count, n_init=4, random_state=seed).fit(features.astype(np.float64)).cluster_centers_


def build(hp: ConfigDict, context: Context) -> Method:
    """ConfigError unless the stage trains the model `smil` alone, and for inputs and weights that do not fit."""
    network, key = context.networks['student'], f'{context.stage}.method'
    if not isinstance(network.module, model.Smil) or len(context.networks) > 1 or context.teachers:
        raise errors.ConfigError(f'{key}: smil trains one network, whose model is "smil", from labels alone. Set '
                                 f'{context.stage}.model.name=smil and leave teachers and networks out.')
    if label_kind(context.batch['label']) == 'voxels':
        raise errors.ConfigError(f'{key}: smil learns labels of cases; these are labels of places.')
    keep = tuple(hp.keep) or network.inputs[:1]
    others = tuple(name for name in network.inputs if name not in keep)
    if not others or not {*keep} <= {*network.inputs}:
        raise errors.ConfigError(f'{key}.keep = {keep} must name some of the inputs {", ".join(network.inputs)}, and '
                                 'leave some out.')
    errors.check_range(f'{key}.inner', hp.inner, '[0, inf)')
    errors.check_range(f'{key}.complete', hp.complete, '[0, inf)')
    if len(hp.fused) != 2 or min(hp.fused) < 0:
        raise errors.ConfigError(f'{key}.fused = {tuple(hp.fused)} must be two weights of 0 or more.')
    recipe = Meta(hp, context, functools.partial(terms, keep=keep, others=others), weights, {}, None, None, None, keep)
    return Method(recipe.init, recipe.train_step, recipe.after_validation, loss_weights=recipe.loss_weights,
                  solve=functools.partial(solve, names=network.module.names, seed=context.seed),
                  teacher_terms=tuple, provenance=PROVENANCE)
