"""Hints (FitNets, Romero et al., ICLR 2015 [published]): the features of the teacher themselves.

    mean_ij (r(F_S) - F_T)^2        r a 1x1 convolution to the teacher's channels, trained with the student

Where the maps differ in size, the larger is averaged in blocks [our choice]; `regressor=False` is the identity. Joint
training and weight 100 are those of the usual code; the article trains the hint first [published].
"""
import flax.linen as nn
import jax
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import losses
from jaxkd.contracts import Loss, Sides

# regressor: a trained linear map to the teacher's channels; False: none, for equal channels
DEFAULTS = dict(student='pooled', weight=100.0, regressor=True)


def squared(student: Shaped[Array, 'b ...'], teacher: Shaped[Array, 'b ...']) -> Float[Array, ' b']:
    """[B,...], [B,...] -> [B]. The teacher gets no gradient."""
    return losses.squared_error(student, jax.lax.stop_gradient(teacher))


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError for maps whose sides are no multiples of each other."""
    losses.check_places(sides.key, sides.student.shape, sides.teacher.shape)

    def values(student, teacher, cases):
        student, teacher = losses.same_places(student, teacher)
        return squared(cases.heads['regressor'](student) if hp.regressor else student, teacher)
    return Loss(values, {'regressor': nn.Dense(sides.teacher.shape[-1])} if hp.regressor else {})
