"""The labels, learned by each head of a network that has several (MIND, Guerra-Manzanares and Shamout, TMLR 2025
[published]); no teacher.

    mean over cases and the heads m that apply to them of  CE(z_m, y)      binary cross-entropy of labels that may be
                                                                           present together
The model gives heads [B,M,K] and which of them apply, present [B,M], as `mind` does: a head whose input the case lacks
learns nothing of it. All heads weigh the same [our choice].
"""
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(student='heads', teacher='student/present', weight=1.0)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError unless the taps are heads [B,M,K] and flags [B,M] of a network that learns labels of cases."""
    shapes = [tuple(x.shape[1:]) for x in (sides.student, sides.teacher)]
    if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
        raise errors.ConfigError(f'{sides.key}: heads reads logits of M heads and M flags of a network such as "mind"; '
                                 f'these taps are {shapes}.')
    losses.check_case_labels(sides.key, sides.label)

    def values(student, present, cases):
        return losses.label_mean(student, cases, present)
    return Loss(values)
