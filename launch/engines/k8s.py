"""The jobs of a sweep on Kubernetes: a JobSet for each, queued by Kueue, those that train stages for others first.

A run that saved because its pod was taken away exits with 75: the JobSet restarts it. Any other code ends it, and the
same command makes manifests of what is not finished. The folder of the sweep lies on a volume that all pods mount.

SWEEP/k8s/<level>.yaml    JobSets; those of a level wait for the levels before
          submit.sh       applies them in this order; --dry_run prints all
"""
import dataclasses
import hashlib
import pathlib
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd.runtime import files
from launch import profile as profiles
from launch import state
from launch.engines.local import LASTING
from launch.manifest import Job

SUBMIT = r'''
wait_for() { # until all JobSets of a level have ended; 1 if one failed
  while kubectl get jobset -l "$1" -o jsonpath='{range .items[*]}[{.status.terminalState}]{"\n"}{end}' "${where[@]}" |
    grep -qx '\[\]'; do sleep "$poll"; done
  ! kubectl get jobset -l "$1" -o jsonpath='{.items[*].status.terminalState}' "${where[@]}" | grep -q Failed
}
'''


@dataclasses.dataclass(frozen=True)
class Profile:
    """A cluster; keys of the TOML file. One pod is one process; all chips of its node are its devices."""

    image: str  # with jaxkd installed
    queue: str  # the LocalQueue of Kueue
    claim: str  # the PersistentVolumeClaim that holds the folder of the sweep
    folder: str  # where the pods see the folder of the sweep
    mount: str = '/sweeps'  # where the claim is mounted
    namespace: str = 'default'
    hosts: int = 1  # pods of a run
    resource: str = 'google.com/tpu'  # what a pod asks for: nvidia.com/gpu, or '' for none
    count: int = 4  # of the resource, for each pod
    cpu: str = ''
    memory: str = ''
    node_selector: dict = dataclasses.field(default_factory=dict)
    environment: dict = dataclasses.field(default_factory=dict)
    restarts: int = 10  # after an interruption
    grace: int = 120  # seconds in which an interrupted run saves
    python: str = 'python'
    poll: int = 30  # seconds between two looks at the JobSets


def run(folder: pathlib.Path, jobs: Sequence[Job], path: str, retries: int = 2) -> int:
    """Write the manifests and submit them -> the exit code."""
    site = profiles.read(path, Profile)
    states = state.all_of(folder, jobs)
    todo = [job for job in jobs if state.may_try_again(states[job.name], retries)]
    for name, text in documents(todo, site).items():
        files.write(folder / 'k8s' / name, text)
    script = folder.absolute() / 'k8s' / 'submit.sh'
    print(f'{len(todo)} of {len(jobs)} jobs: bash {script}', flush=True)
    return subprocess.run(['bash', str(script)], check=False).returncode if todo else 0


def preview(folder: pathlib.Path, jobs: Sequence[Job], path: str) -> str:
    """The files that would be written if no job had begun."""
    return '\n'.join(f'# {name}\n{text}' for name, text in documents(jobs, profiles.read(path, Profile)).items())


def documents(jobs: Sequence[Job], site: Profile) -> dict[str, str]:
    """{file name: text} of all files."""
    import yaml
    levels = levels_of(jobs)
    texts = {f'{i}.yaml': yaml.safe_dump_all([jobset(job, i, site) for job in level], sort_keys=False)
             for i, level in enumerate(levels)}
    lines = ['#!/bin/bash', '# Written by python -m launch.sweep --engine k8s.', 'set -uo pipefail',
             f'where=(--namespace={shlex.quote(site.namespace)})', f'poll={site.poll}', f'sweep={_sweep(site)}',
             'cd "$(dirname "$0")" || exit 1', SUBMIT]
    for i in range(len(levels)):
        lines.append(f'kubectl apply -f {i}.yaml "${{where[@]}}" || exit 1')
        if i + 1 < len(levels):
            lines += [f'wait_for "jaxkd-sweep=$sweep,jaxkd-level={i}" || {{', '  echo "a shared stage failed" >&2',
                      '  exit 1', '}']
    return texts | {'submit.sh': '\n'.join(lines) + '\n'}


def levels_of(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that wait for none of these, then those that wait for them alone, and so on."""
    level: dict[str, int] = {}
    for job in jobs:  # those that others wait for come first
        level[job.name] = max((level[name] + 1 for name in job.after if name in level), default=0)
    return [[job for job in jobs if level[job.name] == i] for i in range(max(level.values(), default=-1) + 1)]


def jobset(job: Job, level: int, site: Profile) -> dict[str, Any]:
    """The manifest of one job."""
    amounts = {site.resource: site.count, 'cpu': site.cpu, 'memory': site.memory}
    resources = {key: value for key, value in amounts.items() if key and value}
    name = _name(job, site)
    environment: Mapping[str, str] = {'JAXKD_HEARTBEAT': '30', **site.environment} | (
        {} if site.hosts == 1 or site.resource == 'google.com/tpu' else {
            'JAX_COORDINATOR_ADDRESS': f'{name}-run-0-0.{name}:8476', 'JAX_NUM_PROCESSES': str(site.hosts)})
    index = {'name': 'JAX_PROCESS_ID', 'valueFrom': {'fieldRef': {
        'fieldPath': "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}}
    container = dict(
        name='run', image=site.image, command=[site.python, '-m', 'launch.job', site.folder, job.name],
        env=[*({'name': key, 'value': str(value)} for key, value in environment.items()),
             *([index] if 'JAX_NUM_PROCESSES' in environment else [])],
        resources=dict(limits=dict(resources), requests=dict(resources)),
        volumeMounts=[dict(name='sweep', mountPath=site.mount)])
    pod = dict(restartPolicy='Never', terminationGracePeriodSeconds=site.grace, nodeSelector=dict(site.node_selector),
               containers=[container],
               volumes=[dict(name='sweep', persistentVolumeClaim=dict(claimName=site.claim))])
    ends = [dict(action='FailJob', onExitCodes=dict(containerName='run', operator='In', values=list(LASTING)))]
    template = dict(backoffLimit=0, completions=site.hosts, parallelism=site.hosts, completionMode='Indexed',
                    podFailurePolicy=dict(rules=ends), template=dict(spec=pod))
    rules = [dict(name='lasting', action='FailJobSet', onJobFailureReasons=['PodFailurePolicy'])]
    return dict(
        apiVersion='jobset.x-k8s.io/v1alpha2', kind='JobSet',
        metadata=dict(name=name, namespace=site.namespace, annotations={'jaxkd/job': job.name},
                      labels={'kueue.x-k8s.io/queue-name': site.queue, 'jaxkd-sweep': _sweep(site),
                              'jaxkd-level': str(level)}),
        spec=dict(failurePolicy=dict(maxRestarts=site.restarts, rules=rules),
                  replicatedJobs=[dict(name='run', replicas=1, template=dict(spec=template))]))


def _name(job: Job, site: Profile) -> str:
    """A name that Kubernetes takes, of at most 40 characters: that of a pod adds to it."""
    digest = hashlib.sha256(f'{site.folder} {job.name} {job.digest}'.encode()).hexdigest()[:8]
    return re.sub('[^a-z0-9]+', '-', job.label.lower()).strip('-')[:30].strip('-') + f'-{digest}'


def _sweep(site: Profile) -> str:
    """A label that the JobSets of a sweep have in common."""
    return hashlib.sha256(site.folder.encode()).hexdigest()[:12]
