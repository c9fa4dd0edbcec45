"""Whole commands in fresh processes: seconds, processor time and the largest resident set."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

CONFIG = 'configs/mmpkd_cxr.py'
# Rows in the setting for tests: nothing is rendered or trained.
TINY = ('--config.data.source.patients=12', '--config.stages=teacher', '--config.teacher.model.depth=1')


def timed(case: str, tree: pathlib.Path, smoke: bool) -> dict[str, float]:
    """{'seconds', 'cpu', 'peak_mb'} of a command of `rows.COMMANDS` in a checkout. RuntimeError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        workdir, home = pathlib.Path(folder, 'run'), pathlib.Path(folder, 'home')
        # of a checkout whose default has few labels and more arms, what every version can run
        full = 'full_labels' if 'def full_labels' in (tree / CONFIG).read_text() else ''
        if case == 'main_job':
            return run(tree, home, TINY if smoke else (), workdir, full and f':{full}')
        small = f':{full},smoke' if full else ':smoke'
        variant, dry = TINY if smoke else (), case.startswith('dry_run')
        if case in ('smoke_warm', 'dry_run'):  # what it compiles is kept, in its workdir or elsewhere
            run(tree, home, (*variant, *(('--dry_run',) if smoke else ())), workdir, small)
            for entry in workdir.iterdir() if workdir.exists() else ():
                if entry.name != 'compiled':
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return run(tree, home, (*variant, *(('--dry_run',) if dry or smoke else ())), workdir, small)


def run(tree: pathlib.Path, home: pathlib.Path, options: tuple[str, ...], workdir: pathlib.Path,
        variant: str = '') -> dict[str, float]:
    """Run jaxkd.main of a checkout. home: where the user's caches are."""
    command = [sys.executable, '-m', 'jaxkd.main', '--config', f'{CONFIG}{variant}', '--workdir', str(workdir),
               *options]
    env = os.environ | dict(PYTHONPATH=str(tree), XDG_CACHE_HOME=str(home))
    env.pop('JAX_COMPILATION_CACHE_DIR', None)
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f'{" ".join(command)} ended with {process.returncode}: {said[-400:].decode()}')
    return dict(seconds=time.perf_counter() - begin, cpu=used.ru_utime + used.ru_stime, peak_mb=used.ru_maxrss / 1024)
