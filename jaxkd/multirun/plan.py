"""What a repeated training has to do: the jobs that train each stage once, whoever of the members needs it.

A stage whose digest (jaxkd/training/shared_stages.py) is that of another member's is trained by one of them, the owner,
and taken over by the others. Where members train side by side, one that others wait for trains their stages first, in
a job of its own, so that what happens to its further stages stops nobody. Everything follows from the folders of the
members: the same command continues, and an arm or a value that is added later trains what is new.
"""
import dataclasses
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxkd import runner
from jaxkd.data.pool import DataPool
from jaxkd.multirun.training_runs import TrainingRun, config_of
from jaxkd.runtime import files
from jaxkd.training import shared_stages

HOUR = 3600.0  # seconds


@dataclasses.dataclass(frozen=True)
class Job:
    """Some stages of a member, trained in its folder."""

    name: str
    member: TrainingRun
    config: ConfigDict  # resolved; its `stages` are those of the job
    take_over: Mapping[str, pathlib.Path]  # {stage: folder of the member that trains it}
    after: tuple[str, ...]  # names of jobs
    trained: tuple[str, ...]  # stages that it trains: neither taken over nor finished before


@dataclasses.dataclass(frozen=True)
class Plan:
    """The unfinished jobs of a repeated training, those that others wait for first."""

    members: tuple[TrainingRun, ...]
    finished: tuple[str, ...]  # names of the members with nothing left to do
    jobs: tuple[Job, ...]
    shared: int  # stages that are taken over instead of being trained
    measured: Mapping[str, float] = dataclasses.field(default_factory=dict)  # {stage: seconds}, see `with_step_times`

    @property
    def stages(self) -> int:
        """How many stages will be trained."""
        return sum(len(job.trained) for job in self.jobs)


def make(run_config: ConfigDict, members: Sequence[TrainingRun], workdir: pathlib.Path,
         side_by_side: bool = False) -> Plan:
    """The plan of a resolved config and its members; jobs run in its order, or side by side.

    ConfigError if a folder holds a run of another config.
    """
    configs = {m.name: config_of(run_config, m) for m in members}
    done = {m.name: finished_stages(configs[m.name], workdir / m.name) for m in members}
    complete = tuple(m.name for m in members if is_complete(configs[m.name], workdir / m.name))
    owners = _owners(configs, done)
    todo = [m for m in members if m.name not in complete]
    missing = {m.name: [stage for stage in configs[m.name].stages if stage not in done[m.name]] for m in todo}
    users = Counter((owners[name][stage], stage) for name, stages in missing.items() for stage in stages)
    ahead = {name: [stage for stage in stages if side_by_side and owners[name][stage] == name
                    and users[name, stage] > 1] for name, stages in missing.items()}
    names = {name: f'{name}.{"-".join(stages)}' for name, stages in ahead.items() if stages}

    def job(member: TrainingRun, name: str, stages: Sequence[str], trained: Sequence[str]) -> Job:
        own, run = owners[member.name], configs[member.name]
        needed = {*stages}.union(*(shared_stages.prior_stages(run, stage) for stage in stages))
        listed = tuple(stage for stage in run.stages if stage in needed)
        taken = {stage: workdir / own[stage] for stage in listed
                 if own[stage] != member.name and stage not in done[member.name]}
        before = {names.get(other, '') for other in (*(own[stage] for stage in taken), member.name)} - {'', name}
        alone = ConfigDict(run.to_dict() | dict(stages=listed))
        return Job(name, member, alone, taken, tuple(sorted(before)), tuple(trained))
    first = [job(m, names[m.name], ahead[m.name], ahead[m.name]) for m in todo if m.name in names]
    rest = [job(m, m.name, configs[m.name].stages, [stage for stage in missing[m.name] if stage not in ahead[m.name]
                                                    and owners[m.name][stage] == m.name]) for m in todo]
    shared = sum(map(len, missing.values())) - sum(len(j.trained) for j in (*first, *rest))
    return Plan(tuple(members), complete, (*first, *rest), shared)


