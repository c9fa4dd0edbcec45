"""One run in a working folder: the file run.lock names the process that writes there."""
import contextlib
import json
import os
import pathlib
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from jaxkd import errors, parallel
from jaxkd.runtime import files, log

HEARTBEAT = 15.0  # seconds between two changes of the lock's time
STALE = 120.0  # seconds without one, after which a process of another machine is taken for dead

_locks: dict[pathlib.Path, dict[str, Any]] = {}  # that this process holds


@contextlib.contextmanager
def hold(workdir: str | pathlib.Path) -> Iterator[None]:
    """Hold the lock of a working folder, for all hosts of this run. CannotWrite if another run holds it."""
    path, message = pathlib.Path(workdir).absolute() / 'run.lock', ''
    if parallel.process()[0] == 0:
        try:
            created = _acquire(path)
        except errors.CannotWrite as e:
            message = str(e)
    if messages := [row['error'] for row in parallel.allgather_rows([dict(error=message)]) if row['error']]:
        raise errors.CannotWrite(messages[0])
    if parallel.process()[0]:
        yield
        return
    ended = threading.Event()
    threading.Thread(target=_beat, args=(path, _locks[path], ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        release(path)
        with contextlib.suppress(OSError):
            for folder in created:  # only if it is still empty
                folder.rmdir()


def release(path: pathlib.Path) -> None:
    """Give up a lock of this process."""
    holder = _locks.pop(path, None)
    if holder and _read(path) == holder:
        path.unlink(missing_ok=True)


def release_all() -> None:
    """Give up all locks of this process, before it ends at once."""
    for path in list(_locks):
        with contextlib.suppress(OSError):
            release(path)


def holder(workdir: str | os.PathLike) -> dict[str, Any]:
    """The process that holds a working folder: host, process, since; {} without one, or where it is gone."""
    path = pathlib.Path(workdir).absolute() / 'run.lock'
    before = _read(path)
    try:
        age = _age(path)
    except OSError:  # a folder of someone else: by the clock of this machine
        age = time.time() - path.stat().st_mtime if path.exists() else None
    return before if age is not None and _alive(before, age) else {}


def _acquire(path: pathlib.Path) -> list[pathlib.Path]:
    """Take the lock -> the folders that this created, innermost first. CannotWrite if it is held."""
    created = [folder for folder in path.parents if not folder.exists()]
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    holder = dict(token=uuid.uuid4().hex, host=platform.node(), process=os.getpid(), machine=_machine(),
                  start=_process_start(os.getpid()), since=time.strftime('%Y-%m-%d %H:%M:%S'))
    while not _create(path, holder):
        before, age = _read(path), _age(path)
        if age is None:  # released in between
            continue
        if path in _locks or _alive(before, age):
            raise errors.CannotWrite(f'{path.parent} is in use by {_name(before)}, last heartbeat {age:.0f} s ago. '
                                     'Wait for its end, or choose another --workdir.')
        log.info(f'{path.parent}: taking over from {_name(before)}, which ended without releasing it')
        _remove_stale(path, before)
    _locks[path] = holder
    return created


def _create(path: pathlib.Path, holder: dict[str, Any]) -> bool:
    """Whether the lock could be written; False if it exists."""
    try:
        with files.writing(path), open(path, 'x') as f:
            f.write(json.dumps(holder))
    except errors.CannotWrite as e:
        if isinstance(e.__cause__, FileExistsError):
            return False
        raise
    return True


def _remove_stale(path: pathlib.Path, before: dict[str, Any]) -> None:
    """Remove a lock whose content is `before`; one that another process created since is left."""
    aside = path.with_name(f'.run.lock.{uuid.uuid4().hex[:8]}')
    with contextlib.suppress(FileNotFoundError):  # another process removed it
        os.rename(path, aside)
        if _read(aside) != before:
            os.rename(aside, path)
    aside.unlink(missing_ok=True)


def _alive(holder: dict[str, Any], age: float) -> bool:
    """Whether the process that holds a lock still runs; of another machine, by the age of its heartbeat in seconds."""
    if holder.get('machine') == _machine() and holder.get('start'):
        return _process_start(holder['process']) == holder['start']
    return age < STALE


def _age(path: pathlib.Path) -> float | None:
    """Seconds since the last heartbeat by the clock of the file system; None without a lock."""
    probe = path.with_name(f'.run.lock.{uuid.uuid4().hex[:8]}')
    try:
        probe.touch()
        return max(0.0, probe.stat().st_mtime - path.stat().st_mtime)
    except FileNotFoundError:
        return None
    finally:
        probe.unlink(missing_ok=True)


def _beat(path: pathlib.Path, holder: dict[str, Any], ended: threading.Event) -> None:
    """Renew the time of the lock. A process that finds the lock of another run ends at once."""
    while not ended.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            if (current := _read(path)) and current != holder and not ended.is_set():
                print(f'\nerror: {path.parent} was taken over by {_name(current)}, because this process gave no '
                      f'heartbeat for more than {STALE:.0f} s.', file=sys.stderr, flush=True)
                os._exit(errors.CannotWrite.code)
            os.utime(path)


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The holder of a lock; {} without one, or while it is being written."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _name(holder: dict[str, Any]) -> str:
    if not holder:
        return 'a process that has not written its name yet'
    return f'process {holder.get("process")} on host {holder.get("host")} since {holder.get("since")}'


def _machine() -> str:
    """What processes that see each other by number have in common: host, boot, name space of processes."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):
        facts += [pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip(),
                  os.readlink('/proc/self/ns/pid')]
    return ' '.join(facts)


def _process_start(number: int) -> str:
    """When a process started, in ticks since boot; '' if it ended or where the system has no /proc."""
    try:
        fields = pathlib.Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return ''
    return '' if fields[0] in 'ZX' else fields[19]
