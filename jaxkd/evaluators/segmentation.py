"""Segmentation of whole scans: overlap, surfaces, volumes, lesions; where the network classifies, a decision for each patient.

A scan is a volume, predicted by sliding windows of the size that training saw, or all slices of a study, predicted slice by
slice and stacked. Predictions go back to the grid of the file (labels by the nearest voxel) and are measured there, in
millimetres where the file knows them. During training the selection score is measured on the network's own grid: quicker.

`data` tests elsewhere, on what data.external of the config calls by that name (train here, test there). With part='all' every
case of it is tested; patients that this run trains on or selects by are refused.

Where the network gives class_logits (its patient rule [our choice, as the specification of CPMN proposes]): the score of a
patient is the mean of the `topk` largest window probabilities; positive is who reaches t_cls, or whose predicted volume
reaches v_min; both thresholds maximise Youden's index on the validation part, and the test part is then called once.
"""
import jax
import numpy as np
from scipy.special import logit

from jaxkd import errors, parallel
from jaxkd.data import external
from jaxkd.inference import overlays, scans
from jaxkd.metrics import classification, decision, segmentation
from jaxkd.runtime import log

DEFAULTS = dict(
    level=0.95,
    policy='strict',  # or present, legacy: what counts where a class is absent, see metrics/segmentation.py
    tolerance=2.0,  # of the surface Dice: mm, or voxels where mm are not known
    overlap=0.5, weights='gaussian', mirror=(),  # of the windows, see jaxkd/inference/sliding_window.py
    lesions=False,  # recall and false alarms of connected lesions
    lesion_fraction=0.0,  # of a lesion that must be covered for it to be found; 0: one voxel
    combine='top', topk=3,  # windows to a score of the patient, see metrics/decision.py
    task='pe',  # the source's label of a patient that class_logits predict
    data='', part='test',  # or all
    examples=(3, 3, 2, 3),  # scans shown in the report: the first (the same for all stages), worst, middle, best
)


def check(network, batch, hp):
    """ConfigError, before training, for labels or a network that are not dense."""
    label = batch['label']
    found = jax.eval_shape(lambda key, b: network.apply(network.init(key, b), b)[0], jax.random.key(0), batch)
    if label.ndim not in (3, 4) or 'logits' not in found or found['logits'].shape[1:-1] != label.shape[1:]:
        raise errors.ConfigError(f'segment needs a label and logits for each place; labels are {list(label.shape)}, logits '
                                 f'{list(found["logits"].shape)}. Take "segment" out of the evals of this stage.')
    if hp.policy not in segmentation.POLICIES:
        raise errors.ConfigError(f'segment.policy = "{hp.policy}".{errors.nearest(hp.policy, segmentation.POLICIES)}')


def scores(predict, role, hp):
    """{'dice', 'dice/<class>', and where the network classifies 'auroc'} of one part on the network's grid."""
    data = predict.data

    def one(scan, record, label, q):
        row = segmentation.dices(label, record['label'], data.source.labels, hp.policy)
        return row | ({'score': decision.combine(q, hp.combine, hp.topk), 'truth': _truth_of(data, scan, record['label'], hp)} if q.size else {})
    rows = _each(predict, data, scans.group_scans(data, data.part(role)), hp, one)
    weights = np.ones((1, len(rows['index'])))
    found = segmentation.statistics({k: v for k, v in rows.items() if k.startswith('dice/')})(weights)
    if 'score' in rows:
        known = ~np.isnan(rows['truth'])
        found['auroc'] = classification.auroc(rows['score'][known], rows['truth'][known], weights[:, known])
    return {k: float(v[0]) for k, v in found.items()}


def report(predict, hp, bootstrap, seed):
    """-> (test metrics with intervals, {'val', 'test': a row a scan}, {'segments': pictures})."""
    data, indices = external.external_cases(predict.data, hp.data, hp.part, 'evals')
    parts = {'val': (predict.data, predict.data.part('val')), 'test': (data, indices)}
    rows, listed, pictures = {}, {}, []
    for role, (source, chosen) in parts.items():
        if role == 'val' and hp.data and 'class_logits' not in predict.shapes():
            continue  # elsewhere, the validation part is wanted for the thresholds of decisions alone
        listed[role] = scans.group_scans(source, chosen)
        if listed[role]:
            def one(*found, source=source, look=pictures if role == 'test' else None):
                return _measure(predict, source, *found, hp, look)
            what = f'  predicting {len(listed[role])} scans of {source.source.name} ({role})'
            rows[role] = _each(predict, source, listed[role], hp, one, what)
    if 'test' not in rows:
        return {}, {}, {}
    point = _operate(rows, hp)
    patients = [listed['test'][i].patient for i in rows['test']['index']]
    table = segmentation.table(_columns(rows['test']), patients, bootstrap, hp.level, seed)
    if point:
        table |= _decided(rows['test'], patients, point, bootstrap, hp, seed)
    tables = {role: _rows(of, listed[role], hp) for role, of in rows.items() if role == 'test' or not hp.data}
    shown = overlays.chosen(predict, data, pictures, hp.examples)
    return table, tables, {'segments': shown} if shown else {}


