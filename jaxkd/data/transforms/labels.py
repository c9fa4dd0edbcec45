"""Raw labels to targets and weights: 1 -> (1, 1), 0 -> (0, 1); uncertain and unmentioned ones by policy.

The defaults are U-ignore and "not mentioned is absent", as is usual for labels read from reports (Irvin et
al.: CheXpert, AAAI 2019).
"""
import functools

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform

DEFAULTS = dict(
    uncertain='ignore',  # raw -1: 'ignore' gives weight 0, 'ones' and 'zeros' a label
    blank='zeros',  # raw nan: 'zeros', 'ignore'
)


def build(hp: ConfigDict) -> Transform:
    for key, choices in (('uncertain', ('ignore', 'ones', 'zeros')), ('blank', ('zeros', 'ignore'))):
        if hp[key] not in choices:
            raise errors.ConfigError(f'labels.{key} = "{hp[key]}" is none of {", ".join(choices)}.')
    return Transform(functools.partial(apply, uncertain=hp.uncertain, blank=hp.blank), reads=('label',),
                     writes=('label', 'label_weight'))


def apply(record: Record, uncertain: str, blank: str) -> Record:
    """label float32 [C] of 1, 0, -1, nan -> label in {0,1} and label_weight in {0,1}, both float32 [C]."""
    raw = np.asarray(record['label'], np.float32)
    doubtful, unknown = raw == -1, np.isnan(raw)
    if not (doubtful | unknown | (raw == 0) | (raw == 1)).all():
        raise errors.BadData(f'Labels must be 1, 0, -1 or nan, these are {raw.tolist()}.')
    ignored = (doubtful & (uncertain == 'ignore')) | (unknown & (blank == 'ignore'))
    present = (raw == 1) | (doubtful & (uncertain == 'ones'))
    return {**record, 'label': present.astype(np.float32), 'label_weight': (~ignored).astype(np.float32)}
