"""A discriminator that must not tell the student from the teacher (ACN, Wang et al., MICCAI 2021 [published]).

    BCE(D(x_T), 1) + BCE(D(reverse(x_S)), 0)
    of = 'entropy'    x: -p_k log2 p_k / log2 K at each place, p = softmax(z)
    of = 'features'   x: the features themselves, of equal channels

D learns to tell them apart; `reverse` keeps a value and multiplies its gradient by -reverse, so the student learns to
be taken for the teacher. The authors alternate two optimisers; reversal of the gradient (Ganin et al., JMLR 2016) is
our choice. D: convolutions of stride 2 where there are places, then a linear logit. ACN has 0.001 for entropy maps and
0.0002 for features [published].
"""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(
    weight=1.0,
    of='entropy',  # what the discriminator reads: entropy (of the classes) or features
    reverse=0.001,  # factor of the gradient that reaches the student, 0 or more
    width=32,  # channels of the discriminator's first layer
)
KINDS = ('entropy', 'features')


class Discriminator(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, 'b *places c']) -> Float[Array, ' b']:
        for depth in range(3 if x.ndim > 2 else 1):
            layer = (nn.Conv(self.width * 2 ** depth, (3,) * (x.ndim - 2), (2,) * (x.ndim - 2)) if x.ndim > 2
                     else nn.Dense(self.width))
            x = nn.leaky_relu(layer(x), 0.2)
        return nn.Dense(1)(x.reshape(x.shape[0], -1, x.shape[-1]).mean(1))[:, 0]


def entropy(logits: Shaped[Array, 'b *places k']) -> Float[Array, 'b *places k']:
    """-p_k log2 p_k / log2 K, p = softmax(z)."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.exp(log_p) * log_p / math.log(logits.shape[-1])


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError unless both taps have the same rank and channels."""
    errors.check_choice(f'{sides.key}.of', hp.of, KINDS)
    errors.check_range(f'{sides.key}.reverse', hp.reverse, '[0, inf)')
    if sides.student.ndim != sides.teacher.ndim or sides.student.shape[-1] != sides.teacher.shape[-1]:
        raise errors.ConfigError(f'{sides.key}: one discriminator reads both sides, so {list(sides.student.shape[1:])} '
                                 f'and {list(sides.teacher.shape[1:])} need as many axes and channels.')

    def values(student, teacher, cases):
        student, teacher = losses.reverse(student.astype(jnp.float32), hp.reverse), jax.lax.stop_gradient(teacher)
        if hp.of == 'entropy':
            student, teacher = entropy(student), entropy(teacher)
        told = [cases.heads['discriminator'](x.astype(jnp.float32)) for x in (teacher, student)]
        return jax.nn.softplus(-told[0]) + jax.nn.softplus(told[1])
    return Loss(values, {'discriminator': Discriminator(hp.width)})
