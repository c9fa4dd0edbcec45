"""Output of a run: a live line, metrics.jsonl, TensorBoard events."""
import contextlib
import json
import math
import pathlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar

import jax

from jaxkd import errors, parallel
from jaxkd.runtime import files
from jaxkd.state import Mean

Item = TypeVar('Item')
MINUTE = 60.0  # seconds between two lines of a log file


def info(text: str) -> None:
    """One plain line on standard output, from the first host only."""
    if parallel.process()[0] == 0:
        print(text, flush=True)


def progress(iterable: Iterable[Item], label: str, total: int | None = None) -> Iterable[Item]:
    """`iterable` with a live line and ETA; a line each minute when the output is not a terminal."""
    if total is None:
        assert isinstance(iterable, Sized), 'total, where the iterable has no length'
        total = len(iterable)
    if not sys.stderr.isatty() or parallel.process()[0]:
        if total >= 500:  # fewer take too little time for a line
            info(f'{label}: {total}')
        return _with_lines(iterable, label, total)
    import tqdm
    return tqdm.tqdm(iterable, label, total, leave=False)


def _with_lines(iterable, label, total):
    begin = before = time.monotonic()
    for done, item in enumerate(iterable):
        if (now := time.monotonic()) - before >= MINUTE:
            eta = f'  ETA {_clock((now - begin) * (total - done) / done)}' if done else ''
            info(f'{label}: {done} of {total}{eta}')
            before = now
        yield item


