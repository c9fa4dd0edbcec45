"""How time and memory grow with the work, each point in a fresh process; the exponent is that of the upper half.

    python -m benchmarks growth [--only batch,rows] [--out docs/results/growth.json] [--core 0]

    batch      a step of the ViT of configs/mmpkd_cxr.py against the batch
    side       the same against the side of the image (patches of 8 x 8)
    convolved  a step of the 2D U-Net of configs/sikd_acdc.py against the side of the image
    volume     a step of the 3D U-Net of configs/cpmn_pe.py against the side of the window
    teachers   a step of configs/cpkd_ct_mri.py against the number of networks that are trained along, with the student
    terms      the same with two of them against the number of loss terms
    rows       what is done before training with a table of so many rows: columns, patients, split, transforms
    report     report.html of a run with so many test cases

Batches are random, networks untrained. A drawing of each is written beside the JSON.
"""
import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.resident import peak_mb

HERE = pathlib.Path(__file__).resolve().parents[1]
OUT = HERE / 'docs' / 'results' / 'growth.json'


class Sweep(NamedTuple):
    """Points of one quantity."""

    label: str  # of the axis
    points: tuple[int, ...]
    work: Callable[[int], float]  # to which cost should be proportional
    of: str  # what `work` counts


def same(n: int) -> float:
    return float(n)


SWEEPS = {
    'batch': Sweep('batch', (8, 16, 32, 64, 128), same, 'images'),
    'side': Sweep('side of the image', (32, 64, 96, 128, 192), lambda n: (n / 8) ** 2, 'patches'),
    'convolved': Sweep('side of the image', (32, 64, 128, 256), lambda n: n ** 2, 'pixels'),
    'volume': Sweep('side of the window', (16, 24, 32, 48), lambda n: n ** 3, 'voxels'),
    'teachers': Sweep('networks', (1, 2, 3, 4, 5), same, 'networks'),
    'terms': Sweep('terms', (1, 2, 3, 4, 6), same, 'terms'),
    'rows': Sweep('rows of the table', (1_000, 10_000, 100_000, 1_000_000), same, 'rows'),
    'report': Sweep('test cases', (100, 1_000, 10_000, 30_000), same, 'cases')}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks growth', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='', help=','.join(SWEEPS))
    parser.add_argument('--out', type=pathlib.Path, default=OUT)
    parser.add_argument('--core', type=int, default=0)
    parser.add_argument('--smoke', action='store_true', help='the two smallest points of each')
    parser.add_argument('--point', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.point:
        print(json.dumps(measure(args.point[0], int(args.point[1]))))
        return
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {args.core})
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in [word for word in args.only.split(',') if word] or SWEEPS:
        found[name] = sweep(name, SWEEPS[name].points[:2] if args.smoke else SWEEPS[name].points)
        args.out.write_text(json.dumps(found, indent=1) + '\n')
        if found[name]['points']:
            args.out.with_name(f'growth_{name}.svg').write_text(drawing(found[name]))


def sweep(name: str, points: tuple[int, ...]) -> dict[str, Any]:
    """{'points': [...], 'exponents': {quantity: of the work}} of one quantity."""
    results = []
    for n in points:
        done = subprocess.run([sys.executable, '-m', 'benchmarks', 'growth', '--point', name, str(n)], cwd=HERE,
                              stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f'{name} {n}: ended with {done.returncode}', flush=True)
            continue
        results.append(json.loads(done.stdout.splitlines()[-1]) | dict(n=n, work=SWEEPS[name].work(n)))
        print(name, results[-1], flush=True)
    quantities = [k for k in (results or [{}])[0] if k not in ('n', 'work')]
    exponents = {k: exponent([p['work'] for p in results], [p[k] for p in results]) for k in quantities}
    print(name, f'exponents in {SWEEPS[name].of}:', exponents, flush=True)
    return dict(label=SWEEPS[name].label, of=SWEEPS[name].of, points=results, exponents=exponents)


def exponent(work: list[float], cost: list[float]) -> float | None:
    """The slope of log cost over log work between the middle point and the last: 1 is proportional."""
    first = (len(work) - 1) // 2
    if len(work) < 2 or min(cost[first], cost[-1]) <= 0 or work[first] == work[-1]:
        return None
    return round(math.log(cost[-1] / cost[first]) / math.log(work[-1] / work[first]), 2)


def drawing(result: dict[str, Any]) -> str:
    """An SVG with time and memory against n, both logarithms."""
    from jaxkd.report import plot
    panels = []
    for key, value in result['exponents'].items():
        panel = plot.Panel(title=f'log10 {key}, exponent {value}')
        points = [(math.log10(p['n']), math.log10(p[key])) for p in result['points'] if p[key] > 0]
        panel.line([x for x, _ in points], [y for _, y in points])
        panel.dots([x for x, _ in points], [y for _, y in points], plot.INK)
        panels.append(panel)
    return plot.standalone(plot.figure(panels, (220, 150), f'log10 {result["label"]}'))


def measure(name: str, n: int) -> dict[str, float]:
    """Costs of one point, in this process."""
    from jaxkd.runtime import log, memory
    memory.keep_freed()
    log.info = lambda *_, **__: None
    if name == 'rows':
        return rows(n)
    if name == 'report':
        return report(n)
    return step(*CONFIGS[name](n))


