"""Cases without a label: the terms of the labels are means over the others, and a batch without any label gives 0."""
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd.methods import (
    adversarial,
    cpmn,
    distil,
    group_dro,
    jtt,
    mixup,
    probe,
    segmentation,
    specialist,
    supervised,
)
from jaxkd.state import Mean
from tests.fixtures import distillation
from tests.fixtures.compiled import call
from tests.methods import test_cpkd

KNOWN = np.int32([1, 0, 0, 1])
SOME = np.where(np.arange(4) < 2, KNOWN, -1).astype(np.int32)
NONE = np.full(4, -1, np.int32)
RNG = np.random.default_rng(0)
STUDENT = {k: np.float32(RNG.normal(size=(4, 2))) for k in ('logits', 'probe_block1')} | {
    'pooled': np.float32(RNG.normal(size=(4, 5)))}
TEACHER = {'teacher': {k: np.float32(RNG.normal(size=(4, 2))) for k in ('logits', 'probe_block1')}}
HEADS = {'adversary': lambda x: x[:, :2]}
METHODS = {  # (module, options, teachers, terms of the labels)
    'probe': (probe, {}, {}, ('ce', 'probe_block1')),
    'supervised': (supervised, dict(kind='classes', smoothing=0.1), {}, ('sup',)),
    'specialist': (specialist, dict(taps=('block1',)), TEACHER, ('ce',)),
    'jtt': (jtt, {}, TEACHER, ('ce', 'wrong')),
    'adversarial': (adversarial, {}, {}, ('ce',)),
    'mixup': (mixup, {}, {}, ('ce',)),
}


def options(module, **changes):
    return ConfigDict(module.DEFAULTS | dict(name=module.__name__.rpartition('.')[2]) | changes)


def batch_of(label, rows=4):
    order = np.array([1, 0, 3, 2])
    return {'label': label, 'mask': np.ones(rows, np.float32), 'bias': np.int32([0, 1, 1, 0])[:rows],
            'other_label': label[order[:rows]], 'lam': np.full(rows, 0.3, np.float32)}


@functools.lru_cache(maxsize=2)
def program(terms):
    """Of these terms, compiled once for a shape."""
    def total(student, batch):
        found = {k: v.value if isinstance(v, Mean) else (v * batch['mask']).sum() / batch['mask'].sum()
                 for k, v in terms(student, batch).items()}
        return sum(found.values()), found
    return jax.jit(jax.value_and_grad(total, has_aux=True))


def values(terms, student, batch):
    """{term: value} and the gradient of their sum."""
    (_, found), gradient = program(terms)(student, batch)
    return found, gradient


@pytest.mark.parametrize('name', METHODS)
def test_terms_of_the_labels_are_means_over_labelled_cases_alone(name):
    module, changes, teachers, of_labels = METHODS[name]
    hp = options(module, **changes)

    def terms(student, batch):
        return module.terms(student, batch['taught'], HEADS, batch, hp)

    def run(label, rows=4):
        first = functools.partial(jax.tree.map, lambda a: a[:rows])
        return values(terms, first(STUDENT), batch_of(label, rows) | dict(taught=first(teachers)))[0]
    found, alone, none = run(SOME), run(KNOWN[:2], 2), run(NONE)
    for term in of_labels:
        assert float(found[term]) == pytest.approx(float(alone[term]), rel=1e-5) and float(none[term]) == 0
    _, gradient = values(lambda s, b: {k: v for k, v in module.terms(s, teachers, HEADS, b, hp).items()
                                       if k in of_labels}, STUDENT, batch_of(NONE))
    assert not any(np.any(g) for g in jax.tree.leaves(gradient))


