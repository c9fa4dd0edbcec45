"""Speed and memory beside PyTorch and beside another checkout, as ratios of one interleaved run.

    python -m benchmarks [--only NAME,...] [--out FILE.json] [--against TREE] [--torch PYTHON] [--rounds 5] [--cores 0]
    python -m benchmarks --table FILE.json          the table of docs/results/speed.md
    python -m benchmarks growth|images|volumes|sweep|predict --help

Processes that stay (resident.py) are asked in turn, so that a machine that slows down does so for both sides; a ratio
is the median over the rounds, with the smallest and the largest. On a CPU everything runs on the cores of --cores, with
as many threads. On a GPU or TPU the same rows run there, and the share of its peak (MFU) is printed. Rows for which
PyTorch, another tree or an accelerator is missing are left out, and say so. --out keeps the rows of other runs that the
file holds already.

    --torch    a Python that has PyTorch, and MONAI for rows of prediction (default: this one); twins: torch_twins.py
    --against  a checkout of jaxkd as it was, e.g. of git worktree add ../before COMMIT
"""
import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import commands, resident, rows, table

HERE = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = ('growth', 'images', 'volumes', 'sweep', 'predict')
SCHEMA = 1


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in SCRIPTS:
        importlib.import_module(f'benchmarks.{argv[0]}').main(argv[1:])
        return 0
    args = parse(argv)
    if args.table:
        table.write(json.loads(args.table.read_text()))
        return 0
    if args.cores and hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, args.cores)
    os.environ.setdefault('OMP_NUM_THREADS', str(len(args.cores) or os.cpu_count()))
    chosen, results = rows.chosen(args.only), list[dict[str, Any]]()
    for group in groups(chosen):
        for result in measured(group, args):
            print(table.line(result), flush=True)
            results.append(result)
            write(args.out, results, args)
    for row in chosen:
        if row.of:
            print(table.line(derived(row, results)), flush=True)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    def words(text):
        return [word for word in text.split(',') if word]
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', type=words, default=[], metavar='NAME,...', help=', '.join(rows.ROWS))
    parser.add_argument('--out', type=pathlib.Path, metavar='FILE.json')
    parser.add_argument('--against', type=pathlib.Path, metavar='TREE')
    parser.add_argument('--torch', default=sys.executable, metavar='PYTHON')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seconds', type=float, default=2.0, help='that each side is asked in a round')
    parser.add_argument('--cores', type=lambda text: [int(n) for n in words(text)], default=[0],
                        help="of the CPU; '' for all")
    parser.add_argument('--smoke', action='store_true', help='tiny networks, for a test of the benchmarks')
    parser.add_argument('--table', type=pathlib.Path, metavar='FILE.json')
    return parser.parse_args(argv)


def groups(chosen: Sequence[rows.Row]) -> list[list[rows.Row]]:
    """Rows that share a side are measured together, derived ones last."""
    found: list[list[rows.Row]] = []
    for row in (row for row in chosen if not row.of):
        together = [g for g in found if any({*r.sides} & {*row.sides} for r in g)]
        found = [g for g in found if g not in together] + [[*sum(together, []), row]]
    return found


