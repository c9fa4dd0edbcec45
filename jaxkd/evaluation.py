"""Evaluation of a stage: validation during training, the test part at the end, and its entry in summary.json.

The test needs no more than the student and its data, so it can be made again in a finished folder (jaxkd/evaluate.py).

Beside sizes, steps and scores, an entry of summary.json holds these facts of the loss, so that a report imports no
method:

    inputs          the inputs of the student
    other_networks  {name: {frozen: bool, inputs: [..], privileged: [inputs that the student does not get]}}: teachers
                    (frozen) and the networks that were trained along
    term_weights    {term: weight}, a number if it is constant over training, or {start, middle, end, largest}, the last
                    by absolute value over 21 points of training; null if the method does not give weights
    teacher_terms   [terms that depend on outputs of the student and of another network]; null if unknown, and then
    every
                    term counts as one
    uses_teacher    whether any of these has a weight other than 0 at any time, in a stage with another network
    plain           whether the loss is that of the labels alone: the baseline of other methods (ERM)
    provenance      published, inferred and chosen parts of the method; may be ''

and how its outputs become decisions, fitted on the validation part with the best step (docs/reference/run_folder.md):

    decision        see `fit_decision`; null without a validation part

A number that is nan or infinite is null in the file.
"""
import functools
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import checkpoint, config, errors, parallel, teachers
from jaxkd.config import plugins
from jaxkd.contracts import Method
from jaxkd.data import external, label_share, labelled
from jaxkd.data.dataset import Dataset
from jaxkd.data.source import cohort, composition
from jaxkd.evaluators.predictions import schema
from jaxkd.inference.output_memory import OutputMemory
from jaxkd.inference.predictor import Predictor
from jaxkd.metrics import classification, operating_points
from jaxkd.runtime import files, log, preemption
from jaxkd.stages import Stage
from jaxkd.state import Context, Progress, TrainState, inference_variables
from jaxkd.steps import privileged_inputs

POINTS = 21  # of training, for the weights of terms


def validate(stage: Stage, state: TrainState) -> dict[str, float]:
    """{evaluator/metric: value} on the validation part, of the evaluator that selects the best step."""
    name = stage.config.select.partition('/')[0]
    if not name or not stage.data.partition.indices('val'):
        return {}
    _, hp = config.options('evaluators', stage.config.evals[name].to_dict(), name)
    variables = inference_variables(state)
    if stage.context.fsdp > 1:
        variables = parallel.replicate(variables)
    predict = stage.predictors['student'].with_variables(variables)
    scores = plugins.contract('evaluators', hp.name).scores(predict, 'val', hp)
    return {f'{name}/{k}': v for k, v in scores.items()}


def selection_score(stage: Stage, scores: dict[str, float]) -> float | None:
    """The number that selects, larger or smaller as `mode` says; None when the validation part cannot give it."""
    if not scores:
        return None
    select = stage.config.select
    if select not in scores:
        raise errors.ConfigError(f'{stage.name}.select = "{select}" is no score of this '
                                 f'evaluator.{errors.nearest(select, scores)}')
    if not np.isfinite(scores[select]):
        log.info(f'{stage.name}: {select} is not defined on this validation part (it needs both classes of a label), '
                 'so this step cannot be chosen as the best.')
        return None
    return scores[select]


def diagnose(stage: Stage) -> tuple[dict, str]:
    """The diagnosis of the method before training -> (for summary.json, a line for the log), both empty without one."""
    if stage.method.diagnose is None:
        return {}, ''
    return stage.method.diagnose(stage.data, functools.partial(_teacher_outputs, stage))


def _teacher_outputs(stage: Stage, name: str, names: Sequence[str], rows: Any) -> dict[str, np.ndarray]:
    return teachers.outputs_of(stage.name, stage.teachers, name, stage.data, stage.config.batch, names, rows)


def label_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    """{'train', 'val': {'cases', 'patients': whose labels may be used, 'of': patients of the part}}."""
    parts, cases = dataset.partition, dataset.source.cases
    counts = {}
    for role, used in (('train', parts.train_indices()), ('val', parts.indices('val'))):
        known = parts.labelled(used)
        counts[role] = dict(cases=len(known), patients=len({cases[i].patient for i in known}),
                            of=len({cases[i].patient for i in parts.cases_of(role)}))
    return counts


def teacher_agreement(stage: Stage) -> dict[str, dict[str, float]]:
    """{teacher: {'labelled', 'hidden': how well its outputs fit the labels of these training cases}}.

    Macro AUROC of findings, accuracy of classes; {} where nothing is hidden, and for labels of each place. Hidden
    labels are read for these numbers alone, which nothing is learned from.
    """
    data, source = stage.data, label_share.whole(stage.data.source)
    classes, values = source.targets.get('label'), source.values
    if data.label_mask is None or (classes is None and values is None):
        return {}
    rows = np.array(data.partition.train_indices())
    groups = {'labelled': ~data.label_mask.hidden[rows], 'hidden': data.label_mask.hidden[rows]}
    found: dict[str, dict[str, float]] = {}
    for name in stage.teachers:
        logits = _teacher_outputs(stage, name, ('logits',), rows)['logits']
        if logits.ndim == 2:
            found[name] = {group: _agreement(logits[chosen], rows[chosen], classes, values, source.labels)
                           for group, chosen in groups.items()}
    return found


