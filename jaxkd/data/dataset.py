"""Source -> transforms -> cases and batches, declared once. The training stream itself is jaxkd/data/loader.py.

That stream is a pure function of (seed, step). A run resumes at step n by asking for it from n on: that number, with what it
counts in (`Data.position`), is all the state that an iterator has.
"""
import concurrent.futures
import dataclasses
import hashlib
import json
import math
from typing import Any

import jax
import numpy as np

from jaxkd import config, errors, parallel
from jaxkd.data import loader, splits, transform
from jaxkd.data import source as sources
from jaxkd.data.formats import rle
from jaxkd.data.stores import reader
from jaxkd.runtime import log

CACHES = ('auto', 'ram', 'none', 'disk')
NOT_BATCHED = ('masks', 'truth')  # of a record: shapes that differ, facts that nothing may train on


@dataclasses.dataclass
class Dataset:
    """The cases of a run as its stages see them."""

    hp: Any  # the resolved data config
    source: Any
    split: dict  # case id -> part
    assets: dict  # what transforms learned from training cases, e.g. the vocabulary
    prepare: tuple  # deterministic transforms
    augment: tuple  # random ones
    transforms: Any = None  # transform.Transforms
    disk: Any = None  # store.Store of cases that the first deterministic transforms have been through
    ram: dict = dataclasses.field(default_factory=dict)  # index -> transformed case
    others: dict = dataclasses.field(default_factory=dict)  # of `other`, by name
    family: list = dataclasses.field(default_factory=list, repr=False)  # Data of the stages of one run
    kept: dict = dataclasses.field(default_factory=dict)  # what evaluators keep of cases, instead of reading them again
    plans: dict = dataclasses.field(default_factory=dict)  # transform -> what it decided of every case, see `build`
    once: dict = dataclasses.field(default_factory=dict, repr=False)  # what takes a look at every case and does not change
    learned: set = dataclasses.field(default_factory=set)  # transforms whose asset is of this data's own training cases
    whole: Any = None  # of data that opens no image: that with images, see `told`

    def __getstate__(self):  # reader processes need no other data, and of prepared cases no table
        table = {'source': None, 'split': {}, 'assets': {}} if self.disk else {}
        return {**vars(self), 'family': [], 'others': {}, 'kept': {}, 'once': {}, 'whole': bool(self.whole), **table}

    def part(self, role):
        """Indices into source.cases of a role ('train', 'val', 'test') as this stage casts it, less what a plan leaves out."""
        key = (self.hp[role], *self.plans)
        if key not in self.once:
            names, kept = splits.parts(self.hp[role]), [plan.keep for plan in self.plans.values()]
            self.once[key] = [i for i, case in enumerate(self.source.cases)
                              if self.split[case.id] in names and all(k[i] for k in kept)]
        return list(self.once[key])

    def trained(self):
        """Indices of the cases that training draws from: the training part, less what holdout_fold and train_filter leave out."""
        part, (name, _, value) = self.part('train'), self.hp.train_filter.partition('=')
        if self.hp.holdout_fold:
            if len(self.hp.holdout_fold) != 2:
                raise errors.ConfigError(f'data.holdout_fold = {self.hp.holdout_fold} must be a share and how many there are, as in (0, 5).')
            held = set(self.held_out(*self.hp.holdout_fold))
            part = [i for i in part if i not in held]
        if not self.hp.train_filter:
            return part
        known = {f'{k}={v}' for i in part for k, v in self.source.cases[i].groups.items()}
        if self.hp.train_filter not in known:
            raise errors.ConfigError(f'data.train_filter: no training case has {self.hp.train_filter}.'
                                     f'{errors.nearest(self.hp.train_filter, known)}')
        return [i for i in part if self.source.cases[i].groups.get(name) == value]

    def held_out(self, share, shares):
        """Indices of the training cases whose patients are in one of `shares` shares."""
        if not 0 <= share < shares:
            raise errors.ConfigError(f'data.holdout_fold = ({share}, {shares}): the first number counts from 0 to {shares - 1}.')
        seed, cases = self.hp.split.seed, self.source.cases
        return [i for i in self.part('train') if splits.share(cases[i].patient, shares, seed) == share]

    def other(self, name):
        """The data that data.external calls `name`: this one with differences, and with what its transforms learned.

        Made once. Raises ConfigError for a name or a difference that does not exist.
        """
        if name not in self.hp.external:
            raise errors.ConfigError(f'data.external has no "{name}".{errors.nearest(name, self.hp.external)}')
        if self.whole:
            return self.whole.other(name).told()
        if name not in self.others:
            changes = self.hp.external[name].to_dict()
            if 'source' in changes:  # what was prepared is of this source
                changes = {'cache': 'auto', 'folder': '', **changes}
            hp = config.changed_data(self.hp, changes, f'data.external.{name}')
            relatives = [self, *self.family]
            self.others[name] = build(hp, None, self.assets, fit=False, known=[
                *relatives, *(other for data in relatives for other in data.others.values())])
        return self.others[name]

    def case(self, i):
        """Case i as evaluation sees it: transformed, and where training draws at random, the middle."""
        return self.transforms.evaluate(self.record(i))

    def record(self, i):
        """Case i, transformed but not augmented: a dict of numpy arrays of equal shapes for all cases."""
        if i in self.ram:
            return dict(self.ram[i])
        return jax.tree.map(_narrow, self._prepared(self._read(i), i))

    def _read(self, i):
        if self.disk or not self.whole:
            return self.disk[i] if self.disk else self.source[i]
        return {'text': self.source.text(i), 'label': self.source.values[i].copy()}

    def _transformed(self, record, i):
        record = {**record, 'mask': np.float32(1), 'index': np.int32(i)}
        for step in self.prepare:
            record = step.apply(record)
        return record

    def _prepared(self, record, i):
        if isinstance(record.get('masks'), str):  # as a store keeps them
            record = {k: v for k, v in record.items() if k != 'masks'}
        record = self._transformed(record, i)
        record['boxes'] = self._boxes([record.get('boxes', ())], [i])[0]
        return {k: v for k, v in record.items() if isinstance(v, (np.ndarray, np.generic, dict)) and k not in NOT_BATCHED}

    def _boxes(self, found, indices):
        """The boxes [n,5] of each case -> [B,data.boxes,5]; rows of no box have label -2."""
        out = np.full((len(indices), self.hp.boxes, 5), -2, np.float32)
        for row, boxes, i in zip(out, found, indices):
            if len(boxes) > len(row):
                name = self.disk.id(i) if self.disk else self.source.cases[i].id
                raise errors.BadData(f'Case {name} has {len(boxes)} boxes, more than data.boxes = {len(row)}. Raise that number.')
            if len(boxes):
                row[:len(boxes)] = boxes
        return out

    def masks(self, i):
        """uint8 [n,S,S], the regions that case i's boxes are the frames of; None where the source knows boxes alone."""
        found = self.once.setdefault('masks', {})  # as text: they are small, and evaluators of several stages ask for them
        if i not in found:
            record = self._read(i)
            if isinstance(record.get('masks'), str):
                record = {**record, 'masks': rle.apart(record['masks'], self.disk.id(i))}
            masks = self._transformed(record, i).get('masks')
            found[i] = None if masks is None else rle.together(masks)
        return None if found[i] is None else rle.apart(found[i], i)

    def rows(self, indices):
        """As `record` of each of them, stacked. What lies on disk is read into the batch at once, and what no transform touches
        is not copied again."""
        if not self.disk:
            return _stack([self.record(i) for i in indices])
        whole, rest = self.disk.rows(indices, bool(self.prepare))
        if self.prepare:
            cases = [{**_row(whole, row), **more} for row, more in enumerate(rest)]
            records = [self._prepared(case, i) for case, i in zip(cases, indices)]
            same = {k: whole[k] for k in records[0] if k in whole and all(r[k] is case[k] for r, case in zip(records, cases))}
            whole = {**_stack([{k: v for k, v in r.items() if k not in same} for r in records]), **same}
        else:
            whole |= dict(mask=np.ones(len(rest), np.float32), index=np.array(indices, np.int32),
                          boxes=self._boxes([more.get('boxes', ()) for more in rest], indices))
        return jax.tree.map(_narrow, whole)

    def told(self):
        """A view for networks that read reports alone: their tokens, and labels. No image is opened or augmented.

        The data itself where that cannot be: the source does not tell texts and labels apart from images, or a transform decides of
        cases, does not say what it reads and writes, or changes what is told.
        """
        keys = {'text', 'label', 'label_weight', 'present'} | self.transforms.study_level_keys
        transforms = self.transforms.restricted(keys)
        if self.whole or transforms is None or not self.source.text_without_image:
            return self
        if 'told' not in self.once:
            alike = (d for d in self.family if 'told' in d.once and d.source is self.source and _prepares(d) == _prepares(self))
            prepare = tuple(t for t in transforms.prepare if t in self.prepare)
            self.once['told'] = dataclasses.replace(
                self, whole=self, transforms=transforms, prepare=prepare, augment=(), kept={}, once={},
                ram=next((d.once['told'].ram for d in alike), {}), disk=self.disk and self.disk.only(keys))
        return self.once['told']

    def spec(self, role='train'):
        """One record, to know names, shapes and dtypes."""
        indices = self.part(role) or range(len(self.source.cases))
        return self.case(indices[0])

    def gib(self):
        """What all transformed cases take in memory."""
        return sum(a.nbytes for a in jax.tree.leaves(self.record(0))) * len(self.source.cases) / 2**30

    def fill(self):
        """Read and transform every case once into memory, in threads, with progress."""
        todo = [i for i in range(len(self.source.cases)) if i not in self.ram]
        if not todo or self.hp.workers or self.hp.cache in ('none', 'disk'):
            return
        if self.hp.cache == 'auto' and (needed := self.gib()) > self.hp.ram_gib:
            log.info(f'{self.source.name}: {needed:.1f} GiB are more than data.ram_gib = {self.hp.ram_gib:g}, so cases are read '
                    'and transformed anew each epoch. Raise it, or prepare them once: python -m jaxkd.data.prepare --config ..., '
                    'then --config.data.cache=disk --config.data.folder=DIR')
            return
        with concurrent.futures.ThreadPoolExecutor(max(1, self.hp.threads)) as pool:
            found = log.progress(pool.map(self.record, todo), f'reading {self.source.name}', len(todo))
            self.ram.update(zip(todo, found))

    def position(self, step, seed, batch):
        """The state of the training stream before `step`, for the checkpoint."""
        if 'position' not in self.once:
            self.once['position'] = dict(cases=len(self.trained()), split=splits.fingerprint(self.split))
        return dict(step=int(step), seed=int(seed), batch=int(batch), **self.once['position'])

    def train(self, batch, seed, start=0, cached=None):
        """Iterator of this host's rows of each global batch, from step `start` on, see jaxkd/data/loader.py."""
        return loader.train_loader(self, batch, seed, start, cached)

    def batches(self, role, batch, keep=None):
        """Every case of a part once, in order, on this host's share; the last batch is padded with mask 0.

        All hosts yield the same number of batches, or one would wait for the others for ever.
        keep: indices to restrict to.
        """
        part = self.part(role) if keep is None else list(keep)
        host, hosts = parallel.process()
        rows = parallel.rows(batch)
        mine = part[host::hosts]
        count = math.ceil(math.ceil(len(part) / hosts) / rows)
        with concurrent.futures.ThreadPoolExecutor(max(1, self.hp.threads)) as pool:
            for b in range(count):
                records = list(pool.map(self.case, mine[b * rows:(b + 1) * rows]))
                blank = records[0] if records else self.spec(role)
                blank = jax.tree.map(np.zeros_like, blank)
                yield _stack(records + [blank] * (rows - len(records)))


