"""Batches of a Dataset: the training stream, which is a function of (seed, step) and reads ahead, and batches of
evaluation.

Each pass over the training cases, an epoch, has a permutation of its own, which seed and epoch decide. Threads, worker
processes and hosts change nothing of it, and a run resumes at a step by asking for the stream from there. The indices,
each made of the one above:

    step      of training, from 0; a global batch
    position  in the stream: step k holds the positions k B to (k + 1) B, in equal blocks for the hosts in their order,
              as for the devices of one host: on either, a device has the same rows. What is random of a case belongs
              to its position
    epoch, offset   position = epoch * number of training cases + offset
    index     of a case in `source.cases`: permutation of the epoch [offset]; batch['index'] tells it
"""
import concurrent.futures
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd import errors, parallel
from jaxkd.contracts import Record
from jaxkd.data.dataset import Dataset, stack
from jaxkd.runtime import memory, preemption

Outputs = dict[str, dict[str, np.ndarray]]  # {teacher: {output: array over all cases}}


def train_loader(dataset: Dataset, batch: int, seed: int, start: int = 0,
                 teacher_outputs: Outputs | None = None, exchange: Outputs | None = None) -> 'Prefetcher':
    """Iterator of this host's rows of each global batch, from step `start` on. Numpy, ready for `parallel.shard_batch`.

    teacher_outputs, exchange: handed on, those of the batch's cases, in batch['teacher_outputs'] and
        batch['exchange'].
    """
    import grain
    from absl import flags
    config, indices = dataset.config, dataset.partition.train_indices()
    host, hosts = parallel.process()
    if batch % hosts:
        raise errors.ConfigError(f'batch = {batch} does not divide among {hosts} hosts.')
    if not indices:
        raise errors.BadData(f'No case of {dataset.source.name} is in the "{config.train}" part of the split.')
    more = dict(teacher_outputs=teacher_outputs or {}, exchange=exchange or {})
    reader = BatchReader(dataset, EpochSampler(indices, seed), seed, batch, more)
    # An element is a whole batch: what grain does with one takes as long as augmenting an image.
    stream = grain.MapDataset.range(start, 2**62).map(reader).to_iter_dataset(
        grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.threads))
    if config.workers:
        if not flags.FLAGS.is_parsed():  # grain reads flags when it starts processes
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers), worker_init_fn=_worker)
    return Prefetcher(iter(stream), config.timeout)


def eval_batches(dataset: Dataset, indices: Sequence[int], batch: int) -> Iterator[Record]:
    """This host's rows of batches of these cases, each once, in order; the last is padded with mask 0.

    All hosts yield the same number of batches, since each waits for the others.
    """
    host, hosts = parallel.process()
    rows = parallel.rows(batch)
    with concurrent.futures.ThreadPoolExecutor(max(1, dataset.config.threads)) as threads:
        for first in range(host * rows, host * rows + len(indices), hosts * rows):
            chosen = indices[first:first + rows]
            record = dataset.batch(chosen if len(chosen) else [0], True, threads.map)
            yield jax.tree.map(lambda a: _padded(a, len(chosen), rows), record)  # noqa: B023


def iterator_state(dataset: Dataset, step: int, seed: int, batch: int) -> dict[str, Any]:
    """All the state that the training stream has before `step`, for the checkpoint."""
    parts = dataset.partition
    return dict(step=int(step), seed=int(seed), batch=int(batch), cases=len(parts.train_indices()),
                split=parts.fingerprint)


