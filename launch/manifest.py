"""The plan of a sweep: its jobs, each a run in a folder of its own, and which of them train stages for others.

SWEEP/  manifest.json      what is below, written last and in one step
        configs/           the resolved config of each job, as JSON
        runs/<member>/     the folder of a usual run, with attempts.json and result.json
        shared/<stage>-<digest>/   likewise, of a stage that several members have in common
        teacher_outputs/   cached outputs of teachers, which runs/<member>/teacher_outputs leads to
        logs/              what each job printed
"""
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.config import loading
from jaxkd.runtime import files
from launch.members import Member

FORMAT = 1
NAME = r'[\w][\w.-]*'
Path = str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    name: str  # its folder in that of the sweep: 'runs/<member>' or 'shared/<stage>-<digest>'
    digest: str  # sha256 of the file of its resolved config
    shared: Mapping[str, str]  # {stage: name of the job that trains it}
    config: str = ''  # of a member: the config and the overrides that it was made of
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    is_member = property(lambda self: self.name.startswith('runs/'))
    label = property(lambda self: self.name.partition('/')[2])
    after = property(lambda self: sorted({*self.shared.values()}))  # names of jobs

    def file(self, folder: Path) -> pathlib.Path:
        """Where its resolved config is."""
        return pathlib.Path(folder) / 'configs' / f'{self.name.replace("/", ".", 1)}.json'

    def log(self, folder: Path) -> pathlib.Path:
        """Where its output goes."""
        return pathlib.Path(folder) / 'logs' / f'{self.name.replace("/", ".", 1)}.log'

    def load(self, folder: Path) -> ConfigDict:
        """Its resolved config. Damaged if that is not the one of the manifest."""
        path = self.file(folder)
        if hashlib.sha256(_read(path)).hexdigest() != self.digest:
            raise errors.Damaged(f'{path} is not the config that the manifest of the sweep names. Run the command that '
                                 'made the sweep once more.')
        return config.load(path)


Plan = Sequence[tuple[Job, ConfigDict]]  # those that train stages for others come first


def functions_of(path: str | pathlib.Path) -> dict[str, Any]:
    """What a sweep file defines. ConfigError for a file with neither get_sweep() nor get_search()."""
    path = loading.existing(path)
    functions = vars(loading.import_file(path))
    if not {'get_sweep', 'get_search'} & {*functions}:
        raise errors.ConfigError(f'{path} defines no get_sweep() that returns a list of members, see '
                                 'launch/members.py.')
    return functions


def members_of(functions: Mapping[str, Any], path: str | pathlib.Path) -> list[Member]:
    """The members that get_sweep() of a sweep file returns. functions: of that file, see `functions_of`.

    ConfigError for one that returns something else.
    """
    try:
        return [m if isinstance(m, Member) else Member(**m) for m in functions['get_sweep']()]
    except TypeError as e:
        raise errors.ConfigError(f'{path}: get_sweep() must return a list of members with name, config and overrides '
                                 f'({e}).') from e


def plan(members: Sequence[Member]) -> Plan:
    """The jobs of a sweep with their resolved configs. ConfigError for a member that cannot be."""
    from jaxkd.training import shared_stages  # imports jax, which the parsing of a command line does without
    if not members:
        raise errors.ConfigError('The sweep has no member.')
    counts = Counter(member.name.casefold() for member in members)
    for member in members:
        if counts[member.name.casefold()] > 1 or not re.fullmatch(NAME, member.name):
            raise errors.ConfigError(f'Member "{member.name}": each needs another name, of letters, digits, _, . and -,'
                                     ' which begins with a letter or digit.')
    resolved = [_resolved(member) for member in members]
    digests = [{stage: shared_stages.digest(run, stage) for stage in run.stages} for run in resolved]
    uses = Counter(digest for by_stage in digests for digest in by_stage.values())
    names: dict[str, str] = {}  # digest of a stage -> the job that trains it
    jobs = []
    for run, by_stage in zip(resolved, digests):
        for stage, digest in by_stage.items():
            if uses[digest] > 1 and digest not in names:
                names[digest] = f'shared/{stage}-{digest[:12]}'
                alone = _stage_alone(run, stage)
                jobs.append((Job(names[digest], _sha256(alone),
                                 {s: names[by_stage[s]] for s in alone.stages if s != stage}), alone))
    for member, run, by_stage in zip(members, resolved, digests):
        shared = {stage: names[digest] for stage, digest in by_stage.items() if digest in names}
        jobs.append((Job(f'runs/{member.name}', _sha256(run), shared, member.config, member.overrides), run))
    return jobs


