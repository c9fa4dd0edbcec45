"""Logit distillation (Hinton, Vinyals, Dean 2015 [published]): the softened classes of the teacher.

    T^2 sum_k p_k log(p_k / q_k),  p = softmax(z_T / T), q = softmax(z_S / T)      z [B,...,K]; mean over places

t2=False leaves the factor T^2 out, as PMKL and ProtoKD do, and every=True is the mean over classes instead of the sum,
as ProtoKD has it [published]. T = 4 and 0.1 CE + 0.9 KD are the usual defaults, tuned on CIFAR-100.
"""
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

# temperature: divisor T of the logits, 0.1 to 100; t2: multiply by T^2; every: divide by the number of classes
DEFAULTS = dict(weight=0.9, temperature=4.0, t2=True, every=False)


def softened(student: Shaped[Array, 'b *places k'], teacher: Shaped[Array, '...'], temperature: float = 4.0,
             t2: bool = True, every: bool = False) -> Float[Array, ' b']:
    """[B,...,K], [B,...,K] -> [B]. The gradient in z_S is T (q - p) / places, none in z_T."""
    value = losses.per_case(losses.kl(teacher, student, temperature))
    return value / ((1 if t2 else temperature ** 2) * (student.shape[-1] if every else 1))


def build(hp: ConfigDict, sides: Sides) -> Loss:
    errors.check_range(f'{sides.key}.temperature', hp.temperature, '[0.1, 100]')
    return Loss(lambda student, teacher, cases: softened(student, teacher, hp.temperature, hp.t2, hp.every))
