"""What an evaluation would fail on is refused before anything is trained. This file is a source of data, too."""
import copy
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import config, errors, stages
from jaxkd.config import plugins
from jaxkd.data.source import Case
from jaxkd.evaluators import classification, multiclass, prediction_depth, segmentation, slices
from tests.fixtures import disc

DEFAULTS = dict(groups={}, label=('disc',), prefix='')
RANGES = sorted((name, key, interval) for name in plugins.names('evaluators')
                for key, interval in plugins.contract('evaluators', name).ranges.items())


def build(hp):
    source = disc.Discs(20, 0.3)
    source.cases = tuple(Case(f'case{i}', f'{hp.prefix}patient{i}', groups=hp.groups.to_dict()) for i in range(20))
    source.labels = hp.label
    return source


def chosen(data=None, **teacher):
    run = copy.deepcopy(disc.config())
    run['data']['source'] = dict(name='tests.evaluators.test_checks', **(data or {}))
    run['teacher'] |= teacher
    return ConfigDict({k: v for k, v in run.items() if k not in ('image_only', 'student')} | dict(stages=('teacher',)))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(RANGES), st.floats(-2, 40))
def test_a_number_outside_its_range_is_refused_at_the_start(option, number):
    name, key, interval = option
    default = plugins.load('evaluators', name).DEFAULTS[key]
    value = number if isinstance(default, float) else int(number)
    low, high = (float(end) for end in interval[1:-1].split(','))
    inside = (low < value if interval[0] == '(' else low <= value) and (
        value < high if interval[-1] == ')' else value <= high)
    value = (value,) * len(default) if isinstance(default, tuple) else value
    try:
        config.resolve(chosen(evals={'classification': {}, 'mine': {'name': name, key: value}}))
        assert inside
    except errors.ConfigError as e:
        assert not inside and f'teacher.evals.mine.{key}' in str(e) and interval in str(e)


@pytest.mark.parametrize('evals', [{'a/b': dict(name='classification')},
                                   {'test': dict(name='classification', data='other')}])
def test_a_name_that_files_of_predictions_cannot_have_is_refused(evals):
    with pytest.raises(errors.ConfigError, match=f'cannot be called "{next(iter(evals))}"'):
        config.resolve(chosen(evals={'classification': {}} | evals))


OTHER = dict(classification=dict(data='other', part='all'))


@pytest.mark.parametrize('data, teacher, error, message', [
    (dict(groups={'patient': 'a'}), {}, errors.BadData, "called 'patient', a name that predictions need"),
    (dict(label=('disc', 'disc')), {}, errors.BadData, "two columns called 'label/disc'"),
    ({}, dict(evals=dict(classification=dict(part='every'))), errors.ConfigError, r'evals.classification.part'),
    ({}, dict(evals=OTHER), errors.ConfigError, 'data.external.other has no case in its validation part'),
    ({}, dict(select='classification/auroc/disk'), errors.ConfigError, 'no metric "auroc/disk"')])
def test_a_stage_that_could_not_be_evaluated_is_not_built(tmp_path, data, teacher, error, message):
    c = chosen(data, **teacher)
    c.data.external = dict(other=dict(source=dict(name='tests.fixtures.disc', cases=8),
                                      split=dict(fractions=(0.0, 0.0, 1.0))))
    if teacher.get('evals') is OTHER:
        c.data.external.other.source = dict(name='tests.evaluators.test_checks', prefix='other ')
        c.data.split = dict(fractions=(0.6, 0.4, 0.0))
    with pytest.raises(error, match=message):
        stages.build(config.resolve(c), 'teacher', tmp_path, dry=True)


def network(**outputs):
    shapes = {k: jax.ShapeDtypeStruct(shape, np.float32) for k, shape in outputs.items()}
    return SimpleNamespace(inputs=('ct',), output_shapes=lambda batch: shapes)


def batch(label, dtype=np.float32, **more):
    return {k: jax.ShapeDtypeStruct(shape, dtype) for k, shape in dict(label=label, **more).items()}


HP = {module: ConfigDict(module.DEFAULTS) for module in (classification, multiclass, prediction_depth, segmentation,
                                                         slices)}
PLACES = batch((2, 8, 8), np.uint8)