def write(folder: Path, source: str, jobs: Plan) -> list[Job]:
    """Write the manifest of a sweep, or extend it by further members -> its jobs.

    ConfigError, with the differences, where members of before are missing or differ.
    """
    folder = pathlib.Path(folder)
    if (folder / 'manifest.json').exists():
        before = {job.name: job for job in read(folder)}
        _check_only_added(folder, before, jobs)
        jobs = [(before[job.name] if _same_stage(folder, before, job) else job, run) for job, run in jobs]
    for job, run in jobs:
        if not _is_written(folder, job):
            files.write(job.file(folder), _text(run))
    rows = [dict(name=job.name, digest=job.digest, shared=dict(job.shared), config=job.config,
                 overrides=dict(job.overrides)) for job, _ in jobs]
    files.write_json(folder / 'manifest.json', dict(format=FORMAT, sweep=str(source), jobs=rows))
    return [job for job, _ in jobs]


def read(folder: Path) -> list[Job]:
    """The jobs of a sweep. MissingInput without a manifest, Damaged for another file of that name."""
    path = pathlib.Path(folder) / 'manifest.json'
    if not path.exists():
        raise errors.MissingInput(f'{folder} holds no sweep, there is no manifest.json. Give the folder of one, such '
                                  'as runs/sweeps/mmpkd_alpha; `jaxkd sweep FILE` makes it.')
    content = files.read_json(path, 'The manifest of the sweep')
    try:
        if content['format'] != FORMAT:
            raise ValueError(f'format {content["format"]}')
        jobs = [Job(row['name'], row['digest'], row['shared'], row['config'],
                    config.tuples(row['overrides'])) for row in content['jobs']]
        if bad := [job.name for job in jobs if not re.fullmatch(f'(runs|shared)/{NAME}', job.name)]:
            raise ValueError(f'the name {bad[0]!r}')
    except (KeyError, TypeError, ValueError) as e:
        raise errors.Damaged(f'{path} is no manifest of a sweep of this version ({e}). Restore it, or choose another '
                             '--workdir.') from e
    return jobs


def find(jobs: Iterable[Job], name: str) -> Job:
    """The job of this name, that of a member with or without 'runs/'. ConfigError with the nearest."""
    by_name = {job.name: job for job in jobs}
    if job := by_name.get(name) or by_name.get(f'runs/{name}'):
        return job
    raise errors.ConfigError(f'The sweep has no job "{name}".{errors.nearest(name, by_name)}')


def _same_stage(folder: pathlib.Path, before: Mapping[str, Job], job: Job) -> bool:
    """Whether a stage that several members share is that of before: its options may stand in another member's config,
    where keys without effect, such as readers, differ.
    """
    return not job.is_member and job.name in before and _is_written(folder, before[job.name])


def _is_written(folder: pathlib.Path, job: Job) -> bool:
    path = job.file(folder)
    return path.exists() and hashlib.sha256(_read(path)).hexdigest() == job.digest


def _resolved(member: Member) -> ConfigDict:
    try:
        run = config.load(member.config, member.assignments())
    except errors.ConfigError as e:
        raise errors.ConfigError(f'Member {member.name}: {e}') from e
    return config.resolve(ConfigDict(config.tuples(json.loads(config.dump(run)))))


def _stage_alone(run: ConfigDict, stage: str) -> ConfigDict:
    """The config of a run that trains a stage; of the others only those that it starts from are left."""
    from jaxkd.training import shared_stages
    prior = shared_stages.prior_stages(run, stage)
    kept = {k: v for k, v in run.to_dict().items() if k not in config.stage_names(run) or k in (*prior, stage)}
    return config.resolve(ConfigDict({**kept, 'stages': (*(s for s in run.stages if s in prior), stage)}))


def _check_only_added(folder: pathlib.Path, before: Mapping[str, Job], jobs: Plan) -> None:
    now = {job.name: (job, run) for job, run in jobs}
    for name, job in before.items():
        if not job.is_member:
            continue
        if name not in now:
            raise errors.ConfigError(f'{folder} holds a sweep with the member {job.label}, which is missing now. '
                                     'Members may only be added; choose another --workdir.')
        if now[name][0].digest != job.digest:
            stored, new = (json.loads(text) for text in (_read(job.file(folder)), _text(now[name][1])))
            changed = sorted(_differences(stored, new))
            raise errors.ConfigError(f'{folder} holds a sweep in which {job.label} is another one: '
                                     f'{"; ".join(changed[:4])}. Members may only be added; choose another --workdir.')


def _differences(before: Any, now: Any, key: str = '') -> Iterable[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for part in {*before, *now}:
            yield from _differences(before.get(part), now.get(part), f'{key}.{part}' if key else part)
    elif before != now:
        yield f'{key}: {before!r} before, {now!r} now'


def _text(run: ConfigDict) -> str:
    return config.dump(run) + '\n'


def _sha256(run: ConfigDict) -> str:
    return hashlib.sha256(_text(run).encode()).hexdigest()


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise errors.Damaged(f'{path} cannot be read ({e}). Run the command that made the sweep once more.') from e
