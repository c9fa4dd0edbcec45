"""Versions of Python and the packages that results depend on, and the machine that they came from."""
import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess

import jaxkd

DISTRIBUTION = 'jaxkd-medical'  # as pip calls it, [project] of pyproject.toml


def install(extra: str) -> str:
    """The command that installs what an extra of pyproject.toml names."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def versions() -> dict[str, str]:
    """{package: version} for summary.json; 'commit' of jaxkd, where it is known."""
    names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
    versions = {'python': platform.python_version(), 'jaxkd': jaxkd.__version__}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = 'not installed'
    return versions | ({'commit': found} if (found := commit()) else {})


@functools.cache
def commit() -> str:
    """The git commit of jaxkd, with '-dirty' behind it where files were changed since; '' where nobody knows it."""
    try:
        installed = json.loads(importlib.metadata.distribution(DISTRIBUTION).read_text('direct_url.json') or '{}')
    except (importlib.metadata.PackageNotFoundError, ValueError):
        installed = {}
    if named := installed.get('vcs_info', {}).get('commit_id', ''):
        return named
    root = pathlib.Path(__file__).parents[2]
    if not (root / '.git').exists():
        return ''
    try:
        command = ('git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*')
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ''


def machine() -> dict[str, str]:
    """What class of machine this is: system, processor, cores, memory. Neither its name nor its user."""
    facts = {'system': f'{platform.system()} {platform.machine()}', 'processor': _processor(),
             'cores': str(cores())}
    try:
        facts['memory'] = f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.0f} GiB'
    except (ValueError, OSError, AttributeError):  # not every system says
        pass
    return {name: fact for name, fact in facts.items() if fact}


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def now() -> str:
    """The date and time, UTC, to the minute: '2026-01-31 12:00 UTC'."""
    return datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')


def _processor():
    try:
        for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return ' '.join(line.partition(':')[2].split())
    except (OSError, UnicodeDecodeError):
        pass
    return platform.processor()
