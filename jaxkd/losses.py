"""Losses as pure functions: float32, one value per example or per element; the caller weighs and averages.

Gradients: where the arguments are called teacher and student, the teacher goes through stop_gradient here, so
no gradient reaches it whatever the caller does. Where they are called a and b the loss is symmetric and both
get a gradient: the caller stops the side that is not to be trained.
Temperatures are positive. Losses with a temperature T include the factor T^2, which keeps their gradient at
the size of a supervised one (Hinton, Vinyals, Dean 2015 [published]).
"""
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, log_softmax, sigmoid, softplus
from jaxtyping import Array, Bool, Float, Shaped

from jaxkd import errors


def binary_cross_entropy(logits: Shaped[Array, 'b c'], label: Shaped[Array, 'b c']) -> Float[Array, 'b c']:
    """softplus(z) - y z. logits [B,C], label [B,C] in [0,1] -> [B,C]. Labels may be soft."""
    logits, label = _float32('binary_cross_entropy', logits, label)
    return softplus(logits) - label * logits


def cross_entropy(logits: Float[Array, '*places k'], label: Shaped[Array, '...']) -> Float[Array, '*places']:
    """-log softmax(z)_y. logits [B,...,K], label int [B,...] in 0..K-1 -> [B,...]."""
    if label.shape != logits.shape[:-1]:
        raise errors.ConfigError(f'cross_entropy: labels {label.shape} do not fit logits {logits.shape}. A '
                                 'label is one class index for each row of logits.')
    scores = log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(scores, label[..., None], axis=-1)[..., 0]


def bernoulli_kl(teacher_logits: Shaped[Array, '...'], student_logits: Shaped[Array, '...'],
                 temperature: float = 1.0) -> Float[Array, '...']:
    """T^2 [p log(p/q) + (1-p) log((1-p)/(1-q))], p = sigmoid(z_teacher/T), q = sigmoid(z_student/T).

    One independent yes/no for each label. [B,C], [B,C] -> [B,C]. Gradient in z_student: T (q - p).
    """
    teacher, student = _float32('bernoulli_kl', teacher_logits, student_logits)
    teacher, student = jax.lax.stop_gradient(teacher) / temperature, student / temperature
    yes = sigmoid(teacher) * (log_sigmoid(teacher) - log_sigmoid(student))
    no = sigmoid(-teacher) * (log_sigmoid(-teacher) - log_sigmoid(-student))
    return temperature ** 2 * (yes + no)


def kl(teacher_logits: Shaped[Array, '...'], student_logits: Shaped[Array, '*places k'], temperature: float = 1.0,
       stop: bool = True) -> Float[Array, '*places']:
    """T^2 sum_k p_k log(p_k/q_k), p = softmax(z_teacher/T), q = softmax(z_student/T) over the last axis.

    [B,...,K], [B,...,K] -> [B,...]. Gradient in z_student: T (q - p). stop=False lets the teacher learn from it, too.
    """
    teacher, student = _float32('kl', teacher_logits, student_logits)
    teacher = log_softmax((jax.lax.stop_gradient(teacher) if stop else teacher) / temperature)
    student = log_softmax(student / temperature)
    return temperature ** 2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def cosine_distance(a: Shaped[Array, '...'], b: Shaped[Array, '*places d']) -> Float[Array, '*places']:
    """1 - <a,b> / (|a| |b|) over the last axis. [B,...,d], [B,...,d] -> [B,...] in [0,2].

    A zero vector is at distance 1 from everything, with zero gradient.
    """
    a, b = _float32('cosine_distance', a, b)
    return 1.0 - jnp.sum(unit(a) * unit(b), axis=-1)


def squared_error(a: Shaped[Array, '...'], b: Shaped[Array, 'b ...']) -> Float[Array, ' b']:
    """mean (a - b)^2 over all axes but the first. [B,...], [B,...] -> [B]."""
    a, b = _float32('squared_error', a, b)
    return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))