def test_group_dro_counts_labelled_cases_alone():
    memory, hp = {'q': jnp.full(4, 0.25)}, options(group_dro)
    first = functools.partial(jax.tree.map, lambda a: a[:2])
    found, moved = group_dro.terms(STUDENT, {}, {}, batch_of(SOME), hp, memory)
    alone, expected = group_dro.terms(first(STUDENT), {}, {}, batch_of(KNOWN[:2], 2), hp, memory)
    np.testing.assert_allclose(found['dro'].value, alone['dro'].value, rtol=1e-5)
    np.testing.assert_allclose(moved['q'], expected['q'], rtol=1e-5)


def test_labels_that_may_be_together_are_learned_from_the_teacher_where_they_are_hidden():
    batch = {'label': np.float32([[1, 0]] * 4), 'label_weight': np.zeros((4, 2), np.float32),
             'mask': np.ones(4, np.float32), 'index': np.arange(4)}
    kd = distil.Term('kd', distillation.built('kd_bce'), (('student', 'logits'),), (('teacher', 'logits'),), False,
                     ((),), 'label', 1.0, '')
    student = types.SimpleNamespace(inputs=('image',), task='label')
    found, gradient = values(lambda s, b: distil.terms(s, TEACHER, {}, b, options(distil), used=[kd],
                                                       trained={'student': student}), STUDENT, batch)
    assert float(found['sup']) == 0 and float(found['kd']) > 0
    assert np.isfinite(gradient['logits']).all() and (np.abs(gradient['logits']).sum(1) > 0).all()


def test_cpkd_transfers_to_cases_without_a_label_with_weight_1_and_learns_no_class_from_them():
    student, teachers, batch = test_cpkd.example()
    memory, hp = test_cpkd.fresh(), test_cpkd.options()
    hidden = {k: jnp.full_like(batch[k], -1) for k in ('label', 'texture', 'duct')}
    some = {**batch, **{k: jnp.where(jnp.arange(6) < 3, batch[k], -1) for k in hidden}}
    whole, _ = test_cpkd.run(hp, student, teachers, batch, memory)
    found, after = test_cpkd.run(hp, student, teachers, some, memory)
    rows = functools.partial(jax.tree.map, lambda a: a[:3])
    alone, _ = test_cpkd.run(hp, rows(student), rows(teachers), rows(batch), memory)
    for term in ('main', 'hard', 'calibration', 'aux_texture', 'aux_duct'):
        np.testing.assert_allclose(found[term].value, alone[term].value, rtol=1e-5)
    assert np.flatnonzero(after['seen']).tolist() == [3, 4, 5]  # the indices of the labelled rows
    np.testing.assert_allclose(found['weight'][3:], 1)
    none, _ = test_cpkd.run(hp, student, teachers, {**batch, **hidden}, memory)
    assert all(float(none[term].value) == 0 for term in ('main', 'hard', 'calibration', 'aux_texture'))
    assert all(np.isfinite(v.value if isinstance(v, Mean) else v).all() for v in none.values())
    assert float(none['feature'].value) > 0 and float(whole['feature'].value) > 0


def dense(labelled):
    """A batch of four cases with masks of which the first `labelled` are known."""
    label = np.uint8(np.random.default_rng(1).integers(0, 3, (4, 4, 4)))
    label[labelled:] = 255
    rng = np.random.default_rng(2)
    outputs = [{k: np.float32(rng.normal(size=(4, 4, 4, 3))) for k in ('logits', 'feature')} for _ in range(2)]
    return outputs[0], {'teacher': outputs[1]}, {'label': label, 'mask': np.ones(4, np.float32),
                                                 'distance': np.float32(rng.normal(size=(4, 4, 4, 2)))}


def term(name, loss, reads, tap='feature'):
    """A term of distil between the outputs `tap` of the student and of `teacher`, which reads `reads` besides."""
    return distil.Term(name, loss, (('student', tap),), (('teacher', tap),), False, (reads,), 'label', 1.0, '')


@pytest.mark.parametrize('loss, reads', [('hint', ('label',)), ('hint', ()), ('variation', ()), ('region', ()),
                                         ('prototype', ())])