def with_step_times(plan: Plan, workdir: pathlib.Path, parallel: int = 1) -> Plan:
    """The plan with the seconds that each stage takes to train, for `hours`, of stages that no member has finished: its
    step is compiled, for the training as well, and timed on data of zeros. parallel: members that share the devices.

    Raises what a stage would raise before its first step.
    """
    taken, measured, pool = _seconds(plan.members, workdir), dict[str, float](), DataPool()
    for job in plan.jobs:
        for name in job.trained:
            if name not in taken and name not in measured:
                seconds = runner.training_seconds(job.config, name, workdir / job.member.name, pool)
                measured[name] = parallel * seconds
    return dataclasses.replace(plan, measured=measured)


def finished_stages(run_config: ConfigDict, folder: pathlib.Path) -> list[str]:
    """The stages of a resolved config that are finished in a folder. ConfigError if it holds a run of another one."""
    runner.check_same_config(run_config, folder)
    finished = finished_in(folder)
    return [stage for stage in run_config.stages if stage in finished]


def finished_in(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """{stage: entry of summary.json} of the finished stages in a folder."""
    path = folder / 'summary.json'
    entries = files.read_summary(path)['stages'] if path.exists() else {}
    return {stage: entry for stage, entry in entries.items() if entry.get('finished')}


def is_complete(run_config: ConfigDict, folder: pathlib.Path) -> bool:
    """Whether all stages of a resolved config are finished in a folder, tested with its options, and reported."""
    if not ((folder / 'summary.json').exists() and (folder / 'report.html').exists()):
        return False
    summary = runner.read_summary(folder)
    return (all(summary['stages'].get(stage, {}).get('finished') for stage in run_config.stages)
            and not runner.outdated(run_config, summary))


def describe(plan: Plan, workdir: pathlib.Path, parallel: int = 1) -> str:
    """One line: members, stages that will be trained and taken over, and the hours that this takes, if they are known.
    """
    counts = [_number(len(plan.members), 'member'), f'{_number(plan.stages, "stage")} to train']
    if plan.shared:
        counts.append(f'{plan.shared} taken over from another member')
    if plan.finished:
        counts.append(f'{_number(len(plan.finished), "member")} finished before')
    return f'{", ".join(counts)}; {hours(plan, plan.jobs, workdir, parallel)}'


def _number(count: int, noun: str) -> str:
    return f'{count} {noun}{"s" * (count != 1)}'


def hours(plan: Plan, jobs: Sequence[Job], workdir: pathlib.Path, parallel: int = 1) -> str:
    """How long these jobs of a plan will take, `parallel` at a time, by the stages of equal name that are finished,
    else by their steps where these were timed.
    """
    names = [stage for job in jobs for stage in job.trained]
    if not names:
        return 'nothing is left to train'
    taken = {stage: sum(values) / len(values) for stage, values in _seconds(plan.members, workdir).items()}
    known = {**plan.measured, **taken}
    if not known:
        return 'how long that takes is not known before the first is finished'
    mean = sum(known.values()) / len(known)
    seconds = sum(known.get(stage, mean) for stage in names) / min(parallel, len(jobs))
    guessed, timed = sorted({*names} - {*known}), {*names} & {*plan.measured} - {*taken}
    notes = [*(['training alone, by a few steps of each stage'] if timed else ()),
             *([f'of {", ".join(guessed)} by the other stages'] if guessed else ())]
    return (f'about {seconds / HOUR:.1f} h' if seconds > HOUR / 2 else f'about {max(1, round(seconds / 60))} min') + (
        f' ({"; ".join(notes)})' if notes else '')


def _seconds(members: Sequence[TrainingRun], workdir: pathlib.Path) -> dict[str, list[float]]:
    """{stage: seconds of training and test in each member that trained it}."""
    taken: dict[str, list[float]] = {}
    for m in members:
        for stage, entry in finished_in(workdir / m.name).items():
            if not entry.get('trained_in'):
                taken.setdefault(stage, []).append(entry.get('seconds', 0.0) + entry.get('evaluation_seconds', 0.0))
    return taken


def _owners(configs: Mapping[str, ConfigDict], done: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """{member: {stage: the member that trains it}}: one that has finished it, else the first."""
    digests = {name: {stage: shared_stages.digest(run, stage) for stage in run.stages} for name, run in configs.items()}
    owner: dict[str, str] = {}
    for name, by_stage in digests.items():
        for stage, digest in by_stage.items():
            if digest not in owner or (stage in done[name] and stage not in done[owner[digest]]):
                owner[digest] = name
    return {name: {stage: owner[digest] for stage, digest in by_stage.items()} for name, by_stage in digests.items()}
