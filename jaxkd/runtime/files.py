"""Atomic writing of files, and reading of JSON."""
import contextlib
import errno
import hashlib
import io
import json
import math
import os
import pathlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxkd import errors

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # whatever was written, no other message fits


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Replace `path` with `content` (str or bytes) in one step. A full disk or a forbidden folder is CannotWrite."""
    path = pathlib.Path(path)
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}')  # several hosts may write at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, 'wb') as f:
            f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot(path, e) from e


def write_json(path: str | os.PathLike, tree: Any) -> None:
    """Write a tree as indented JSON in one step."""
    write(path, json.dumps(tree, indent=1) + '\n')


def finite(tree: Any) -> Any:
    """A tree for JSON readers in any language: null where a number is nan or infinite, numpy scalars as Python's."""
    if isinstance(tree, Mapping):
        return {k: finite(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [finite(v) for v in tree]
    if isinstance(tree, (float, np.floating)):
        return float(tree) if math.isfinite(tree) else None
    return int(tree) if isinstance(tree, np.integer) else tree


def write_npz(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as .npz in one step."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write(path, buffer.getvalue())


def read_json(path: str | os.PathLike, description: str) -> Any:
    """A JSON file that jaxkd wrote, called `description` in the error. MissingInput, Damaged."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except FileNotFoundError as e:
        raise errors.MissingInput(f'{description} {path} does not exist.') from e
    except (ValueError, OSError) as e:
        raise errors.Damaged(f'{description} {path} cannot be read ({e}). Restore it, or delete it to have it made '
                             'again.') from e


def write_summary(path: str | os.PathLike, summary: Mapping[str, Any]) -> None:
    """Write summary.json in one step, with a digest of its content beside it."""
    content = json.loads(json.dumps(summary))  # keys as a reader gets them
    write_json(path, content | dict(digest=json_digest(content)))


def read_summary(path: str | os.PathLike) -> dict[str, Any]:
    """summary.json, without its digest. MissingInput; Damaged for one whose content is not that of the digest. One
    without a digest is of an older version, or was edited, and is taken as it is.
    """
    summary = read_json(path, 'The summary')
    if not isinstance(summary, dict) or summary.pop('digest', None) not in (None, json_digest(summary)):
        raise errors.Damaged(f'The summary {path} is not what jaxkd wrote: its digest differs. Restore it from a copy; '
                             'if you edited it, take the line "digest" out, too.')
    return summary


def json_digest(content: Mapping[str, Any]) -> str:
    """sha256 of a tree but for its key 'digest', whatever the order of its keys."""
    rest = {key: value for key, value in content.items() if key != 'digest'}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def as_damaged(path: str | os.PathLike, what: str, remedy: str) -> Iterator[None]:
    """Within, whatever is wrong with the content of files that jaxkd wrote is Damaged, which names `what`."""
    try:
        yield
    except errors.JaxkdError:
        raise
    except Exception as e:
        reason = f'{type(e).__name__}: {" ".join(str(e).split())[:160]}'
        raise errors.Damaged(f'{path}: {what} cannot be used ({reason}). {remedy}') from e


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Within, an OSError becomes CannotWrite."""
    try:
        yield
    except OSError as e:
        raise cannot(path, e) from e


def cannot(path: str | os.PathLike, e: OSError) -> errors.CannotWrite:
    """The CannotWrite that explains an OSError."""
    reasons = {errno.ENOSPC: 'the disk is full', errno.EACCES: 'permission denied', errno.EDQUOT: 'over the quota',
               errno.EROFS: 'a read-only file system', errno.EFBIG: 'over the file size limit'}
    return errors.CannotWrite(f'Cannot write {path}: {reasons.get(e.errno or 0, e.strerror or str(e))}. Make room or '
                              'choose another --workdir; files that were complete before are intact.')