def _each(predict, data, listed, hp, measure, what=''):
    """measure(scan, record, label, q) of every scan, on one of the hosts each -> {column: [n]}, with 'index' into the list."""
    host, hosts = parallel.process()
    mine, found = list(range(len(listed)))[host::hosts], []
    for i in log.progress(mine, what, len(mine)) if what else mine:
        if (out := scans.predict_scan(predict, data, listed[i], hp)) is not None:
            found.append({**measure(listed[i], *out), 'index': i})
    found = parallel.allgather_rows(found)
    if not found:
        raise errors.BadData(f'None of {len(listed)} scans of {data.source.name} has what the network reads.')
    found.sort(key=lambda row: row['index'])
    columns = dict.fromkeys(k for row in found for k in row)  # a scan without a label has fewer
    return {k: np.array([row.get(k, np.nan) for row in found], int if k == 'index' else float) for k in columns}


def _measure(predict, data, scan, record, label, q, hp, look):
    """One scan on the grid of its file: {'dice/RV': ..., and of one that is classified 'score', 'volume' in ml, 'truth'}."""
    truth, labels = scans.scan_truth(data, scan, record), data.source.labels
    row, back = {}, truth.back(label)
    if truth.label is not None:
        row = segmentation.measure(back, truth.label, labels, truth.spacing, hp.policy, hp.tolerance)
        for c, name in enumerate(labels[1:], 1) if hp.lesions else ():
            row |= {f'{k}/{name}': v for k, v in segmentation.lesions(
                back, truth.label, c, truth.instances, hp.lesion_fraction).items()}
    if q.size:
        ml = np.prod(truth.spacing) / 1000 if truth.spacing is not None else np.nan
        row |= {'score': decision.combine(q, hp.combine, hp.topk), 'volume': float((back == 1).sum() * ml),
                'truth': _truth_of(data, scan, truth.label, hp)}
    if look is not None and truth.label is not None:
        look.append(overlays.picture(scan, record, predict.network.inputs[0], label, row))
    return row


def _truth_of(data, scan, label, hp):
    """1.0 or 0.0: whether the patient has it, as the source says or else the label; nan where nobody knows."""
    known = data.source.targets.get(hp.task)
    if known is not None:
        return float(known[scan.indices[0]]) if known[scan.indices[0]] >= 0 else np.nan
    return np.nan if label is None else float((label == 1).any())


def _columns(of):
    """The columns that tables average."""
    return {k: v for k, v in of.items() if k not in ('index', 'score', 'volume', 'truth')}


def _operate(rows, hp):
    """Thresholds from the validation part, and the calls of every part -> {'t_cls', 'v_min', 'youden'}; {} without classes."""
    if 'score' not in rows['test']:
        return {}
    if 'val' in rows:
        known = ~np.isnan(rows['val']['truth'])
        t, v, youden = decision.operating_point(*(rows['val'][k][known] for k in ('score', 'volume', 'truth')))
    else:
        t, v, youden = 0.5, np.inf, np.nan
        log.info('  no validation part to choose thresholds on: a patient is called positive at a score of 0.5')
    for of in rows.values():
        called = np.array([decision.positive(s, ml, t, v) for s, ml in zip(of['score'], of['volume'])], float)
        of['sensitivity'] = np.where(of['truth'] == 1, called, np.nan)
        of['specificity'] = np.where(of['truth'] == 0, 1 - called, np.nan)
    return {'t_cls': t, 'v_min': v, 'youden': youden}


def _decided(test, patients, point, bootstrap, hp, seed):
    """AUROC of the score, the two rates with exact (Clopper-Pearson) intervals, and the thresholds."""
    known, found = ~np.isnan(test['truth']), {}
    if known.any():
        area = classification.table(_odds(test['score'])[known, None], test['truth'][known, None], np.ones((known.sum(), 1)),
                                    np.array(patients)[known], (hp.task.upper(),), bootstrap, hp.level, 15, seed)
        found = {k: v for k, v in area.items() if k.partition('/')[0] in ('auroc', 'auprc')}
    for rate in ('sensitivity', 'specificity'):
        right = test[rate][~np.isnan(test[rate])]
        low, high = decision.clopper_pearson(int(right.sum()), len(right), hp.level)
        found[rate] = dict(value=float(right.mean()) if len(right) else np.nan, low=low, high=high, replicates=0, n_cases=len(right),
                           n_patients=len(right))
    return found | {k: {'value': float(v)} for k, v in point.items()}


def _odds(score):
    return logit(np.clip(score, 1e-6, 1 - 1e-6))


def _rows(of, listed, hp):
    """CSV rows: the scan, its patient and groups, what was measured, and the score as `classification` writes one."""
    out, columns, name = [], _columns(of), hp.task.upper()
    groups = list(dict.fromkeys(g for scan in listed for g in scan.groups))
    for n, i in enumerate(of['index']):
        scan = listed[i]
        row = dict(case=scan.name, patient=scan.patient, **{g: scan.groups.get(g, '') for g in groups})
        row |= {f'measure/{k}': float(v[n]) for k, v in columns.items()}
        if 'score' in of:
            truth, score = of['truth'][n], float(of['score'][n])
            row |= {f'label/{name}': int(truth == 1), f'weight/{name}': int(not np.isnan(truth)),
                    f'logit/{name}': float(_odds(score)), f'probability/{name}': score, 'volume_ml': float(of['volume'][n])}
        out.append(row)
    return out