@pytest.mark.parametrize('module, network, batch, changes, message', [
    (classification, network(logits=(2, 3)), batch((2,), np.int32), {}, 'needs a number for each label'),
    (classification, network(logits=(2, 3)), batch((2, 4)), {}, 'logits of the same shape'),
    (classification, network(logits=(2, 3)), batch((2, 3)), {}, 'Put "labels" into data.transforms'),
    (multiclass, network(logits=(2, 1)), batch((2,), np.int32), {}, 'at least two classes'),
    (prediction_depth, network(logits=(2, 2), block1=(2, 4)), batch((2,), np.int32), dict(taps=()), 'needs taps'),
    (prediction_depth, network(logits=(2, 2), block1=(2, 4)), batch((2, 2)), dict(taps=('block1',)), 'one class'),
    (segmentation, network(logits=(2, 8, 8, 2)), PLACES, dict(weights='gauss'), 'segmentation.weights.*"gaussian"'),
    (segmentation, network(logits=(2, 8, 8, 2)), PLACES, dict(combine='tops'), 'segmentation.combine.*"top"'),
    (segmentation, network(logits=(2, 8, 8, 2)), PLACES, dict(mirror=(2,)), 'axes of a window, 0 to 1'),
    (segmentation, network(logits=(2, 8, 8, 2)), PLACES, dict(examples=(1, 2)), 'must be four numbers'),
    (slices, network(logits=(2, 2), features=(2, 4, 4, 4, 8)), batch((2,), ct=(2, 8, 8, 8, 2)), {}, 'of one channel')])
def test_what_does_not_fit_the_network_is_refused(module, network, batch, changes, message):
    hp = HP[module].copy_and_resolve_references()
    hp.update(changes)
    with pytest.raises(errors.ConfigError, match=message):
        module.check(network, batch, hp)


def test_what_fits_is_let_through():
    classification.check(network(logits=(2, 3)), batch((2, 3), label_weight=(2, 3)), HP[classification])
    classification.check(network(logits=(2, 1)), batch((2, 1)), HP[classification])
    multiclass.check(network(logits=(2, 2)), batch((2,), np.int32), HP[multiclass])
    segmentation.check(network(logits=(2, 8, 8, 2)), PLACES, HP[segmentation])
    slices.check(network(logits=(2, 2), features=(2, 4, 4, 4, 8)), batch((2,), ct=(2, 8, 8, 8, 1)), HP[slices])


def dataset(label, prior=(), signs=()):
    rows = dict(train=range(2), val=range(2, 4), test=range(4, 6))
    source = SimpleNamespace(name='scans', labels=('a', 'b'), id=lambda i: f'case{i}',
                             targets=dict(label=np.array(label), **({'sign': np.array(signs)} if len(signs) else {})))
    partition = SimpleNamespace(indices=lambda role: list(rows[role]), train_indices=lambda: [0, 1],
                                labelled=list)
    fitted = dict(prior=dict(prior=np.ones(prior).tolist())) if prior else {}
    return SimpleNamespace(source=source, partition=partition, config=dict(prior=dict(tasks=('sign',))),
                           transforms=SimpleNamespace(fitted=fitted))


def test_cases_without_a_class_and_signs_without_a_prior_are_refused():
    multiclass.check_data(dataset([-1, 0, 1, 0, 0, 1], (3, 2), [0, 1, 2, -1, 2, 1]), HP[multiclass])
    with pytest.raises(errors.BadData, match='1 cases .* no class, the first is case3'):
        multiclass.check_data(dataset([0, 0, 1, -1, 0, 1]), HP[multiclass])
    with pytest.raises(errors.BadData, match='prior table has the shape'):
        multiclass.check_data(dataset([0] * 6, (2, 2), [0, 1, 0, 0, 2, 1]), HP[multiclass])


def test_more_neighbours_than_training_cases_are_refused():
    hp = ConfigDict(prediction_depth.DEFAULTS | dict(clean='', k=2))
    prediction_depth.check_data(dataset([0] * 6), hp)
    hp.k = 3
    with pytest.raises(errors.ConfigError, match='k = 3 neighbours; there are 2 labelled training cases'):
        prediction_depth.check_data(dataset([0] * 6), hp)
