"""Classes that exclude each other: accuracies, AUROC, calibration, subgroups; one row of predictions per case.

Where the data knows a prior P(class | signs) and the source the true signs (its tasks, e.g. texture and duct),
`implausible` is the share of test cases whose predicted class has a prior below `delta` given the true signs;
`implausible_truth` is the same of the true classes: what a perfect classifier would have. [our choice, both]

`data` tests elsewhere, on what data.external of the config calls by that name; with part='all' every case of it is tested.
Where a transform `shortcut` decided which images have one, and there are two classes, the rates of both groups are compared
(metrics/shortcut.py); 'shortcut/marked' in the rows says who has it.

In the rows each class is a label of its own against the rest: logit = log(p / (1 - p)) of its softmax probability p;
'prior/implausible' says whether the predicted class is.
"""
import numpy as np
from scipy.special import expit

from jaxkd import errors
from jaxkd.data import external
from jaxkd.metrics import bootstrap as resampling
from jaxkd.metrics import multiclass, shortcut

DEFAULTS = dict(
    level=0.95,
    bins=15,  # of the calibration error
    delta=0.10,  # a class with a smaller prior is implausible
    data='', part='test',  # or all
)


def check(network, batch, hp):
    """ConfigError, before training, where a case may have several labels or none."""
    label = batch['label']
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        raise errors.ConfigError('multiclass needs one class for each case, an integer. These labels are '
                                 f'{label.dtype} {list(label.shape[1:])} a case: put "classification" into the evals '
                                 'instead.')


def scores(predict, role, hp):
    """{metric: value} of one part, for validation during training; with `data`, of the same part there."""
    predict = predict.on(predict.data.other(hp.data)) if hp.data else predict
    cases = predict(role)
    return multiclass.scores(cases.outputs['logits'], cases.label, predict.data.source.labels)


def report(predict, hp, bootstrap, seed):
    """-> (test metrics with intervals, {part: a row a case}, {'confusion': {part: [K,K] true x predicted}})."""
    data, chosen = external.external_cases(predict.data, hp.data, hp.part, 'evals')
    if hp.data:
        data.fill()
        predict = predict.on(data)
    source, found, unlikely, rows, counts = data.source, {}, {}, {}, {}
    names, plan = source.labels, data.plans.get('shortcut') if len(data.source.labels) == 2 else None
    for role in ('test',) if hp.data else filter(data.part, ('val', 'test')):
        where = f' of {hp.data}' if hp.data else ''
        found[role] = cases = predict(role, what=f'predicting the {role} part{where}', keep=chosen if hp.data else None)
        predicted = np.argmax(cases.outputs['logits'], 1)
        unlikely[role] = _implausible(data, cases.index, predicted, hp.delta)
        rows[role] = _rows(cases, source, unlikely[role], plan)
        counts[role] = multiclass.confusion(predicted, cases.label, len(names))[0].astype(np.int64)
    if 'test' not in found:
        return {}, rows, {}
    test = found['test']
    logits, label, patients = test.outputs['logits'], test.label, test.patients
    table = multiclass.table(logits, label, patients, names, bootstrap, hp.level, hp.bins, seed)
    if plan is not None and shortcut.known(plan.marked[test.index]):
        compared = shortcut.statistics(logits.argmax(1), label, plan.marked[test.index])
        table |= resampling.intervals(compared, patients, bootstrap, hp.level, seed)
    groups = {} if hp.data else {g: [row[g] for row in rows['test']] for g in _columns(source)}
    table |= multiclass.subgroups(logits, label, patients, names, groups, bootstrap, hp.level, seed)
    truth = _implausible(data, test.index, label, hp.delta)
    for name, share in (('implausible', unlikely['test']), ('implausible_truth', truth)):
        if share is not None:
            entry = resampling.interval(resampling.mean(share), patients, bootstrap, hp.level, seed)
            table[name] = entry | {'n_cases': int(np.sum(~np.isnan(share)))}
    return table, rows, {} if hp.data else {'confusion': counts | {'labels': np.array(names)}}


def _implausible(data, index, chosen, delta):
    """[n] 1, 0 or nan; None without a prior (see the transform of that name) or a true sign to ask it about."""
    asset, targets = data.assets.get('prior'), data.source.targets
    tasks = data.hp['prior']['tasks'] if asset else ()
    if not tasks or any(t not in targets for t in tasks):
        return None
    prior, = asset.values()
    found = multiclass.implausible(prior, [np.asarray(targets[t])[index] for t in tasks], chosen, delta)
    return None if np.isnan(found).all() else found


def _columns(source):
    """Groups that any case has: a table needs the same columns in every row."""
    return list(dict.fromkeys(g for case in source.cases for g in case.groups))


def _rows(cases, source, unlikely, plan):
    out, odds, columns = [], multiclass.log_odds(cases.outputs['logits']), _columns(source)
    for i, index in enumerate(cases.index):
        case = source.cases[index]
        row = dict(case=case.id, patient=case.patient, study=case.study, **{g: case.groups.get(g, '') for g in columns})
        for c, name in enumerate(source.labels):
            row |= {f'label/{name}': int(cases.label[i] == c), f'weight/{name}': 1,
                    f'logit/{name}': float(odds[i, c]), f'probability/{name}': float(expit(odds[i, c]))}
        if plan is not None:
            row['shortcut/marked'] = int(plan.marked[index])
        if unlikely is not None:
            row['prior/implausible'] = float(unlikely[i])  # 1, 0 or nan
        out.append(row)
    return out
