"""Supervised learning of (multi-label) classes: masked binary cross-entropy, or softmax cross-entropy.

    L = sum_bc w_bc BCE(z_bc, y_bc) / sum_bc w_bc        labels [B,C] with weights w in {0, 1}
    L = mean_b -log softmax(z_b)[y_b]                    labels [B], integers

This is stage 1 of privileged distillation (a teacher on its privileged input) as well as any plain baseline. A case that has
nothing of what the network reads does not count: there is nothing to learn from it.
"""
import functools

from jaxkd import errors, losses, steps
from jaxkd.state import Mean, has

DEFAULTS = dict(kind='multilabel')  # or 'classes'
KINDS = ('multilabel', 'classes')


def terms(student, teachers, heads, batch, hp, reads=()):
    here = has(batch, reads)
    if hp.kind == 'classes':
        return {'sup': Mean.of(losses.cross_entropy(student['logits'], batch['label']), here)}
    weight = batch['label_weight'] * here[:, None]
    return {'sup': Mean.of(losses.binary_cross_entropy(student['logits'], batch['label']), weight)}


def weights(hp, progress):
    return {'sup': 1.0}


def build(hp, context):
    if hp.kind not in KINDS:
        raise errors.ConfigError(f'supervised: kind = "{hp.kind}".{errors.nearest(hp.kind, KINDS)}')
    return steps.usual(functools.partial(terms, reads=context.networks['student'].inputs), weights, hp, context)
