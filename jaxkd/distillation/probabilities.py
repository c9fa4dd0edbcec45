"""Squared gap of class probabilities at each place, as ACN has it between its full and its single modality (Wang et
al., MICCAI 2021 [published]).

    mean_ik (softmax(z_S,i)_k - softmax(z_T,i)_k)^2        k: classes without the background

ACN trains both networks together, with 0.2 and 0.8 Dice (`dice_squared` of distil) and a gap that teaches both. Here
the side that teaches is behind a stop-gradient [our choice]; two terms that name the networks in turn teach both. ACN's
weight is w(e) = 10 exp(-5 (1 - min(e, 20) / 20)^2): weight=10.0, schedule='ramp 20 epochs'.
"""
import jax
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(weight=10.0, schedule='ramp 20 epochs')


def gap(student: Shaped[Array, 'b *places k'], teacher: Shaped[Array, '...']) -> Float[Array, ' b']:
    """Logits [B,*places,K], [B,*places,K] -> [B]. The teacher gets no gradient."""
    student, teacher = losses.same_shape('probabilities', student, teacher)
    return losses.squared_error(jax.nn.softmax(student)[..., 1:],
                                jax.nn.softmax(jax.lax.stop_gradient(teacher))[..., 1:])


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError for a single logit."""
    if sides.student.shape[-1] < 2:
        raise errors.ConfigError(f'{sides.key}: probabilities needs two or more classes, the background first. Take '
                                 '"kd_bce".')
    return Loss(lambda student, teacher, cases: gap(student, teacher))
