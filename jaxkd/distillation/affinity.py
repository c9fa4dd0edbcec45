"""Which places of a map resemble which (pair-wise term of Liu et al., CVPR 2019 [published]).

    mean_ij (cos(F_S,i, F_S,j) - cos(F_T,i, F_T,j))^2

Maps [B,*places,C] of equal places, channels may differ; averaged in blocks until at most `places` are left. N x N
cosines are held.
"""
import jax
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

# places: maps are averaged in blocks until so many places are left, or fewer; 1 or more
DEFAULTS = dict(student='block2', weight=1.0, places=512)


def gap(student: Shaped[Array, 'b *places c'], teacher: Shaped[Array, 'b *places d'],
        places: int = 512) -> Float[Array, ' b']:
    """[B,*places,C], [B,*places,D] -> [B]. The teacher gets no gradient."""
    return losses.affinity(losses.pool(student, places), losses.pool(jax.lax.stop_gradient(teacher), places))


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError for features without places, and maps whose sides are no multiples of each other."""
    errors.check_range(f'{sides.key}.places', hp.places, '[1, inf)')
    losses.check_maps(sides.key, sides.student.shape, sides.teacher.shape)
    return Loss(lambda student, teacher, cases: gap(*losses.same_places(student, teacher), hp.places))
