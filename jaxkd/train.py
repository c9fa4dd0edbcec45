"""The training loop, the same for every method, stage and modality."""
import contextlib
import pathlib
import time
from typing import Any

import numpy as np

from jaxkd import checkpoint, errors, evaluation, parallel
from jaxkd.data import loader
from jaxkd.runtime import log, saved_student
from jaxkd.stages import Stage
from jaxkd.state import TrainState


def train(stage: Stage, workdir: str | pathlib.Path, tensorboard: bool = True,
          later: int = 0) -> tuple[TrainState, float]:
    """Train a stage (jaxkd/stages.py) to its last step, from its newest checkpoint if there is one.

    later: examples that the following stages train on, for the ETA of the run.

    -> (the final TrainState, seconds of training). Raises Interrupted after a save that a signal of the scheduler
    caused, NonFinite with step, terms and cases, Damaged, CannotWrite.
    """
    saver = checkpoint.Checkpointer(stage.folder, stage.config.mode)
    with log.waiting(f'{stage.name}: compiling the initial state'):
        state = stage.initial()
    start, metadata = 0, dict[str, Any]()
    if restored := saver.restore(state, stage.context.fsdp):
        state, metadata = restored
        start = metadata['position']['step']
        expected = loader.iterator_state(stage.data, start, stage.seed, stage.config.batch)
        before = saved_student.stage_metadata(stage.folder)['teachers']
        if ({t: provenance['digest'] for t, provenance in before.items()}
                != {t: teacher.provenance['digest'] for t, teacher in stage.teachers.items()}):
            raise errors.ConfigError(f'{stage.folder}: a teacher is not the one that this stage began with. Restore '
                                     'it, or begin anew in another --workdir.')
        if metadata['position'] != expected:
            raise errors.ConfigError(f'{stage.folder}: the checkpoint stands at {metadata["position"]} of its data, '
                                     f'this run would stand at {expected}. Use the same seed, batch and split, or '
                                     'another --workdir.')
        if start < stage.total:
            log.info(f'{stage.name}: resuming at step {start} of {stage.total}')
    else:
        saver.write_metadata(stage.metadata())
    ids = [case.id for case in stage.data.source.cases]
    writer = log.MetricWriter(workdir, stage.name, stage.total, stage.config.batch, stage.log_every, ids, start,
                              metadata.get('log'), tensorboard, later)
    step_fn = parallel.compile_step(stage.method.train_step, stage.context.parallel, stage.context.fsdp)
    data: Any = loader.train_loader(stage.data, stage.config.batch, stage.seed, start,
                                    stage.cached_outputs, stage.exchanged) if start < stage.total else None
    try:
        for step in range(start, stage.total + 1):
            due = step % stage.eval_every == 0 or step == stage.total
            stop = saver.preempted(step)
            if step > start and (due or stop):
                log_state = writer.state()  # raises for a loss that is not finite, before the step is saved
                score = None
                if due:
                    if not stage.method.solve:  # that of a closed form is 0
                        writer.check_loss(step)
                    began = time.perf_counter()
                    with log.waiting(f'{stage.name}: validation', log.MINUTE):
                        scores = evaluation.validate(stage, state)
                    writer.scores(step, scores, time.perf_counter() - began)
                    score = evaluation.selection_score(stage, scores)
                    if score is not None:
                        sign = 1 if stage.config.mode == 'max' else -1
                        state = stage.method.after_validation(state, np.float32(sign * score))
                writer.sync()
                saver.save(step, state, loader.iterator_state(stage.data, step, stage.seed, stage.config.batch), score,
                           log_state)
            if step == stage.total:
                break
            if stop:
                saver.wait()
                raise errors.Interrupted(f'{stage.name}: stopped at step {step}. Finished steps are saved; the same '
                                         'command continues.')
            batch = next(data)  # saved before it advances
            first = step == start
            with log.waiting(f'{stage.name}: compiling the train step') if first else contextlib.nullcontext():
                state, metrics = step_fn(state, stage.frozen, parallel.shard_batch(batch, stage.context.parallel))
            writer.add(step + 1, metrics, batch['index'], data.data_wait_s)
    finally:
        try:
            writer.close()
        finally:
            if data is not None:
                data.close()
            saver.close()  # waits for pending writes, also after an error
    return state, writer.seconds
