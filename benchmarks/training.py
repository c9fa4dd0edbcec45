"""A worker that trains: the real step of a stage of a config, with the jaxkd and the configs of PYTHONPATH.

    python benchmarks/training.py CASE [--mode step|loop|input] [--smoke]

step: on one batch that stays on the device; loop: with input, as training runs it; input: batches alone, until they
are on the device. Teachers are trained for two steps. --smoke: tiny networks.
"""
import argparse
import functools
import importlib.util
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from resident import serve  # beside this script

ACCELERATOR = ('vit_b',)  # cases that would take minutes a step on a CPU


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('case', choices=[*CASES, 'matmul'])
    parser.add_argument('--mode', choices=('step', 'loop', 'input'), default='step')
    parser.add_argument('--smoke', action='store_true')
    args = parser.parse_args()
    from jaxkd.runtime import log, memory
    memory.keep_freed()  # as jaxkd.main does
    log.info = lambda *_, **__: None
    import jax
    if args.case in ACCELERATOR and jax.default_backend() == 'cpu':
        return serve(lambda _: None, left_out='needs an accelerator')
    if args.case == 'matmul':
        return matmul(args.smoke)
    with tempfile.TemporaryDirectory() as workdir:
        state, step, frozen, batch, data, stage = prepare(args.case, pathlib.Path(workdir), args.smoke)
        run, facts = training(state, step, frozen, batch, data, stage, args.mode)
        serve(run, **facts, device=jax.devices()[0].device_kind, backend=jax.default_backend(), jax=jax.__version__)


def prepare(case: str, workdir: pathlib.Path, smoke: bool) -> tuple[Any, ...]:
    """(state, step, frozen, batch, iterator of batches, stage)."""
    from jaxkd import config, parallel, stages, train
    from jaxkd.data import loader
    from jaxkd.data.pool import DataPool
    file, name, edit = CASES[case]
    run_config = get_config(file)
    edit(run_config, name)
    if smoke:
        shrink(run_config, name)
    pool = DataPool()
    for teacher in run_config[name].get('teachers', {}).values():
        short = run_config.copy_and_resolve_references()
        short[teacher.stage].update(length='2 steps', eval_every='2 steps', log_every='2 steps')
        stage = stages.build(config.resolve(short), teacher.stage, workdir, pool=pool)
        train.train(stage, workdir, tensorboard=False)
    stage = stages.build(config.resolve(run_config), name, workdir, pool=pool)
    data = loader.train_loader(stage.data, stage.config.batch, stage.seed, 0, stage.cached_outputs)
    step = parallel.compile_step(stage.method.train_step, stage.context.parallel)
    return stage.initial(), step, stage.frozen, next(data), data, stage


def training(state: Any, step: Callable, frozen: dict, batch: dict, data: Any, stage: Any,
             mode: str) -> tuple[Callable[[int], None], dict[str, Any]]:
    """(run, facts) for `serve`."""
    import jax

    from jaxkd import parallel
    place = functools.partial(parallel.shard_batch, mode=stage.context.parallel)
    placed = jax.block_until_ready(place(batch))
    facts = dict(parameters=sum(a.size for a in jax.tree.leaves(state.params)), batch=stage.config.batch,
                 shapes={k: str(v.shape) for k, v in batch.items() if hasattr(v, 'shape')}, dtype=stage.config.dtype)
    if mode == 'step':
        data.close()
        facts |= dict(flops=parallel.flops(stage.method.train_step, state, frozen, placed))
        if accelerator := parallel.local_accelerator():
            facts |= dict(peak_flops=accelerator.rate(stage.config.dtype) * jax.device_count())

    def run(repetitions):
        nonlocal state
        metrics = None
        for _ in range(repetitions):
            rows = placed if mode == 'step' else place(next(data))
            if mode == 'input':
                jax.block_until_ready(rows)
            else:
                state, metrics = step(state, frozen, rows)
        jax.block_until_ready((state, metrics))
    return run, facts


def matmul(smoke: bool) -> None:
    """The three products of ViT-Ti's larger linear layer, forward and backward, as a network gives them to XLA."""
    import jax
    import jax.numpy as jnp
    tokens, width = (64, 16) if smoke else (8 * 197, 192)
    keys = jax.random.split(jax.random.key(0), 2)
    x, w = jax.random.normal(keys[0], (tokens, width)), jax.random.normal(keys[1], (width, 4 * width))

    @jax.jit
    def products(x, w):
        y, back = jax.vjp(jnp.matmul, x, w)
        return back(y)

    def run(repetitions):
        for _ in range(repetitions):
            out = products(x, w)
        jax.block_until_ready(out)
    serve(run, flops=3 * 2 * tokens * width * 4 * width, device=jax.devices()[0].device_kind,
          backend=jax.default_backend(), jax=jax.__version__, dtype='float32')


