"""The cases of a run for its stages: source -> store -> transforms -> one case, or a batch of cases.

Batches in the order of training or evaluation are made by jaxkd/data/loader.py; a Dataset never calls it. Datasets are
built in jaxkd/data/pool.py, which also decides what the stages of one run share.
"""
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform
from jaxkd.data.formats import rle
from jaxkd.data.label_share import LabelMask
from jaxkd.data.partition import Partition
from jaxkd.data.source import DerivedSource, Source
from jaxkd.data.stores.reader import Store
from jaxkd.data.transform import Trace, Transforms
from jaxkd.runtime import log

NOT_BATCHED = ('masks', 'truth')  # keys of a record: shapes that differ, facts that must not be trained on
NO_BOX = -2  # the label of an empty row of `boxes`


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Complete when it is constructed. A case is an index into `source.cases`."""

    config: ConfigDict  # the resolved data config
    source: Source
    partition: Partition
    transforms: Transforms
    store: Store | None = None  # of cases that have been through the first transforms
    label_mask: LabelMask | None = None  # what data.labels hides, in a store, too
    memory: dict[int, Record] = dataclasses.field(default_factory=dict, repr=False)  # prepared cases
    pool: Any = dataclasses.field(default=None, repr=False)  # pool.DataPool of the run
    truth_cache: dict = dataclasses.field(default_factory=dict, init=False, repr=False)  # true labels that evaluators
    # have read; no part of the data
    encoded_masks: dict[int, str | None] = dataclasses.field(default_factory=dict, init=False, repr=False)  # of `masks`

    def __getstate__(self) -> dict[str, Any]:
        """The fields that a reader process needs: with a store no table of the source."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields |= dict(pool=None, truth_cache={}, encoded_masks={})
        if self.store is not None:
            fields |= dict(source=None, partition=None,
                           transforms=dataclasses.replace(self.transforms, fitted={}, assignments={}))
        return fields

    def __getitem__(self, i: int) -> Record:
        """Case i for evaluation: with `eval_mode` of random transforms, and boxes padded to data.boxes."""
        return self.transforms.evaluate(self._case(i))

    def prepared(self, i: int) -> Record:
        """Case i behind the deterministic transforms, such as a whole scan: {key: array}, without boxes."""
        return _without_boxes(self._case(i))

    def batch(self, indices: Sequence[int] | np.ndarray, evaluation: bool = False, each: Callable = map) -> Record:
        """{key: [B, ...]} of these cases: for training before augmentation, or for evaluation.

        Arrays of the store that no transform changes are neither cut nor stacked again. each: `map` of a pool of
        threads.
        """
        if self.store is None:
            make = self.__getitem__ if evaluation else self.prepared
            return stack(list(each(make, indices)))
        steps = self.transforms.remaining(stored=True)
        stacked, ragged = self.store.batch(list(indices), texts=bool(steps))
        stacked |= dict(mask=np.ones(len(ragged), np.float32), index=np.array(indices, np.int32))
        if self.label_mask:
            stacked, ragged = self.label_mask.batch(stacked, ragged, indices)
        if not steps and not (evaluation and self.transforms.changes_evaluation):
            boxes = [self._boxes(case, i) for case, i in zip(ragged, indices)]
            stacked |= {'boxes': np.stack(boxes)} if evaluation else {}
            return jax.tree.map(narrow, stacked)
        cases = [{**_row(stacked, row), **extra} for row, extra in enumerate(ragged)]

        def finish(case: Record, i: int) -> Record:
            case = self._transform(case, i)
            return self.transforms.evaluate(case) if evaluation else _without_boxes(case)
        done = list(each(finish, cases, indices))
        unchanged = {k: stacked[k] for k in done[0] if k in stacked
                     and all(new[k] is old[k] for new, old in zip(done, cases))}
        return {**stack([{k: v for k, v in case.items() if k not in unchanged} for case in done]),
                **jax.tree.map(narrow, unchanged)}

    def masks(self, i: int) -> np.ndarray | None:
        """uint8 [n,S,S], the regions that case i's boxes are the frames of; None where the source knows boxes alone."""
        if i not in self.encoded_masks:  # as text: small, and evaluators of several stages need them
            record = self._reader[i]
            if isinstance(record.get('masks'), str):  # the form in a store
                record = {**record, 'masks': rle.decode_masks(record['masks'], self._reader.id(i))}
            masks = _apply(self.transforms.remaining(self.store is not None), record).get('masks')
            self.encoded_masks[i] = None if masks is None else rle.encode_masks(masks)
        encoded = self.encoded_masks[i]
        return None if encoded is None else rle.decode_masks(encoded, self._reader.id(i))

    def trace(self, i: int, record: Record, prepared: Record | None = None) -> Trace:
        """How predictions for case i go back to the grid of its file, for `transforms.inverse`.

        record: of the source; prepared: the result of `prepared(i)`, computed where it is None.
        """
        return self.transforms.trace(_numbered(record, i), self.prepared(i) if prepared is None else prepared)

    def batch_spec(self, size: int) -> Record:
        """Names, shapes and types of a batch of this size, boxes left out, as ShapeDtypeStructs."""
        case = _without_boxes(self._first)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *np.shape(a)), a.dtype), case)

    @functools.cached_property
    def _first(self) -> Record:
        return self[next(iter(self.partition.indices('train')), 0)]

    def cache_in_memory(self) -> None:
        """Read and transform every case once, in threads, with progress, where the config wants it and they fit."""
        config, missing = self.config, [i for i in range(len(self.source.cases)) if i not in self.memory]
        if not missing or config.workers or config.cache in ('none', 'disk'):
            return
        case_bytes = sum(a.nbytes for a in jax.tree.leaves(self._case(0))) if config.cache == 'auto' else 0
        if (needed := case_bytes * len(self.source.cases) / 2**30) > config.ram_gib:
            log.info(f'{self.source.name}: {needed:.1f} GiB are more than data.ram_gib = {config.ram_gib:g}, so cases '
                     'are read and transformed anew each epoch. Raise it, or prepare them once: python -m '
                     'jaxkd.data.prepare --config ..., then --config.data.cache=disk --config.data.folder=DIR')
            return
        with concurrent.futures.ThreadPoolExecutor(max(1, config.threads)) as threads:
            cases = log.progress(threads.map(self._case, missing), f'reading {self.source.name}', len(missing))
            self.memory.update(zip(missing, cases))

    @functools.cached_property
    def text_only(self) -> 'Dataset':
        """A Dataset of tokens and labels, for networks that read reports alone. No image is opened or augmented.

        It is this Dataset where the source cannot give texts and labels without images, or where a transform assigns
        values to cases, does not declare its reads and writes, or changes one of these keys.
        """
        keys = {'text', 'label', 'label_weight', 'present'} | self.transforms.study_level_keys
        transforms = self.transforms.restricted(keys)
        if isinstance(self.source, TextSource) or transforms is None or not self.source.text_without_image:
            return self
        memory = self.pool.memory(self, text_only=True) if self.pool else {}
        return dataclasses.replace(self, source=TextSource(self.source), transforms=transforms, memory=memory,
                                   store=self.store and self.store.select_keys(keys))

    def digest(self) -> str:
        """sha256 of everything that decides the batches: config, split, and the fitted values of transforms."""
        facts = [self.config.to_dict(), self.partition.fingerprint, self.transforms.fitted]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def _reader(self) -> Store | Source:
        return self.source if self.store is None else self.store

    def _case(self, i: int) -> Record:
        """Case i, prepared, with its boxes."""
        if i in self.memory:
            return self.memory[i]
        return self._transform(_numbered(self.hide_labels(self._reader[i], i), i), i)

    def hide_labels(self, record: Record, i: int) -> Record:
        """A record of case i, prepared or augmented, without labels if data.labels hides them.

        Transforms that move a label of each place fill it up with background, so this comes before and after them.
        """
        return record if self.label_mask is None else self.label_mask.record(record, i)

    def _transform(self, record: Record, i: int) -> Record:
        if isinstance(record.get('masks'), str):  # the form in a store
            record = {k: v for k, v in record.items() if k != 'masks'}
        try:
            record = _apply(self.transforms.remaining(self.store is not None), record)
        except errors.BadData as e:
            case = self._reader.id(i)
            raise e if case in str(e) else errors.BadData(f'Case {case}: {e}') from e
        arrays = {k: v for k, v in record.items() if isinstance(v, (np.ndarray, np.generic, dict))
                  and k not in NOT_BATCHED}
        return jax.tree.map(narrow, self.hide_labels(arrays, i) | {'boxes': self._boxes(record, i)})

    def _boxes(self, record: Record, i: int) -> np.ndarray:
        """Boxes [n,5] of a record of case i -> float32 [data.boxes,5]. BadData for too many."""
        boxes, limit = record.get('boxes', ()), self.config.boxes
        if len(boxes) > limit:
            raise errors.BadData(f'Case {self._reader.id(i)} has {len(boxes)} boxes, more than data.boxes = {limit}. '
                                 'Raise that number.')
        out = np.full((limit, 5), NO_BOX, np.float32)
        if len(boxes):
            out[:len(boxes)] = boxes
        return out


class TextSource(DerivedSource):
    """The texts and labels of a source, whose images are not opened."""

    def __getitem__(self, i: int) -> Record:
        values = self.values
        assert values is not None  # text_without_image says so
        return {'text': self.text(i), 'label': values[i].copy()}


def _numbered(record: Record, i: int) -> Record:
    return {**record, 'mask': np.float32(1), 'index': np.int32(i)}


def _apply(steps: Sequence[Transform], record: Record) -> Record:
    for transform in steps:
        record = transform.apply(record)
    return record


def _without_boxes(case: Record) -> Record:
    return {k: v for k, v in case.items() if k != 'boxes'}


def narrow(a: Any) -> Any:
    """64-bit numbers become 32-bit, as JAX would make them."""
    return a.astype({'float64': np.float32, 'int64': np.int32}.get(str(a.dtype), a.dtype), copy=False)


def _row(batch: Record, row: int) -> Record:
    return {k: _row(v, row) if isinstance(v, dict) else v[row] for k, v in batch.items()}


def stack(records: list[Record]) -> Record:
    """{key: [B, ...]} of B cases."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *records)
