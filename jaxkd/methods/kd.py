"""Logit distillation (Hinton, Vinyals, Dean 2015 [published]) for softmax classes: the plain baseline.

    L = (1 - alpha) CE(z_S, y) + alpha T^2 KL( softmax(z_T / T) || softmax(z_S / T) )      labels y [B], integers

The teacher is frozen. A case without any input of the teacher has the first term alone, one without a label the second.
alpha = 0.9 and T = 4 are the usual defaults; alpha = 0 is the arm without a teacher, with the same code.
"""
import functools
from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxkd import errors, losses, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Mean, Progress, labelled_mask, valid_mask

DEFAULTS = dict(alpha=0.9, temperature=4.0)
PROVENANCE = ('Published: loss and defaults (Hinton et al., 2015). Our choice: cases without privileged input have no '
              'soft term.')


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict, reads: Sequence[str] = ()) -> dict:
    teacher, = teachers.values()
    return {'ce': Mean.of(losses.cross_entropy(student['logits'], batch['label']), labelled_mask(batch)),
            'kd': Mean.of(losses.kl(teacher['logits'], student['logits'], hp.temperature), valid_mask(batch, reads))}


def weights(hp: ConfigDict, progress: Progress) -> dict:
    return {'ce': 1 - hp.alpha, 'kd': hp.alpha}


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError unless there is one teacher, and for values out of bounds."""
    _, reads = steps.only_teacher(hp, context)
    if not (0 <= hp.alpha <= 1 and 0.1 <= hp.temperature <= 100):
        raise errors.ConfigError(f'kd: alpha = {hp.alpha} must lie in 0..1, temperature = {hp.temperature} in '
                                 '0.1..100.')
    return steps.make_method(functools.partial(terms, reads=reads), weights, hp, context, provenance=PROVENANCE)
