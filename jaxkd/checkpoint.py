"""Checkpoints: the only importer of orbax.

A stage's folder holds stage.json (config, labels, vocabulary and split of the stage; written once) and one folder for
each retained step: the best by the selection metric, and the last ones. A step appears when it is complete. It holds
`state` (for training), `student` (for deployment) and `about` (metadata).

Orbax does not detect a flipped bit in an array. `about` therefore holds the sha256 of every leaf and of stage.json: a
restored step is bit for bit the saved one, or the damaged leaf is named and the previous intact step is restored.
"""
import contextlib
import errno
import logging
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from jaxkd import errors, parallel
from jaxkd.runtime import files, log, preemption, saved_student
from jaxkd.runtime.trees import leaf_name
from jaxkd.state import TrainState, inference_variables

Path = str | pathlib.Path

logging.getLogger('absl').setLevel(logging.ERROR)  # orbax logs every save
logging.getLogger('absl').addFilter(lambda record: not (record.exc_info and _cannot_write(record.exc_info[1])))


class Checkpointer:
    """Saves and restores the training of one stage."""

    def __init__(self, folder: Path, mode: str = 'max', keep: int = 2) -> None:
        self.folder, self.mode = pathlib.Path(folder).absolute(), mode
        managers = ocp.checkpoint_managers
        sign = 1 if mode == 'min' else -1  # of equal scores the earliest is the best, whatever else was saved between
        best = managers.BestN(get_metric_fn=lambda m: (m['score'], sign * m.get('step', 0)), reverse=mode == 'min', n=1,
                              keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda m: m['score'], best_mode=mode, cleanup_tmp_directories=True,
            preservation_policy=managers.AnyPreservationPolicy([managers.LatestN(keep), best]))
        self.manager = _manager(self.folder, options)
        self._hook, sys.unraisablehook = sys.unraisablehook, _without_closed_loops(sys.unraisablehook)

    def write_metadata(self, metadata: dict[str, Any]) -> None:
        """Write stage.json, a JSON-able dict, before the first save."""
        if parallel.process()[0] == 0:
            files.write_json(self.folder / 'stage.json', metadata)

    def save(self, step: int, state: TrainState, position: dict[str, Any], score: float | None = None,
             log_state: dict[str, Any] | None = None) -> None:
        """Asynchronous and atomic.

        position: `loader.iterator_state`; score: of the validation at this step; log_state: `MetricWriter.state()`.
        """
        if step in self.manager.all_steps():
            return  # restored from this step
        known: dict[int, list] = {}  # each array is gathered and hashed once, though state and student share some
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
            a = parallel.whole(leaf)
            known[id(leaf)] = saved_student.array_digest(leaf, a)
            if not np.isfinite(a).all():
                raise errors.NonFinite(f'{self.folder}: parameter {leaf_name(path)} is not finite at step {step}, so '
                                       'the step is not saved. Lower optim.lr or set optim.clip; the last checkpoint '
                                       'is from before.')
        student = inference_variables(state)
        digests = {'state': saved_student.digests(state, known), 'student': saved_student.digests(student, known)}
        metadata = dict(position=position, score=score, log=log_state, digests=digests,
                        stage=saved_student.file_digest(self.folder / 'stage.json'))
        metadata['digest'] = saved_student.metadata_digest(metadata)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), student=ocp.args.StandardSave(student),
                                  about=ocp.args.JsonSave(metadata))
        with _writing(self.folder / str(step)):
            saved = self.manager.save(step, args=args,
                                      metrics=None if score is None else {'score': float(score), 'step': step})
        if not saved:
            raise errors.CannotWrite(f'{self.folder}: step {step} was not saved, a newer step exists. Use another '
                                     '--workdir.')

    def wait(self) -> None:
        """Block until all saves are on disk."""
        with _writing(self.folder):
            self.manager.wait_until_finished()

    def restore(self, state: TrainState, fsdp: int = 1) -> tuple[TrainState, dict[str, Any]] | None:
        """-> (state, metadata) of the newest intact step, or None without any step.

        `state` gives structure, shapes and dtypes; fsdp: how many devices divide it, on whatever it was saved. A
        damaged step is named and an older one is tried; Damaged if none is intact.
        """
        damage = []
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                restored, metadata = _read(self.manager, self.folder, step, 'state', state)
            except errors.Damaged as e:
                damage.append((step, e))
                log.info(f'{e} Trying an older step.')
                continue
            for bad, _ in damage:  # so that the step can be saved again
                self.manager.delete(bad)
            return parallel.place_state(restored, fsdp), metadata
        if damage:
            raise errors.Damaged(f'{damage[0][1]} No whole step is left in {self.folder}; delete it to train again.')
        return None

    def preempted(self, step: int) -> bool:
        """Whether a signal asks the run to end; all hosts agree on the step."""
        return preemption.agreed()

    def close(self) -> None:
        """Wait for all saves. Of a save that failed nothing is left, in memory or on disk.

        Raises what failed first, and nothing where an error is on its way already: a write that another process's end
        has cut short is no disk that is full.
        """
        on_its_way, failed = sys.exc_info()[1], None
        try:
            for end in (self.wait, self._remove_unfinished, self._close_manager):  # the last says again what failed
                try:
                    end()
                except Exception as e:
                    failed = failed or e
        finally:
            sys.unraisablehook = self._hook
        if failed and not on_its_way:
            raise failed

    def _remove_unfinished(self) -> None:
        """Remove saves that failed. Their other writes, on threads that orbax hands to nobody, go on for a moment and
        make the folder anew; a later run of this process would meet them while it cleans up.
        """
        def unfinished():
            return [*self.folder.glob(f'*{ocp.path.atomicity_types.TMP_DIR_SUFFIX}')]
        if parallel.process()[0]:
            return
        quiet, end = 0 if unfinished() else 3, time.monotonic() + 5
        while quiet < 3 and time.monotonic() < end:
            for path in unfinished():
                shutil.rmtree(path, ignore_errors=True)
            time.sleep(.05)
            quiet = 0 if unfinished() else quiet + 1

    def _close_manager(self) -> None:
        with _writing(self.folder):
            self.manager.close()


