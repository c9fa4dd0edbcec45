"""Logit distillation of labels that may be present together: one Bernoulli for each (binary relaxation of Hinton et
al., 2015 [our choice]).

    T^2 mean_c [ p log(p / q) + (1 - p) log((1 - p) / (1 - q)) ],  p = sigmoid(z_T / T), q = sigmoid(z_S / T)
"""
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(weight=1.0, temperature=2.0)  # temperature: divisor T of the logits, 0.1 to 100


def softened(student: Shaped[Array, 'b ...'], teacher: Shaped[Array, '...'],
             temperature: float = 2.0) -> Float[Array, ' b']:
    """[B,...,C], [B,...,C] -> [B]. The gradient in z_S is T (q - p) / (places C), none in z_T."""
    return losses.per_case(losses.bernoulli_kl(teacher, student, temperature))


def build(hp: ConfigDict, sides: Sides) -> Loss:
    errors.check_range(f'{sides.key}.temperature', hp.temperature, '[0.1, 100]')
    return Loss(lambda student, teacher, cases: softened(student, teacher, hp.temperature))
