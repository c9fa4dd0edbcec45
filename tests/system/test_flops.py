"""Distillation computes no more than its networks: the lowered step of each method is counted, nothing is compiled.

A few outputs that `READ` names are not differentiated by every method, so that a step may cost less.
"""
import jax
import jax.numpy as jnp
import pytest

from jaxkd import config, stages
from jaxkd.data.pool import DataPool

READ = ('logits', 'logits1', 'class_logits', 'pooled')
STEPS = {
    'configs/mmpkd_cxr.py:smoke': ('student', 'teacher', 'image_only'),
    'configs/sikd_acdc.py:smoke': ('sikd', 'unet', 'kd', 'hint', 'channel', 'affinity', 'region'),
    'configs/specialist.py:all,smoke': ('specialist', 'erm', 'mixup', 'dro', 'jtt', 'hint', 'attention', 'adversarial'),
    'configs/mmpkd_mammo.py:smoke': ('student',),
    'configs/cpkd_ct_mri.py:smoke': ('cpkd', 'ct_only', 'kd', 'dpk'),
    'configs/cpmn_pe.py:smoke': ('cpmn', 'nct', 'oneway')}
QUICK = ('student', 'sikd', 'specialist')  # the others trace as long as they train
# Its term compares all pairs of places, which the smallest network does not outweigh.
WIDER = {'affinity': [f'{name}.model.channels=(16,32,64)' for name in ('affinity', 'unet')]}
POOLS: dict[str, DataPool] = {}


def count(function, *arguments):
    """Floating-point operations of a function as it is written."""
    return jax.jit(function).lower(*arguments).cost_analysis()['flops']


def networks_alone(stage, state, batch, frozen):
    """An update of every trained network for the mean of what is read of it, and the outputs of every frozen one."""
    context, key = stage.context, jax.random.key(0)

    def loss(params):
        total = jnp.float32(0)
        for name, network in context.networks.items():
            out, _ = network.apply({'params': params[name], **state.stats[name]}, batch, train=True, key=key)
            total += sum(jnp.mean(out[k]) for k in READ if k in out)
        return total
    grads = jax.grad(loss)({name: state.params[name] for name in context.networks})
    params = {name: state.params[name] for name in state.params}
    grads |= {name: jax.tree.map(jnp.zeros_like, params[name]) for name in params if name not in grads}
    updated = context.optim.update(grads, state.opt_state, params, state.plateau)
    cached = batch.get('teacher_outputs', {})
    taught = {t: network.apply(frozen[t], batch)[0]['logits'] for t, network in context.teachers.items()
              if t not in cached}
    return updated, taught


def cases():
    for spec, names in STEPS.items():
        for name in names:
            quick = name in QUICK and 'mammo' not in spec
            yield pytest.param(spec, name, marks=() if quick else pytest.mark.slow, id=f'{spec[8:12]}-{name}')


@pytest.mark.parametrize('spec, name', cases())
def test_a_step_computes_what_student_and_teachers_compute(spec, name, tmp_path):
    run_config = config.load(spec, WIDER.get(name, []))
    stage = stages.build(run_config, name, tmp_path, dry=True, pool=POOLS.setdefault(spec, DataPool()))
    state = jax.eval_shape(stage.method.init, jax.random.key(0))
    arguments = state, stage.frozen, stage.context.batch
    step = count(stage.method.train_step, *arguments)
    alone = count(lambda state, frozen, batch: networks_alone(stage, state, batch, frozen), *arguments)
    assert 0.8 * alone < step <= 1.05 * alone
