"""Losses as pure functions: float32, one value per example or per element; the caller weighs and averages.

Gradients: where the arguments are called teacher and student, the teacher goes through stop_gradient here, so
no gradient reaches it whatever the caller does. Where they are called a and b the loss is symmetric and both
get a gradient: the caller stops the side that is not to be trained.
Temperatures are positive. Losses with a temperature T include the factor T^2, which keeps their gradient at
the size of a supervised one (Hinton, Vinyals, Dean 2015 [published]).
"""
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, log_softmax, sigmoid, softplus
from jaxtyping import Array, Bool, Float, Shaped

from jaxkd import errors
from jaxkd.contracts import Cases, Loss, Sides
from jaxkd.state import Mean


def binary_cross_entropy(logits: Shaped[Array, 'b c'], label: Shaped[Array, 'b c']) -> Float[Array, 'b c']:
    """softplus(z) - y z. logits [B,C], label [B,C] in [0,1] -> [B,C]. Labels may be soft."""
    logits, label = same_shape('binary_cross_entropy', logits, label)
    return softplus(logits) - label * logits


def cross_entropy(logits: Float[Array, '*places k'], label: Shaped[Array, '...']) -> Float[Array, '*places']:
    """-log softmax(z)_y. logits [B,...,K], label int [B,...] in 0..K-1 -> [B,...]."""
    if label.shape != logits.shape[:-1]:
        raise errors.ConfigError(f'cross_entropy: labels {label.shape} do not fit logits {logits.shape}. A '
                                 'label is one class index for each row of logits.')
    scores = log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(scores, label[..., None], axis=-1)[..., 0]


def focal(loss: Float[Array, '*shape'], power: float) -> Float[Array, '*shape']:
    """(1 - p)^power loss of cross-entropies -log p of hard labels (Lin et al., ICCV 2017 [published]). power >= 1."""
    return jnp.maximum(-jnp.expm1(-loss), 0) ** power * loss  # rounding may leave a loss below 0


def bernoulli_kl(teacher_logits: Shaped[Array, '...'], student_logits: Shaped[Array, '...'],
                 temperature: float = 1.0) -> Float[Array, '...']:
    """T^2 [p log(p/q) + (1-p) log((1-p)/(1-q))], p = sigmoid(z_teacher/T), q = sigmoid(z_student/T).

    One independent yes/no for each label. [B,C], [B,C] -> [B,C]. Gradient in z_student: T (q - p).
    """
    teacher, student = same_shape('bernoulli_kl', teacher_logits, student_logits)
    teacher, student = jax.lax.stop_gradient(teacher) / temperature, student / temperature
    yes = sigmoid(teacher) * (log_sigmoid(teacher) - log_sigmoid(student))
    no = sigmoid(-teacher) * (log_sigmoid(-teacher) - log_sigmoid(-student))
    return temperature ** 2 * (yes + no)


def kl(teacher_logits: Shaped[Array, '...'], student_logits: Shaped[Array, '*places k'], temperature: float = 1.0,
       stop: bool = True) -> Float[Array, '*places']:
    """T^2 sum_k p_k log(p_k/q_k), p = softmax(z_teacher/T), q = softmax(z_student/T) over the last axis.

    [B,...,K], [B,...,K] -> [B,...]. Gradient in z_student: T (q - p). stop=False lets the teacher learn from it, too.
    """
    teacher, student = same_shape('kl', teacher_logits, student_logits)
    teacher = log_softmax((jax.lax.stop_gradient(teacher) if stop else teacher) / temperature)
    student = log_softmax(student / temperature)
    return temperature ** 2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def cosine_distance(a: Shaped[Array, '...'], b: Shaped[Array, '*places d']) -> Float[Array, '*places']:
    """1 - <a,b> / (|a| |b|) over the last axis. [B,...,d], [B,...,d] -> [B,...] in [0,2].

    A zero vector is at distance 1 from everything, with zero gradient.
    """
    a, b = same_shape('cosine_distance', a, b)
    return 1.0 - jnp.sum(unit(a) * unit(b), axis=-1)


def squared_error(a: Shaped[Array, '...'], b: Shaped[Array, 'b ...']) -> Float[Array, ' b']:
    """mean (a - b)^2 over all axes but the first. [B,...], [B,...] -> [B]."""
    a, b = same_shape('squared_error', a, b)
    return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))