def step(run_config: Any, name: str) -> dict[str, float]:
    """Of a train step on a random batch: seconds, MiB of temporary buffers, FLOPs."""
    import jax
    import numpy as np

    from jaxkd import config, parallel, stages
    with tempfile.TemporaryDirectory() as workdir:
        stage = stages.build(config.resolve(run_config), name, workdir, dry=True)
    rng = np.random.default_rng(0)

    def random(a):
        if np.issubdtype(a.dtype, np.floating):
            return rng.random(a.shape).astype(a.dtype)
        return np.zeros(a.shape, a.dtype)
    state = stage.method.init(jax.random.key(0))
    batch = jax.tree.map(random, stage.context.batch)
    function = parallel.compile_step(stage.method.train_step, stage.context.parallel)
    placed = parallel.shard_batch(batch)
    compiled = function.lower(state, stage.frozen, placed).compile()  # type: ignore[attr-defined]
    flops = parallel.flops(stage.method.train_step, state, stage.frozen, placed)
    temporary = compiled.memory_analysis().temp_size_in_bytes / 2**20

    def seconds(count):
        nonlocal state
        begin = time.perf_counter()
        for _ in range(count):
            state, metrics = compiled(state, stage.frozen, placed)
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - begin) / count
    seconds(1)
    count = max(1, round(0.5 / seconds(1)))
    return dict(seconds=min(seconds(count) for _ in range(3)), temporary_mb=temporary, flops=flops)


def get_config(file: str) -> Any:
    from jaxkd import config
    return config.load(str(HERE / 'configs' / file))


def image_only(batch: int = 32, side: int = 64) -> tuple[Any, str]:
    c = get_config('mmpkd_cxr.py')
    c.unlock()
    c.data.source.patients, c.data.source.size, c.data.image.size = 20, side, side
    c.image_only.batch = batch
    return c, 'image_only'


def convolved(side: int) -> tuple[Any, str]:
    c = get_config('sikd_acdc.py')
    c.unlock()
    c.data.source.patients, c.data.source.size, c.data.image.size, c.unet.batch = 5, side, side, 4
    return c, 'unet'


def volume(side: int) -> tuple[Any, str]:
    c = get_config('cpmn_pe.py')
    c.unlock()
    c.data.source.patients, c.data.patch.size, c.nct.batch = 4, (side, side, side), 2
    return c, 'nct'


def teachers(networks: int) -> tuple[Any, str]:
    c = get_config('cpkd_ct_mri.py')
    c.unlock()
    c.data.source.patients = 20
    one = c.dpk.networks.texture
    c.dpk.networks = {f'mri{i}': one.copy_and_resolve_references() for i in range(networks - 1)}
    return c, 'dpk'


def terms(count: int) -> tuple[Any, str]:
    """1: cross-entropy alone; then feature, prediction, hardness, both calibrations."""
    c = get_config('cpkd_ct_mri.py')
    c.unlock()
    c.data.source.patients = 20
    method = c.cpkd.method
    method.auxi_w, method.fkd_w, method.rkd_w = 0.0, 1.5 * (count >= 2), 0.5 * (count >= 3)
    method.kd_mode, method.clinical = 'dynamic' if count >= 4 else 'static', count >= 6
    return c, 'cpkd'


CONFIGS: dict[str, Callable[[int], tuple[Any, str]]] = {
    'batch': image_only, 'side': lambda n: image_only(side=n), 'convolved': convolved, 'volume': volume,
    'teachers': teachers, 'terms': terms}


def rows(n: int) -> dict[str, float]:
    """Start of a stage that reads reports, a table of n with two labels: seconds, and memory above that of imports."""
    from ml_collections import ConfigDict

    from jaxkd import config
    from jaxkd.data.pool import DataPool
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        with open(root / 'cases.csv', 'w') as table:
            table.write('patient_id,image,text,edema,mass\n')
            for i in range(n):
                report, labels = f'The heart is normal. Case {i % 97}.', f'{i % 2},{int(i % 3 == 0)}'
                table.write(f'p{i // 2},images/{i}.png,"{report}",{labels}\n')
        c = ConfigDict(dict(data=dict(source=dict(name='folder', root=folder), transforms=('text', 'labels'),
                                      augment=(), cache='none')))
        resolved = config.resolve(c).data
        before, begin = peak_mb(), time.perf_counter()
        data = DataPool().get(resolved, None, {}, True, {'tokens'})
        data.partition.indices('train')
        seconds = time.perf_counter() - begin
        assert len(data.source.cases) == n
    return dict(seconds=seconds, peak_mb=peak_mb() - before)


def report(n: int) -> dict[str, float]:
    """report.html of a folder whose predictions are those of a small run, repeated: seconds and peak memory."""
    from jaxkd import main as jaxkd_main
    from jaxkd.report import html_page
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        options = ['--config.data.source.patients=60', '--config.bootstrap=50', '--config.stages=image_only']
        jaxkd_main.main(['--config', str(HERE / 'configs' / 'mmpkd_cxr.py:smoke'), '--workdir', folder, *options])
        for file in (workdir / 'predictions').glob('*_test.csv'):
            repeat(file, n)
        before, begin = peak_mb(), time.perf_counter()
        html_page.write(folder)
        return dict(seconds=time.perf_counter() - begin, peak_mb=max(peak_mb() - before, 0.0))


def repeat(file: pathlib.Path, n: int) -> None:
    """Make a table of predictions n rows long, with ids of their own and a little noise in the logits."""
    import csv
    import random
    with open(file, newline='') as source:
        table = list(csv.DictReader(source))
    draw = random.Random(0)
    with open(file, 'w', newline='') as target:
        writer = csv.DictWriter(target, table[0])
        writer.writeheader()
        for i in range(n):
            row = dict(table[i % len(table)])
            for key in row:
                if key in ('case', 'patient', 'study'):
                    row[key] = f'{row[key]}x{i}'
                elif key.startswith('logit/'):
                    row[key] = str(float(row[key]) + draw.gauss(0, 0.5))
            writer.writerow(row)


if __name__ == '__main__':
    main()