def measured(group: Sequence[rows.Row], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of rows, in the form of the JSON file."""
    sides = list(dict.fromkeys(side for row in group for side in row.sides))
    residents = {s: w for s in sides if s.kind != 'command' and (w := worker(s, args))}
    answers, facts, left_out = resident.in_turn({s.label: w for s, w in residents.items()}, args.rounds, args.seconds)
    fresh = [s for s in sides if s.kind == 'command' and tree(s, args)]
    for _ in range(args.rounds):
        for side in fresh:
            if side.label not in left_out:
                try:
                    answers.setdefault(side.label, []).append(commands.timed(side.case, tree(side, args), args.smoke))
                except RuntimeError as e:
                    left_out[side.label] = str(e)
    missing = {s.label: '--against names no tree' for s in sides if s.tree == 'against' and not args.against}
    return [result(row, answers, facts, missing | left_out, args.smoke) | settings(args) for row in group]


def worker(side: rows.Side, args: argparse.Namespace) -> resident.Worker | None:
    """The command of a resident; None where there is nothing to run."""
    folder = tree(side, args)
    if folder is None:
        return None
    smoke = ('--smoke',) if args.smoke else ()
    script = str(HERE / 'benchmarks' / f'{"torch_twins" if side.kind == "torch" else side.kind}.py')
    threads = str(len(args.cores) or os.cpu_count())
    if side.kind == 'monai':
        script = str(HERE / 'benchmarks' / 'sliding.py')
        return resident.Worker((args.torch, script, side.case, '--monai', '--threads', threads, *smoke))
    if side.kind == 'torch':
        compiled = ('--compile',) if side.case == 'vit_b' else ()
        return resident.Worker((args.torch, script, side.case, '--mode', side.mode, '--threads', threads, *compiled))
    env = (('PYTHONPATH', str(folder)), ('TF_CPP_MIN_LOG_LEVEL', '2'), ('XLA_PYTHON_CLIENT_PREALLOCATE', 'false'))
    if side.kind == 'metrics':
        case = f'{side.case.partition("_")[0]}_smoke' if args.smoke else side.case
        return resident.Worker((sys.executable, script, case), env)
    return resident.Worker((sys.executable, script, side.case, '--mode', side.mode, *smoke), env)


def tree(side: rows.Side, args: argparse.Namespace) -> pathlib.Path | None:
    return HERE if side.tree == 'here' else args.against and args.against.resolve()


def result(row: rows.Row, answers: dict[str, list], facts: dict[str, dict], left_out: dict[str, str],
           smoke: bool) -> dict[str, Any]:
    """One entry of 'rows' in the JSON file."""
    entry: dict[str, Any] = dict(name=row.name, title=row.title, quantity=row.quantity, at_least=row.at_least,
                                 at_most=row.at_most)
    entry['sides'] = [side_result(side, answers[side.label], facts.get(side.label, {}))
                      for side in row.sides if answers.get(side.label)]
    if reasons := [f'{side.label}: {left_out.get(side.label, "not measured")}' for side in row.sides
                   if not answers.get(side.label)]:
        return entry | dict(left_out='; '.join(reasons))
    over, under = ([answer[row.quantity] for answer in answers[side.label]] for side in row.sides)
    ratio = resident.spread([a / b for a, b in zip(over, under)])
    return entry | dict(ratio=ratio, reached=row.reached(ratio['median'])) | ({} if smoke else agreement(row, facts))


def side_result(side: rows.Side, answers: Sequence[dict], facts: dict) -> dict[str, Any]:
    said: dict[str, Any] = dict(label=side.label, peak_mb=max(a['peak_mb'] for a in answers))
    said |= {k: resident.spread([a[k] for a in answers]) for k in ('seconds', 'cpu', 'faults') if k in answers[0]}
    said |= {k: v for k, v in facts.items() if k not in ('numbers', 'peak_mb')}
    if 'flops' in facts:
        said['flop_per_s'] = facts['flops'] / said['seconds']['median']
        if 'peak_flops' in facts:
            said['mfu'] = said['flop_per_s'] / facts['peak_flops']
    return said


def agreement(row: rows.Row, facts: dict[str, dict]) -> dict[str, Any]:
    """What shows that both sides do the same: numbers of parameters, or the largest difference of results."""
    over, under = (facts.get(side.label, {}) for side in row.sides)
    if 'numbers' in over and 'numbers' in under:
        return dict(difference=difference(over['numbers'], under['numbers']))
    if row.over and row.over.kind == 'torch' and 'parameters' in over:
        return dict(same_parameters=over['parameters'] == under['parameters'])
    return {}


def difference(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest difference; nan is equal to nan alone, and other lengths are infinitely different."""
    if len(a) != len(b) or any((x != x) != (y != y) for x, y in zip(a, b)):
        return float('inf')
    return max((abs(x - y) for x, y in zip(a, b) if x == x), default=0.0)


def derived(row: rows.Row, results: Sequence[dict]) -> dict[str, Any]:
    """The largest ratio of peak memory among the rows `row.of`."""
    peaks = {r['name']: r['sides'][1]['peak_mb'] / r['sides'][0]['peak_mb'] for r in results
             if r['name'] in row.of and 'ratio' in r}
    entry = dict(name=row.name, title=row.title, quantity='peak_mb', at_least=row.at_least, at_most=row.at_most,
                 sides=[])
    if not peaks:
        return entry | dict(left_out='no row with a twin was measured')
    largest = max(peaks.values())
    ratio = dict(median=largest, min=min(peaks.values()), max=largest)
    return entry | dict(ratio=ratio, reached=row.reached(largest), each=peaks)


def write(out: pathlib.Path | None, results: Sequence[dict], args: argparse.Namespace) -> None:
    """Merge the results into the file."""
    if not out:
        return
    before = json.loads(out.read_text()) if out.exists() else {}
    merged = {r['name']: r for r in (*before.get('rows', []), *results)}
    merged |= {row.name: derived(row, list(merged.values())) for row in rows.ROWS.values() if row.of}
    ordered = [merged[name] for name in rows.ROWS if name in merged]
    out.write_text(json.dumps(dict(schema=SCHEMA, machine=machine(args), rows=ordered), indent=1) + '\n')


def machine(args: argparse.Namespace) -> dict[str, Any]:
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    versions = {}
    for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy'):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return dict(cpu=cpu(), cores=os.cpu_count(), used_cores=args.cores, memory_gib=round(memory, 1),
                system=f'{platform.system()} {platform.machine()}', python=platform.python_version(), versions=versions)


def cpu() -> str:
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    model = next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), 'unknown CPU')
    flags = next((line for line in lines if line.startswith('flags')), '').split()
    return f'{model} ({next((f for f in ("avx512f", "avx2") if f in flags), "no AVX2")})'


def settings(args: argparse.Namespace) -> dict[str, Any]:
    against = commit(args.against) if args.against else None
    return dict(measured=datetime.date.today().isoformat(), rounds=args.rounds, seconds=args.seconds, smoke=args.smoke,
                commit=commit(HERE), against=against)


def commit(folder: pathlib.Path) -> str:
    done = subprocess.run(['git', '-C', str(folder), 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True)
    return done.stdout.strip() or 'unknown'


if __name__ == '__main__':
    sys.exit(main())
