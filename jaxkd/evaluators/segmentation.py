"""Segmentation of scans: overlap, surfaces, volumes, lesions; of networks that classify, a decision on each patient.

A scan is a volume, predicted by sliding windows of the size in training, or all slices of a study, predicted slice by
slice and stacked. Predictions are brought to the grid of the file (labels by the nearest voxel) and measured on it, in
millimetres where the file holds a spacing. During training the selection score is measured on the grid of the network,
which is faster.

Where the source has labels of a second reader, second_reader/dice and so on say how well they agree with those that the
network is measured against: what people reach on these scans.

`data` names external test data, a key of data.external. With part='all' every case of it is tested; patients of the
training or validation part of this run are refused.

Of a network with class_logits (the patient rule is [our choice, as the specification of CPMN proposes]): the score of a
patient is the mean of the `topk` largest window probabilities; a patient is positive if the score reaches t_cls or the
predicted volume reaches v_min; both thresholds maximise Youden's index on the validation part, and are applied once to
the test part.
"""
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict
from scipy.special import logit

from jaxkd import contracts, errors, parallel
from jaxkd.data import external, labelled
from jaxkd.data.dataset import Dataset
from jaxkd.data.source import IGNORED
from jaxkd.evaluators.predictions import schema
from jaxkd.inference import overlays, scans, sliding_window
from jaxkd.inference.predictor import Predictor
from jaxkd.metrics import classification, decision, segmentation
from jaxkd.networks import Network
from jaxkd.runtime import log

DEFAULTS = dict(
    level=0.95,  # confidence level of the intervals, above 0 to below 1
    policy='strict',  # what counts where a class is absent: strict, present or legacy, see metrics/segmentation.py
    tolerance=2.0,  # of the surface Dice: mm, or voxels where mm are not known
    overlap=0.5,  # of neighbouring windows, as a share of a side, 0 to below 1
    weights='gaussian',  # of the places of a window: gaussian or uniform
    mirror=(),  # axes of a window along which mirrored inputs are averaged, counted from 0; (): none
    lesions=False,  # also recall and false alarms of connected lesions
    lesion_fraction=0.0,  # share of a lesion that must be covered for it to be found, 0 to 1; 0: one voxel
    combine='top',  # score of a patient from those of windows: top (mean of the largest), max, mean or noisy_or
    topk=3,  # combine='top': how many windows
    task='pe',  # label of a patient in the source that class_logits predict
    data='',  # name of external test data, a key of data.external; '': the test part of the run
    part='test',  # of external data: test (its test part) or all (every case)
    examples=(3, 3, 2, 3),  # numbers of scans shown in the report: the first (the same for all stages), worst, middle,
    # best
)
SECOND = 'second_reader/'
PATIENT = ('index', 'score', 'volume', 'truth')  # columns that are no measures of the masks

Columns = dict[str, np.ndarray]  # {column: [n]}, 'index' into a list of scans


def check(network: Network, batch: dict, hp: ConfigDict) -> None:
    """ConfigError, before training, for labels or a network that are not dense."""
    label, outputs = batch['label'], network.output_shapes(batch)
    if label.ndim not in (3, 4) or 'logits' not in outputs or outputs['logits'].shape[1:-1] != label.shape[1:]:
        shape = list(outputs['logits'].shape) if 'logits' in outputs else 'missing'
        raise errors.ConfigError('segmentation needs a label and logits for each place; labels are '
                                 f'{list(label.shape)}, logits {shape}. Take "segmentation" out of the evals of this '
                                 'stage.')
    for key, choices in (('policy', segmentation.POLICIES), ('weights', sliding_window.WEIGHTS),
                         ('combine', decision.RULES)):
        errors.check_choice(f'segmentation.{key}', hp[key], choices)
    if len(hp.examples) != 4 or not {*hp.mirror} <= {*range(label.ndim - 1)}:
        raise errors.ConfigError(f'segmentation.examples = {tuple(hp.examples)} must be four numbers, mirror = '
                                 f'{tuple(hp.mirror)} axes of a window, 0 to {label.ndim - 2}.')


def check_data(data: Dataset, hp: ConfigDict) -> None:
    """ConfigError, before training, where predictions would not come back to the grid of their file."""
    labelled.check_grid(data)


def scores(predict: Predictor, role: str, hp: ConfigDict) -> dict[str, float]:
    """{'dice', 'dice/<class>', and where the network classifies 'auroc'} of one part on the network's grid."""
    data = predict.data

    def measure(scan: scans.Scan, record: dict, label: np.ndarray, windows: np.ndarray) -> dict[str, float]:
        row = segmentation.dices(label, record['label'], data.source.labels, hp.policy)
        return row | _patient(data, scan, record['label'], windows, hp)
    columns = _each_scan(predict, data, scans.group_scans(data, data.partition.indices(role)), hp, measure)
    weights = np.ones((1, len(columns['index'])))
    values = segmentation.statistics({k: v for k, v in columns.items() if k.startswith('dice/')})(weights)
    if 'score' in columns:
        valid = ~np.isnan(columns['truth'])
        values['auroc'] = classification.auroc(columns['score'][valid], columns['truth'][valid], weights[:, valid])
    return {k: float(v[0]) for k, v in values.items()}