def check_student(folder: Path, variables: Any, which: str = 'best') -> None:
    """Raise what `load_student` would raise for a missing step and for other names or shapes; reads no array."""
    folder = pathlib.Path(folder).absolute()
    with _manager(folder, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = _choose(manager, folder, which)
        _check_shapes(folder, step, _metadata(manager, folder, step)['digests']['student'], variables)


def load_student(folder: Path, variables: Any, which: str = 'best') -> tuple[dict, int]:
    """The deployed variables of a stage, verified leaf by leaf -> (numpy variables, step).

    variables: the expected ShapeDtypeStructs; None accepts any. which: 'best', 'last' or a step number.
    Raises MissingInput (no such step), ConfigError (other names or shapes), Damaged.
    """
    folder = pathlib.Path(folder).absolute()
    if not folder.is_dir():
        raise errors.MissingInput(f'No checkpoints at {folder}. Give the folder that holds stage.json.')
    with _manager(folder, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = _choose(manager, folder, which)
        student, _ = _read(manager, folder, step, 'student', variables)
    return student, step


def scores(folder: Path) -> dict[int, float | None]:
    """{step: selection score or None} of the retained steps."""
    folder = pathlib.Path(folder).absolute()
    with _manager(folder, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        return {int(s): _metadata(manager, folder, s)['score'] for s in manager.all_steps()}


class _Manager(ocp.CheckpointManager):
    """One that leaves JAX's coordination service alone: orbax tells it the step of a save, also late and from a thread.
    Where a signal comes at that moment, hosts agree on the place after that number, which they have passed, and go on.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def _manager(folder: pathlib.Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    """That of a folder, in which it reads the scores of all steps. CannotWrite, Damaged."""
    try:
        return _Manager(folder, options=options)
    except OSError as e:
        raise files.cannot(folder, e) from e
    except Exception as e:  # damage surfaces as many types
        _raise_lost(e)
        raise errors.Damaged(f'{folder}: what a step says of itself (metrics/metrics) cannot be read ({_short(e)}). '
                             'Restore it, or delete that step.') from e


def _raise_lost(e: Exception) -> None:
    """Raise PeerDied for an error of JAX about another process: nothing is damaged."""
    if errors.is_lost_peer(e):
        raise errors.PeerDied.of(e) from e


def _choose(manager, folder, which):
    return saved_student.choose(folder, [int(s) for s in manager.all_steps()], which,
                                lambda step: _metadata(manager, folder, step))


def _metadata(manager, folder, step):
    """What a step says of itself, of which nothing has changed, nor of stage.json. Damaged."""
    try:
        metadata = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))['about']
    except Exception as e:  # damage surfaces as many types
        _raise_lost(e)
        raise errors.Damaged(f'Checkpoint {folder}/{step} cannot be read ({_short(e)}).') from e
    saved_student.check_step(folder, step, metadata)
    return metadata


def _read(manager, folder, step, item, like):
    """One item of a step as numpy, verified against its digests."""
    metadata = _metadata(manager, folder, step)
    expected = metadata['digests'][item]
    like = like or traverse_util.unflatten_dict(
        {n: jax.ShapeDtypeStruct(shape, dtype) for n, (_, shape, dtype) in expected.items()}, sep='/')
    _check_shapes(folder, step, expected, like)
    target = jax.tree.map(lambda a: np.broadcast_to(np.zeros((), a.dtype), a.shape), like)
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(target)}))[item]
    except Exception as e:
        _raise_lost(e)
        raise errors.Damaged(f'Checkpoint {folder}/{step} cannot be read ({_short(e)}).') from e
    if damaged := [n for n, (value, *_) in saved_student.digests(restored).items() if value != expected[n][0]]:
        raise errors.Damaged(f'Checkpoint {folder}/{step} is damaged: {", ".join(damaged[:3])} is not what was saved.')
    return restored, metadata


def _check_shapes(folder, step, digests, like):
    """ConfigError unless the leaves of `like` have the names, shapes and types of the saved ones."""
    saved = {n: [shape, dtype] for n, (_, shape, dtype) in digests.items()}
    names = {leaf_name(path): [list(a.shape), str(a.dtype)] for path, a in jax.tree_util.tree_leaves_with_path(like)}
    for n in sorted({*names, *saved}):
        if names.get(n) != saved.get(n):
            raise errors.ConfigError(f'{folder}/{step}: {n} is {saved.get(n, "absent")} in the checkpoint and '
                                     f'{names.get(n, "absent")} in the config. Use the config it was trained with.')


def _short(e):
    return f'{type(e).__name__}: {" ".join(str(e).split())[:160]}'


@contextlib.contextmanager
def _writing(path):
    """Within, an error of writing, also of orbax's thread, becomes CannotWrite."""
    try:
        yield
    except OSError as e:
        raise files.cannot(path, e) from e
    except Exception as e:
        if not _cannot_write(e):
            raise
        number = next((number for number in (*files.FULL, errno.EACCES) if os.strerror(number) in str(e)), None)
        if number is not None:
            raise files.cannot(path, OSError(number, os.strerror(number))) from e
        raise errors.CannotWrite(f'Cannot write {path}: {_short(e)}. Make room and run the same command again; the '
                                 'steps saved before are complete.') from e


def _without_closed_loops(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """An unraisablehook without the callbacks of writes that go on when another one of the same save has failed: orbax
    has closed their loop, and `save` or `wait` raises what failed.
    """
    def unraisablehook(error: Any) -> None:
        if not (error.exc_type is RuntimeError and str(error.exc_value) == 'Event loop is closed'):
            hook(error)
    return unraisablehook


def _cannot_write(e: BaseException | None) -> bool:
    """Whether `_writing` says what an error of orbax means: its threads log no traceback of it beside that sentence."""
    words = ('RESOURCE_EXHAUSTED', 'PERMISSION_DENIED', *(os.strerror(number) for number in files.FULL))
    return isinstance(e, OSError) or any(word in str(e) for word in words)
