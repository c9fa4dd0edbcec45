"""Predict many cases with one network, or with several whose probabilities are averaged.

Files are read and prepared in threads ahead of the network, whose batches hold cases of several files. Volumes are read
one ahead of the one that is predicted, window by window, so that no more than a few are in memory. A case that cannot
be read or predicted is reported, and the others go on.

Batches have the size of the evaluation of the run, where there are as many cases as it tested: the same program then
gives the same bits. For fewer cases they are smaller, and numbers may differ in their last digits.
"""
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd import errors, parallel
from jaxkd.inference import case_columns, case_pictures, case_reader, sliding_window
from jaxkd.inference.case_files import SLICES, CaseFiles
from jaxkd.inference.case_reader import Prepared
from jaxkd.inference.deployed import RESTORE, Deployed
from jaxkd.inference.masks import MaskWriter
from jaxkd.metrics.logistic import expit
from jaxkd.runtime import files, log, memory, preemption
from jaxkd.runtime.thread_pool import map_ahead

SPARE = 3 * 2**27  # bytes that a process may grow by beyond what it uses, while a scan is predicted
CLASSES = 'class_logits'  # of networks that classify each window, too
CASE_ERRORS = (errors.BadData, errors.MissingInput, errors.NonFinite)  # of one case; the others go on

Forms = dict[str, Prepared]  # digest of a preprocessing: the case; members with equal ones share it
Done = Callable[[CaseFiles, dict[str, str]], None]
Failed = Callable[[CaseFiles, errors.JaxkdError], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the caller chooses."""

    batch: int = 0  # cases, or windows, at a time; 0: see above
    threads: int = 2
    probabilities: bool = False  # write the probability of anything but background, too
    overlays: bool = False


def predict(members: Sequence[Deployed], cases: Sequence[CaseFiles], total: int, writer: MaskWriter, options: Options,
            done: Done, failed: Failed) -> None:
    """Predict cases; done(case, row of predictions.csv) when its files are written, failed(case, error).

    total: cases of the whole command, of which earlier ones may be finished: it decides the size of a batch.
    """
    scans = any(kind == 'volume' for kind in members[0].files.kinds.values()) or any(
        path.lower().endswith(SLICES) for path in cases[0].paths(members[0].files))
    rows = _rows(members[0], total, options)
    threads, ahead = (1, 2) if scans else (options.threads, 2 * rows + options.threads)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        stream = map_ahead(pool, lambda case: (case, _prepared(members, case)), cases, ahead)
        prepared = _intact(log.progress(stream, 'predicting', len(cases)), failed)
        first = next(prepared, None)
        if first is None:
            return
        stream_of_all = itertools.chain([first], prepared)
        if _is_dense(members[0], first[1]):
            _Scans(members, writer, options, rows).run(stream_of_all, done, failed)
        else:
            _Cases(members, writer, options, rows).run(stream_of_all, done, failed)


def check_members(members: Sequence[Deployed]) -> None:
    """ConfigError unless the networks read and say the same; Damaged for a decision that cannot be applied."""
    for member in members:
        with files.as_damaged(member.name, 'the decision of its run or bundle', RESTORE):
            case_columns.of_logits([member], [np.zeros(len(member.labels), np.float32)])
            case_columns.of_scan([member], np.zeros(len(member.labels), int), (1.0, 'pixels'), None, [np.zeros(1)])
    first = members[0]
    for other in members[1:]:
        for what, a, b in (('labels', first.labels, other.labels), ('inputs', first.files.kinds, other.files.kinds),
                           ('kind', first.exclusive, other.exclusive), ('windows', first.windows, other.windows)):
            if a != b:
                raise errors.ConfigError(f'{first.name} and {other.name} cannot be averaged, their {what} differ: {a} '
                                         f'and {b}.')


def _rows(deployed: Deployed, cases: int, options: Options) -> int:
    """Rows of a batch, see the head of the file."""
    rows = deployed.batch
    if cases < min(deployed.batch, deployed.tested or 1):
        rows = 1 << (cases - 1).bit_length()
    return parallel.local_rows(options.batch or rows)


def _prepared(members: Sequence[Deployed], case: CaseFiles) -> Forms | errors.JaxkdError:
    """The case by each preprocessing, or what is wrong with it."""
    try:
        return {m.preprocessing: case_reader.read(m, case) for m in {m.preprocessing: m for m in members}.values()}
    except CASE_ERRORS as e:
        return e


def _intact(stream: Iterable[tuple[CaseFiles, Forms | errors.JaxkdError]], failed: Failed
            ) -> Iterator[tuple[CaseFiles, Forms]]:
    for case, forms in stream:
        if isinstance(forms, errors.JaxkdError):
            failed(case, forms)
        else:
            yield case, forms


def _is_dense(deployed: Deployed, forms: Forms) -> bool:
    """Whether there are logits for each place. ConfigError for outputs that are neither that nor one for each label."""
    case = forms[deployed.preprocessing].case
    logits = _shapes(deployed, forms)['logits'].shape
    places = case[deployed.inputs[0]].shape[:-1]
    if logits == (1, len(deployed.labels)):
        return False
    if not places or logits != (1, *places, len(deployed.labels)):
        raise errors.ConfigError(f'{deployed.name}: the network gives logits {logits} for {len(deployed.labels)} '
                                 'labels, neither one for each nor one for each place.')
    return True


def _shapes(deployed: Deployed, forms: Forms) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Outputs of the network for a case."""
    case = forms[deployed.preprocessing].case
    return deployed.model.shapes(jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), case))