def _agreement(logits: np.ndarray, rows: np.ndarray, classes: np.ndarray | None, values: np.ndarray | None,
               labels: Sequence[str]) -> float:
    if classes is not None:
        return float((logits.argmax(1) == np.asarray(classes)[rows]).mean())
    assert values is not None
    known = np.isin(values[rows], (0, 1))
    return classification.scores(logits, np.where(known, values[rows], 0), known.astype(float), labels)['auroc']


def loss_facts(stage: Stage) -> dict:
    """The facts of the loss in an entry of summary.json, see above."""
    context, method = stage.context, stage.method
    frozen = {n: False for n in context.networks if n != 'student'} | dict.fromkeys(context.teachers, True)
    networks = {**context.networks, **context.teachers}
    others = {n: dict(frozen=f, inputs=list(networks[n].inputs),
                      privileged=list(privileged_inputs(networks[n], context))) for n, f in frozen.items()}
    weights = _weights(method, context)
    terms = [] if not others else None if method.teacher_terms is None else list(method.teacher_terms())
    uses_teacher = bool(others) and (weights is None or any(
        any(values) for term, values in weights.items() if terms is None or term in terms))
    return dict(other_networks=others, teacher_terms=terms, uses_teacher=uses_teacher, plain=method.plain,
                provenance=method.provenance,
                term_weights=None if weights is None else {term: _summary(values) for term, values in weights.items()})


def _weights(method: Method, context: Context) -> dict[str, list[float]] | None:
    """{term: its weight at each of the points}."""
    if method.loss_weights is None:
        return None
    total = context.total
    points = [method.loss_weights(Progress(f * total, f * total / context.epoch, f)) for f in np.linspace(0, 1, POINTS)]
    return {term: [float(p.get(term, 0)) for p in points] for term in dict.fromkeys(t for p in points for t in p)}