def build(hp, workdir=None, assets=None, fit=True, known=()):
    """Data from a resolved data config.

    assets: what an earlier stage's transforms learned; the others fit on the training part (with fit=False they get
        nothing, which is enough to know shapes, unless a transform says SHAPES: what it learns decides them).
    known: other Data. With one that reads and prepares cases in the same way, the source and what is in memory are shared.

    A transform with `plan(hp, source, split)` decides of every case beforehand, from nothing but ids, labels and parts: its
    `build` (and `still`) get that plan, whose `keep` [n] says which cases remain.
    """
    if hp.cache not in CACHES:
        raise errors.ConfigError(f'data.cache = "{hp.cache}".{errors.nearest(hp.cache, CACHES)}')
    alike = next((d for d in known if d.hp.source == hp.source), None)
    source = alike.source if alike else sources.build(hp.source)
    if not len(source.cases):
        raise errors.BadData(f'Source {hp.source.name} holds no case.')
    split = splits.of(source.cases, hp.split, workdir)
    data = Dataset(hp, source, split, dict(assets or {}), (), ())
    if hp.cache == 'disk':
        same = next((d.disk for d in known if d.source is source and _stored(d.hp) == _stored(hp)), None)
        data.disk = same or reader.open(hp.folder, reader.settings(hp, source), source)
    learn = reader.CachedSource(source, data.disk) if data.disk else source
    data.plans = transform.assign(hp, source, split)
    for short, plug in transform.listed(hp).items():
        if plug.fit and short not in data.assets and (fit or plug.fit_decides_shapes):
            def track(x, what=short):
                return log.progress(x, f'{what}: learning from training cases')
            same = next((d for d in known if short in d.learned and d.source is source and d.hp.train == hp.train
                         and d.hp[short] == hp[short] and d.split == split), None)
            data.assets[short] = same.assets[short] if same else plug.fit(hp[short], learn, data.part('train'), track)
            data.learned.add(short)
    data.transforms = transform.build(hp, data.assets, data.plans)
    data.ram = next((d.ram for d in known if d.source is source and _prepares(d) == _prepares(data)), data.ram)
    data.prepare = data.transforms.prepare[transform.shared_prefix(hp) if data.disk else 0:]
    data.augment = data.transforms.augment
    return data


def _stored(hp):
    """What prepared cases depend on, of sources that are one."""
    names = hp.transforms[:transform.shared_prefix(hp)]
    return hp.cache, hp.folder, names, [hp[name.rpartition('.')[2]].to_dict() for name in names]


def _prepares(data):
    """What the cases in memory depend on."""
    hp = data.hp
    names = [name.rpartition('.')[2] for name in hp.transforms]
    plans = [n for n in names if n in data.plans]  # of a transform that the config lists before augmentation
    return hp.transforms, [hp[n].to_dict() for n in names], {n: data.assets.get(n) for n in names}, hp.boxes, hp.cache, hp.folder, (
        hp.split if plans else None)


def digest(data):
    """A name for what this data hands over: config, split and what transforms learned."""
    text = json.dumps([data.hp.to_dict(), splits.fingerprint(data.split), data.assets], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _narrow(a):
    """64-bit numbers become 32-bit, as JAX would make them."""
    return a.astype({'float64': np.float32, 'int64': np.int32}.get(str(a.dtype), a.dtype), copy=False)


def _row(batch, row):
    return {k: _row(v, row) if isinstance(v, dict) else v[row] for k, v in batch.items()}


def _stack(records):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *records)
