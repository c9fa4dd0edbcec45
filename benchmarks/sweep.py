"""A sweep of 24 tiny runs on this machine against the same runs one after the other.

    python -m benchmarks sweep DIR [--multirun | --alone N]

Eight weights of the teacher's term with three seeds (tests/fixtures/tiny_sweep.py). One after the other means a command
`jaxkd.main` for each run, or, with --multirun, `jaxkd.multirun` with the three seeds for each weight. Each way begins
with an empty compilation cache. With --alone N only the first N runs are made one after the other, and the others are
taken to last as long as the mean of these without the first, which compiles.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import time

from tests.fixtures import tiny_sweep

ALPHAS, SEEDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (0, 1, 2)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser('benchmarks sweep')
    parser.add_argument('folder', type=pathlib.Path)
    parser.add_argument('--multirun', action='store_true')
    parser.add_argument('--alone', type=int, default=24, metavar='N', help='2 to 24, without --multirun')
    args = parser.parse_args(argv)
    if not 2 <= args.alone <= 24 or (args.multirun and args.alone < 24):
        parser.error('--alone N: 2 to 24, without --multirun')
    args.folder.mkdir(parents=True)
    sweep = args.folder / 'sweep24.py'
    sweep.write_text(f'from launch.members import product, seeds\n\n\ndef get_sweep():\n    return seeds(product('
                     f'{tiny_sweep.CONFIG!r}, {{"student.method.alpha": {ALPHAS}}}), {SEEDS})\n')
    together = timed(args.folder / 'cache_a', ['launch.sweep', sweep, '--workdir', args.folder / 'sweep'])
    print(f'sweep: {together:.1f} s', flush=True)
    config = ['--config', tiny_sweep.CONFIG]
    cache = args.folder / 'cache_b'
    if args.multirun:
        seconds = [timed(cache, ['jaxkd.multirun', *config, f'--config.student.method.alpha={alpha}', '--seeds',
                                 ','.join(map(str, SEEDS)), '--workdir', args.folder / f'm{alpha}'])
                   for alpha in ALPHAS]
    else:
        runs = [(alpha, seed) for alpha in ALPHAS for seed in SEEDS]
        seconds = [timed(cache, ['jaxkd.main', *config, f'--config.student.method.alpha={alpha}',
                                 f'--config.seed={seed}', '--workdir', args.folder / f'r{alpha}_{seed}'])
                   for alpha, seed in runs[:args.alone]]
    alone, missing = sum(seconds), 0 if args.multirun else 24 - len(seconds)
    if missing:
        print(f'{len(seconds)} of 24 one after the other: {alone:.1f} s, the first {seconds[0]:.1f} s; {missing} more '
              'are extrapolated', flush=True)
        alone += missing * sum(seconds[1:]) / (len(seconds) - 1)
    print(f'one after the other: {alone:.1f} s{", extrapolated" if missing else ""}; ratio {together / alone:.2f}')


def timed(cache: pathlib.Path, command: list) -> float:
    """Seconds of `python -m ...`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, '-m', *map(str, command)], check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, 'XDG_CACHE_HOME': str(cache)})
    return time.perf_counter() - began


if __name__ == '__main__':
    main()
