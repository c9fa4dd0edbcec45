"""The labels, learned from the features of both sides together (z_all of CMIM, Sylvain et al., 2020 [inferred]).

    CE(W [f_S, f_T] + b, y)        binary cross-entropy of labels that may be present together

W and b train beside the student and are not deployed. With `both` the teacher's side gets a gradient, too: that of a
network of `<stage>.networks`. Cross-modal information maximisation is this, the labels of either side alone (that of
the student and of the network), and `infonce` with `both` and weight 0.1.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxkd import losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(
    student='pooled', weight=1.0,
    both=False,  # the teacher's side learns, too, where it is trained along
)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError for labels of places."""
    losses.check_case_labels(sides.key, sides.label)

    def values(student, teacher, cases):
        sides = (x.reshape(x.shape[0], -1) for x in (student, teacher if hp.both else jax.lax.stop_gradient(teacher)))
        return losses.label_mean(cases.heads['classes'](jnp.concatenate([*sides], -1))[:, None], cases)
    return Loss(values, {'classes': nn.Dense(sides.classes)})