def affinity(a: Float[Array, 'b n c'], b: Float[Array, 'b n d']) -> Float[Array, ' b']:
    """mean_ij (<a_i,a_j> - <b_i,b_j>)^2 of L2-normalised rows. [B,N,c], [B,N,d] -> [B]; c and d may differ.

    Which places resemble which, whatever the features mean: a rotation of the channels or a positive scale of one side
    changes nothing. N x N products are held: pool the places first. The pair-wise term of Liu et al., CVPR 2019
    [published].
    """
    a, b = unit(a.astype(jnp.float32)), unit(b.astype(jnp.float32))
    return jnp.mean(jnp.square(a @ a.mT - b @ b.mT), (1, 2))


def attention(x: Shaped[Array, 'b ... c'], p: float = 2.0) -> Float[Array, 'b n']:
    """Q: the mean of |x|^p over channels at each place, of norm 1 over places. [B,*places,C] -> [B,N].

    Zagoruyko and Komodakis, ICLR 2017 [published].
    """
    x = x.astype(jnp.float32)
    strength = jnp.square(x) if p == 2 else jnp.abs(x) ** p
    return unit(jnp.mean(strength, -1).reshape(x.shape[0], -1))


def dice_sums(logits: Shaped[Array, 'b ... k'], label: Shaped[Array, 'b ...'],
              valid: Bool[Array, 'b ...'], squared: bool = False) -> tuple[Array, Array, Array]:
    """The sums of a soft Dice: (sum p m, sum p, sum m) over the valid places, each [B,K-1], without background.

    logits [B,...,K], label int [B,...] in 0..K-1, valid bool [B,...]; p = softmax, m = 1 where the label is the class.
    squared: the second is sum p^2.
    """
    places = tuple(range(1, logits.ndim - 1))
    p = jnp.where(valid[..., None], jax.nn.softmax(logits.astype(jnp.float32)), 0)[..., 1:]
    m = jnp.where(valid[..., None], jax.nn.one_hot(label, logits.shape[-1]), 0)[..., 1:]
    return jnp.sum(p * m, places), jnp.sum(jnp.square(p) if squared else p, places), jnp.sum(m, places)


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


def reverse(x: Float[Array, '...'], weight: float) -> Float[Array, '...']:
    """x, with -weight times its gradient."""
    return jax.lax.stop_gradient((1 + weight) * x) - weight * x


def flat(x: Shaped[Array, 'b *places c']) -> Float[Array, 'b n c']:
    """[B,*places,C] -> float32 [B,N,C]."""
    return x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)


def per_case(x: Float[Array, 'b ...']) -> Float[Array, ' b']:
    """Mean over all axes but the first."""
    return jnp.mean(x, range(1, x.ndim))


def beside(weight: Shaped[Array, ' b'], x: Shaped[Array, 'b ...']) -> Shaped[Array, 'b ...']:
    """weight [B] with axes of length 1, so that it broadcasts to x [B,...]."""
    return weight.reshape(-1, *[1] * (x.ndim - 1))


def regions(label: Shaped[Array, 'b ...'], shape: Sequence[int],
            classes: int) -> tuple[Float[Array, 'b n k'], Float[Array, 'b n']]:
    """label [B,*places] at places of a map of this shape -> one-hot [B,N,K] (zeros where it is no class), valid [B,N].
    """
    owner = jax.nn.one_hot(nearest(label, shape).reshape(label.shape[0], -1), classes)
    return owner, owner.sum(-1)


def class_means(x: Float[Array, 'b n c'], owner: Float[Array, 'b n k']) -> Float[Array, 'b k c']:
    """Class means of each case, zeros for a class that it lacks. [B,N,C], one-hot [B,N,K] -> [B,K,C]."""
    return jnp.einsum('bnk,bnc->bkc', owner, x) / jnp.maximum(owner.sum(1), 1)[..., None]