def _summary(values: list[float]) -> float | dict[str, float]:
    if len(set(values)) == 1:
        return values[0]
    return dict(start=values[0], middle=values[len(values) // 2], end=values[-1], largest=max(values, key=abs))


def evaluate(stage: Stage, run_config: ConfigDict, workdir: pathlib.Path) -> dict:
    """Test a stage that was just trained, predictions as CSV -> its entry in the summary."""
    if agreement := teacher_agreement(stage):
        log.info(f'{stage.name}: teachers on training cases, ' + '; '.join(
            f'{t}: {found["labelled"]:.3f} where it could learn the label, {found["hidden"]:.3f} where that was hidden'
            for t, found in agreement.items()))
    entry = dict(select=stage.config.select, mode=stage.config.mode, steps=stage.total,
                 teachers={t: teacher.provenance for t, teacher in stage.teachers.items()},
                 teacher_agreement=agreement,
                 inputs=list(stage.config.inputs), model=stage.config.model.name, method=stage.config.method.to_dict())
    return entry | loss_facts(stage) | test(run_config, stage.name, stage.predictors['student'], workdir)


def test(run_config: ConfigDict, name: str, student: Predictor, workdir: pathlib.Path) -> dict:
    """Best and last step of a trained stage on the test part -> what its entry in the summary says of results and data.

    student: without variables. Its predictions are written when all are made.
    """
    data, folder, batch = student.data, workdir / 'checkpoints' / name, student.data.batch_spec(student.batch)
    spec, checkpoint_scores = student.network.variable_shapes(batch), checkpoint.scores(folder)
    parts = {role: [data.source.cases[i] for i in data.partition.indices(role)] for role in ('train', 'val', 'test')}
    entry: dict[str, Any] = dict(
        test={}, test_options=test_options(run_config, name), cases={r: len(c) for r, c in parts.items()},
        patients={r: len({x.patient for x in c}) for r, c in parts.items()},
        labels=label_counts(data), composition={r: composition(data.source, data.partition.indices(r)) for r in parts},
        source=dict(name=data.source.name, note=data.source.note, labels=list(data.source.labels),
                    cohort=cohort(data.source), skipped=[list(s) for s in data.source.skipped]))
    outputs: dict[tuple, Any] = {}
    for which in ('best', 'last'):
        variables, step = checkpoint.load_student(folder, spec, which)
        predict = student.with_variables(parallel.on_devices(variables))
        entry['parameters'] = predict.parameters()
        entry[which] = dict(step=step, score=checkpoint_scores.get(step))
        if which == 'last' and step == entry['best']['step']:
            entry['test']['last'] = entry['test']['best']
        else:
            entry['test'][which], written = _tables(run_config, predict, name, which, step)
            outputs |= written
    paths = {schema.file_path(workdir, name, *key): content for key, content in outputs.items()}
    for path, content in paths.items() if parallel.process()[0] == 0 else ():
        write = files.write_npz if isinstance(content, dict) else schema.write_csv
        write(path, content)
    return entry | dict(predictions=sorted(path.name for path in paths),
                        decision=fit_decision(data, outputs.get(('val', '', '.csv')), entry))


def fit_decision(data: Dataset, validation: schema.Predictions | None, entry: Mapping[str, Any]) -> dict | None:
    """{kind, cases, ...}: calibration and operating points of a stage from its predictions of the validation part.

    multilabel    labels, see metrics/operating_points.py
    multiclass    classes, temperature
    segmentation  classes; of a network that classifies windows also labels and scan {combine, topk, t_cls, v_min}, the
                  rule for the patient

    entry: of the summary, with the test, whose results hold the thresholds of scans. None without a validation part.
    """
    if validation is None:
        return None
    cases, names = len(validation.cases), list(validation.labels)
    if validation.exclusive:
        t = operating_points.temperature(operating_points.log_probabilities(validation.logit),
                                         validation.label.argmax(1))
        return dict(kind='multiclass', cases=cases, classes=names, temperature=t)
    labels = operating_points.fit_labels(validation.logit, validation.label, validation.weight, names)
    if not labelled.is_dense(data):
        return dict(kind='multilabel', cases=cases, labels=labels)
    fitted = dict(kind='segmentation', cases=cases, classes=list(data.source.labels))
    for e, hp in entry['test_options']['evals'].items():
        if f'{e}/t_cls' in entry['test']['best'] and not hp.get('data'):
            points = {k: float(entry['test']['best'][f'{e}/{k}']['value']) for k in ('t_cls', 'v_min')}
            return fitted | dict(labels=labels, scan={k: hp[k] for k in ('combine', 'topk')} | points)
    return fitted


def _tables(run_config: ConfigDict, predict: Predictor, name: str, which: str, step: int) -> tuple[dict, dict]:
    """({evaluator/metric: entry}, {(content, evaluator, suffix) of a file: Predictions, RegionScores or arrays}).

    Of the last step only the evaluator that selects the best one is asked, and there are no files.
    """
    stage_config, tests = run_config[name], len(predict.data.partition.indices('test'))
    tables: dict[str, dict] = {}
    outputs: dict[tuple, Any] = {}
    evals = {e: config.options('evaluators', options.to_dict(), e)[1] for e, options in stage_config.evals.items()
             if which == 'best' or e == stage_config.select.partition('/')[0]}
    for e, hp in list(evals.items()):
        other = hp.get('data', '')
        if other and not external.has_inputs(predict.data, other, hp.part, predict.network.inputs):
            log.info(f'{name}: no case of {other} has {" or ".join(predict.network.inputs)}, so {e} is left out')
            del evals[e]
    predict = predict.with_memory(OutputMemory(itertools.chain.from_iterable(
        asks(predict, hp) for hp in evals.values() if (asks := plugins.contract('evaluators', hp.name).requests))))
    for e, hp in evals.items():
        preemption.raise_if_preempted(f'{name}, trained')
        other = hp.get('data', '')
        data = f'{other}, data of its own' if other else f'{tests} test cases'
        log.info(f'{name}: {e} of the {which} step ({step}) on {data}')
        evaluator = plugins.contract('evaluators', hp.name)
        table, predictions, arrays = evaluator.report(predict, hp, run_config.bootstrap, run_config.seed)
        tables |= {f'{e}/{metric}': row for metric, row in table.items()}
        if which == 'best':
            outputs |= {(content, e if other else '', '.csv'): rows for content, rows in predictions.items()}
            outputs |= {(content, e if other else '', '.npz'): by_name for content, by_name in arrays.items()}
    return tables, outputs


def test_options(run_config: ConfigDict, name: str) -> dict:
    """The options that decide the test results of a trained stage, as JSON gives them back."""
    evals, external_data = run_config[name].evals.to_dict(), config.stage_data(run_config, name).external.to_dict()
    used = {value for hp in evals.values() for value in hp.values() if isinstance(value, str)}
    options = dict(bootstrap=run_config.bootstrap, evals=evals,
                   external={key: changes for key, changes in external_data.items() if key in used})
    return json.loads(json.dumps(options))


def is_current(entry: dict, run_config: ConfigDict, name: str) -> bool:
    """Whether the results in the entry of a stage were made with the options that a config has now.

    Options that came into being since then had their defaults.
    """
    before, now = entry.get('test_options'), test_options(run_config, name)
    if before is None:
        return True
    defaults = {e: json.loads(json.dumps(plugins.load('evaluators', hp['name']).DEFAULTS))
                for e, hp in now['evals'].items()}
    return {**before, 'evals': {e: defaults.get(e, {}) | hp for e, hp in before['evals'].items()}} == now
