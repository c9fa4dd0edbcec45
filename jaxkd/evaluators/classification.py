"""Classification of a multi-label student: AUROC, AUPRC, Brier score, calibration; one row of predictions per case.

`data` tests elsewhere, on what data.external of the config calls by that name; with part='all' every case of it is tested.
"""
from scipy.special import expit

from jaxkd.data import external
from jaxkd.metrics import classification

DEFAULTS = dict(
    level=0.95,
    bins=15,  # of the calibration error
    data='', part='test',  # or all
)


def scores(predict, role, hp):
    """{metric: value} of one part, for validation during training; with `data`, of the same part there."""
    predict = predict.on(predict.data.other(hp.data)) if hp.data else predict
    cases = predict(role)
    names = predict.data.source.labels
    return classification.scores(cases.outputs['logits'], cases.label, cases.label_weight, names)


def report(predict, hp, bootstrap, seed):
    """-> (test metrics with intervals, {part: a row for each case}, {})."""
    data, chosen = external.external_cases(predict.data, hp.data, hp.part, 'evals')
    if hp.data:
        data.fill()
        predict = predict.on(data)
    rows, where = {}, f' of {hp.data}' if hp.data else ''
    for role in ('test',) if hp.data else filter(data.part, ('val', 'test')):
        cases = predict(role, what=f'predicting the {role} part{where}', keep=chosen if hp.data else None)
        rows[role] = _rows(cases, data.source)
    if 'test' not in rows:
        return {}, rows, {}
    table = classification.table(cases.outputs['logits'], cases.label, cases.label_weight, cases.patients, data.source.labels,
                                 bootstrap, hp.level, hp.bins, seed)
    return table, rows, {}


def _rows(cases, source):
    out = []
    for i, index in enumerate(cases.index):
        case = source.cases[index]
        row = dict(case=case.id, patient=case.patient, study=case.study, **case.groups)
        for c, name in enumerate(source.labels):
            logit = float(cases.outputs['logits'][i, c])
            row |= {f'label/{name}': int(cases.label[i, c]), f'weight/{name}': int(cases.label_weight[i, c]),
                    f'logit/{name}': logit, f'probability/{name}': float(expit(logit))}
        out.append(row)
    return out
