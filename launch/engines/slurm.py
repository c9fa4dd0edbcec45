"""The jobs of a sweep on SLURM: arrays of jobs, those that train stages for others before those that use them.

An array holds the jobs that wait for the same others; `--dependency=afterok` names these. A run that saved because of a
signal exits with 75, and its script requeues it. The same command submits what is neither finished nor queued.

SWEEP/slurm/<array>.sh    the script of an array: its name is a digest of what it does
            <array>.txt   the names of its jobs, those of a task in a line
"""
import collections
import dataclasses
import hashlib
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence

from jaxkd import errors
from jaxkd.runtime import files
from launch import profile as profiles
from launch import state
from launch.manifest import Job

PREFIX = 'jaxkd-'  # of the names of arrays


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a site calls things; keys of the TOML file, '' or 0 where the site's default is to hold."""

    partition: str = ''
    account: str = ''
    qos: str = ''
    time: str = ''  # limit of a run: '24:00:00'
    nodes: int = 1  # of a run
    tasks_per_node: int = 1  # processes of a run on each node; all of them see all of its GPUs
    cpus_per_task: int = 0
    gpus_per_node: int = 0
    memory: str = ''  # of a node: '64G'
    runs_per_task: int = 1  # above 1: several runs share a node, each with its part of the cores and GPUs
    at_a_time: int = 0  # tasks of an array
    grace: int = 120  # seconds before the time limit in which a run saves; both are coarse, so well above a save
    requeue_on: list = dataclasses.field(default_factory=lambda: [75])  # exit codes; 76: a peer process died
    python: str = ''  # the interpreter; '' is that of the command
    modules: list = dataclasses.field(default_factory=list)  # loaded before
    setup: list = dataclasses.field(default_factory=list)  # lines of the shell, after the modules
    heartbeat: int = 30  # seconds without a sign of a process after which the others end
    environment: dict = dataclasses.field(default_factory=dict)
    sbatch: list = dataclasses.field(default_factory=list)  # further options: '--constraint=a100'


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of jobs that wait for the same others."""

    tasks: tuple[tuple[str, ...], ...]  # names of the jobs of each task
    after: tuple[str, ...]  # names of jobs that are not finished


def run(folder: pathlib.Path, jobs: Sequence[Job], path: str, retries: int = 2) -> int:
    """Submit the jobs that are neither finished nor queued -> 0. ConfigError without SLURM or for the profile."""
    site, folder = _profile(path), folder.absolute()
    queued = _queued(folder)
    states = state.all_of(folder, jobs)
    for array in arrays(jobs, states, queued, retries, site.runs_per_task):
        number = _submit(folder, array, site, [queued[name] for name in array.after])
        queued |= {name: f'{number}_{i}' for i, names in enumerate(array.tasks) for name in names}
        waits = f', after {", ".join(array.after)}' if array.after else ''
        print(f'submitted {number}, {len(array.tasks)} tasks of {_name(folder, array)}{waits}')
    count = collections.Counter(s.status for s in states.values())
    given_up = [name for name, s in states.items() if s.status == state.FAILED and name not in queued]
    print(f'{len(jobs)} jobs: {count[state.FINISHED]} finished, {len(queued)} in the queue')
    for name in given_up:
        print(f'failed ({states[name].failures}x, code {states[name].code}): {name}: {states[name].reason}')
    return 0


def preview(folder: pathlib.Path, jobs: Sequence[Job], path: str) -> str:
    """The scripts that would be submitted if no job had begun."""
    site, states = _profile(path), {job.name: state.State(state.WAITING) for job in jobs}
    return '\n'.join(f'{script(folder.absolute(), array, site)}# jobs: {array.tasks}\n'
                     for array in arrays(jobs, states, {}, 0, site.runs_per_task))


def _profile(path: str) -> Profile:
    site = profiles.read(path, Profile)
    if site.runs_per_task > 1 and (site.nodes > 1 or site.tasks_per_node > 1):
        raise errors.ConfigError(f'{path}: runs_per_task is for runs of one process. Leave nodes and tasks_per_node '
                                 'at 1.')
    return site


def arrays(jobs: Sequence[Job], states: Mapping[str, state.State], queued: Mapping[str, str], retries: int,
           runs_per_task: int = 1) -> list[Array]:
    """The arrays to be submitted, in an order in which none comes before one that it waits for."""
    groups: dict[tuple[str, ...], list[str]] = {}
    planned: set[str] = {*queued}
    for job in jobs:
        now = states[job.name]
        if job.name in queued or now.status in (state.FINISHED, state.RUNNING) or not state.may_try_again(now, retries):
            continue
        after = tuple(name for name in job.after if states[name].status != state.FINISHED)
        if all(name in planned for name in after):
            groups.setdefault(after, []).append(job.name)
            planned.add(job.name)
    return [Array(tuple(tuple(names[i:i + runs_per_task]) for i in range(0, len(names), runs_per_task)), after)
            for after, names in groups.items()]


def script(folder: pathlib.Path, array: Array, site: Profile) -> str:
    """The batch script of an array."""
    options = {'--partition': site.partition, '--account': site.account, '--qos': site.qos, '--time': site.time,
               '--mem': site.memory, '--cpus-per-task': site.cpus_per_task, '--gpus-per-node': site.gpus_per_node}
    python = site.python or sys.executable
    module = 'launch.job' if site.runs_per_task == 1 else 'launch.engines.local'
    only = '' if site.runs_per_task == 1 else '--only '
    start = f'{_quoted(python)} -m {module} {_quoted(folder)} {only}"${{names[@]}}"'
    codes = '|'.join(map(str, site.requeue_on))
    limit = f'-{len(array.tasks) - 1}' + (f'%{site.at_a_time}' if site.at_a_time else '')
    lines = [
        '#!/bin/bash', f'#SBATCH --job-name={_name(folder, array)}', f'#SBATCH --array=0{limit}',
        f'#SBATCH --output={_quoted(folder / "logs" / _name(folder, array))}.%a.log', '#SBATCH --open-mode=append',
        '#SBATCH --requeue', '#SBATCH --kill-on-invalid-dep=yes', f'#SBATCH --nodes={site.nodes}',
        f'#SBATCH --ntasks-per-node={site.tasks_per_node}', f'#SBATCH --signal=TERM@{site.grace}',
        *(f'#SBATCH {key}={_quoted(value)}' for key, value in options.items() if value),
        *(f'#SBATCH {option}' for option in site.sbatch), '',
        'ulimit -c 0  # a job of several processes that aborts leaves a core file of each',
        "trap : TERM USR1 USR2  # SLURM signals the processes of the step itself; this shell waits for their exit code",
        *(f'module load {_quoted(name)}' for name in site.modules), *site.setup,
        f'export JAXKD_HEARTBEAT={site.heartbeat}',
        *(f'export {key}={_quoted(value)}' for key, value in site.environment.items()),
        f'cd {_quoted(os.getcwd())} || exit 73',
        f'read -ra names < <(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {_quoted(_list(folder, array))})',
        f'srun --kill-on-bad-exit=1 {f"--cpus-per-task={site.cpus_per_task} " * bool(site.cpus_per_task)}{start}',
        'code=$?', '',
        f'case $code in {codes})  # saved: the same task once more, unless it was cancelled (then it is COMPLETING)',
        '  task=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}  # the id of a job alone restarts the whole array',
        '  if scontrol show job "$task" | grep -q "JobState=RUNNING"; then',
        '    scontrol requeue "$task" && sleep 600  # until SLURM ends this script', '  fi', 'esac', 'exit $code']
    return '\n'.join(lines) + '\n'


def _submit(folder: pathlib.Path, array: Array, site: Profile, after: Sequence[str]) -> str:
    """Submit an array -> its number."""
    path = _list(folder, array).with_suffix('.sh')
    (folder / 'logs').mkdir(exist_ok=True)
    files.write(_list(folder, array), ''.join(' '.join(names) + '\n' for names in array.tasks))
    files.write(path, script(folder, array, site))
    dependency = [f'--dependency=afterok:{":".join(dict.fromkeys(after))}'] if after else []
    return _command('sbatch', '--parsable', *dependency, str(path)).strip().partition(';')[0]


def _queued(folder: pathlib.Path) -> dict[str, str]:
    """{name of a job: '<array>_<task>'} of the tasks of this sweep that SLURM holds."""
    known = {}  # arrays of this sweep: a copy of a folder has lists of the sweep that it was copied from
    for path in (folder / 'slurm').glob('*.txt'):
        tasks = tuple(tuple(line.split()) for line in path.read_text().splitlines())
        if _name(folder, Array(tasks, ())) == path.stem:
            known[path.stem] = tasks
    queued: dict[str, str] = {}
    for line in _command('squeue', '--noheader', '--array', '--format=%i|%j').splitlines():
        number, _, name = line.strip().partition('|')
        if name in known:
            queued |= dict.fromkeys(known[name][int(number.partition('_')[2])], number)
    return queued


def _quoted(value: object) -> str:
    """A value in a line of #SBATCH."""
    return shlex.quote(str(value))


def _name(folder: pathlib.Path, array: Array) -> str:
    """A digest of its jobs and of their sweep: by it the queue says which of them it holds."""
    return PREFIX + hashlib.sha256(repr((str(folder), array.tasks)).encode()).hexdigest()[:12]


def _list(folder: pathlib.Path, array: Array) -> pathlib.Path:
    return folder / 'slurm' / f'{_name(folder, array)}.txt'


def _command(*words: str) -> str:
    """The output of a command of SLURM."""
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as e:
        raise errors.ConfigError(f'There is no {words[0]} on this machine. Run the sweep on a login node of a SLURM '
                                 'cluster.') from e
    except subprocess.CalledProcessError as e:
        raise errors.JaxkdError(f'{words[0]} failed: {e.stderr.strip()}') from e