def metrics(labels: Sequence[str], hp: ConfigDict) -> list[str]:
    """The names that `scores` gives, 'auroc' where the network classifies."""
    return ['dice', *(f'dice/{name}' for name in labels[1:]), 'auroc']


def report(predict: Predictor, hp: ConfigDict, resamples: int, seed: int) -> tuple[dict, dict, dict]:
    """-> (test metrics with intervals, {'val', 'test': Predictions of scans}, {'segments': pictures})."""
    data, indices = external.external_cases(predict.data, hp.data, hp.part, 'evals')
    parts = {'val': (predict.data, predict.data.partition.indices('val')), 'test': (data, indices)}
    columns: dict[str, Columns] = {}
    scans_of: dict[str, list[scans.Scan]] = {}
    pictures: list[dict] = []
    for role, (source, cases) in parts.items():
        if role == 'val' and hp.data and 'class_logits' not in predict.shapes():
            continue  # on external data, the validation part serves the thresholds of decisions alone
        scans_of[role] = scans.group_scans(source, cases)
        if scans_of[role]:
            columns[role] = _measured(predict, source, scans_of[role], hp, role, pictures if role == 'test' else None)
    if 'test' not in columns:
        return {}, {}, {}
    point = _operate(columns, hp)
    test, patients = columns['test'], [scans_of['test'][i].patient for i in columns['test']['index']]
    table = segmentation.table(_measures(test), patients, resamples, hp.level, seed)
    if second := {k.removeprefix(SECOND): v for k, v in test.items() if k.startswith(SECOND)}:
        entries = segmentation.table(second, patients, resamples, hp.level, seed)
        table |= {f'{SECOND}{k}': entry for k, entry in entries.items()}
    if point:
        table |= _decided(test, patients, point, resamples, hp, seed)
    predictions = {role: _predictions(part, scans_of[role], hp) for role, part in columns.items()
                   if role == 'test' or not hp.data}
    arrays = overlays.examples(predict, data, pictures, hp.examples)
    return table, predictions, {'segments': arrays} if arrays else {}


def _each_scan(predict: Predictor, data: Dataset, listed: Sequence[scans.Scan], hp: ConfigDict,
               measure: Callable[..., dict[str, float]], message: str = '') -> Columns:
    """measure(scan, record, label, window probabilities) of every scan, divided among the hosts -> columns."""
    host, hosts = parallel.process()
    local, rows = list(range(len(listed)))[host::hosts], []
    for i in log.progress(local, message, len(local)) if message else local:
        if (predicted := scans.predict_scan(predict, data, listed[i], hp)) is not None:
            rows.append({**measure(listed[i], *predicted), 'index': i})
    rows = sorted(parallel.allgather_rows(rows), key=lambda row: row['index'])
    if not rows:
        raise errors.BadData(f'None of {len(listed)} scans of {data.source.name} has what the network reads.')
    names = dict.fromkeys(k for row in rows for k in row)  # a scan without a label has fewer
    return {k: np.array([row.get(k, np.nan) for row in rows], int if k == 'index' else float) for k in names}


def _measured(predict: Predictor, data: Dataset, listed: Sequence[scans.Scan], hp: ConfigDict, role: str,
              pictures: list[dict] | None) -> Columns:
    """The columns of the scans of a part on the grids of their files: 'dice/RV', ..., of classified scans also 'score',
    'volume' in ml, 'truth'. Pictures are appended to `pictures`.
    """
    labels = data.source.labels

    def measure(scan: scans.Scan, record: dict, label: np.ndarray, windows: np.ndarray) -> dict[str, float]:
        truth = scans.scan_truth(data, scan, record)
        row, predicted = {}, truth.to_file_grid(label)
        if truth.label is not None:
            row = segmentation.measure(predicted, truth.label, labels, truth.spacing, hp.policy, hp.tolerance)
            row |= _agreement(data, scan, truth, hp) if role == 'test' else {}
            for c, name in enumerate(labels[1:], 1) if hp.lesions else ():
                lesions = segmentation.lesions(predicted, truth.label, c, truth.instances, hp.lesion_fraction)
                row |= {f'{k}/{name}': v for k, v in lesions.items()}
        if windows.size:
            ml = np.prod(truth.spacing) / 1000 if truth.spacing is not None else np.nan
            row |= _patient(data, scan, truth.label, windows, hp) | {'volume': float((predicted == 1).sum() * ml)}
        if pictures is not None and truth.label is not None:
            pictures.append(overlays.picture(scan, record, predict.network.inputs[0], label, row))
        return row
    message = f'  predicting {len(listed)} scans of {data.source.name} ({role})'
    return _each_scan(predict, data, listed, hp, measure, message)