class _Cases:
    """Networks with one output for each label of a case."""

    def __init__(self, members: Sequence[Deployed], writer: MaskWriter, options: Options, rows: int) -> None:
        self.members, self.writer, self.options, self.rows = members, writer, options, rows

    def run(self, stream: Iterator[tuple[CaseFiles, Forms]], done: Done, failed: Failed) -> None:
        pending = None
        while group := list(itertools.islice(stream, self.rows)):
            batches = {key: _batch([forms[key].case for _, forms in group], self.rows) for key in group[0][1]}
            outputs = [m.model.predict_batch(batches[m.preprocessing]) for m in self.members]
            if pending:  # fetched while this batch is computed
                self._finish(*pending, done, failed)
            pending = group, batches, outputs
            preemption.raise_on_one_host('predict')
        if pending:
            self._finish(*pending, done, failed)

    def _finish(self, group: Sequence[tuple[CaseFiles, Forms]], batches: dict[str, Any], outputs: Sequence[Any],
                done: Done, failed: Failed) -> None:
        logits = [np.asarray(parallel.to_host(out['logits'])) for out in outputs]
        maps = case_pictures.maps(self.members[0], batches[self.members[0].preprocessing], logits[0]) if (
            self.options.overlays) else None
        for row, (case, forms) in enumerate(group):
            values = [z[row] for z in logits]
            if not all(np.isfinite(z).all() for z in values):
                failed(case, errors.NonFinite(f'Case {case.name}: the network gives logits that are not finite.'))
                continue
            columns = case_columns.of_logits(self.members, values)
            if self.options.overlays:
                first = self.members[0]
                columns |= case_pictures.write_case(self.writer.out, case.name, forms[first.preprocessing], first,
                                                    None if maps is None else maps[row])
            done(case, columns)


