"""Group-DRO (Sagawa et al., ICLR 2020 [published]): the loss of the worst group (y, b). Needs the bias label.

    q_g <- q_g exp(eta l_g) / sum,   L = sum_g q_g l_g,   l_g the mean loss of group g = 2 y + b in the batch (0 where
                                                          it has none)

batch['bias'] comes from the transform `shortcut` with reveal=True. q starts uniform and is carried over all steps.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxkd import errors, losses, parallel, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Mean, Progress, labelled_mask

NEEDS = ('bias',)
DEFAULTS = dict(eta=0.01)  # step size of the weights of the groups, above 0


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict, memory: dict) -> tuple[dict, dict]:
    """Values whose mean over the batch is L; q is of the losses of all devices."""
    loss = losses.cross_entropy(student['logits'], batch['label'])
    group, labelled = 2 * batch['label'] + batch['bias'], labelled_mask(batch)
    values, groups, mask = parallel.gather((jax.lax.stop_gradient(loss), group, labelled))
    member = jax.nn.one_hot(groups, len(memory['q'])) * mask[:, None]
    count = member.sum(0)
    q = moved(memory['q'], values @ member / jnp.maximum(count, 1), hp.eta)
    weight = (q / jnp.maximum(count, 1))[group] * mask.sum()  # times a loss, then the mean over all cases: q_g l_g
    return {'dro': Mean.of(weight * loss, labelled), 'ce': Mean.of(loss, labelled)}, {'q': q}


def moved(q: Float[Array, ' groups'], loss: Float[Array, ' groups'], eta: float) -> Float[Array, ' groups']:
    """q after a step with group losses [G]."""
    q = q * jnp.exp(eta * loss)
    return q / q.sum()


def weights(hp: ConfigDict, progress: Progress) -> dict:
    return {'dro': 1.0}


def build(hp: ConfigDict, context: Context) -> Method:
    steps.require_keys(NEEDS, hp, context)
    if hp.eta <= 0:
        raise errors.ConfigError(f'group_dro.eta = {hp.eta} must be positive.')
    classes = steps.output_shapes(context)['student']['logits'].shape[-1]
    uniform = {'q': jnp.full(2 * classes, 1 / (2 * classes))}
    return steps.make_method(terms, weights, hp, context, memory=lambda hp, context: uniform)