@contextlib.contextmanager
def waiting(label: str, pause: float = 5.0) -> Iterator[None]:
    """Within, a line with the time that has passed after `pause` seconds and then each minute: for what has no steps
    that could be counted, such as a compilation.
    """
    ended, began = threading.Event(), time.monotonic()

    def lines() -> None:
        if not ended.wait(pause):
            info(f'{label}, {_clock(time.monotonic() - began)} so far')
            while not ended.wait(MINUTE):
                info(f'{label}, {_clock(time.monotonic() - began)} so far')
            info(f'{label}, done after {_clock(time.monotonic() - began)}')
    thread = threading.Thread(target=lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class MetricWriter:
    """Metrics of one stage. They stay on the device until a line is due, so that the loop does not wait for them."""

    def __init__(self, workdir: str | pathlib.Path, stage: str, total: int, batch: int, every: int, ids: Sequence[str],
                 resumed: int = 0, log_state: dict[str, Any] | None = None, tensorboard: bool = True,
                 later: int = 0) -> None:
        """ids: case id by index; resumed, log_state: step and `state()` of the checkpoint that training resumes; later:
        examples that the following stages train on, for the ETA of the run.
        """
        self.path = pathlib.Path(workdir) / 'metrics.jsonl'
        self.stage, self.total, self.batch, self.every, self.ids, self.later = stage, total, batch, every, ids, later
        log_state = log_state or dict(pending=(), seconds=0.0)
        self.pending: list[tuple[int, dict[str, Mean], Any]] = [
            (step, {n: Mean(*m) for n, m in metrics.items()}, ()) for step, metrics in log_state['pending']]
        self.all_zero = not resumed  # whether every loss was exactly 0, from the first step on
        self.bar, self.before, self.began = None, log_state['seconds'], time.perf_counter()
        self.clock, self.waited = time.perf_counter(), 0.0
        if parallel.process()[0] == 0:
            with files.writing(self.path):
                _drop_lines_after(self.path, stage, resumed)
                self.file = open(self.path, 'a')
            if sys.stderr.isatty():
                import tqdm
                self.bar = tqdm.tqdm(total=total, initial=resumed, desc=stage, unit='step', leave=False)
            self.board = _board(workdir, stage, resumed) if tensorboard else None

    def add(self, step: int, metrics: dict[str, Mean], index: Any, waited: float) -> None:
        """metrics {name: Mean} of the step before `step`, on the device; index: its cases; waited: s for data."""
        self.pending.append((step, metrics, index))
        if self.bar is not None:
            self.bar.update()
        if step % self.every == 0 or step == self.total:
            self.flush(waited)

    @property
    def seconds(self) -> float:
        """Seconds of training, including validations and earlier, interrupted runs."""
        return self.before + time.perf_counter() - self.began

    def state(self) -> dict:
        """For the checkpoint: the metrics that are not written yet. NonFinite if one of them is not finite."""
        self.fetch()
        return dict(seconds=self.seconds, pending=[
            (step, {n: [float(m.total), float(m.weight)] for n, m in metrics.items()})
            for step, metrics, _ in self.pending])

    def fetch(self) -> None:
        """Bring the metrics that are not written yet to the host. NonFinite if one is not finite."""
        values = jax.device_get([metrics for _, metrics, _ in self.pending])
        self.pending = [(step, metrics, index) for (step, _, index), metrics in zip(self.pending, values)]
        for step, metrics, index in self.pending:
            self.all_zero &= 'loss' in metrics and float(metrics['loss'].total) == 0
            if bad := [n for n, m in metrics.items() if not math.isfinite(float(m.total))]:
                shown = ', '.join(f'{n} {float(m.total) / max(float(m.weight), 1e-12):g}' for n, m in metrics.items())
                raise errors.NonFinite(
                    f'{self.stage}: {", ".join(bad)} not finite at step {step} ({shown}). Its cases: '
                    f'{", ".join(self.ids[i] for i in index)}. The last checkpoint is from before. Lower optim.lr, set '
                    'optim.clip, look at those cases, or allow optim.skip_nonfinite.')

    def check_loss(self, step: int) -> None:
        """BadData where every loss of a stage from its first step to this one was exactly 0: it learns nothing."""
        if self.all_zero:
            raise errors.BadData(f'{self.stage}: the loss was 0 in each of the first {step} steps, so nothing is '
                                 'learned. Look at the labels (is all of them ignored?) and the weights of the terms.')

    def flush(self, waited: float = 0.0) -> None:
        """Write one line: the mean of each term since the last one."""
        if not self.pending:
            return
        self.fetch()
        pending, self.pending = self.pending, []
        now = time.perf_counter()
        spent, self.clock = now - self.clock, now
        line: dict[str, Any] = dict(stage=self.stage, step=pending[-1][0])
        for name in pending[0][1]:
            means = [metrics[name] for _, metrics, _ in pending]
            total, weight = sum(float(m.total) for m in means), sum(float(m.weight) for m in means)
            line[name] = total / weight if weight else None
        fresh = sum(len(index) > 0 for _, _, index in pending)  # without those from before an interruption
        line |= dict(examples_per_s=fresh * self.batch / spent, data_wait=min(1.0, (waited - self.waited) / spent))
        self.waited = waited
        self.write(line)
        if parallel.process()[0] == 0:
            step_s = spent / max(1, fresh)
            remaining = (self.total - line['step']) * step_s
            all_stages = f', all stages about {_clock(remaining + self.later / self.batch * step_s)}' * bool(self.later)
            shown = f'loss {line["loss"]:.4f}  {line["examples_per_s"]:.0f} examples/s'
            if self.bar is not None:
                self.bar.set_postfix_str(shown + all_stages)
            else:
                print(f'{self.stage}  step {line["step"]}/{self.total}  {shown}  ETA {_clock(remaining)}{all_stages}',
                      flush=True)

    def write(self, line: dict) -> None:
        """Append a line to metrics.jsonl and to TensorBoard."""
        if parallel.process()[0]:
            return
        with files.writing(self.path):
            self.file.write(json.dumps(line) + '\n')
        if self.board:
            for key, value in line.items():
                if isinstance(value, (int, float)) and key != 'step':
                    self.board.add_scalar(f'{self.stage}/{key}', value, line['step'])

    def scores(self, step: int, scores: dict[str, float], seconds: float) -> None:
        """Scores of a validation; its `seconds` do not count in the training speed."""
        self.write(dict(stage=self.stage, step=step, **scores))
        shown = '  '.join(f'{k} {v:.4f}' for k, v in scores.items() if '/' not in k.partition('/')[2])
        show = self.bar.write if self.bar is not None else info
        show(f'{self.stage}  step {step}/{self.total}  validation  {shown}')
        self.clock += seconds

    def sync(self) -> None:
        """Flush the lines to disk, before the checkpoint of their step."""
        if parallel.process()[0] == 0:
            with files.writing(self.path):
                self.file.flush()
                if self.board:
                    self.board.flush()

    def close(self) -> None:
        """Write what is left and close the files. CannotWrite, for a full disk too."""
        if parallel.process()[0] == 0:
            if self.bar is not None:
                self.bar.close()
            with files.writing(self.path):
                self.file.close()
                if self.board:
                    self.board.close()


def read(workdir: str | pathlib.Path) -> list[dict]:
    """All lines of metrics.jsonl, oldest first; a line cut short by a crash is left out."""
    path = pathlib.Path(workdir) / 'metrics.jsonl'
    return [line for line in map(_parse, path.read_text().splitlines()) if line] if path.exists() else []


def _drop_lines_after(path, stage, step):
    """Drop the lines of an interrupted run after the checkpoint: the resumed run writes those steps again."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    lines = [line for line in path.read_text().splitlines()
             if (entry := _parse(line)) and not (entry['stage'] == stage and entry['step'] > step)]
    files.write(path, ''.join(line + '\n' for line in lines))


def _parse(line):
    try:
        return json.loads(line)
    except ValueError:
        return None


def _board(workdir, stage, resumed):
    """A writer whose file does not bear the name of the machine, which tensorboardX puts at its end."""
    import logging
    import socket

    import tensorboardX
    logging.getLogger('tensorboardX').setLevel(logging.ERROR)
    folder = pathlib.Path(workdir) / 'tensorboard' / stage
    board, host = tensorboardX.SummaryWriter(str(folder), purge_step=resumed + 1), f'.{socket.gethostname()}'
    for path in folder.glob('events.out.tfevents.*'):
        if path.name.endswith(host):
            path.rename(path.with_name(path.name.removesuffix(host) + '.jaxkd'))
    return board


def _clock(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{seconds:02}' if minutes >= 60 else f'{minutes}:{seconds:02}'
