"""CPMN: worked numbers of its terms, who teaches whom, patients without CTPA, windows without emboli."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import checkpoint, config, errors, losses, stages, steps, train
from jaxkd.data import loader
from jaxkd.data.pool import DataPool
from jaxkd.methods import cpmn
from jaxkd.state import Mean, Progress, inference_variables
from tests.fixtures.compiled import call

FN, FC = np.float32([[[1, 0], [.6, .8], [0, 2]]]), np.float32([[[1, 1], [0, 1], [-1, 2]]])
LATE = Progress(jnp.float32(100), jnp.float32(10), jnp.float32(1))


def options(**given):
    return ConfigDict({**cpmn.DEFAULTS, 'name': 'cpmn', **given})


# 3.3 Alignment.

def test_worked_alignment():
    alignment = jax.jit(cpmn.alignment, static_argnums=2)
    for kind, value in (('pointwise', 0.199489), ('affinity', 0.026753), ('mixed', 0.113121)):
        np.testing.assert_allclose(alignment(FN, FC, kind)[0], value, rtol=2e-5)
        np.testing.assert_allclose(alignment(3 * FN, FC, kind)[0], value, rtol=2e-5)
        np.testing.assert_allclose(alignment(FC, FC, kind)[0], 0, atol=1e-6)
    turn = np.float32([[np.cos(.7), -np.sin(.7)], [np.sin(.7), np.cos(.7)]])
    np.testing.assert_allclose(alignment(FN @ turn, FC, 'affinity')[0], 0.026753, rtol=1e-4)
    np.testing.assert_allclose(alignment(FN @ turn, FC, 'pointwise')[0], 0.764457, rtol=2e-5)


@pytest.mark.parametrize('kind', ['pointwise', 'affinity'])
def test_mutual_alignment_is_two_detached_terms_at_half_the_value(kind):
    sg = jax.lax.stop_gradient
    one = lambda a, b: cpmn.alignment(a, b, kind)[0]  # noqa: E731
    two = lambda a, b: one(a, sg(b)) + one(sg(a), b)  # noqa: E731
    (value, grads), (double, both) = (jax.jit(jax.value_and_grad(f, (0, 1)))(FN, FC) for f in (one, two))
    np.testing.assert_allclose(double, 2 * value, rtol=1e-6)
    if kind == 'pointwise':
        np.testing.assert_allclose((value, double), (0.199489, 0.398977), rtol=2e-5)
    for a, b in zip(grads, both):
        assert np.any(a)
        np.testing.assert_allclose(a, b, atol=1e-6)


# 3.4 Discrepancy.

def discrepancy(f, inside, **given):
    inside = np.array([inside], bool)
    outside = np.argsort(inside, 1, kind='stable')[:, :int((~inside).sum())]
    return call(lambda f, *places: cpmn.discrepancy(losses.unit(f), *places, options(**given)), np.float32([f]), inside,
                outside, np.ones(outside.shape, bool))


def test_worked_discrepancy():
    f, m = [[1, 0], [.8, .6], [0, 1], [-.6, .8]], [1, 1, 0, 0]
    for tau, value in ((0.1, 0.000897), (0.5, 0.162643), (1.0, 0.337368)):
        loss, alike = discrepancy(f, m, tau=tau)
        np.testing.assert_allclose(loss[0], value, rtol=1e-3 if tau < 0.2 else 1e-5)
        np.testing.assert_allclose(alike[0], 0, atol=1e-6)
    assert discrepancy(f, m, ifd='margin')[0][0] == pytest.approx(0, abs=1e-6)
    apart = [[1, 0], [1, .1], [-.1, 1], [-.9, .3]]
    loss, alike = discrepancy(apart, m)
    np.testing.assert_allclose((loss[0], alike[0]), (0.066881, -0.584710), rtol=2e-5)
    swapped, _ = discrepancy(apart, [0, 0, 1, 1])
    np.testing.assert_allclose(swapped, loss, rtol=1e-6)  # balanced: neither class is the larger one
    assert discrepancy(apart[::-1], m, ifd='margin', delta=-1.0)[0][0] > 0


def test_background_set():
    inside = np.zeros((2, 8, 12, 12), bool)
    inside[0, 4, 4:6, 4:6] = True
    outside, positive = ~inside, np.zeros(inside.shape, np.float32)
    positive[0, 0, 0, :3], positive[0, 7, 11, 11] = 0.9, 0.4  # three false positives, one voxel below one half
    positive[0, 4, 4, 3] = 0.99  # in the shell: not counted again
    index, used = map(np.asarray, call(cpmn.background, inside, outside, positive, shell=1, most=40))
    assert index.shape == used.shape == (2, 40) and not used[1].any()  # no embolus, no shell: nothing is used
    chosen = index[0][used[0]]
    z, y, x = np.unravel_index(chosen, (8, 12, 12))
    near = (abs(z - 4) <= 1) & (y >= 3) & (y <= 6) & (x >= 3) & (x <= 6)
    assert not inside[0].ravel()[chosen].any() and len(set(chosen)) == len(chosen)
    # half of 40 out of the 44 of the shell, then those above one half
    assert near.sum() == 20 and sorted(chosen[~near]) == [0, 1, 2]


# 3.2, 3.6 Classification and the sum.

def test_worked_classification_and_total():
    logits, y = jnp.float32([[1.2], [-0.7]]), jnp.float32([1, 0])
    np.testing.assert_allclose(losses.binary_cross_entropy(logits[:, 0], y).mean(), 0.333234, rtol=1e-5)
    weight = cpmn.weights(options(dice=0.0, ifa='pointwise'), LATE)
    value = {'ce': 0.9, 'cls': 0.4, 'aux_ce': 0.6, 'aux_cls': 0.3, 'ifa': 0.199489, 'ifd': 0.162643,
             'aux_ifd': 0.066881}
    assert set(weight) == set(value)
    np.testing.assert_allclose(sum(w * value[n] for n, w in weight.items()), 1.892901, rtol=1e-6)


def test_ramp():
    def at(t):
        return cpmn.weights(options(), Progress(jnp.float32(0), jnp.float32(0), jnp.float32(t)))['ifa']
    np.testing.assert_allclose([at(0), at(.05), at(.1), at(1)], [0, .05, .1, .1], rtol=1e-6)


def test_patch_label_counts_voxels_and_knows_what_it_does_not_know():
    label = np.zeros((4, 2, 4, 8), np.uint8)
    label[0].flat[:20] = 1
    label[1].flat[:19] = 1
    label[2].flat[:19], label[2].flat[30] = 1, 255  # one more might be embolus
    label[3].flat[:25], label[3].flat[30] = 1, 255
    y, known = cpmn.patch_label(jnp.asarray(label), 20)
    assert y.tolist() == [1, 0, 0, 1] and known.tolist() == [1, 1, 0, 1]


# Whole networks.

DATA = ['data.source.patients=12', 'data.source.size=32', 'data.source.depth=16', 'data.source.spacing=(5.0,5.0,5.0)',
        'data.patch.size=(16,16,8)', 'data.split.stratify=']
SMALL = dict(name='unet', dims=3, channels=(8, 16), blocks=(1,), block='residual', down='stride', up='transpose',
             norm='instance',
             activation='leaky', bias=False, deep=0, classify=1)


def make(folder, **method):
    """A stage on the phantom, the window 8 x 16 x 16, its state and a batch that holds emboli."""
    conf = config.load('configs/cpmn_pe.py:smoke', [*DATA, 'data.patch.foreground=1.0'])
    for name in ('nct', 'cpmn'):
        conf[name].update(length='1 steps', eval_every='1 steps', select='')
        conf[name].model.update(SMALL)
        conf[name].method.update(method, ifa_tap='dec0', voxels=4, mutual=1.0)
    for network in conf.cpmn.networks.values():
        network.model.update(SMALL)
    return config.resolve(conf), folder


def objective(stage, params, state, batch):
    """(the terms, the outputs of the networks) as in training."""
    outputs, _ = steps.run_networks(stage.context, params, state.stats, {}, batch, jax.random.key(0))
    return terms(stage, params, outputs, batch), outputs


def terms(stage, params, outputs, batch):
    context, hp, outputs = stage.context, stage.config.method, dict(outputs)
    student = outputs.pop('student')
    shapes = steps.output_shapes(context)
    modules = cpmn.heads(hp, shapes)
    calls = {n: functools.partial(modules[n].apply, {'params': p}) for n, p in params['heads'].items()}
    reads = [k for n in context.networks if n != 'student'
             for k in steps.privileged_inputs(context.networks[n], context)]
    parts = cpmn.terms(student, outputs, calls, batch, hp, reads=reads)
    return {n: v if isinstance(v, Mean) else Mean.of(v, batch['mask']) for n, v in parts.items()}


POOL = DataPool()  # stages of the same data share its cases


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    conf, folder = make(tmp_path_factory.mktemp('cpmn'))
    stage = stages.build(conf, 'cpmn', folder, pool=POOL)
    state = stage.initial()
    batch = next(loader.train_loader(stage.data, 4, 0))
    assert (batch['label'] == 1).any()
    return conf, folder, stage, state, batch


TERMS = [f'{path}{name}' for path in ('', 'aux_') for name in ('ce', 'dice', 'cls', 'ifd', 'prototype_cosine')]
TERMS += ['ifa', 'phase_cosine', 'mutual']
PROGRAMS = {}  # one for a stage and its options, whichever terms are asked for


def grads_of(stage, state, batch, names, **method):
    """Gradient of the sum of these terms, in state.params."""
    return terms_and_grads(stage, state, batch, names, **method)[1]


def terms_and_grads(stage, state, batch, names, **method):
    stage.config.method.update(method)

    def loss(params, batch, chosen):
        parts, outputs = objective(stage, params, state, batch)
        return sum(chosen[n] * parts[n].value for n in parts), (parts, outputs)
    key = id(stage), str(stage.config.method.to_dict())
    if key not in PROGRAMS:
        PROGRAMS[key] = jax.jit(jax.grad(loss, has_aux=True))
    grads, (parts, outputs) = PROGRAMS[key](state.params, batch, {n: np.float32(n in names) for n in TERMS})
    return parts, grads, outputs


def size(tree):
    return max(np.abs(a).max() for a in jax.tree.leaves(tree))


def test_the_pair_has_twice_the_parameters(pair):
    params = pair[3].params
    count = {n: sum(a.size for a in jax.tree.leaves(params[n])) for n in ('student', 'ctpa')}
    assert count['student'] == count['ctpa']
    assert set(params) == {'student', 'ctpa', 'heads'}
    assert set(params['heads']) == {'ifa_student', 'ifa_privileged', 'ifd_student', 'ifd_privileged'}


def test_knowledge_flows_both_ways_unless_detached(pair):
    _, _, stage, state, batch = pair
    _, grads, outputs = terms_and_grads(stage, state, batch, ('ifa', 'mutual'))
    assert size(grads['student']) > 0 and size(grads['ctpa']) > 0

    def detached(outputs):
        parts = terms(stage, state.params, outputs, batch)
        return parts['ifa'].value + parts['mutual'].value
    stage.config.method.update(detach_privileged=True)
    grads = jax.jit(jax.grad(detached))(outputs)
    stage.config.method.update(detach_privileged=False)
    assert size(grads['student']) > 0 and size(grads['ctpa']) == 0


def test_own_terms_teach_their_own_pathway(pair):
    _, _, stage, state, batch = pair
    for names, own, other in ((('ce', 'dice', 'cls', 'ifd'), 'student', 'ctpa'),
                              (('aux_ce', 'aux_dice', 'aux_cls', 'aux_ifd'), 'ctpa', 'student')):
        grads = grads_of(stage, state, batch, names)
        assert size(grads[own]) > 0 and size(grads[other]) == 0


def test_without_ctpa_the_gradient_is_that_of_the_single_pathway(pair):
    conf, folder, stage, state, batch = pair
    alone = stages.build(conf, 'nct', folder, pool=POOL)
    alone.config.method.update(stage.config.method)
    single = alone.initial()
    chex.assert_trees_all_equal(single.params['student'], state.params['student'])  # equal seeds, equal weights
    absent = {**batch, 'ctpa': np.zeros_like(batch['ctpa']),
              'present': {**batch['present'], 'ctpa': np.zeros_like(batch['present']['ctpa'])}}
    names = ('ce', 'dice', 'cls', 'ifd')
    parts, grads, _ = terms_and_grads(stage, state, absent, (*names, 'ifa', 'aux_ce', 'aux_dice', 'aux_cls', 'aux_ifd'))
    for name, part in parts.items():
        if name.startswith('aux_') or name in ('ifa', 'phase_cosine'):
            assert part.weight == 0 and part.value == 0, name
    ours = grads['student']
    heads = {'ifd_student': state.params['heads']['ifd_student']}
    theirs = grads_of(alone, single.replace(params={'student': single.params['student'], 'heads': heads}), batch,
                      names)['student']
    chex.assert_trees_all_close(ours, theirs, atol=5e-7)  # two programs: rounding differs


def test_a_shuffled_arm_aligns_with_the_next_case_and_changes_nothing_else(pair):
    _, _, stage, state, batch = pair
    parts, _, outputs = terms_and_grads(stage, state, batch, ('ifa', 'mutual'))
    rolled = {**outputs, 'ctpa': jax.tree.map(lambda a: np.roll(a, -1, 0), outputs['ctpa'])}
    with_others = jax.jit(lambda o: terms(stage, state.params, o, batch))(rolled)
    shuffled, grads, _ = terms_and_grads(stage, state, batch, ('ifa', 'mutual'), shuffled=True)
    stage.config.method.update(shuffled=False)
    for name, part in shuffled.items():
        expected = with_others if name in ('ifa', 'mutual', 'phase_cosine') else parts
        np.testing.assert_allclose(part.value, expected[name].value, rtol=2e-5, err_msg=name)
    assert abs(float(shuffled['ifa'].value) - float(parts['ifa'].value)) > 1e-5
    assert size(grads['student']) > 0 and size(grads['ctpa']) > 0


def test_windows_without_emboli(pair):
    _, _, stage, state, batch = pair
    normal = {**batch, 'label': np.zeros_like(batch['label'])}
    parts, grads, _ = terms_and_grads(stage, state, normal, ('ifd', 'aux_ifd'))
    assert parts['ifd'].value == 0 and parts['ifd'].weight == 0
    assert size(grads) == 0
    grads = grads_of(stage, state, normal, tuple(parts))
    assert (all(np.isfinite(p.value) for p in parts.values())
            and all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads)))


def test_the_student_reads_the_nct_alone_and_alone_is_deployed(pair):
    _, folder, stage, state, batch = pair
    network, variables = stage.context.networks['student'], inference_variables(state)
    compiled = jax.jit(lambda inputs: network.apply(variables, inputs)[0])
    apply = lambda batch: compiled(network.only(batch))  # noqa: E731
    out = apply(batch)
    spoilt = {**batch, 'ctpa': np.full(batch['ctpa'].shape, np.nan, np.float32), 'label': batch['label'] * 0 + 255}
    chex.assert_trees_all_equal(apply(spoilt), out)
    del spoilt['ctpa'], spoilt['label']
    spoilt['present'] = {'nct': batch['present']['nct']}
    chex.assert_trees_all_equal(apply(spoilt), out)
    train.train(stage, folder, tensorboard=False)
    saved, _ = checkpoint.load_student(folder / 'checkpoints' / 'cpmn', None, 'best')
    chex.assert_trees_all_equal_shapes(saved['params'], state.params['student'])


def test_the_arms_of_the_comparison_are_one_network_with_equal_training():
    conf = config.load('configs/cpmn_pe.py')
    arms = [conf[name] for name in ('nct', 'joint', 'oneway', 'cpmn')]
    for key in ('model', 'inputs', 'optim', 'batch', 'length', 'data', 'dtype', 'init'):
        assert all(arm[key] == arms[0][key] for arm in arms), key


@pytest.mark.parametrize('changes, told', [
    (['cpmn.method.ifa=mixd'], 'mixed'), (['cpmn.method.ifd=margn'], 'margin'), (['cpmn.method.ifa_tap=dec9'], 'dec'),
    (['cpmn.model.classify=0', 'cpmn.networks.ctpa.model.classify=0'], 'classify'),
    (['cpmn.method.ifd_tap=dec1'], 'full resolution'),
    (['cpmn.method.tau=0.0'], 'tau')])
def test_mistakes_are_told(changes, told, tmp_path):
    with pytest.raises(errors.ConfigError, match=told):
        stages.build(config.load('configs/cpmn_pe.py:smoke', [*DATA, *changes]), 'cpmn', tmp_path, dry=True, pool=POOL)
