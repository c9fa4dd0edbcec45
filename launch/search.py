"""A search: members that Optuna proposes from the validation scores of those before (the extra `search`).

A sweep file defines `get_search()` in the place of `get_sweep()`:

    from launch.search import Search, choice, log_uniform, uniform

    def get_search():
        return Search('configs/mmpkd_cxr.py', stage='student', trials=40, space={
            'student.optim.lr': log_uniform(1e-4, 1e-2), 'student.method.alpha': uniform(0, 1)})

What is sought is the best validation score of the stage, by which it selects its step; the test part is not looked at.
Trials are the members runs/trial0000 and so on; SWEEP/optuna.journal holds what was proposed and found. The same
command continues; on SLURM each call submits as many trials as --parallel says and leaves.
"""
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxkd import config, errors
from jaxkd.runtime import versions
from launch import manifest, state
from launch.members import Member

SAMPLERS = 'tpe', 'random'


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclasses.dataclass(frozen=True)
class Search:
    """What is sought, and among what."""

    config: str
    stage: str  # whose validation score counts; it has to have `select`
    space: Mapping[str, Range | Sequence[Any]]  # {key of the config: a range, or the values to choose from}
    trials: int = 20
    sampler: str = 'tpe'  # or 'random'
    seed: int = 0  # of the sampler
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of all trials


def uniform(low: float, high: float) -> Range:
    """Numbers of a range."""
    return Range(low, high)


def log_uniform(low: float, high: float) -> Range:
    """Numbers of a range, by their logarithm."""
    return Range(low, high, log=True)


def whole(low: int, high: int) -> Range:
    """Whole numbers of a range."""
    return Range(low, high, whole=True)


def choice(*values: Any) -> tuple:
    """One of several values: numbers, words, True or False."""
    return values


def members(search: Search, proposals: Mapping[int, Mapping[str, Any]]) -> list[Member]:
    """The members of trials {number: values}; without any, one in the middle of the space, to check the config."""
    if not proposals:
        middle = {key: (r.low if r.whole else (r.low + r.high) / 2) if isinstance(r, Range) else r[0]
                  for key, r in search.space.items()}
        return [Member('trial0000', search.config, {**search.overrides, **middle})]
    return [Member(f'trial{number:04}', search.config, {**search.overrides, **values})
            for number, values in sorted(proposals.items())]


def describe(search: Search) -> str:
    """What is sought among what."""
    lines = [f'{search.trials} trials ({search.sampler}) for the validation score of {search.stage}:']
    return '\n'.join([*lines, *(f'  {key}: {values}' for key, values in search.space.items())])


def run(folder: pathlib.Path, file: str, search: Search, engine: Callable[[Sequence[manifest.Job]], int],
        parallel: int = 0, retries: int = 2) -> int:
    """Propose, run and note trials until all are done -> the exit code. search: what get_search() of the sweep file
    returned; engine: runs the jobs of a sweep.

    parallel: trials that are proposed at a time; 0: as many as run side by side on this machine.
    """
    from jaxkd.multirun import processes
    from jaxkd.runtime import log
    errors.check_choice('sampler', search.sampler, SAMPLERS)
    study, optuna = _study(folder, search)
    size = parallel or len(processes.slots())
    while True:
        _tell(study, optuna, folder, search, retries)
        trials = study.get_trials(deepcopy=False)
        running = [t for t in trials if t.state == optuna.trial.TrialState.RUNNING]
        study.sampler = _sampler(optuna, search, len(trials))
        for _ in range(max(0, min(size - len(running), search.trials - len(trials)))):
            study.ask(_distributions(optuna, search))
        proposals = {t.number: t.params for t in study.get_trials(deepcopy=False) if t.params}
        if not [t for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.RUNNING]:
            log.info(_result(study, optuna, search))
            return 0
        jobs = manifest.write(folder, file, manifest.plan(members(search, proposals)))
        code = engine(jobs)
        before = [t.number for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.RUNNING]
        _tell(study, optuna, folder, search, retries)
        after = [t.number for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.RUNNING]
        if code == errors.Interrupted.code or before == after:  # stopped; or the jobs run elsewhere
            return code


def _study(folder: pathlib.Path, search: Search) -> tuple[Any, Any]:
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as e:
        raise errors.ConfigError(f'A search needs Optuna: {versions.install("search")}.') from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    journal = JournalFileBackend(str(folder / 'optuna.journal'))
    run_config = config.load(search.config)
    if search.stage not in run_config.stages or not run_config[search.stage].select:
        raise errors.ConfigError(f'{search.config} has no stage "{search.stage}" that selects its best step by a '
                                 f'validation score.{errors.nearest(search.stage, run_config.stages)}')
    direction: Any = dict(max='maximize', min='minimize')[run_config[search.stage].mode]
    study = optuna.create_study(storage=optuna.storages.JournalStorage(journal), study_name='sweep',
                                direction=direction, load_if_exists=True)
    return study, optuna


def _sampler(optuna: Any, search: Search, trials: int) -> Any:
    """A sampler whose draws differ with the number of trials before: it begins anew when the command continues."""
    seed = search.seed * 100_003 + trials
    if search.sampler == 'random':
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # trials of one round are not alike


def _distributions(optuna: Any, search: Search) -> dict[str, Any]:
    d = optuna.distributions
    return {key: (d.IntDistribution(int(r.low), int(r.high), log=r.log) if r.whole else
                  d.FloatDistribution(r.low, r.high, log=r.log)) if isinstance(r, Range) else
            d.CategoricalDistribution(list(r)) for key, r in search.space.items()}


def _tell(study: Any, optuna: Any, folder: pathlib.Path, search: Search, retries: int) -> None:
    """Note the scores of the trials that ended."""
    jobs = {job.label: job for job in manifest.read(folder)} if (folder / 'manifest.json').exists() else {}
    for trial in study.get_trials(deepcopy=False):
        job = jobs.get(f'trial{trial.number:04}')
        if trial.state != optuna.trial.TrialState.RUNNING or job is None:
            continue
        now = state.of(folder, job)
        score = now.result.get('scores', {}).get(search.stage) if now.status == state.FINISHED else None
        if score is not None:
            study.tell(trial.number, score)
        elif now.status == state.FINISHED or (now.status == state.FAILED and not state.may_try_again(now, retries)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _result(study: Any, optuna: Any, search: Search) -> str:
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not trials:
        return 'no trial ended with a score; python -m launch.status says why'
    best = study.best_trial
    values = ' '.join(f'--config.{key}={value}' for key, value in best.params.items())
    return f'{len(trials)} trials; the best is trial{best.number:04}, {search.stage} {best.value:.4f}: {values}'
