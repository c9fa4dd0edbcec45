"""Classification of a multi-label student: AUROC, AUPRC, Brier score, calibration; one row of predictions per case."""
from scipy.special import expit

from jaxkd.metrics import classification

DEFAULTS = dict(level=0.95, bins=15)


def scores(predict, role, hp):
    """{metric: value} of one part, for validation during training."""
    cases = predict(role)
    names = predict.data.source.labels
    return classification.scores(cases.outputs['logits'], cases.label, cases.label_weight, names)


def report(predict, hp, bootstrap, seed):
    """-> (test metrics with intervals, {part: a row for each case}, {})."""
    rows = {}
    for role in ('val', 'test'):
        if predict.data.part(role):
            cases = predict(role, what=f'predicting the {role} part')
            rows[role] = _rows(cases, predict.data.source)
    if 'test' not in rows:
        return {}, rows, {}
    names = predict.data.source.labels
    table = classification.table(cases.outputs['logits'], cases.label, cases.label_weight, cases.patients, names, bootstrap,
                                 hp.level, hp.bins, seed)
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
