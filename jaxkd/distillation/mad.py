"""Margin-aware distillation (MMANet, Wei et al., CVPR 2023 [published]): `sp`, with more weight for cases of which the
teacher is uncertain.

    sum_b w_b |G_S,b - G_T,b|^2,  G as in sp,  w_b = H_b / sum H,  H the entropy of softmax(z_T)

The teacher's taps are its features and its logits: teacher='pooled,logits'. The weight of a row belongs to its case, as
in the authors' code for segmentation; axis='column' is what their code for classification does. H of a segmentation is
the mean over places [our choice]. Weight 30 from the fifth epoch on, 10 of a segmentation [published]. Relates the
cases of the global batch.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, LossPlugin, Sides
from jaxkd.distillation import sp

DEFAULTS = dict(
    student='pooled', teacher='pooled,logits', weight=30.0, schedule='after 5 epochs',
    axis='row',  # row (a case weighs its similarities to others) or column (those of others to it)
)
AXES = ('row', 'column')


def uncertainty(logits: Shaped[Array, 'b *places k'], valid: Shaped[Array, ' b']) -> Float[Array, ' b']:
    """w of logits [B,...,K]: sum 1 over the valid cases, 0 where no entropy is left."""
    logits = logits.astype(jnp.float32)
    entropy = losses.per_case(-jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), -1)) * valid
    return entropy / jnp.maximum(entropy.sum(), 1e-12)


def gap(student: Shaped[Array, 'b ...'], teacher: Shaped[Array, 'b ...'], logits: Shaped[Array, 'b ...'],
        valid: Shaped[Array, ' b'], axis: str = 'row') -> Float[Array, '']:
    """[B,...], [B,...], the teacher's logits [B,...,K], valid [B] -> a number. The teacher gets no gradient."""
    teacher, logits = jax.lax.stop_gradient((teacher, logits))
    difference = jnp.square(sp.similarities(student, valid) - sp.similarities(teacher, valid))
    w = uncertainty(logits, valid)
    return jnp.sum((w[:, None] if axis == 'row' else w) * difference)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError unless the taps are features of the student, and features and logits of the teacher."""
    errors.check_choice(f'{sides.key}.axis', hp.axis, AXES)
    if len(sides.student) != 1 or len(sides.teacher) != 2:
        raise errors.ConfigError(f'{sides.key}: mad reads one tap of the student, and features and class logits of the '
                                 f'teacher. Set {sides.key}.student=pooled and {sides.key}.teacher=pooled,logits.')

    def values(student, teacher, cases):
        features, logits = teacher
        return gap(student[0], features, logits, cases.valid, hp.axis)
    return Loss(values, pairwise=True)


PLUGIN = LossPlugin(levels=True)
