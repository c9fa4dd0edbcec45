"""Just train twice (Liu et al., ICML 2021 [published]): errors of a short first training weigh more in the second.

    L = sum_i w_i CE(z_i, y_i) / sum_i w_i,   w_i = up where the first network errs on training case i, else 1

The first network is this stage's teacher, a stage of plain training cut short (its length is T_0); nothing is distilled
from it. `up` times the weight is what the authors do by repeating cases, in expectation [our choice].
"""
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxkd import errors, losses, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Mean, Progress, labelled_mask

DEFAULTS = dict(up=50.0)  # weight of a case on which the first network errs, 1 or more; the others weigh 1


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict) -> dict:
    first, = teachers.values()
    wrong, labelled = jnp.argmax(first['logits'], -1) != batch['label'], labelled_mask(batch)
    return {'ce': Mean.of(losses.cross_entropy(student['logits'], batch['label']),
                          labelled * jnp.where(wrong, hp.up, 1.0)),
            'wrong': Mean.of(jnp.float32(wrong), labelled)}


def weights(hp: ConfigDict, progress: Progress) -> dict:
    return {'ce': 1.0}


def build(hp: ConfigDict, context: Context) -> Method:
    steps.only_teacher(hp, context, 'Give the stage one in `teachers`: the network of the first training.')
    if hp.up < 1:
        raise errors.ConfigError(f'jtt.up = {hp.up} must be 1 or more.')
    # the teacher selects cases and teaches no outputs
    return steps.make_method(terms, weights, hp, context, teacher_terms=tuple)
