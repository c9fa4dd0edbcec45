"""Losses as pure functions: float32, one value per example or per element; the caller weighs and averages.

Gradients: where the arguments are called teacher and student, the teacher goes through stop_gradient here, so
no gradient reaches it whatever the caller does. Where they are called a and b the loss is symmetric and both
get a gradient: the caller stops the side that is not to be trained.
Temperatures are positive. Losses with a temperature T include the factor T^2, which keeps their gradient at
the size of a supervised one (Hinton, Vinyals, Dean 2015 [published]).
"""
import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, log_softmax, sigmoid, softplus

from jaxkd import errors


def binary_cross_entropy(logits, label):
    """softplus(z) - y z. logits [B,C], label [B,C] in [0,1] -> [B,C]. Labels may be soft."""
    logits, label = _float32('binary_cross_entropy', logits, label)
    return softplus(logits) - label * logits


def cross_entropy(logits, label):
    """-log softmax(z)_y. logits [B,...,K], label int [B,...] in 0..K-1 -> [B,...]."""
    if label.shape != logits.shape[:-1]:
        raise errors.ConfigError(f'cross_entropy: labels {label.shape} do not fit logits {logits.shape}. A '
                                 'label is one class index for each row of logits.')
    scores = log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(scores, label[..., None], axis=-1)[..., 0]


def bernoulli_kl(teacher_logits, student_logits, temperature=1.0):
    """T^2 [p log(p/q) + (1-p) log((1-p)/(1-q))], p = sigmoid(z_teacher/T), q = sigmoid(z_student/T).

    One independent yes/no for each label. [B,C], [B,C] -> [B,C]. Gradient in z_student: T (q - p).
    """
    teacher, student = _float32('bernoulli_kl', teacher_logits, student_logits)
    teacher, student = jax.lax.stop_gradient(teacher) / temperature, student / temperature
    yes = sigmoid(teacher) * (log_sigmoid(teacher) - log_sigmoid(student))
    no = sigmoid(-teacher) * (log_sigmoid(-teacher) - log_sigmoid(-student))
    return temperature ** 2 * (yes + no)


def kl(teacher_logits, student_logits, temperature=1.0, stop=True):
    """T^2 sum_k p_k log(p_k/q_k), p = softmax(z_teacher/T), q = softmax(z_student/T) over the last axis.

    [B,...,K], [B,...,K] -> [B,...]. Gradient in z_student: T (q - p). stop=False lets the teacher learn from it, too.
    """
    teacher, student = _float32('kl', teacher_logits, student_logits)
    teacher = log_softmax((jax.lax.stop_gradient(teacher) if stop else teacher) / temperature)
    student = log_softmax(student / temperature)
    return temperature ** 2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def cosine_distance(a, b):
    """1 - <a,b> / (|a| |b|) over the last axis. [B,...,d], [B,...,d] -> [B,...] in [0,2].

    A zero vector is at distance 1 from everything, with zero gradient.
    """
    a, b = _float32('cosine_distance', a, b)
    return 1.0 - jnp.sum(_unit(a) * _unit(b), axis=-1)


def squared_error(a, b):
    """mean (a - b)^2 over all axes but the first. [B,...], [B,...] -> [B]."""
    a, b = _float32('squared_error', a, b)
    return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))


def _float32(name, a, b):
    if a.shape != b.shape:  # broadcasting would average over pairs that do not belong together
        raise errors.ConfigError(f'{name}: shapes {a.shape} and {b.shape} differ. Both sides need the same '
                                 'outputs, or a projection that makes them so.')
    return a.astype(jnp.float32), b.astype(jnp.float32)


def _unit(x):
    # two wheres: the gradient of the branch not taken, 0 * inf, would be nan
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    some = square > 1e-24
    return jnp.where(some, x / jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)
