"""Several teachers, each weighed by how well it knows the label of the case (CA-MKD, Zhang et al., ICASSP 2022
[published]).

    T^2 sum_m w_m KL( softmax(z_m / T) || softmax(z_S / T) ),  w_m = (1 - softmax_m(CE(z_m, y))) / (M - 1)

w sums to 1 over the M teachers. The taps name them: teacher='report/logits,table/logits'. Labels that may be present
together are one Bernoulli each, with the mean over labels of both parts [our choice]. A case counts where every teacher
has an input; without a label (a class below 0) all teachers weigh the same [our choice].
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, LossPlugin, Sides
from jaxkd.distillation import kd, kd_bce

DEFAULTS = dict(weight=0.9, temperature=4.0)  # temperature: divisor T of the logits, 0.1 to 100


def confidence(teachers: Shaped[Array, 'm b *places k'], label: Shaped[Array, 'b ...']) -> Float[Array, 'm b']:
    """w [M,B] of the teachers' logits [M,B,...,K] and labels, int [B,...] or float [B,K]; without gradient."""
    if jnp.issubdtype(label.dtype, jnp.floating):
        known = jnp.ones(label.shape[0], bool)
        gap = jnp.stack([losses.per_case(losses.binary_cross_entropy(z, label)) for z in teachers])
    else:
        inside = (label >= 0) & (label < teachers.shape[-1])
        known = jnp.any(inside.reshape(len(label), -1), 1)
        classes = jnp.where(inside, label, 0).astype(jnp.int32)
        count = jnp.maximum(inside.reshape(len(label), -1).sum(1), 1)
        each = jnp.stack([losses.cross_entropy(z, classes) for z in teachers]) * inside
        gap = each.reshape(*each.shape[:2], -1).sum(-1) / count
    w = (1 - jax.nn.softmax(gap, 0)) / max(1, len(teachers) - 1)
    return jax.lax.stop_gradient(jnp.where(known, w, 1 / len(teachers)))


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError unless two or more teachers have logits of the shape of the student's."""
    errors.check_range(f'{sides.key}.temperature', hp.temperature, '[0.1, 100]')
    shapes = [tuple(x.shape[1:]) for x in (*sides.student, *sides.teacher)]
    if len(sides.student) != 1 or len(sides.teacher) < 2 or len({*shapes}) > 1:
        raise errors.ConfigError(f'{sides.key}: confident reads one tap of the student and one of equal shape of each '
                                 f'of several teachers; these are {shapes}.')
    loss = (kd_bce if jnp.issubdtype(sides.label.dtype, jnp.floating) else kd).softened

    def values(student, teachers, cases):
        gaps = jnp.stack([loss(student[0], z, hp.temperature) for z in teachers])
        return jnp.sum(confidence(jnp.stack(teachers), cases.label) * gaps, 0)
    return Loss(values)


PLUGIN = LossPlugin(levels=True)
