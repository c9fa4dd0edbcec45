"""What is measured of test predictions, whichever labels they have: several at once, or one class of several.

The measure that decides comes first: accuracy where a case has one class, else AUROC.
"""
import numpy as np
from scipy.special import log_expit

from jaxkd.metrics import bootstrap, classification, multiclass

NAMES = {'accuracy': 'accuracy', 'balanced_accuracy': 'balanced accuracy', 'mean_ovr_accuracy': 'mean one-vs-rest accuracy',
         'auroc': 'AUROC', 'auprc': 'AUPRC', 'loss': 'log loss', 'brier': 'Brier score', 'ece': 'ECE',
         'implausible': 'implausible share'}
SMALLER = ('loss', 'brier', 'ece', 'implausible')  # is better
COMPARED = tuple(m for m in NAMES if m != 'mean_ovr_accuracy')  # which is 1 - 2 (1 - accuracy) / classes: no further evidence
FEWEST = 10  # patients of a group that is looked at by itself


def decisive(table):
    """'accuracy' or 'auroc', whichever a table of measures is to be judged by."""
    return 'accuracy' if 'accuracy' in table else 'auroc'


def smaller(shown, how):
    """'Brier score and ECE: lower is better.', of those of the measures `shown` for which it is so."""
    *most, last = [NAMES[m] for m in shown if m in SMALLER] or ['']
    told = f'{", ".join(most)} and {last}' if most else last
    return f'{told[0].upper()}{told[1:]}: {how}.' if told else ''


def log_probability(p):
    """log-probabilities [n,C] of exclusive classes, from the one-vs-rest log-odds that predictions hold."""
    return log_expit(p.logit)


def predicted(p):
    """Class index [n]."""
    return p.logit.argmax(1)


def table(p, **how):
    """All measures of `read.Predictions` with intervals; how: n, level, seed."""
    if p.classes:
        return multiclass.table(log_probability(p), p.label.argmax(1), p.patients, p.labels, **how)
    return classification.table(p.logit, p.label, p.weight, p.patients, p.labels, **how)


def paired(a, b, **how):
    """The same of the differences a minus b; both hold the same cases in the same order."""
    if a.classes:
        logps = log_probability(a), log_probability(b)
        found = multiclass.paired_table(*logps, a.label.argmax(1), a.patients, a.labels, **how)
        if a.implausible is not None and b.implausible is not None:
            shares = [lambda w, share=bootstrap.mean(p.implausible): {'implausible': share(w)} for p in (a, b)]
            found |= bootstrap.paired(*shares, a.patients, **how)
        return found
    return classification.paired_table(a.logit, b.logit, a.label, a.weight, a.patients, a.labels, **how)


def point(p, weights):
    """The measure that decides, in resamples: weights [R,n] -> [R]."""
    if p.classes:
        return bootstrap.ratio(weights @ (predicted(p) == p.label.argmax(1)).astype(float), weights.sum(1))
    values = []
    for z, y, w in zip(p.logit.T, p.label.T, p.weight.T):
        rows = w > 0
        values.append(classification.auroc(z[rows], y[rows], weights[:, rows]))
    return bootstrap.ratio(np.nansum(values, axis=0), np.sum(~np.isnan(values), axis=0))


def groups(p):
    """{(column, value): row numbers} of the groups with enough patients. The class of a case is its label, no group."""
    found = {}
    for column, values in p.groups.items():
        for value in np.unique(values):
            rows = np.flatnonzero(values == value)
            if value and len(np.unique(p.patients[rows])) >= FEWEST and not (p.classes and column == 'class'):
                found[column, str(value)] = rows
    return found
