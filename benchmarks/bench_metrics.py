"""Processor time of the metrics of an evaluation, on generated data. A script, not a test.

    python benchmarks/bench_metrics.py [--rounds 5] [--against DIR]

    bootstrap     metrics.classification.table: AUROC, AUPRC, Brier score and two ECE of 8 labels in 1,000 resamples of
                  patients; of all labels, and where a fifth of them is missing and a patient has two images
    localisation  evaluators.localisation without its network: upsampling of patch maps (mean, rollout, gradient, four
                  heads, untrained), controls, thresholds on validation regions, all metrics of test regions
`--against` times another checkout of jaxkd, too. Every time is that of a fresh process on one core, the two in turns;
the ratio is the median over the rounds (smallest and largest), and the numbers of both are compared.
"""
import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parents[1]
LABELS = [f'label{c}' for c in range(8)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--against', type=pathlib.Path, metavar='DIR', help='another checkout of jaxkd')
    parser.add_argument('--core', type=int, default=0)
    parser.add_argument('--case', choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})
    if args.case:
        return worker(args.case)
    trees = [HERE, *([args.against.resolve()] if args.against else [])]
    print(f'{args.rounds} rounds, one core, seconds of the processor, median'
          f'{", and the ratio to " + str(trees[1]) if args.against else ""}')
    for case in CASES:
        row(case, trees, args.rounds, args.core)


def row(case, trees, rounds, core):
    """Print the line of one case."""
    results = [[timed(case, tree, core) for tree in trees] for _ in range(rounds)]
    seconds = [statistics.median(r['seconds'] for r in of_tree) for of_tree in zip(*results)]
    line = f'{case:58}' + ''.join(f'{s:9.3f}' for s in seconds)
    if len(trees) == 2:
        ratios = sorted(new['seconds'] / other['seconds'] for new, other in results)
        (new, other), *_ = results
        line += (f'   {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}); largest difference of '
                 f'{len(new["numbers"])} numbers {difference(new["numbers"], other["numbers"]):.1e}')
    print(line, flush=True)


def timed(case, tree, core):
    """{'seconds', 'numbers'} of a fresh process with the jaxkd of `tree`."""
    env = dict(os.environ, PYTHONPATH=str(tree), JAX_PLATFORMS='cpu', OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1')
    done = subprocess.run([sys.executable, __file__, '--case', case, '--core', str(core)], env=env, check=True,
                          stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def worker(case):
    import jaxkd
    if not pathlib.Path(jaxkd.__file__).is_relative_to(os.environ['PYTHONPATH']):
        sys.exit(f'{jaxkd.__file__} is not that of {os.environ["PYTHONPATH"]}.')
    f = CASES[case]()
    begin = time.process_time()
    numbers = f()
    json.dump(dict(seconds=time.process_time() - begin, numbers=[float(v) for v in numbers]), sys.stdout)


def difference(a, b):
    """The largest difference; nan is equal to nan alone, and other lengths are infinitely different."""
    if len(a) != len(b) or any((x != x) != (y != y) for x, y in zip(a, b)):
        return float('inf')
    return max(abs(x - y) for x, y in zip(a, b) if x == x)


def bootstrap(cases, images=1, missing=0.0):
    import numpy as np

    from jaxkd.metrics import classification
    rng = np.random.default_rng(0)
    label = (rng.random((cases, len(LABELS))) < 0.2).astype(float)
    logits = (rng.normal(size=label.shape) + label).astype(np.float32)
    weight = (rng.random(label.shape) >= missing).astype(float)
    table = functools.partial(classification.table, logits, label, weight)
    table = functools.partial(table, np.arange(cases) // images, LABELS)
    table(n=1)  # warm
    return lambda: [entry[key] for entry in table().values() for key in ('value', 'low', 'high', 'replicates')]


def localisation(size, images):
    """Of `images` test images, half as many validation images, and 1 to 5 regions (3 on average) in each."""
    import numpy as np

    from jaxkd.evaluators import localisation as evaluator
    from jaxkd.metrics import localisation as metrics
    rng, g = np.random.default_rng(0), 8
    wanted, heads = ('last_mean', 'rollout', 'grad_attn', 'heads'), [f'head{h}' for h in range(4)]

    def patch_maps(predict, indices, hp, names, labels):  # instead of a network
        names = ['last_mean', 'rollout', *heads] if 'heads' in names else ['last_mean']
        maps = {name: rng.dirichlet(np.full(g * g, 0.5), len(indices)).reshape(-1, g, g) for name in names}
        gradients = rng.dirichlet(np.full(g * g, 0.5), (len(indices), len(labels)))
        return dict(index=np.array(indices), **maps, grad_attn=gradients.reshape(*gradients.shape[:2], g, g))
    evaluator._patch_maps = patch_maps

    def region(index):
        box = np.concatenate([rng.uniform(0, 0.7, 2), rng.uniform(0.05, 0.3, 2)]) * size
        return evaluator.Region(index, f'case{index}', f'p{index}', int(rng.integers(len(LABELS))), box,
                                metrics.roi_mask(box, size))
    regions = {role: [region(i) for i in range(n) for _ in range(rng.integers(1, 6))]
               for role, n in (('test', images), ('val', images // 2))}
    controls = metrics.control_maps(size) | {'mean_map': rng.dirichlet(np.ones(size**2)).reshape(size, size)}

    def maps_of(role):
        initial = evaluator._maps(None, regions[role], None, size, ('last_mean',))['last_mean']
        constant = {name: functools.partial(evaluator._constant, m) for name, m in controls.items()}
        return evaluator._maps(None, regions[role], None, size, wanted) | {'untrained': initial} | constant
    maps = {role: maps_of(role) for role in regions}

    def numbers():
        rows = evaluator._measured(maps['test'], maps['val'], regions, LABELS)
        return [value for of_map in rows.values() for r in of_map for value in r.values()]
    return numbers


CASES = {
    'bootstrap, 20,000 cases': functools.partial(bootstrap, 20_000),
    'bootstrap, 20,000 cases, 2 a patient, 20 % missing': functools.partial(bootstrap, 20_000, 2, 0.2),
    'bootstrap, 450 cases': functools.partial(bootstrap, 450),
    'localisation, 64 x 64, 100 images': functools.partial(localisation, 64, 100),
    'localisation, 224 x 224, 20 images': functools.partial(localisation, 224, 20)}


if __name__ == '__main__':
    main()
