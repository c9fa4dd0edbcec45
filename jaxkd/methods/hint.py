"""One tap of a frozen teacher as a hint for a classifier: its features, or its attention map.

    hint        L = CE + weight mean_ij (r(F_S) - sg F_T)^2            r a 1x1 convolution; FitNets, Romero et al., ICLR
                                                                       2015 [published]
    attention   L = CE + weight mean_i (Q_S - Q_T)^2,  Q = mean_c F^2 / its norm       Zagoruyko and Komodakis, ICLR
                                                                                       2017 [published]

F = tap [B,*places,C] of equal places; weight is 100 for hints and 1000 for attention [our choice, and the authors'].
The labels are classes, [B] integers.
"""
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from jaxkd import errors, losses, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Mean, Progress, labelled_mask, valid_mask

# kind: or attention; teacher_tap: '' is the same name
DEFAULTS = dict(kind='hint', tap='block2', teacher_tap='', weight=100.0)
KINDS = ('hint', 'attention')


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict, reads: Sequence[str] = ()) -> dict:
    teacher, = teachers.values()
    a, b = student[hp.tap], jax.lax.stop_gradient(teacher[hp.teacher_tap or hp.tap])
    gap = (losses.squared_error(heads['adapt'](a), b) if hp.kind == 'hint'
           else losses.squared_error(losses.attention(a), losses.attention(b)))
    return {'ce': Mean.of(losses.cross_entropy(student['logits'], batch['label']), labelled_mask(batch)),
            hp.kind: Mean.of(gap, valid_mask(batch, reads))}


def weights(hp: ConfigDict, progress: Progress) -> dict:
    return {'ce': 1.0, hp.kind: hp.weight}


def heads(hp: ConfigDict, shapes: dict) -> dict:
    teacher, = (out for name, out in shapes.items() if name != 'student')
    return {'adapt': nn.Dense(teacher[hp.teacher_tap or hp.tap].shape[-1])} if hp.kind == 'hint' else {}


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError unless there is one teacher whose tap has the student's places."""
    errors.check_choice('hint.kind', hp.kind, KINDS)
    teacher, reads = steps.only_teacher(hp, context)
    shapes, sizes = steps.output_shapes(context), []
    for network, tap in (('student', hp.tap), (teacher, hp.teacher_tap or hp.tap)):
        if tap not in shapes[network]:
            raise errors.ConfigError(f'hint: the network of {network} gives no "{tap}".'
                                     f'{errors.nearest(tap, shapes[network])} A cached teacher gives what its '
                                     '`outputs` name.')
        sizes.append(shapes[network][tap].shape)
    if sizes[0][:-1] != sizes[1][:-1]:
        raise errors.ConfigError(f'hint: "{hp.tap}" of the student is {list(sizes[0][1:])}, of the teacher '
                                 f'{list(sizes[1][1:])}. Choose taps of equal places.')
    return steps.make_method(functools.partial(terms, reads=reads), weights, hp, context, heads=heads)
