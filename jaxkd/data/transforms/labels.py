"""Raw labels to targets and weights: 1 -> (1, 1), 0 -> (0, 1); uncertain and unmentioned ones by policy.

The defaults are U-ignore and "not mentioned is absent", as is usual for labels read from reports (Irvin et
al.: CheXpert, AAAI 2019).

`share`, `patients` and `stratify` say whose labels training and selection may use. They hold for labels of every kind,
findings, classes and labels of each place, whether this transform is listed or not: jaxkd/data/label_share.py.
"""
import functools

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data.source import HIDDEN

DEFAULTS = dict(
    uncertain='ignore',  # raw -1: ignore (weight 0), or ones or zeros as label
    blank='zeros',  # raw nan, not mentioned: zeros as label, or ignore
    share=1.0,  # share of the training and of the validation patients with labels, the first of one order; above 0 to 1
    patients=0,  # instead of share: number of training patients with labels, and the same share of validation; 0: by
    # share
    stratify=True,  # the order holds each class, or rarest finding of a patient, evenly; False: blind to labels
    only=False,  # training draws from labelled cases alone
)


def build(hp: ConfigDict) -> Transform:
    for key, choices in (('uncertain', ('ignore', 'ones', 'zeros')), ('blank', ('zeros', 'ignore'))):
        if hp[key] not in choices:
            raise errors.ConfigError(f'labels.{key} = "{hp[key]}" is none of {", ".join(choices)}.')
    return Transform(functools.partial(apply, uncertain=hp.uncertain, blank=hp.blank), reads=('label',),
                     writes=('label', 'label_weight'))


def apply(record: Record, uncertain: str, blank: str) -> Record:
    """label float32 [C] of 1, 0, -1, nan -> label in {0,1} and label_weight in {0,1}, both float32 [C].

    What data.labels hides has weight 0.
    """
    raw = np.asarray(record['label'], np.float32)
    doubtful, unknown, hidden = raw == -1, np.isnan(raw), raw == HIDDEN
    if not (doubtful | unknown | hidden | (raw == 0) | (raw == 1)).all():
        raise errors.BadData(f'Labels must be 1, 0, -1 or nan, these are {raw.tolist()}.')
    ignored = hidden | (doubtful & (uncertain == 'ignore')) | (unknown & (blank == 'ignore'))
    present = (raw == 1) | (doubtful & (uncertain == 'ones'))
    return {**record, 'label': present.astype(np.float32), 'label_weight': (~ignored).astype(np.float32)}


PLUGIN = TransformPlugin(split_options=('share', 'patients', 'stratify', 'only'))