class _Scans:
    """Networks with an output for each place."""

    def __init__(self, members: Sequence[Deployed], writer: MaskWriter, options: Options, rows: int) -> None:
        self.members, self.writer, self.options, self.rows = members, writer, options, rows

    def run(self, stream: Iterator[tuple[CaseFiles, Forms]], done: Done, failed: Failed) -> None:
        for group in self._groups(stream):
            try:
                self._predict(group, done)
            except CASE_ERRORS as e:
                if len(group) == 1:
                    failed(group[0][0], e)
                    continue
                for single in group:  # one of them spoils the others
                    try:
                        self._predict([single], done)
                    except CASE_ERRORS as error:
                        failed(single[0], error)
            preemption.raise_on_one_host('predict')

    def _groups(self, stream: Iterator[tuple[CaseFiles, Forms]]) -> Iterator[list[tuple[CaseFiles, Forms]]]:
        """Scans alone; pictures of equal shape together, as many as a batch."""
        group, group_key = list[tuple[CaseFiles, Forms]](), None
        for case, forms in stream:
            key = self._key(forms)
            if group and (key is None or key != group_key or len(group) == self.rows):
                yield group
                group = []
            group.append((case, forms))
            group_key = key
        if group:
            yield group

    def _key(self, forms: Forms) -> Any:
        """Equal for pictures that can be predicted together; None for a scan, and where windows are classified."""
        grid = forms[self.members[0].preprocessing].grid
        if grid is None or grid.kind != 'picture' or any(CLASSES in _shapes(m, forms) for m in self.members):
            return None
        return [(p.present, {k: a.shape for k, a in p.scan.items()}) for p in forms.values()]

    def _predict(self, group: Sequence[tuple[CaseFiles, Forms]], done: Done) -> None:
        first = group[0][1][self.members[0].preprocessing]
        assert first.grid is not None
        self.writer.check(first.grid)
        if first.grid.kind != 'picture':
            memory.give_back()  # the voxels of the file, before the network needs its own
        depth = next(iter(first.scan.values())).shape[0]
        slabs = [self._slabs(m, [forms for _, forms in group]) for m in self.members]
        counts = np.zeros((len(self.members), depth * len(group), len(self.members[0].labels)), np.int64)
        shape = (depth * len(group), *next(iter(first.scan.values())).shape[1:3])
        merged, windows = slabs[0] if len(slabs) == 1 else _mean(slabs, counts), list[np.ndarray]()
        label, probability, outputs = sliding_window.labels(merged, shape, self.options.probabilities)
        if CLASSES in outputs:
            logits = outputs[CLASSES].astype(np.float64)
            windows = [expit(logits[:, m, 0] if len(slabs) > 1 else logits[:, 0]) for m in range(len(slabs))]
        for n, (case, forms) in enumerate(group):
            part = slice(n * depth, (n + 1) * depth)
            prepared = forms[self.members[0].preprocessing]
            done(case, self._write(case, prepared, label[part], None if probability is None else probability[part],
                                   counts[:, part].sum(1), windows))

    def _slabs(self, member: Deployed, group: Sequence[Forms]) -> Iterator[sliding_window.Slab]:
        (first, *others), window = [forms[member.preprocessing] for forms in group], member.windows
        inputs = {key: np.concatenate([a, *(p.scan[key] for p in others)]) if others else a
                  for key, a in first.scan.items()}
        shapes = _shapes(member, group[0])
        wanted, sides = (CLASSES,) if CLASSES in shapes else (), shapes['logits'].shape[1:-1]
        windows = member.model.windows(('logits', *wanted), first.present)

        def apply(batch: dict[str, np.ndarray]) -> Mapping[str, Any]:
            if first.grid and first.grid.kind != 'picture':
                memory.give_back(SPARE)
            return windows(batch)
        return sliding_window.stream(apply, inputs, sides, self.rows, window.overlap, window.weights,
                                     tuple(axis for axis in window.mirror if axis < len(sides)), wanted)

    def _write(self, case: CaseFiles, prepared: Prepared, label: np.ndarray, probability: np.ndarray | None,
               counts: np.ndarray, windows: Sequence[np.ndarray]) -> dict[str, str]:
        """Write the files of a case -> its row."""
        grid, classes = prepared.grid, len(self.members[0].labels)
        assert grid is not None
        on_file = prepared.to_file_grid(label)
        size, name = grid.unit
        # plane by plane: bincount makes its argument int64, eight times the mask
        found = sum((np.bincount(plane.ravel(), minlength=classes) for plane in on_file), np.zeros(classes, np.int64))
        scale = found.sum() * size / max(counts[0].sum(), 1)  # both grids show the same space
        volumes = counts * scale if len(self.members) > 1 else None
        row = case_columns.of_scan(self.members, found, (size, name), volumes, windows)
        row |= self.writer.write(case.name, grid, on_file)
        if probability is not None:
            row['probability_map'] = self.writer.write_probability(
                case.name, grid, prepared.to_file_grid(probability))
        if self.options.overlays:
            row |= case_pictures.write_scan(self.writer.out, case.name, prepared, self.members[0], label)
        return row


def _mean(streams: Sequence[Iterator[sliding_window.Slab]], counts: np.ndarray) -> Iterator[sliding_window.Slab]:
    """The slabs of several networks as one: log of the mean of their probabilities; windows stacked, [m,members,...].

    counts: int [members, D, classes], filled with the places that each network gives each class.
    """
    from scipy.special import logsumexp  # of one network nothing needs it
    for slabs in zip(*streams, strict=True):
        start, stop = slabs[0][:2]
        log_p = [z - logsumexp(z, axis=-1, keepdims=True) for z in (slab.logits for slab in slabs)]
        for member, z in enumerate(log_p):
            label = z.argmax(-1)
            counts[member, start:stop] = [np.bincount(plane.ravel(), minlength=z.shape[-1]) for plane in label]
        mean = logsumexp(log_p, axis=0) - np.float32(np.log(len(log_p)))
        outputs = {key: value if key == 'start' else np.stack([slab.windows[key] for slab in slabs], 1)
                   for key, value in slabs[0].windows.items()}
        yield sliding_window.Slab(start, stop, mean, outputs)


def _batch(cases: Sequence[dict[str, Any]], rows: int) -> dict[str, Any]:
    """{input: [rows, ...]} of prepared cases, then zeros."""
    def stacked(*leaves: np.ndarray) -> np.ndarray:
        values = np.stack(leaves)
        missing = rows - len(leaves)
        return np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)]) if missing else values
    return jax.tree.map(stacked, *cases)
