"""The columns of predictions.csv for one case, of one network or of the mean of several.

    logit/<label>        of one network, to all digits of float32
    probability/<label>  sigmoid or softmax; of several networks the mean
    calibrated/<label>   by the calibration of the run
    youden/<label>, sensitivity_95/<label>, specificity_95/<label>
                         1 or 0: the decision at these operating points; of several networks whether their mean distance
                         from their thresholds is not negative [our choice]
    class                of labels that exclude each other, the most probable one
    sd/<label>           of several networks: the standard deviation of their probabilities, n - 1
    volume_ml/<class>, pixels/<class>, and sd_... of several networks (these counted on the network's own grid)
    patient/<label>      1 or 0: the rule of metrics/decision.py for the windows and the volume of a scan

What the run did not fit (no validation part, a label with one class) has no column.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.inference.deployed import Deployed
from jaxkd.metrics import decision, operating_points
from jaxkd.metrics.logistic import expit, logit, softmax

Row = dict[str, str]


def of_logits(members: Sequence[Deployed], logits: Sequence[np.ndarray]) -> Row:
    """The row of a case. logits: float32 [C] of each member."""
    labels, values = members[0].labels, np.stack([np.asarray(z, float) for z in logits])
    row: Row = {}
    if len(members) == 1:
        row |= {f'logit/{name}': f'{z:.9g}' for name, z in zip(labels, values[0])}
    if not members[0].exclusive:
        fitted = [(m.decision or {}).get('labels') for m in members]
        return row | _labels(labels, values, expit(values), fitted)
    probability = softmax(values)
    row |= _numbers('probability', labels, probability.mean(0))
    temperatures = [t for m in members if (t := (m.decision or {}).get('temperature')) is not None]
    if len(temperatures) == len(members):
        calibrated = [operating_points.calibrated_classes(z[None], t)[0] for z, t in zip(values, temperatures)]
        row |= _numbers('calibrated', labels, np.mean(calibrated, 0))
    best = values[0] if len(members) == 1 else probability.mean(0)
    return row | {'class': labels[int(best.argmax())]} | _spread('sd', labels, probability)


def of_scan(members: Sequence[Deployed], counts: np.ndarray, unit: tuple[float, str],
            member_volumes: np.ndarray | None, windows: Sequence[np.ndarray]) -> Row:
    """The row of a segmented scan.

    counts: int [classes], on the grid of the file; unit: (of a voxel, name of the column); member_volumes: float
    [members, classes] in that unit, of several; windows: the probability of each window by each member, if they give
    one.
    """
    labels, (size, name) = members[0].labels, unit
    volumes = counts * size
    row = _numbers(name, labels[1:], volumes[1:])
    if member_volumes is not None:
        row |= _spread(f'sd_{name}', labels[1:], member_volumes[:, 1:])
    if not windows:
        return row
    fitted = [m.decision or {} for m in members]
    rules = [f.get('scan') or dict(combine='top', topk=3) for f in fitted]
    scores = np.array([decision.combine(q, rule['combine'], rule['topk']) for q, rule in zip(windows, rules)])
    label = next(iter(fitted[0].get('labels') or {'scan': 0}))
    odds = logit(np.clip(scores, 1e-6, 1 - 1e-6))[:, None]
    row |= _labels((label,), odds, scores[:, None], [f.get('labels') for f in fitted])
    if all('t_cls' in rule for rule in rules):
        t, v = (np.mean([np.inf if rule[key] is None else rule[key] for rule in rules]) for key in ('t_cls', 'v_min'))
        volume = volumes[1] if name == 'volume_ml' else np.nan
        row[f'patient/{label}'] = str(int(decision.positive(scores.mean(), volume, float(t), float(v))))
    return row


def _labels(labels: Sequence[str], logits: np.ndarray, probability: np.ndarray,
            fitted: Sequence[Mapping[str, Any] | None]) -> Row:
    """Of labels that do not exclude each other; logits, probability [members, C], fitted: `labels` of the decisions."""
    row = _numbers('probability', labels, probability.mean(0))
    known = [f for f in fitted if f]
    if len(known) == len(fitted):
        calibrated = [operating_points.calibrated_labels(z[None], f)[0] for z, f in zip(logits, known)]
        row |= _numbers('calibrated', labels, np.mean(calibrated, 0))
        for c, name in enumerate(labels):
            for point in operating_points.POINTS:
                thresholds = [f[name]['points'].get(point, {}).get('threshold') for f in known]
                if None not in thresholds:
                    row[f'{point}/{name}'] = str(int((logits[:, c] - np.array(thresholds, float)).mean() >= 0))
    return row | _spread('sd', labels, probability)


def _numbers(prefix: str, names: Sequence[str], values: Sequence[float] | np.ndarray) -> Row:
    return {f'{prefix}/{name}': f'{float(value):.7g}' for name, value in zip(names, values)}


def _spread(prefix: str, names: Sequence[str], values: np.ndarray) -> Row:
    """The standard deviation over members, [members, C]; nothing of one."""
    return _numbers(prefix, names, values.std(0, ddof=1)) if len(values) > 1 else {}
