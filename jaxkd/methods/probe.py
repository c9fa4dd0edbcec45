"""Linear probes at named taps of a network (models/probed.py), trained together [our choice]; Alain and Bengio, 2017
[published].

    L = sum_l CE(g_l(F_l), y) + final CE(z, y)

With the network frozen (model.frozen=True, optim.freeze=('student/of/',)) and final = 0 this is stage 2 of specialist
teachers: only the probes change. final = 1 and weight = 0.3, nothing frozen, trains probes and network jointly.
"""
from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxkd import errors, losses, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Mean, Progress, labelled_mask

# final: weight of the loss of the last output, 0: none; weight: of the loss of each probe
DEFAULTS = dict(final=0.0, weight=1.0)


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict) -> dict:
    probes = {k: z for k, z in student.items() if k.startswith('probe_')}
    return {k: Mean.of(losses.cross_entropy(z, batch['label']), labelled_mask(batch))
            for k, z in {**probes, 'ce': student['logits']}.items()}


def weights(hp: ConfigDict, progress: Progress, probes: Sequence[str] = ()) -> dict:
    return {k: hp.weight for k in probes} | ({'ce': hp.final} if hp.final else {})


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError where the network has no probe."""
    probes = [k for k in steps.output_shapes(context)['student'] if k.startswith('probe_')]
    if not probes:
        raise errors.ConfigError('probe: the network has no probe. Give it model name "probed" with taps.')
    return steps.make_method(terms, lambda hp, progress: weights(hp, progress, probes), hp, context)
