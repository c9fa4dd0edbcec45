"""One table of the runs of a sweep: a row for each arm and stage, seeds and folds pooled, intervals over patients.

    python -m launch.collect runs/sweeps/mmpkd_alpha

An arm is the members that differ in seed, fold or left-out group alone. Written into the folder: table.csv, table.md,
table.tex, and table.parquet where pyarrow is installed. Runs that are not finished are counted and left out. Of shared
stages there is one row. Columns: arm, what differs, stage, runs (finished), of (all), patients, and for each metric its
value, <metric>_low, <metric>_high (95 % of resampled patients, mean over seeds), <metric>_sd (over seeds).
"""
import argparse
import io
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd.runtime.cli import EXIT_CODES, guarded, leave
from launch import manifest, state
from launch.manifest import Job

REPEATED = 'seed', 'data.split.folds', 'data.split.fold', 'data.split.leave_out'  # keys that differ within an arm
Row = dict[str, Any]


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser('launch.collect', description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('sweep', help='the folder of the sweep')
    parser.add_argument('--metrics', default='', metavar='NAMES',
                        help='columns of table.md and table.tex, comma-separated (default: the main ones)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    args = build_parser().parse_args(argv)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    return guarded(_run, pathlib.Path(args.sweep), tuple(filter(None, args.metrics.split(','))))


def _run(folder: pathlib.Path, chosen: tuple[str, ...]) -> int:
    from jaxkd.report import text_tables
    from jaxkd.runtime import files
    rows, metrics, varied = table(folder)
    main_metrics = list(chosen) or _main(metrics)
    files.write(folder / 'table.csv', text_tables.as_csv(rows))
    head, cells = _shown(rows, main_metrics, varied)
    files.write(folder / 'table.md', text_tables.as_markdown(head, cells))
    files.write(folder / 'table.tex', text_tables.as_latex(head, cells))
    written = ['table.csv', 'table.md', 'table.tex', *(['table.parquet'] if _write_parquet(folder, rows) else [])]
    print(text_tables.as_markdown(head, cells))
    print(f'{folder}: {", ".join(written)}')
    return 0


def table(folder: str | os.PathLike) -> tuple[list[Row], list[str], list[str]]:
    """(rows, names of the metrics, options in which the arms differ) of a sweep; see above."""
    from jaxkd.multirun import pooling
    jobs = [job for job in manifest.read(folder) if job.is_member]
    finished = {job.name for job in jobs if state.of(folder, job).status == state.FINISHED}
    varied = _varied(jobs)
    rows: list[Row] = []
    seen: set[tuple] = set()
    metrics: dict[str, None] = {}
    for arm, members in _arms(folder, jobs).items():
        usable = _complete([m for m in members if m[0].name in finished])
        tables = pooling.arms(folder, [run for _, run in usable]) if usable else {}
        base = dict(arm=arm, **{key: members[0][0].overrides.get(key) for key in varied})
        counts = dict(runs=len(usable), of=len(members))
        for stage, entries in tables.items():
            origin = tuple(sorted(job.shared.get(stage, '') for job, _ in usable))
            shared = bool(all(origin))
            if shared and (stage, origin) in seen:
                continue
            seen.add((stage, origin))
            names = [m for m in entries if '/' not in m or m.partition('/')[0] in _evaluators(entries)]
            metrics |= dict.fromkeys(names)
            row = base | (dict.fromkeys(varied) | dict(arm='shared') if shared else {}) | dict(stage=stage, **counts)
            row['patients'] = max((e.get('n_patients', 0) for e in entries.values()), default=0) or None
            for metric in names:
                entry = entries[metric]
                row[metric] = entry.get('value')
                row |= {f'{metric}_{part}': entry.get(part) for part in ('low', 'high', 'sd')}
            rows.append(row)
        if not tables:
            rows.append(base | dict(stage='', patients=None, **counts))
    return rows, list(metrics), varied


def _evaluators(entries: Mapping[str, dict]) -> set[str]:
    """Prefixes of metrics that come from summaries alone: they have values of members, and no patients."""
    return {m.partition('/')[0] for m, e in entries.items() if 'members' in e}


def _varied(jobs: Sequence[Job]) -> list[str]:
    """The overrides that differ between arms, in the order of the first member that has them."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides if key not in REPEATED)
    return [key for key in keys if len({json.dumps(job.overrides.get(key)) for job in jobs}) > 1]


def _arms(folder: str | os.PathLike, jobs: Sequence[Job]) -> dict[str, list[tuple[Job, Any]]]:
    """{name of an arm: [(job, its TrainingRun)]}."""
    from jaxkd.multirun.training_runs import TrainingRun
    from jaxkd.runtime import files
    arms: dict[str, list[tuple[Job, Any]]] = {}
    names: dict[str, str] = {}
    for job in jobs:
        tree = files.read_json(job.file(folder), 'The config of the job')
        seed, split = tree.pop('seed'), tree['data']['split']
        repeated = {key: split.pop(key) for key in ('folds', 'fold', 'leave_out')}
        group, _, value = repeated['leave_out'].partition('=')
        part = str(repeated['fold']) if repeated['folds'] else value
        name = re.sub(r'(_?)(seed|fold)\d+(?=_|$)', '', re.sub(rf'_?{re.escape(group)}_.*$', '', job.label)
                      if group else job.label).strip('_') or job.label
        arm = names.setdefault(json.dumps([tree, group, repeated['folds']], sort_keys=True), name)
        arms.setdefault(arm, []).append((job, TrainingRun(job.name, seed, repeated, part)))
    return arms


def _complete(members: list[tuple[Job, Any]]) -> list[tuple[Job, Any]]:
    """The members of the seeds with most parts: a mean over seeds takes the same patients of each."""
    parts: dict[int, set[str]] = {}
    for _, run in members:
        parts.setdefault(run.seed, set()).add(run.part)
    most = max(parts.values(), key=len, default=set())
    return [(job, run) for job, run in members if parts[run.seed] == most]


def _main(metrics: Sequence[str]) -> list[str]:
    """The metrics that fit on a page: those that decide comparisons, and the first of each further evaluator."""
    from jaxkd.report import statistics
    usual = [m for m in metrics if '/' not in m]
    main = [m for m in statistics.MAIN['dice'] if m in usual] if 'dice' in usual else [
        m for m in ('accuracy', 'balanced_accuracy', 'auroc', 'auprc') if m in usual]
    further = {m.partition('/')[0]: m for m in reversed(metrics) if '/' in m}
    return [*(main or usual[:4]), *further.values()][:6]


def _shown(rows: Sequence[Row], metrics: Sequence[str], keys: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(names of the columns, cells) of a table to look at. keys: the options in which the arms differ."""
    from jaxkd.multirun.training_runs import short_keys
    head = ['arm', *short_keys(keys), 'stage', 'runs', 'patients', *metrics]
    return head, [[str(row['arm']), *('' if row.get(k) is None else str(row[k]) for k in keys), row['stage'] or '-',
                   f'{row["runs"]}/{row["of"]}', str(row.get('patients') or ''), *(_cell(row, m) for m in metrics)]
                  for row in rows]


def _cell(row: Row, metric: str) -> str:
    """'0.812 [0.780, 0.840]', with the spread over seeds where there are no patients to resample."""
    value, low, high, sd = (row.get(f'{metric}{part}') for part in ('', '_low', '_high', '_sd'))
    if value is None:
        return ''
    spread = f' [{low:.3f}, {high:.3f}]' if low is not None and high is not None else ''
    return f'{value:.3f}{spread}' + (f' sd {sd:.3f}' if sd is not None else '')


def _write_parquet(folder: pathlib.Path, rows: Sequence[Row]) -> bool:
    """Write table.parquet; False without pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return False
    from jaxkd.runtime import files
    columns = list(dict.fromkeys(key for row in rows for key in row))
    values = {c: [row.get(c) for row in rows] for c in columns}
    mixed = {c: v if len({type(x) for x in v if x is not None} - {int, float}) == 0 or all(
        isinstance(x, str) for x in v if x is not None) else [None if x is None else str(x) for x in v]
        for c, v in values.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(mixed), buffer)
    files.write(folder / 'table.parquet', buffer.getvalue())
    return True


if __name__ == '__main__':
    leave(main())
