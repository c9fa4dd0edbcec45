"""Train the jobs of a plan, in turn in this process or side by side in others."""
import pathlib

from jaxkd import config, errors, parallel, runner
from jaxkd.multirun import plan as plans
from jaxkd.multirun import processes
from jaxkd.runtime import files, log, preemption
from jaxkd.training import shared_stages

Failed = dict[str, tuple[int, str]]  # {member: (exit code, reason)}


def in_turn(plan: plans.Plan, workdir: pathlib.Path, keep_going: bool) -> Failed:
    """Train all jobs, one after the other, in this process -> those that failed.

    keep_going: an error of one member, such as a loss that is not finite, leaves the others to be trained. What
    concerns all of them, a signal or a full disk, is raised in any case.
    """
    import jax
    failed: Failed = {}
    for i, job in enumerate(plan.jobs):
        name, left = job.name, plan.jobs[i:]
        later = sum(len(other.trained) for other in left[1:])
        log.info(f'\n{name}, member {i + 1} of {len(plan.jobs)}; {plans.hours(plan, left, workdir)}')
        try:
            shared_stages.share_teacher_outputs(workdir, workdir / name)
            taken = {stage: folder for stage, folder in job.take_over.items()  # else it trains the stage itself
                     if stage in plans.finished_in(folder)}
            runner.run(job.config, workdir / name, taken, later / max(1, len(job.trained)))
        except (errors.Interrupted, errors.CannotWrite):
            raise
        except errors.JaxkdError as e:
            if not keep_going or parallel.process()[1] > 1:
                raise
            failed[name] = e.code, ' '.join(str(e).split())
            log.info(f'{name} failed, the others go on: {failed[name][1]}')
        preemption.raise_if_preempted(name)
        jax.clear_caches()  # of this process: programs of finished members would fill its memory
    return failed


def side_by_side(plan: plans.Plan, workdir: pathlib.Path, count: int) -> Failed:
    """Train all jobs in processes of their own, `count` at a time -> those that failed."""
    left = {job.name: job for job in plan.jobs}
    tasks = [_task(job, workdir) for job in plan.jobs]

    def ended(task: processes.Task) -> None:
        del left[task.name]
        if left:
            log.info(f'{len(left)} of {len(tasks)} jobs left, {plans.hours(plan, [*left.values()], workdir, count)}')
    codes = processes.run(tasks, count, ended=ended)
    preemption.raise_if_preempted(str(workdir))
    failed: Failed = {}
    for job in plan.jobs:
        if code := codes.get(job.name):
            failed[job.member.name] = code, f'exit code {code}, see {workdir / "logs" / job.name}.log'
        elif job.name not in codes:
            failed.setdefault(job.member.name, (1, 'not started, as a job that it comes after failed'))
    return failed


def raise_failed(failed: Failed, workdir: pathlib.Path) -> None:
    """JaxkdError with the code of the first of these members, where there is one."""
    if failed:
        code, _ = next(iter(failed.values()))
        error = errors.JaxkdError(f'{", ".join(failed)}: stopped with exit code {code}. See {workdir / "logs"}; the '
                                  'same command continues.')
        error.code = code
        raise error


def _task(job: plans.Job, workdir: pathlib.Path) -> processes.Task:
    path = workdir / 'configs' / f'{job.name}.json'
    files.write(path, config.dump(job.config) + '\n')
    shared_stages.share_teacher_outputs(workdir, workdir / job.member.name)
    taken = [f'{stage}={folder}' for stage, folder in job.take_over.items()]
    arguments = ['--config', path, '--workdir', workdir / job.member.name, *(['--take_over', *taken] if taken else [])]
    return processes.Task(job.name, 'jaxkd.main', arguments, workdir / 'logs' / f'{job.name}.log', job.after)