def _agreement(data: Dataset, scan: scans.Scan, truth: scans.Truth, hp: ConfigDict) -> dict[str, float]:
    """{'second_reader/dice/RV', ...}: the label of a second reader measured as a prediction is; {} without one."""
    second = scans.second_reader(data, scan)
    if second is None or truth.label is None:
        return {}
    ignored = second == IGNORED
    second, first = np.where(ignored, 0, second), np.where(ignored, IGNORED, truth.label)
    row = segmentation.measure(second, first, data.source.labels, truth.spacing, hp.policy, hp.tolerance)
    return {f'{SECOND}{k}': v for k, v in row.items()}


def _patient(data: Dataset, scan: scans.Scan, label: np.ndarray | None, windows: np.ndarray,
             hp: ConfigDict) -> dict[str, float]:
    """{'score', 'truth'} of the patient of a scan; {} where the network classifies no windows.

    truth: 1.0 or 0.0 from the targets of the source, else from the label; nan where unknown.
    """
    if not windows.size:
        return {}
    targets = data.source.targets.get(hp.task)
    if targets is not None:
        truth = float(targets[scan.indices[0]]) if targets[scan.indices[0]] >= 0 else np.nan
    else:
        truth = np.nan if label is None else float((label == 1).any())
    return {'score': decision.combine(windows, hp.combine, hp.topk), 'truth': truth}


def _measures(columns: Columns) -> Columns:
    """The columns that tables average."""
    return {k: v for k, v in columns.items() if k not in PATIENT and not k.startswith(SECOND)}


def _operate(columns: dict[str, Columns], hp: ConfigDict) -> dict[str, float]:
    """Thresholds from the validation part, decisions in every part -> {'t_cls', 'v_min', 'youden'}; {} without scores.

    Adds the columns 'sensitivity' (of positives) and 'specificity' (of negatives): 1 where the decision is correct.
    """
    if 'score' not in columns['test']:
        return {}
    if 'val' in columns:
        valid = ~np.isnan(columns['val']['truth'])
        scores, volumes, truth = (columns['val'][k][valid] for k in ('score', 'volume', 'truth'))
        t, v, youden = decision.operating_point(scores, volumes, truth)
    else:
        t, v, youden = 0.5, np.inf, np.nan
        log.info('  no validation part to choose thresholds on: a patient is called positive at a score of 0.5')
    for part in columns.values():
        positive = np.asarray(decision.positive(part['score'], part['volume'], t, v), float)
        part['sensitivity'] = np.where(part['truth'] == 1, positive, np.nan)
        part['specificity'] = np.where(part['truth'] == 0, 1 - positive, np.nan)
    return {'t_cls': t, 'v_min': v, 'youden': youden}


def _decided(test: Columns, patients: Sequence[str], point: dict[str, float], resamples: int, hp: ConfigDict,
             seed: int) -> dict[str, dict]:
    """AUROC of the score, the two rates with exact (Clopper-Pearson) intervals, and the thresholds."""
    valid, table = ~np.isnan(test['truth']), {}
    if valid.any():
        area = classification.table(_odds(test['score'])[valid, None], test['truth'][valid, None],
                                    np.ones((valid.sum(), 1)), np.array(patients)[valid], (hp.task.upper(),), resamples,
                                    hp.level, 15, seed)
        table = {k: v for k, v in area.items() if k.partition('/')[0] in ('auroc', 'auprc')}
    for rate in ('sensitivity', 'specificity'):
        correct = test[rate][~np.isnan(test[rate])]
        n, (low, high) = len(correct), decision.clopper_pearson(int(correct.sum()), len(correct), hp.level)
        table[rate] = dict(value=float(correct.mean()) if n else np.nan, low=low, high=high, replicates=0, n_cases=n,
                           n_patients=n)
    return table | {k: {'value': float(v)} for k, v in point.items()}


def _odds(score: np.ndarray) -> np.ndarray:
    return logit(np.clip(score, 1e-6, 1 - 1e-6))


def _predictions(columns: Columns, listed: Sequence[scans.Scan], hp: ConfigDict) -> schema.Predictions:
    """The scans, their patients and groups, what was measured, and the score as `classification` writes one."""
    subset, n = [listed[i] for i in columns['index']], len(columns['index'])
    groups = {g: np.array([scan.groups.get(g, '') for scan in subset], str) for g in schema.group_names(listed)}
    labels: tuple[str, ...] = ()
    label, weight, score, volume = *np.zeros((3, n, 0)), None
    if 'score' in columns:
        labels, volume, truth = (hp.task.upper(),), columns['volume'], columns['truth']
        label, weight, score = (np.asarray(a, float)[:, None] for a in (truth == 1, ~np.isnan(truth), columns['score']))
    return schema.Predictions(np.array([s.name for s in subset]), np.array([s.patient for s in subset]), groups, labels,
                              label, weight, _odds(score), score, _measures(columns), volume_ml=volume)


PLUGIN = contracts.EvaluatorPlugin(report, scores, check, metrics=metrics, check_data=check_data, ranges={
    'level': '(0, 1)', 'tolerance': '[0, inf)', 'overlap': '[0, 1)', 'lesion_fraction': '[0, 1]', 'topk': '[1, inf)',
    'examples': '[0, inf)'},
    report_options=('level', 'tolerance', 'lesions', 'lesion_fraction', 'data', 'part', 'examples'))
