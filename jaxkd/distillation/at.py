"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017 [published]): where the features are strong.

    mean_i (Q_S,i - Q_T,i)^2,  Q = mean_c |F|^p / its norm over places        form = 'code'
    |Q_S - Q_T|                                                               form = 'paper'

Channels may differ; where the maps differ in size, the larger is averaged in blocks. p = 2 and weight 1000 belong to
the form of the code [published], which is the default.
"""
import jax
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

# p: power of the features, 1 to 8; form: code (squared difference of the maps) or paper (its norm)
DEFAULTS = dict(student='block2', weight=1000.0, p=2.0, form='code')
FORMS = ('code', 'paper')


def gap(student: Shaped[Array, 'b *places c'], teacher: Shaped[Array, 'b *places d'], p: float = 2.0,
        form: str = 'code') -> Float[Array, ' b']:
    """[B,*places,C], [B,*places,D] -> [B]. The teacher gets no gradient."""
    a, b = losses.attention(student, p), losses.attention(jax.lax.stop_gradient(teacher), p)
    return losses.squared_error(a, b) if form == 'code' else losses.norm(a - b)[:, 0]


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError for features without places, and maps whose sides are no multiples of each other."""
    errors.check_choice(f'{sides.key}.form', hp.form, FORMS)
    errors.check_range(f'{sides.key}.p', hp.p, '[1, 8]')
    losses.check_maps(sides.key, sides.student.shape, sides.teacher.shape)
    return Loss(lambda student, teacher, cases: gap(*losses.same_places(student, teacher), hp.p, hp.form))