def same_places(a: Shaped[Array, 'b ...'], b: Shaped[Array, 'b ...']) -> tuple[Array, Array]:
    """[B,*places,C], [B,*places,D] -> both with the fewer places along each axis: the larger averaged in blocks.

    Sides that are no multiples of each other are refused by `check_places`.
    """
    places = [min(pair) for pair in zip(a.shape[1:-1], b.shape[1:-1])]

    def averaged(x):
        split = [m for n, side in zip(places, x.shape[1:-1]) for m in (n, side // n)]
        axes = tuple(range(2, 2 * len(places) + 1, 2))
        return x.reshape(x.shape[0], *split, x.shape[-1]).mean(axes) if tuple(places) != x.shape[1:-1] else x
    return averaged(a), averaged(b)


def check_places(key: str, a: Sequence[int], b: Sequence[int]) -> None:
    """ConfigError unless `same_places` can bring shapes (B, *places, C) together; key: of the loss, in the config."""
    if len(a) != len(b) or any(max(m, n) % max(1, min(m, n)) for m, n in zip(a[1:-1], b[1:-1])):
        raise errors.ConfigError(f'{key}: the tap of the student is {list(a[1:])}, of the teacher {list(b[1:])}. '
                                 'Choose taps of equal places, or of sides that are multiples of each other.')


def check_maps(key: str, a: Sequence[int], b: Sequence[int]) -> None:
    """ConfigError, besides, for features without places."""
    check_places(key, a, b)
    if len(a) < 3:
        raise errors.ConfigError(f'{key}: the taps are vectors of {a[-1]} and {b[-1]}, which have no places. Choose '
                                 'taps that are maps, such as "block2".')


def check_dense(key: str, label: jax.ShapeDtypeStruct, shape: Sequence[int]) -> None:
    """ConfigError unless there is a label for each place, along the same axes as a map of this shape."""
    if label.ndim != len(shape) - 1 or label.ndim < 2 or not jnp.issubdtype(label.dtype, jnp.integer):
        raise errors.ConfigError(f'{key} needs a label for each place; these are {label.dtype} '
                                 f'{list(label.shape[1:])}. Choose a source of segmentations, or another loss.')


def check_case_labels(key: str, label: jax.ShapeDtypeStruct) -> None:
    """ConfigError unless labels are those of cases: classes [B], or [B,C] that may be present together."""
    if jnp.issubdtype(label.dtype, jnp.integer) and label.ndim != 1:
        raise errors.ConfigError(f'{key} learns labels of cases; these are labels of places {list(label.shape[1:])}.')


def label_mean(logits: Float[Array, 'b m k'], cases: Cases, weight: Shaped[Array, 'b m'] | None = None) -> Mean:
    """The loss of the labels of logits [B,M,K] of M heads, where `weight` [B,M] is set, over valid cases with a label:
    cross-entropy of classes int [B], binary cross-entropy of labels [B,K] over those that are known.
    """
    valid = cases.valid[:, None] * (jnp.ones(logits.shape[:2]) if weight is None else weight > 0)
    label = jnp.broadcast_to(cases.label[:, None], (*logits.shape[:2], *cases.label.shape[1:]))
    if jnp.issubdtype(label.dtype, jnp.floating):
        known = jnp.ones_like(cases.label) if cases.label_weight is None else cases.label_weight
        return Mean.of(binary_cross_entropy(logits, label), valid[..., None] * known[:, None])
    return Mean.of(cross_entropy(logits, jnp.maximum(label, 0)), valid * (label >= 0))


def of_regions(gap: Callable[..., Array], sides: Sides) -> Loss:
    """The Loss of gap(map of the student, of the teacher, label, number of classes) -> [B], over cases with a label.

    ConfigError without a label for each place, and for maps whose sides are no multiples of each other.
    """
    check_dense(sides.key, sides.label, sides.student.shape)
    check_maps(sides.key, sides.student.shape, sides.teacher.shape)

    def values(student, teacher, cases):
        known = jnp.any(cases.label < sides.classes, range(1, cases.label.ndim))  # a case without a label is left out
        return Mean.of(gap(*same_places(student, teacher), cases.label, sides.classes), cases.valid * known)
    return Loss(values)


def same_shape(name: str, a: Array, b: Array) -> tuple[Array, Array]:
    """Both as float32. ConfigError with the name of the loss for unequal shapes."""
    if a.shape != b.shape:  # broadcasting would average over pairs that do not belong together
        raise errors.ConfigError(f'{name}: shapes {a.shape} and {b.shape} differ. Both sides need the same '
                                 'outputs, or a projection that makes them so.')
    return a.astype(jnp.float32), b.astype(jnp.float32)


def norm(x: Float[Array, '*places d']) -> Float[Array, '*places 1']:
    """|x| over the last axis, which stays; of a zero vector 0, with zero gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    positive = square > 1e-24
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def unit(x: Float[Array, '*places d']) -> Float[Array, '*places d']:
    """x / |x| over the last axis; a zero vector stays zero, with zero gradient."""
    # two wheres: the gradient of the branch not taken, 0 * inf, would be nan
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    positive = square > 1e-24
    return jnp.where(positive, x / jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
