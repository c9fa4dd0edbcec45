"""The training stream: batches that are a function of (seed, step), read ahead.

Each pass over the training cases has an order of its own, which seed and pass decide; position n of the stream is a case, its
random generator belongs to that position, and step k is positions k B to (k + 1) B. Threads, worker processes and hosts change
nothing of it, and a run resumes at a step by asking for the stream from there.
"""
import functools
import os
import queue
import signal
import threading
import time

import numpy as np

from jaxkd import errors, parallel


def train_loader(data, batch, seed, start=0, cached=None):
    """Iterator of this host's rows of each global batch, from step `start` on. Numpy, ready for `parallel.place`.

    data: pipeline.Data; cached: {teacher: {output: array over all cases}}, handed on in batch['cached'].
    """
    import grain
    part = data.trained()
    host, hosts = parallel.process()
    if batch % hosts:
        raise errors.ConfigError(f'batch = {batch} does not divide among {hosts} hosts.')
    if not part:
        raise errors.BadData(f'No case of {data.source.name} is in the "{data.hp.train}" part of the split.')
    read = EpochSampler(data, part, seed, cached)
    # Rows of a host: every hosts-th position, so the global batch does not depend on the number of hosts.
    if data.augment:  # an element is a case
        stream = grain.MapDataset.range(2**62).seed(seed).map(read)
        for transform in data.augment:
            stream = stream.random_map(transform.apply)
        stream = stream[start * batch:][host::hosts].map(_for_training).batch(batch // hosts, drop_remainder=True)
    else:  # an element is a batch: what grain does with one takes as long as reading an image
        stream = grain.MapDataset.range(start, 2**62).map(functools.partial(read.rows, batch, host, hosts))
    options = grain.ReadOptions(num_threads=data.hp.threads, prefetch_buffer_size=2 * data.hp.threads)
    stream = stream.to_iter_dataset(options)
    if data.hp.workers:
        _grain_needs_flags()
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.hp.workers), worker_init_fn=_worker)
    return Prefetcher(iter(stream), data.hp.timeout)


class Prefetcher:
    """Takes batches from an iterator in a thread, one ahead, and gives up with an error when none comes."""

    def __init__(self, iterator, timeout):
        self.iterator, self.timeout, self.waited = iterator, timeout, 0.0
        self.asked, self.found = queue.SimpleQueue(), queue.SimpleQueue()
        threading.Thread(target=self._take, name='feeder', daemon=True).start()
        self.asked.put(True)

    def _take(self):
        while self.asked.get():
            try:
                self.found.put((next(self.iterator), None))
            except BaseException as e:  # the reader's, and StopIteration: raised where it is waited for
                self.found.put((None, e))

    def __iter__(self):
        return self

    def __next__(self):
        begin = time.perf_counter()
        try:
            batch, error = self.found.get(timeout=self.timeout)
        except queue.Empty as e:
            raise errors.BadData(f'No batch for {self.timeout:g} s: a reader hangs, perhaps on a file system that does '
                                 'not answer. Raise data.timeout if reading is that slow.') from e
        self.waited += time.perf_counter() - begin
        self.asked.put(True)
        if error:
            raise error
        return batch

    def close(self):
        self.asked.put(False)


class EpochSampler:
    """Position in the training stream -> case, or step -> batch. Each pass has an order of its own, which seed and pass decide."""

    def __init__(self, data, part, seed, cached):
        self.data, self.part, self.seed, self.cached = data, np.asarray(part), seed, cached or {}
        self.orders = {}

    def __getstate__(self):
        return {**vars(self), 'orders': {}}

    def index(self, positions):
        """Of the cases at these positions."""
        turns, at = np.divmod(positions, len(self.part))
        first, last = int(turns[0]), int(turns[-1])
        if first == last:
            return self._order(first)[at]
        return np.concatenate([self._order(turn)[at[turns == turn]] for turn in range(first, last + 1)])

    def _order(self, turn):
        order = self.orders.get(turn)
        if order is None:  # raw bits: the same in all versions of numpy
            bits = np.random.Philox(np.random.SeedSequence((self.seed, turn))).random_raw(len(self.part))
            order = self.part[np.argsort(bits, kind='stable')]
            self.orders = {**{t: o for t, o in self.orders.items() if abs(t - turn) == 1}, turn: order}  # readers are near each other
        return order

    def __call__(self, position):
        i = int(self.index(np.array([position]))[0])
        record = self.data.record(i)
        if self.cached:
            record['cached'] = self._said(i)
        return record

    def rows(self, batch, host, hosts, step):
        """The rows of a host of the global batch `step`."""
        indices = self.index(np.arange(step * batch + host, (step + 1) * batch, hosts))
        found = _for_training(self.data.rows(indices))
        if self.cached:
            found['cached'] = self._said(indices)
        return found

    def _said(self, i):
        return {t: {k: a[i] for k, a in out.items()} for t, out in self.cached.items()}


def _for_training(record):
    return {k: v for k, v in record.items() if k != 'boxes'}


def _worker(index, count):
    """Readers outlive the signals that schedulers send to all processes, but not their parent."""
    for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def _grain_needs_flags():
    from absl import flags
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