def affinity(a: Float[Array, 'b n c'], b: Float[Array, 'b n d']) -> Float[Array, ' b']:
    """mean_ij (<a_i,a_j> - <b_i,b_j>)^2 of L2-normalised rows. [B,N,c], [B,N,d] -> [B]; c and d may differ.

    Which places resemble which, whatever the features mean: a rotation of the channels or a positive scale of one side
    changes nothing. N x N products are held: pool the places first. The pair-wise term of Liu et al., CVPR 2019
    [published].
    """
    a, b = unit(a.astype(jnp.float32)), unit(b.astype(jnp.float32))
    return jnp.mean(jnp.square(a @ a.mT - b @ b.mT), (1, 2))


def attention(x: Shaped[Array, 'b ... c']) -> Float[Array, 'b n']:
    """Q: the mean square over channels at each place, of norm 1 over places. [B,*places,C] -> [B,N].

    Zagoruyko and Komodakis, ICLR 2017 [published].
    """
    return unit(jnp.mean(jnp.square(x.astype(jnp.float32)), -1).reshape(x.shape[0], -1))


def dice_sums(logits: Shaped[Array, 'b ... k'], label: Shaped[Array, 'b ...'],
              valid: Bool[Array, 'b ...']) -> tuple[Array, Array, Array]:
    """The sums of a soft Dice: (sum p m, sum p, sum m) over the valid places, each [B,K-1], without background.

    logits [B,...,K], label int [B,...] in 0..K-1, valid bool [B,...]; p = softmax, m = 1 where the label is the class.
    """
    places = tuple(range(1, logits.ndim - 1))
    p = jnp.where(valid[..., None], jax.nn.softmax(logits.astype(jnp.float32)), 0)[..., 1:]
    m = jnp.where(valid[..., None], jax.nn.one_hot(label, logits.shape[-1]), 0)[..., 1:]
    return jnp.sum(p * m, places), jnp.sum(p, places), jnp.sum(m, places)


def dice(overlap: Shaped[Array, '*b k'], predicted: Shaped[Array, '*b k'], true: Shaped[Array, '*b k'],
         smooth: float = 1e-5) -> Float[Array, '*b']:
    """1 - mean over classes of (2 overlap + smooth) / (predicted + true + smooth). Each [...,K-1] -> [...]."""
    return 1 - jnp.mean((2 * overlap + smooth) / (predicted + true + smooth), -1)


def nearest(x: Array, shape: Sequence[int]) -> Array:
    """x [B,*places] with the places resampled to `shape` by the nearest one (for labels: no new values)."""
    for axis, n in enumerate(shape, 1):
        index = (jnp.arange(n) * 2 + 1) * x.shape[axis] // (2 * n)  # the middle of each new place, rounded down
        x = jnp.take(x, index, axis)
    return x


def pool(x: Shaped[Array, 'b ... c'], most: int) -> Shaped[Array, 'b n c']:
    """x [B,*places,C] averaged in blocks until there are at most `most` places: [B,N,C].

    The longest even side is halved first.
    """
    sides = list(x.shape[1:-1])
    blocks = [1] * len(sides)
    while math.prod(n // b for n, b in zip(sides, blocks)) > most:
        even = [i for i, (n, b) in enumerate(zip(sides, blocks)) if n // b % 2 == 0]
        if not even:
            raise errors.ConfigError(f'A map of {sides} places cannot be halved down to {most}. Choose a deeper tap, '
                                     'or windows whose sides are multiples of a power of two.')
        blocks[max(even, key=lambda i: sides[i] // blocks[i])] *= 2
    split = [m for n, b in zip(sides, blocks) for m in (n // b, b)]
    x = x.reshape(x.shape[0], *split, x.shape[-1]).mean(tuple(range(2, 2 * len(sides) + 1, 2)))
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _float32(name: str, a: Array, b: Array) -> tuple[Array, Array]:
    if a.shape != b.shape:  # broadcasting would average over pairs that do not belong together
        raise errors.ConfigError(f'{name}: shapes {a.shape} and {b.shape} differ. Both sides need the same '
                                 'outputs, or a projection that makes them so.')
    return a.astype(jnp.float32), b.astype(jnp.float32)


def unit(x: Float[Array, '*places d']) -> Float[Array, '*places d']:
    """x / |x| over the last axis; a zero vector stays zero, with zero gradient."""
    # two wheres: the gradient of the branch not taken, 0 * inf, would be nan
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    positive = square > 1e-24
    return jnp.where(positive, x / jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
