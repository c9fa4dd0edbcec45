"""The one loop. No method, no stage and no modality has a name here."""
import time

import numpy as np

from jaxkd import checkpoint, errors, parallel
from jaxkd.runtime import log


def train(stage, workdir, tensorboard=True):
    """Train a stage (see `build.Stage`) to its last step, from its newest checkpoint if there is one.

    -> (the final State, seconds of training). Raises Interrupted after a save when a scheduler asked for the end, NonFinite
    with step, terms and cases, Damaged, CannotWrite.
    """
    saver = checkpoint.Checkpointer(stage.folder, stage.hp.mode)
    state = stage.initial()
    found = saver.restore(state)
    start, about = 0, {}
    if found:
        state, about = found
        start = about['position']['step']
        expected = stage.data.position(start, stage.seed, stage.hp.batch)
        before = {t: origin['digest'] for t, origin in checkpoint.stage_metadata(stage.folder)['teachers'].items()}
        if before != {t: origin['digest'] for t, origin in stage.teachers.items()}:
            raise errors.ConfigError(f'{stage.folder}: a teacher is not the one that this stage began with. Restore it, or '
                                     'begin anew in another --workdir.')
        if about['position'] != expected:
            raise errors.ConfigError(f'{stage.folder}: the checkpoint stands at {about["position"]} of its data, this run '
                                     f'would stand at {expected}. Use the same seed, batch and split, or another --workdir.')
        if start < stage.total:
            log.info(f'{stage.name}: resuming at step {start} of {stage.total}')
    else:
        saver.write_metadata(stage.about())
    ids = [case.id for case in stage.data.source.cases]
    lines = log.MetricWriter(workdir, stage.name, stage.total, stage.hp.batch, stage.log_every, ids, start,
                    about.get('log'), tensorboard)
    step_fn = parallel.compile_step(stage.method.train_step, stage.how)
    data = stage.data.train(stage.hp.batch, stage.seed, start, stage.cached) if start < stage.total else None
    try:
        for step in range(start, stage.total + 1):
            due = step % stage.every == 0 or step == stage.total
            stop = saver.preempted(step)
            if step > start and (due or stop):
                unwritten = lines.state()  # stops on a loss that is not finite, before it can be saved
                score = None
                if due:
                    began = time.perf_counter()
                    scores = stage.validate(state)
                    lines.scores(step, scores, time.perf_counter() - began)
                    score = stage.score(scores)
                    if score is not None:
                        sign = 1 if stage.hp.mode == 'max' else -1
                        state = stage.method.after_validation(state, np.float32(sign * score))
                lines.sync()
                saver.save(step, state, stage.data.position(step, stage.seed, stage.hp.batch), score, unwritten)
            if step == stage.total:
                break
            if stop:
                saver.wait()
                raise errors.Interrupted(f'{stage.name}: stopped at step {step}. What is done is saved; the same command continues.')
            batch = next(data)  # saved before it advances
            state, parts = step_fn(state, stage.frozen, parallel.shard_batch(batch, stage.how))
            lines.add(step + 1, parts, batch['index'], data.waited)
    finally:
        lines.close()
        if data is not None:
            data.close()
        saver.close()  # waits for what is still being written, also when something went wrong
    return state, lines.seconds
