"""Cosine distance of features at each place, whatever their length [our choice].

    mean_i 1 - cos(r(F_S,i), F_T,i)        r a linear map to the teacher's channels, trained with the student

`regressor=False` is the identity.
"""
import flax.linen as nn
import jax
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import losses
from jaxkd.contracts import Loss, Sides

# regressor: a trained linear map to the teacher's channels; False: none, for equal channels
DEFAULTS = dict(student='pooled', weight=1.0, regressor=True)


def distance(student: Shaped[Array, 'b *places c'], teacher: Shaped[Array, '...']) -> Float[Array, ' b']:
    """[B,...,C], [B,...,C] -> [B]. The teacher gets no gradient."""
    return losses.per_case(losses.cosine_distance(student, jax.lax.stop_gradient(teacher)))


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError for maps whose sides are no multiples of each other."""
    losses.check_places(sides.key, sides.student.shape, sides.teacher.shape)

    def values(student, teacher, cases):
        student, teacher = losses.same_places(student, teacher)
        return distance(cases.heads['regressor'](student) if hp.regressor else student, teacher)
    return Loss(values, {'regressor': nn.Dense(sides.teacher.shape[-1], use_bias=False)} if hp.regressor else {})