def get_config(name: str) -> Any:
    """The config `file.py` or `file.py:variant` beside the jaxkd that is imported."""
    import jaxkd
    file, _, variant = name.partition(':')
    path = pathlib.Path(jaxkd.__file__).parents[1] / 'configs' / file
    spec = importlib.util.spec_from_file_location('config', path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def patients(number: int) -> Callable[[Any, str], None]:
    def edit(c, name):
        c.data.source.patients = number
    return edit


def radiographs(batch: int, **model: Any) -> Callable[[Any, str], None]:
    """224 x 224 pixels, a network of its own."""
    from ml_collections import ConfigDict

    def edit(c, name):
        c.data.source.update(patients=40, size=224)
        c.data.image = dict(size=224, fit='squash')
        dtype = model.pop('dtype', 'float32')
        c[name].model = ConfigDict(model)  # `update` would keep options of the model before
        c[name].evals = ConfigDict(dict(classification={}))
        c[name].update(batch=batch, dtype=dtype)
    return edit


def volumes_64(c: Any, name: str) -> None:
    """Crops of 64^3 voxels for a ResNet-18 without projection."""
    from ml_collections import ConfigDict
    c.data.source.update(patients=24, size=64, depth=64)
    c.data.volume = dict(spacing=(1.03, 1.03, 0.94), size=(64, 64, 64), margin=(0, 0, 0))
    c.data.crop.size = (64, 64, 64)
    c[name].model, c[name].batch = ConfigDict(dict(name='resnet', features=0, stem_stride=(2, 2, 2))), 2


def shrink(c: Any, name: str) -> None:
    """Everything so small that a step is nothing: for a test of the benchmark itself."""
    from ml_collections import ConfigDict
    tiny = dict(vit=dict(name='vit', width=8, depth=1, heads=1, mlp=1, patch=8, std=(0.5,)),
                resnet=dict(name='resnet', stem='small', width=0.1, features=8),
                text=dict(name='text', width=8, depth=1, heads=1, length=96, vocab=1024))
    c.data.source.patients = min(c.data.source.patients, 24)
    if c.data.source.get('size') == 224:
        c.data.source.size, c.data.image.size = 32, 32
    elif c.data.source.get('size') == 64 and 'crop' in c.data:
        c.data.source.update(size=32, depth=14)
        c.data.volume = dict(spacing=(2.1, 2.1, 4.3), size=(24, 24, 10), margin=(3, 3, 2))
        c.data.crop.size = (24, 24, 10)
    for stage in [c[name], *(c[t.stage] for t in c[name].get('teachers', {}).values())]:
        stage.batch = min(stage.batch, 4)
        for network in (stage, *stage.get('networks', {}).values()):
            kind = network.model.name
            dims = {'dims': 2, 'norm': 'batch'} if network.model.get('dims') == 2 and kind == 'resnet' else {}
            if kind == 'unet':
                network.model.update(channels=(2, 2, 2), blocks=(1,))
            else:
                network.model = ConfigDict(tiny[kind] | dims)


def small_windows(c: Any, name: str) -> None:
    """The windows and networks that the default config had before 0.6.0, and that the PyTorch twin has."""
    patients(24)(c, name)
    c.data.scan.spacing, c.data.patch.size = (2.0, 2.0, 2.0), (24, 24, 16)
    for network in (c[name], *c[name].get('networks', {}).values()):
        network.model.update(norm='batch', classify_at='coarsest')


TORCHVISION = dict(name='resnet', dims=2, features=0, norm='batch', activation='relu', weight_standardisation=False,
                   stem_stride=(2, 2, 2), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CASES: dict[str, tuple[str, str, Callable[[Any, str], None]]] = {
    'mmpkd': ('mmpkd_cxr.py', 'student', patients(120)),
    'image_only': ('mmpkd_cxr.py', 'image_only', patients(120)),
    'vit_ti': ('mmpkd_cxr.py', 'image_only', radiographs(8, name='vit', size='Ti', patch=16, channels=3)),
    'vit_s': ('mmpkd_cxr.py', 'image_only', radiographs(8, name='vit', size='S', patch=16, channels=3)),
    'vit_b': ('mmpkd_cxr.py', 'student', radiographs(64, name='vit', size='B', patch=16, channels=3, dtype='bfloat16')),
    'resnet18_2d': ('mmpkd_cxr.py', 'image_only', radiographs(8, **TORCHVISION)),
    'resnet18_3d': ('cpkd_ct_mri.py', 'ct_only', volumes_64),
    'ct_only': ('cpkd_ct_mri.py', 'ct_only', patients(100)),
    'cpkd': ('cpkd_ct_mri.py', 'cpkd', patients(100)),
    'nct': ('cpmn_pe.py', 'nct', small_windows),
    'cpmn': ('cpmn_pe.py', 'cpmn', small_windows),
    'unet_2d': ('sikd_acdc.py', 'unet', patients(20)),
    'sikd': ('sikd_acdc.py', 'sikd', patients(20))}


if __name__ == '__main__':
    main()
