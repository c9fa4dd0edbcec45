"""The jobs of a sweep on a slice of a Cloud TPU, as one shell script: a queued resource, then each job on all workers.

The script waits for the slice, copies the code, prepares the workers and runs the jobs in their order. Where the slice
is taken away it asks for another one, and the job continues from its last checkpoint. It deletes the slice at its end.
The folder of the sweep has to lie on a file system that this machine and all workers mount, such as Filestore.

SWEEP/tpu/run.sh     written and started; --dry_run prints it
"""
import dataclasses
import os
import pathlib
import re
import shlex
import subprocess
from collections.abc import Sequence

from jaxkd import errors
from jaxkd.runtime import files
from launch import profile as profiles
from launch import state
from launch.manifest import Job


@dataclasses.dataclass(frozen=True)
class Profile:
    """A project and its slices; keys of the TOML file."""

    project: str
    zone: str
    accelerator_type: str  # 'v5litepod-16'
    runtime_version: str  # 'v2-alpha-tpuv5-lite'
    folder: str  # where the workers see the folder of the sweep
    name: str = 'jaxkd'  # of the queued resource and of its node
    spot: bool = True
    code: str = 'jaxkd'  # where the code goes, in the home of each worker
    python: str = 'python3'
    setup: list = dataclasses.field(default_factory=lambda: ['pip install --quiet -e ".[tpu]"'])  # on each worker
    environment: dict = dataclasses.field(default_factory=dict)
    create: list = dataclasses.field(default_factory=list)  # further options of `queued-resources create`
    tries: int = 5  # of a job; one that is interrupted continues
    poll: int = 60  # seconds between two looks at the queue


# Arguments that differ stand in the variables at the top of the script.
BODY = r'''
log() { printf '%s %s\n' "$(date '+%F %T')" "$*" >&2; }
state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null ||
    echo NONE
}
delete() {
  [ "$(state)" = NONE ] ||
    gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet || log "could not delete $name"
}
ready() { # ask for the slice and wait for it; then put the code on all workers
  local now
  while now=$(state); [ "$now" != ACTIVE ]; do
    case $now in
      NONE)
        log "asking for $name"
        gcloud compute tpus queued-resources create "$name" "${where[@]}" "${create[@]}" ;;
      FAILED | SUSPENDED) log "$name is $now" && delete ;;
      *) log "$name is $now" ;;
    esac
    sleep "$poll"
  done
  gcloud compute tpus tpu-vm scp --recurse "${where[@]}" --worker=all "$source" "$name:$code" && workers "$setup"
}
workers() { gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

trap delete EXIT
ready
failed=0
for job in "${jobs[@]}"; do
  for ((try = 1; try <= tries; try++)); do
    log "$job, try $try"
    workers "$begin $job" && continue 2
    [ "$(state)" = ACTIVE ] || ready
  done
  log "$job failed $tries times" && failed=1
done
exit "$failed"
'''


def run(folder: pathlib.Path, jobs: Sequence[Job], path: str, retries: int = 2) -> int:
    """Write the script and start it -> its exit code."""
    site = profiles.read(path, Profile)
    states = state.all_of(folder, jobs)
    names = [job.name for job in jobs if state.may_try_again(states[job.name], retries)]
    if not names:
        print(f'{len(jobs)} jobs, none to be run')
        return 0
    file = folder.absolute() / 'tpu' / 'run.sh'
    files.write(file, script(names, site))
    print(f'{len(names)} of {len(jobs)} jobs: bash {file}', flush=True)
    return subprocess.run(['bash', str(file)], check=False).returncode


def preview(folder: pathlib.Path, jobs: Sequence[Job], path: str) -> str:
    """The script that would be started if no job had begun."""
    return script([job.name for job in jobs], profiles.read(path, Profile))


def script(names: Sequence[str], site: Profile) -> str:
    """The shell script that runs these jobs."""
    if not re.fullmatch(r'[a-z]([-a-z0-9]{0,61}[a-z0-9])?', site.name):
        raise errors.ConfigError(f'name = "{site.name}" of the profile: a TPU takes lower-case letters, digits and -.')
    create = [f'--node-id={site.name}', f'--accelerator-type={site.accelerator_type}',
              f'--runtime-version={site.runtime_version}', *['--spot'] * site.spot, *site.create]
    exports = [f'export {key}={shlex.quote(str(value))}' for key, value in site.environment.items()]
    enter = f'cd {shlex.quote(site.code)}'
    variables = dict(
        name=site.name, source=os.getcwd(), code=site.code, poll=site.poll, tries=site.tries,
        setup=' && '.join([enter, *site.setup]),
        begin=' && '.join([*exports, enter, f'exec {site.python} -m launch.job {shlex.quote(site.folder)}']))
    arrays = dict(where=[f'--project={site.project}', f'--zone={site.zone}'], create=create, jobs=names)
    lines = ['#!/bin/bash', '# Written by python -m launch.sweep --engine tpu.', 'set -uo pipefail',
             *(f'{key}={shlex.quote(str(value))}' for key, value in variables.items()),
             *(f'{key}=({" ".join(map(shlex.quote, values))})' for key, values in arrays.items())]
    return '\n'.join(lines) + '\n' + BODY
