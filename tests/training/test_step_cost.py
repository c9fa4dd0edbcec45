"""What a step costs, read from a program: worked by hand, counted in programs of this machine, and for a TPU if there
is a compiler for it.
"""
import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxkd import errors, main, parallel
from jaxkd.runtime import accelerators
from jaxkd.training import step_cost

PROGRAM = '''HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8,4], w: bf16[4,2]) -> (f32[8,2], f32[8,2]) {
  %x = f32[8,4]{1,0:T(8,128)} parameter(0)
  %w = bf16[4,2]{1,0} parameter(1)
  %dot = f32[8,2]{1,0} dot(%x, %w), lhs_contracting_dims={1}
  %copy.1 = f32[8,2]{0,1} bitcast(%dot)
  %all-reduce = (f32[8,2]{1,0}, f32[3]{0}) all-reduce(%dot, %c), to_apply=%add
  %get = f32[8,2]{1,0} get-tuple-element(%all-reduce), index=0
  %gather = (f32[2]{0}, f32[16]{0}) all-gather-start(%y), dimensions={0}
  %gathered = f32[16]{0} all-gather-done(%gather)
  ROOT %out = (f32[8,2], f32[8,2]) tuple(%get, %copy.1)
}
'''


def test_collectives_and_bytes_are_read_from_a_program():
    assert step_cost.collectives(PROGRAM) == (('all-reduce', 1, 8 * 2 * 4 + 3 * 4, 0), ('all-gather', 1, 64, 0))
    started = '  %r = ((f32[2]{0}, s8[4]{0}), (f32[2]{0}, s8[4]{0})) all-reduce-start(%a, %b), channel_id=1'
    assert step_cost.collectives(started) == (('all-reduce', 1, 12, 0),), 'of an NVIDIA GPU'
    line = '  %r = f32[4]{0} reduce-scatter(f32[8]{0} %a), replica_groups='
    groups = {'{{0,1},{2,3}}': 2, '[2,4]<=[8]': 4, '[4,2]<=[2,4]T(1,0)': 2, '{}': 0,
              "mesh['batch'=4,'fsdp'=2] {'fsdp'}": 2, "mesh['batch'=8] {'batch'}": 0}
    assert {text: step_cost.collectives(line + text)[0].group for text in groups} == groups
    dot, reduced, gathered = 128 + 16 + 64, 64 + 64 + 12, 8 + 64
    assert step_cost.bytes_moved(PROGRAM) == dot + reduced + gathered


def test_of_an_operand_that_is_only_sliced_the_slice_counts():
    program = '''
%part (p: f32[1000], q: f32[8]) -> f32[8] {
  %p = f32[1000]{0} parameter(0), metadata={scheduling_name="p"}
  %q = f32[8]{0} parameter(1)
  %slice.1 = f32[8]{0} slice(%p), slice={[16:24]}
  ROOT %sum = f32[8]{0} add(%slice.1, /*index=1*/%q)
}

%whole (p: f32[1000]) -> f32[8] {
  %p = f32[1000]{0} parameter(0)
  %slice.2 = f32[8]{0} slice(%p), slice={[16:24]}
  %total = f32[] reduce(%p, %zero), dimensions={0}, to_apply=%add
  ROOT %sum = f32[8]{0} add(%slice.2, %total)
}

ENTRY %main (x: f32[1000], y: f32[8]) -> f32[8] {
  %x = f32[1000]{0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %a = f32[8]{0} fusion(%x, %y), kind=kLoop, calls=%part
  %b = f32[4]{0} slice(%x), slice={[0:4]}
  %c = f32[8]{0} fusion(%x), kind=kLoop, calls=%whole
}
'''
    assert step_cost.bytes_moved(program) == (32 + 32 + 32) + (16 + 16) + (32 + 4000)
    other = program.replace('y: f32[8]', 'y: f32[1000]').replace('%y = f32[8]', '%y = f32[1000]').replace(
        '  %a = f32[8]{0} fusion(%x, %y), kind=kLoop, calls=%part\n', '').replace('fusion(%x)', 'fusion(%y)')
    assert step_cost.bytes_moved(other) == (16 + 16) + (32 + 4000), 'the entry slices all that it has in place 0'


