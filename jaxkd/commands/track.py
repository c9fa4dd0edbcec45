"""Hand a run to MLflow, whose pages then compare it with others: options, curves, test metrics, the report.

    jaxkd track RUN [--uri sqlite:///mlflow.db] [--experiment jaxkd]

Everything is read from the folder of the run, so this can be done at any time, also while it trains; done again, it
replaces what it wrote of this folder. One MLflow run for each stage. Needs the extra `mlflow`; look with
`mlflow ui --backend-store-uri sqlite:///mlflow.db`, which is part of the package mlflow. Event files of TensorBoard are
in every run folder without this.
"""
import argparse
import hashlib
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from jaxkd.runtime.cli import EXIT_CODES, guarded, leave

NOT_METRICS = ('stage', 'step')
LONGEST, BATCH = 500, 100  # characters of a parameter, parameters of a request: limits of MLflow
METRICS = 1000  # of a request, likewise


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser('jaxkd track', description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', metavar='RUN', help='the --workdir of a run')
    parser.add_argument('--uri', default='sqlite:///mlflow.db', help='where MLflow keeps it: a database or a server')
    parser.add_argument('--experiment', default='jaxkd', help='the experiment that the run belongs to')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    return guarded(_run, build_parser().parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    from jaxkd import errors
    from jaxkd.report import run_folder
    from jaxkd.runtime import versions
    run = run_folder.read(args.run)
    try:
        import mlflow
    except ModuleNotFoundError as e:
        raise errors.ConfigError(f'MLflow is not installed: {versions.install("mlflow")}.') from e
    try:
        names = write(run, mlflow.MlflowClient(tracking_uri=args.uri), args.experiment)
    except mlflow.MlflowException as e:
        raise errors.CannotWrite(f'MLflow at {args.uri}: {" ".join(str(e).split())[:300]}') from e
    print(f'{args.uri}, experiment {args.experiment}: {", ".join(names)}')
    return 0


def write(run: Any, client: Any, experiment: str) -> list[str]:
    """Write a Run (jaxkd/report/run_folder.py) with an MlflowClient, one MLflow run a stage -> their names."""
    from mlflow.entities import Metric, Param

    from jaxkd.config.option_docs import dotted
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    folder, names = str(run.folder.resolve()), []
    key = hashlib.sha256(folder.encode()).hexdigest()[:16]  # a path may hold what a query does not
    for old in client.search_runs([experiment_id], f"tags.`jaxkd.key` = '{key}'"):
        client.delete_run(old.info.run_id)
    for stage in run.names:
        names.append(f'{run.folder.name}/{stage}')
        tags = {'jaxkd.key': key, 'jaxkd.folder': folder, 'jaxkd.stage': stage}
        run_id = client.create_run(experiment_id, tags=tags, run_name=names[-1]).info.run_id
        params = [Param(_name(key), str(value)[:LONGEST]) for key, value in dotted(run.options(stage)).items()]
        for i in range(0, len(params), BATCH):
            client.log_batch(run_id, params=params[i:i + BATCH])
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value, step in _metrics(run, stage)]
        for i in range(0, len(metrics), METRICS):
            client.log_batch(run_id, metrics=metrics[i:i + METRICS])
        if (report := run.folder / 'report.html').exists():
            client.log_artifact(run_id, str(report))
        client.set_terminated(run_id, 'FINISHED' if stage in run.stages else 'RUNNING')
    return names


def _metrics(run: Any, stage: str) -> Iterator[tuple[str, float, int]]:
    """(name, value, step) of the log and of the test, without what is not finite."""
    for line in run.lines:
        if line['stage'] == stage:
            yield from ((_name(k), float(v), line['step']) for k, v in line.items() if k not in NOT_METRICS
                        and isinstance(v, (int, float)) and math.isfinite(v))
    for which, tests in run.stages.get(stage, {}).get('test', {}).items():
        step = run.stages[stage].get(which, {}).get('step', 0)
        for metric, entry in tests.items():
            yield from ((_name(f'test/{which}/{metric}{suffix}'), float(entry[key]), step)
                        for key, suffix in (('value', ''), ('low', '/low'), ('high', '/high'))
                        if isinstance(entry.get(key), (int, float)) and math.isfinite(entry[key]))


def _name(text: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r'[^\w\-. /]', '_', text)


if __name__ == '__main__':
    leave(main())