class Prefetcher:
    """Takes batches from an iterator in a thread, one ahead, and gives up with an error when none comes."""

    def __init__(self, iterator: Iterator[Record], timeout: float):
        """timeout: seconds without a batch."""
        self.iterator, self.timeout, self.data_wait_s = iterator, timeout, 0.0  # data_wait_s: waiting time of training
        self.requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.batches: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._take, name='prefetcher', daemon=True).start()
        self.requests.put(True)

    def _take(self) -> None:
        while self.requests.get():
            try:
                self.batches.put((next(self.iterator), None))
            except BaseException as e:  # the reader's, and StopIteration: raised where it is waited for
                self.batches.put((None, e))

    def __iter__(self) -> 'Prefetcher':
        return self

    def __next__(self) -> Record:
        begin = time.perf_counter()
        try:
            batch, error = self.batches.get(timeout=self.timeout)
        except queue.Empty as e:
            raise errors.BadData(f'No batch for {self.timeout:g} s: a reader hangs, perhaps on a file system that does '
                                 'not answer. Raise data.timeout if reading is that slow.') from e
        self.data_wait_s += time.perf_counter() - begin
        self.requests.put(True)
        if isinstance(error, RuntimeError) and 'was terminated unexpectedly' in str(error):  # grain's words
            raise errors.JaxkdError('A reader process was ended by another program or the system, perhaps for lack of '
                                    f'memory ({error}). The same command continues from the last checkpoint; fewer '
                                    'data.workers need less memory.') from error
        if error:
            raise error
        return batch

    def close(self) -> None:
        """Take no further batch."""
        self.requests.put(False)


class EpochSampler:
    """Positions in the training stream -> indices of cases."""

    def __init__(self, indices: Sequence[int], seed: int):
        """indices: of the training cases."""
        self.cases, self.seed = np.asarray(indices), seed
        self.permutations: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), 'permutations': {}}

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int [n], rising -> int [n]."""
        epochs, offsets = np.divmod(positions, len(self.cases))
        first, last = int(epochs[0]), int(epochs[-1])
        if first == last:
            return self._permutation(first)[offsets]
        return np.concatenate([self._permutation(epoch)[offsets[epochs == epoch]] for epoch in range(first, last + 1)])

    def _permutation(self, epoch: int) -> np.ndarray:
        order = self.permutations.get(epoch)
        if order is None:  # raw bits: the same in all versions of numpy
            bits = np.random.Philox(np.random.SeedSequence((self.seed, epoch))).random_raw(len(self.cases))
            order = self.cases[np.argsort(bits, kind='stable')]
            neighbours = {e: o for e, o in self.permutations.items() if abs(e - epoch) == 1}
            self.permutations = {**neighbours, epoch: order}
        return order


class BatchReader:
    """Elements of the training stream: this host's rows of the global batch of a step."""

    def __init__(self, dataset: Dataset, sampler: EpochSampler, seed: int, batch: int, more: dict[str, Outputs]):
        """more: {key of a batch: values of all cases, by teacher}, none where empty."""
        self.dataset, self.sampler, self.batch = dataset, sampler, batch
        self.more = {key: values for key, values in more.items() if values}
        host, hosts = parallel.process()
        self.mine = np.arange(batch * host // hosts, batch * (host + 1) // hosts)  # positions in a global batch
        # The generators of grain's random_map as the third, fourth, ... transformation of a stream with this seed.
        self.seeds = [int(np.random.SeedSequence((seed, place)).generate_state(1, np.uint32)[0])
                      for place, _ in enumerate(dataset.transforms.augment, 2)]

    def __call__(self, step: int) -> Record:
        """{key: [B / hosts, ...]}."""
        positions = step * self.batch + self.mine
        indices = self.sampler(positions)
        record = self._augmented(positions, indices) if self.seeds else self.dataset.batch(indices)
        return record | jax.tree.map(lambda values: values[indices], self.more)

    def _augmented(self, positions: np.ndarray, indices: np.ndarray) -> Record:
        bits = [np.random.Philox(seed) for seed in self.seeds]
        states = [b.state for b in bits]
        generators = [np.random.Generator(b) for b in bits]
        cases = []
        for position, index in zip(positions, indices):
            case = self.dataset.prepared(int(index))
            for transform, generator, state in zip(self.dataset.transforms.augment, generators, states):
                state['state']['counter'] = np.array([0, 0, 0, position], np.uint64)
                generator.bit_generator.state = state
                case = transform.apply(case, generator)
            cases.append(self.dataset.hide_labels(case, int(index)))
        return stack(cases)


def _padded(values: np.ndarray, count: int, rows: int) -> np.ndarray:
    """The first `count` of values [n,...], then 0, to `rows`."""
    return values if count == rows else np.concatenate([values[:count],
                                                        np.zeros((rows - count, *values.shape[1:]), values.dtype)])


def _worker(index: int, count: int) -> None:
    """Readers outlive the signals that schedulers send to all processes, but not their parent."""
    memory.keep_freed()
    for name in preemption.SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()