def test_the_time_is_at_least_that_of_the_slowest_part():
    device = accelerators.Accelerator('toy', 1000, bandwidth=10, bfloat16=100, float32=50, interconnect=2)
    step = step_cost.StepCost(0, moved=20, flops=300, compiled_flops=None,
                              collectives=(step_cost.Collective('all-reduce', 2, 8),
                                           step_cost.Collective('all-gather', 1, 4)))
    assert step_cost.roofline(step, device, 'bfloat16', 4) == (3, 2, (8 * 2 + 4) * 0.75 / 2)
    assert step_cost.roofline(step, device, 'bfloat16', 4).bound == 'interconnect'
    divided = [step_cost.Collective('all-gather', 1, 8, 2), step_cost.Collective('reduce-scatter', 1, 4, 2)]
    assert [c.sent(16) for c in divided] == [4, 4], 'as much as half of an all-reduce in the group, each'
    assert step_cost.roofline(step, device, 'float32', 1) == (6, 2, 0)
    assert step_cost.roofline(step._replace(compiled_flops=5000), device, 'float32', 1).arithmetic == 100


@pytest.mark.parametrize('memory, expected', [(1000, 64), (300, 4), (255, 0), (100, 0)])
def test_the_largest_batch_fills_the_memory(memory, expected):
    # 150 held, 80 of gradients, 10 for each case of the batch (170 - 80, 9 cases): 900 - 230 = 670 is 67 cases
    assert step_cost.largest_batch(150, 80, 170, 9, 4, memory) == expected


def test_a_step_of_this_machine_is_counted():
    def step(state, frozen, batch):
        return state + parallel.psum((batch @ state).sum()), {'loss': jnp.float32(0)}
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 64), (), (128, 64))]
    compiled, flops = parallel.compiled_step(step, *shapes), parallel.step_flops(step, *shapes)
    product = 2 * 128 * 64 * 64
    assert product <= flops <= product * 1.05
    cost = step_cost.cost(compiled, flops)
    assert cost.moved >= 4 * (64 * 64 * 2 + 128 * 64) and cost.temporaries >= 0
    assert parallel.step_seconds(compiled, *shapes, steps=2) > 0


@pytest.mark.parametrize('text', ['v5e:4x4', 'tpu:v9:4x4', 'tpu:v5e', 'tpu:v5e:4x', 'gpu:h100:8', 'gpu:h100:0x8', ''])
def test_a_topology_that_is_not_known_is_refused(text):
    with pytest.raises(errors.ConfigError, match='tpu:KIND:GRID'):
        accelerators.parse(text)


def test_a_device_is_known_by_the_name_that_jax_gives_it():
    assert accelerators.of_device('TPU v5 lite') is accelerators.TPUS['v5e']
    assert accelerators.of_device('cpu') is None
    target = accelerators.cuda_target(accelerators.GPUS['h100'])
    assert target.count('{') == target.count('}') and 'memory_bandwidth: 3352000000000 ' in target
    assert target.count('fpus_per_core') == target.count('core_count') == 1


def test_without_a_compiler_for_it_the_remedy_is_named(monkeypatch, capsys, tmp_path):
    from jax.experimental import topologies

    def missing(*_, **__):
        raise RuntimeError('no such platform')
    monkeypatch.setattr(topologies, 'get_topology_desc', missing)
    for topology, remedy in (('tpu:v5e:2x2', 'pip install libtpu'), ('gpu:h100:1x8', 'jax-cuda12-plugin')):
        code = main.main(['--config', 'configs/mmpkd_cxr.py:smoke', '--workdir', str(tmp_path / 'run'), '--topology',
                          topology])
        assert code == 2 and remedy in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu, the compiler for TPUs, is not here')
def test_a_step_is_compiled_for_a_tpu_that_is_not_here(tmp_path):
    done = subprocess.run([sys.executable, '-m', 'jaxkd.main', '--config', 'configs/mmpkd_cxr.py:smoke', '--workdir',
                           str(tmp_path / 'run'), "--config.stages=('student',)", '--topology', 'tpu:v5e:2x2'],
                          capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    assert 'of 16 GiB (parameters 929 KiB' in shown and 'computed from peaks, not measured' in shown
    reduced = shown.split(' moved; ')[1].split('\n')[0]
    assert reduced.endswith('all-reduce of 929 KiB'), 'the gradients of the student, and no other array'
    assert not (tmp_path / 'run').exists()