@pytest.mark.parametrize('dice_over', ['batch', 'case'])
def test_segmentation_learns_from_masks_that_are_there_and_else_from_a_teacher_that_reads_none(loss, reads, dice_over):
    hp = options(segmentation, dice=1.0, dice_over=dice_over, boundary=1.0)
    taught = term('distil', distillation.built(loss, **(dict(regressor=False) if loss == 'hint' else {})), reads)

    def terms(student, batch):
        distilled, _ = taught.value({'student': student, **batch['taught']}, {}, batch, None)
        return segmentation.terms(student, {}, {}, batch, hp) | {'distil': distilled}

    def run(rows, labelled):
        student, teachers, batch = jax.tree.map(lambda a: a[:rows], dense(labelled))
        return values(terms, student, batch | dict(index=np.arange(rows), taught=teachers))
    (found, _), (alone, _), (none, gradient) = run(4, 2), run(2, 2), run(4, 0)
    of_label = reads or loss != 'hint'
    for name in ('ce', 'dice', 'boundary', *(('distil',) if of_label else ())):
        assert float(found[name]) == pytest.approx(float(alone[name]), rel=1e-5), name
        assert float(none[name]) == 0
    assert (float(none['distil']) > 0) == (not of_label)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert any(np.any(g) for g in jax.tree.leaves(gradient)) == (not of_label)


def test_distillation_of_classes_learns_from_the_teacher_where_there_is_no_label():
    hp, student = options(distil), types.SimpleNamespace(inputs=('image',), task='label')
    used = (term('kd', distillation.built('kd'), (), 'logits'), term('dkd', distillation.built('dkd'), (), 'logits'))
    rng = np.random.default_rng(3)
    z, t = ({'logits': np.float32(rng.normal(size=(4, 3)))} for _ in range(2))

    def terms(given, batch):
        return distil.terms(given, {'teacher': batch['taught']}, {}, batch, hp, used=used, trained={'student': student})

    def run(label, rows=4):
        first = functools.partial(jax.tree.map, lambda a: a[:rows])
        return values(terms, first(z), batch_of(label, rows) | dict(index=np.arange(rows), taught=first(t)))
    (found, _), (alone, _), (none, gradient) = run(SOME), run(KNOWN[:2], 2), run(NONE)
    for name in ('sup', 'dkd'):
        assert float(found[name]) == pytest.approx(float(alone[name]), rel=1e-5) and float(none[name]) == 0
    assert float(none['kd']) == float(found['kd']) > 0
    assert np.isfinite(gradient['logits']).all() and (np.abs(gradient['logits']).sum(1) > 0).all()


def test_pathways_of_cpmn_learn_from_each_other_where_no_voxel_is_labelled():
    rng = np.random.default_rng(0)
    out = [{'logits': np.float32(rng.normal(size=(2, 2, 4, 4, 2))), 'class_logits': np.zeros((2, 1), np.float32),
            'dec2': np.float32(rng.normal(size=(2, 2, 4, 4, 3))), 'dec0': np.float32(rng.normal(size=(2, 2, 4, 4, 3)))}
           for _ in range(2)]
    batch = {'label': np.full((2, 2, 4, 4), 255, np.uint8), 'mask': np.ones(2, np.float32)}
    hp = options(cpmn, mutual=1.0, projection=3, background=8, shell=1)
    heads = {f'{use}_{path}': (lambda x: x) for use in ('ifa', 'ifd') for path in ('student', 'privileged')}

    def terms(student, batch):
        return cpmn.terms(student, {'ctpa': out[1]}, heads, batch, hp)
    found, gradient = values(terms, out[0], batch)
    assert {k for k, v in found.items() if float(v) > 0 and k != 'phase_cosine'} == {'ifa', 'mutual'}
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    batch['label'][0, 0] = 0  # the rest of the first window is padding
    found, _ = values(terms, out[0], batch)
    half = call(lambda *x: terms(*x)['mutual'].weight, out[0], batch)
    assert float(half) == 16 + 32 and float(found['ce']) > 0
