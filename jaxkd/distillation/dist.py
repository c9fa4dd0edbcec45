"""DIST (Huang et al., NeurIPS 2022 [published]): correlations of the class probabilities instead of their equality.

    T^2 [ beta (1 - mean_b rho(Y_S[b,:], Y_T[b,:])) + gamma (1 - mean_k rho(Y_S[:,k], Y_T[:,k])) ],  Y = softmax(z / T)

rho is Pearson's correlation: an affine change of one side's probabilities changes nothing. Places are rows, too. The
second term is a statistic of the global batch; with one case it is constant, with few it is noise. A constant row or
column has correlation 0. Defaults: beta = gamma = 1, T = 1, weight 2 [published].
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(
    weight=2.0,
    beta=1.0,  # weight of the correlation over the classes of each case
    gamma=1.0,  # weight of the correlation over the cases of each class
    temperature=1.0,  # divisor T of the logits, 0.1 to 100
)


def correlations(student: Shaped[Array, 'b *places k'], teacher: Shaped[Array, '...'], valid: Shaped[Array, ' b'],
                 temperature: float = 1.0) -> tuple[Float[Array, ''], Float[Array, '']]:
    """T^2 (1 - mean rho) of rows, and of columns, over the valid cases. The teacher gets no gradient."""
    student, teacher = losses.same_shape('dist', student, teacher)
    weight = jnp.broadcast_to(losses.beside(valid, student), student.shape)[..., 0].reshape(-1, 1)
    a, b = (jax.nn.softmax(z / temperature).reshape(-1, z.shape[-1])
            for z in (student, jax.lax.stop_gradient(teacher)))
    count = jnp.maximum(weight.sum(), 1e-12)
    rows = jnp.sum(_pearson(a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)) * weight[:, 0]) / count
    a, b = ((x - jnp.sum(x * weight, 0) / count) * jnp.sqrt(weight) for x in (a, b))
    columns = jnp.mean(_pearson(a.T, b.T))
    return temperature ** 2 * (1 - rows), temperature ** 2 * (1 - columns)


def _pearson(a: Float[Array, 'n d'], b: Float[Array, 'n d']) -> Float[Array, ' n']:
    """Correlation of centred rows."""
    return jnp.sum(losses.unit(a) * losses.unit(b), -1)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    errors.check_range(f'{sides.key}.temperature', hp.temperature, '[0.1, 100]')

    def values(student, teacher, cases):
        inter, intra = correlations(student, teacher, cases.valid, hp.temperature)
        return hp.beta * inter + hp.gamma * intra
    return Loss(values, pairwise=True)
