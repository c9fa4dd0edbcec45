"""The cases of a run as its stages see them: source -> store -> transforms -> one case, or a batch of them.

Batches in the order of training or evaluation are made by jaxkd/data/loader.py; a Dataset never calls it. What stages
of one run share is decided in jaxkd/data/pool.py, which builds a Dataset.
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
from jaxkd.data.partition import Partition
from jaxkd.data.source import Source
from jaxkd.data.stores.reader import Store
from jaxkd.data.transform import Trace, Transforms
from jaxkd.runtime import log

NOT_BATCHED = ('masks', 'truth')  # of a record: shapes that differ, facts that nothing may train on
NO_BOX = -2  # the label of a row of `boxes` that holds none


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Complete when it is constructed. A case is an index into `source.cases`."""

    config: ConfigDict  # the resolved data config
    source: Source
    partition: Partition
    transforms: Transforms
    store: Store | None = None  # of cases that have been through the first transforms
    memory: dict[int, Record] = dataclasses.field(default_factory=dict, repr=False)  # prepared cases
    pool: Any = dataclasses.field(default=None, repr=False)  # pool.DataPool of the run

    def __getstate__(self) -> dict[str, Any]:
        """What a reader process needs: with a store no table of the source."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {'pool': None}
        if self.store is not None:
            fields |= dict(source=None, partition=None,
                           transforms=dataclasses.replace(self.transforms, fitted={}, assignments={}))
        return fields

    def __getitem__(self, i: int) -> Record:
        """Case i as evaluation sees it: what stands for random transforms is applied, and boxes are padded to
        data.boxes.
        """
        return self._for_evaluation(self._case(i), i)

    def prepared(self, i: int) -> Record:
        """Case i behind the deterministic transforms, such as a whole scan: {key: array}, without boxes."""
        return _without_boxes(self._case(i))

    def batch(self, indices: Sequence[int] | np.ndarray, evaluation: bool = False, each: Callable = map) -> Record:
        """{key: [B, ...]} of these cases: as training sees them before augmentation, or as evaluation does.

        What the store stacks and no transform touches is neither cut nor stacked again. each: `map` of a pool of
        threads.
        """
        if self.store is None:
            make = self.__getitem__ if evaluation else self.prepared
            return _stack(list(each(make, indices)))
        stacked, ragged = self.store.batch(list(indices), bool(self._steps))
        stacked |= dict(mask=np.ones(len(ragged), np.float32), index=np.array(indices, np.int32))
        if not self._steps and not (evaluation and self.transforms.changes_evaluation):
            boxes = [self._checked(case.get('boxes', ()), i) for case, i in zip(ragged, indices)]
            stacked |= {'boxes': np.stack([self._padded(b) for b in boxes])} if evaluation else {}
            return jax.tree.map(_narrow, stacked)
        cases = [{**_row(stacked, row), **more} for row, more in enumerate(ragged)]

        def finish(case: Record, i: int) -> Record:
            case = self._transform(case, i)
            return self._for_evaluation(case, i) if evaluation else _without_boxes(case)
        done = list(each(finish, cases, indices))
        same = {k: stacked[k] for k in done[0] if k in stacked
                and all(new[k] is old[k] for new, old in zip(done, cases))}
        return {**_stack([{k: v for k, v in case.items() if k not in same} for case in done]),
                **jax.tree.map(_narrow, same)}

    def masks(self, i: int) -> np.ndarray | None:
        """uint8 [n,S,S], the regions that case i's boxes are the frames of; None where the source knows boxes alone."""
        if i not in self._masks:
            record = self._read(i)
            if isinstance(record.get('masks'), str):  # as a store keeps them
                record = {**record, 'masks': rle.decode_masks(record['masks'], self._id(i))}
            masks = self._apply(record).get('masks')
            self._masks[i] = None if masks is None else rle.encode_masks(masks)
        encoded = self._masks[i]
        return None if encoded is None else rle.decode_masks(encoded, self._id(i))

    @functools.cached_property
    def _masks(self) -> dict[int, str | None]:
        return {}  # as text: they are small, and evaluators of several stages ask for them

    @functools.cached_property
    def truth_cache(self) -> dict:
        """What evaluators keep of true labels instead of reading them again; no part of the data."""
        return {}

    def trace(self, i: int, record: Record, prepared: Record | None = None) -> Trace:
        """How predictions for case i go back to the grid of its file, for `transforms.inverse`.

        record: as the source gives it; prepared: as `prepared(i)` gives it, where that is at hand.
        """
        return self.transforms.trace(self._numbered(record, i), self.prepared(i) if prepared is None else prepared)

    def batch_spec(self, size: int) -> Record:
        """Names, shapes and types of a batch of this size, boxes left out, as ShapeDtypeStructs."""
        case = _without_boxes(self._first)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *np.shape(a)), a.dtype), case)

    @functools.cached_property
    def _first(self) -> Record:
        return self[next(iter(self.partition.indices('train')), 0)]

    def size_gib(self) -> float:
        """What all prepared cases take in memory."""
        return sum(a.nbytes for a in jax.tree.leaves(self._case(0))) * len(self.source.cases) / 2**30

    def cache_in_memory(self) -> None:
        """Read and transform every case once, in threads, with progress, where the config wants it and they fit."""
        config, todo = self.config, [i for i in range(len(self.source.cases)) if i not in self.memory]
        if not todo or config.workers or config.cache in ('none', 'disk'):
            return
        if config.cache == 'auto' and (needed := self.size_gib()) > config.ram_gib:
            log.info(f'{self.source.name}: {needed:.1f} GiB are more than data.ram_gib = {config.ram_gib:g}, so cases '
                     'are read and transformed anew each epoch. Raise it, or prepare them once: python -m '
                     'jaxkd.data.prepare --config ..., then --config.data.cache=disk --config.data.folder=DIR')
            return
        with concurrent.futures.ThreadPoolExecutor(max(1, config.threads)) as threads:
            cases = log.progress(threads.map(self._case, todo), f'reading {self.source.name}', len(todo))
            self.memory.update(zip(todo, cases))

    @functools.cached_property
    def text_only(self) -> 'Dataset':
        """A Dataset for networks that read reports alone: their tokens, and labels. No image is opened or augmented.

        This one where that cannot be: the source does not tell texts and labels apart from images, or a transform
        decides of cases, does not say what it reads and writes, or changes what is told.
        """
        keys = {'text', 'label', 'label_weight', 'present'} | self.transforms.study_level_keys
        transforms = self.transforms.restricted(keys)
        if isinstance(self.source, TextSource) or transforms is None or not self.source.text_without_image:
            return self
        memory = self.pool.memory(self, text_only=True) if self.pool else {}
        return dataclasses.replace(self, source=TextSource(self.source), transforms=transforms, memory=memory,
                                   store=self.store and self.store.select_keys(keys))

    def digest(self) -> str:
        """A name for what this data hands over: config, split and what transforms learned."""
        facts = [self.config.to_dict(), self.partition.fingerprint, self.transforms.fitted]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def _steps(self) -> tuple[Transform, ...]:
        """The deterministic transforms that what is read has not been through."""
        return self.transforms.prepare[self.transforms.shared if self.store else 0:]

    def _case(self, i: int) -> Record:
        """Case i, prepared, with its boxes [n,5]."""
        if i in self.memory:
            return self.memory[i]
        return self._transform(self._numbered(self._read(i), i), i)

    def _read(self, i: int) -> Record:
        return self.source[i] if self.store is None else self.store[i]

    def _id(self, i: int) -> str:
        return self.source.cases[i].id if self.store is None else self.store.id(i)

    @staticmethod
    def _numbered(record: Record, i: int) -> Record:
        return {**record, 'mask': np.float32(1), 'index': np.int32(i)}

    def _apply(self, record: Record) -> Record:
        for transform in self._steps:
            record = transform.apply(record)
        return record

    def _transform(self, record: Record, i: int) -> Record:
        if isinstance(record.get('masks'), str):  # as a store keeps them
            record = {k: v for k, v in record.items() if k != 'masks'}
        record = self._apply(record)
        kept = {k: v for k, v in record.items() if isinstance(v, (np.ndarray, np.generic, dict))
                and k not in NOT_BATCHED}
        boxes = np.asarray(self._checked(record.get('boxes', ()), i), np.float32).reshape(-1, 5)
        return jax.tree.map(_narrow, kept | {'boxes': boxes})

    def _for_evaluation(self, case: Record, i: int) -> Record:
        return self.transforms.evaluate({**case, 'boxes': self._padded(case['boxes'])})

    def _checked(self, boxes: Sequence, i: int) -> Sequence:
        if len(boxes) > self.config.boxes:
            raise errors.BadData(f'Case {self._id(i)} has {len(boxes)} boxes, more than data.boxes = '
                                 f'{self.config.boxes}. Raise that number.')
        return boxes

    def _padded(self, boxes: Sequence) -> np.ndarray:
        """[n,5] -> float32 [data.boxes,5]."""
        out = np.full((self.config.boxes, 5), NO_BOX, np.float32)
        if len(boxes):
            out[:len(boxes)] = boxes
        return out


class TextSource(Source):
    """The texts and labels of a source, whose images are not opened."""

    text_without_image = True

    def __init__(self, source: Source):
        self.source, self.cases = source, source.cases
        self.name, self.note, self.labels = source.name, source.note, source.labels
        self.skipped, self.tasks, self.targets = source.skipped, source.tasks, source.targets

    @functools.cached_property
    def values(self) -> np.ndarray | None:  # type: ignore[override]
        """Those of the source, made when they are asked for."""
        return self.source.values

    def __getitem__(self, i: int) -> Record:
        values = self.values
        assert values is not None  # text_without_image says so
        return {'text': self.source.text(i), 'label': values[i].copy()}

    def text(self, i: int) -> str:
        """The text of case i."""
        return self.source.text(i)


def _without_boxes(case: Record) -> Record:
    return {k: v for k, v in case.items() if k != 'boxes'}


def _narrow(a: Any) -> Any:
    """64-bit numbers become 32-bit, as JAX would make them."""
    return a.astype({'float64': np.float32, 'int64': np.int32}.get(str(a.dtype), a.dtype), copy=False)


def _row(batch: Record, row: int) -> Record:
    return {k: _row(v, row) if isinstance(v, dict) else v[row] for k, v in batch.items()}


def _stack(records: list[Record]) -> Record:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *records)
