"""What the stages of one run share: sources, stores, prepared cases in memory, and what transforms learned.

Decided here alone.
"""
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.data import label_share, labelled, partition, splits, transform
from jaxkd.data import source as sources
from jaxkd.data.dataset import Dataset
from jaxkd.data.source import Source
from jaxkd.data.sources.shared.loading_errors import FileSource
from jaxkd.data.stores import identity, reader
from jaxkd.runtime import log

CACHES = ('auto', 'ram', 'none', 'disk')


class DataPool:
    """The Datasets of a run. Two that read and prepare cases in the same way share them."""

    def __init__(self) -> None:
        self._datasets: list[tuple[bool, bool, Dataset]] = []  # fit, and whether made for reports alone
        self._shared: dict[tuple, Any] = {}

    def get(self, data_config: ConfigDict, workdir: Any = None, fitted: dict[str, Any] | None = None,
            fit: bool = True, inputs: Collection[str] = (), source_key: str = 'data.source') -> Dataset:
        """The Dataset of a resolved data config, the same one for what is the same.

        fitted: what the transforms of an earlier stage learned; the others learn from the training part. With fit=False
        they learn nothing, which is enough to know shapes, unless what they learn decides these.
        inputs: keys of a batch that the networks read. Where all are made of reports, nothing is learned from images.
        source_key: where the options of the source stand in the config, for messages.
        """
        fitted = dict(fitted or {})
        for learned, reports, dataset in self._datasets:
            assets = dataset.transforms.fitted
            if learned == fit and dataset.config == data_config and assets == {**assets, **fitted} and (
                    not reports or dataset.transforms.make_of_reports(inputs)):
                return dataset
        dataset = self._build(data_config, workdir, fitted, fit, inputs, source_key)
        self._datasets.append((fit, dataset.transforms.make_of_reports(inputs), dataset))
        self._describe(dataset)
        self._name_silent_labels(dataset)
        return dataset

    def trained(self, data_config: ConfigDict, workdir: Any, fitted: dict[str, Any],
                inputs: Collection[str]) -> Dataset:
        """The Dataset of a trained stage, with what its transforms learned; nothing is learned, nothing logged."""
        key = 'trained', _digest(data_config.to_dict()), _digest(fitted), tuple(sorted(inputs))
        return self.once(key, lambda: self._build(data_config, workdir, fitted, False, inputs))

    def report_crops(self, dataset: Dataset) -> None:
        """Log once which share of the labelled places of training cases the transforms cut off."""
        self.once(('crops', id(dataset)), lambda: labelled.report_crops(dataset))

    def external(self, dataset: Dataset, name: str) -> Dataset:
        """What data.external calls `name`: this data with differences, and with what its transforms learned.

        Raises ConfigError for a name or a difference that does not exist.
        """
        externals = dataset.config.external
        if name not in externals:
            raise errors.ConfigError(f'data.external has no "{name}".{errors.nearest(name, externals)}')
        changes = externals[name].to_dict()
        if 'source' in changes:  # what was prepared is of this source
            changes = {'cache': 'auto', 'folder': '', **changes}
        changes['labels'] = {'share': 1.0, 'patients': 0, **changes.get('labels', {})}  # tests need all labels
        changed = config.changed_data(dataset.config, changes, f'data.external.{name}')
        fitted = dict(dataset.transforms.fitted)
        key = 'external', _digest(changed.to_dict()), _digest(fitted)
        return self.once(key, lambda: self._build(changed, None, fitted, fit=False,
                                                  source_key=f'data.external.{name}.source'))

    def memory(self, dataset: Dataset, text_only: bool = False) -> dict:
        """The prepared cases that this Dataset shares with others."""
        data_config, transforms = dataset.config, dataset.transforms
        names = [transform.short_name(name) for name in data_config.transforms]
        decided = dataset.partition.fingerprint if set(names) & transforms.assignments.keys() else ''
        facts = [data_config.transforms, [data_config[n].to_dict() for n in names],
                 {n: transforms.fitted.get(n) for n in names},
                 data_config.boxes, data_config.cache, data_config.folder, decided]
        return self.once(('memory', id(dataset.source), id(dataset.store), _digest(facts), text_only), dict)

    def once(self, key: tuple, make: Callable[[], Any]) -> Any:
        """What `make` returned at the first call with this key."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def _build(self, data_config: ConfigDict, workdir: Any, fitted: dict[str, Any], fit: bool,
               inputs: Collection[str] = (), source_key: str = 'data.source') -> Dataset:
        if data_config.cache not in CACHES:
            raise errors.ConfigError(f'data.cache = "{data_config.cache}".{errors.nearest(data_config.cache, CACHES)}')
        source = self.once(('source', _digest(data_config.source.to_dict())),
                            lambda: sources.build(data_config.source, source_key))
        if not len(source.cases):
            raise errors.BadData(f'Source {data_config.source.name} holds no case.')
        split = splits.load_or_draw(source.cases, data_config.split, workdir)
        store = self._store(data_config, source) if data_config.cache == 'disk' else None
        source, mask = self._told(data_config, source, split, workdir)
        assignments = transform.assign(data_config, source, split)
        parts = partition.build(data_config, source.cases, split, transform.included(assignments),
                                None if mask is None else ~mask.hidden)
        for turn in range(3):  # what must be learned, what a store need not have learned, what is made of both
            for short, plugin in transform.listed(data_config).items():
                if plugin.fit and turn == 2 * plugin.fit_prepared + plugin.fit_optional and short not in fitted and (
                        fit or plugin.fit_decides_shapes) and not (plugin.fit_optional and store is not None):
                    learned = self._fit(data_config, short, plugin, source, store, parts.indices('train'), fitted)
                    fitted |= {} if learned is None else {short: learned}
            transforms = transform.build(data_config, fitted, assignments)
            if transforms.make_of_reports(inputs):
                break
        dataset = Dataset(data_config, source, parts, transforms, store, mask, pool=self)
        return dataclasses.replace(dataset, memory=self.memory(dataset))

    def _told(self, data_config: ConfigDict, source: Source, split: dict[str, str],
              workdir: Any) -> tuple[Source, label_share.LabelMask | None]:
        """(the source, which hides labels where data.labels says so; what it hides, None for nothing)."""
        known = label_share.labelled(source, split, data_config)
        if known is None:
            return source, None
        if workdir:
            chosen = [case.id for case, told in zip(source.cases, known)
                      if told and split[case.id] not in splits.parts(data_config.test)]
            splits.write_labelled(workdir, label_share.name(data_config.labels), chosen)
        hiding = self.once(('told', id(source), known.tobytes()), lambda: label_share.HiddenLabels(
            source, label_share.LabelMask(~known, tuple(source.tasks))))
        return hiding, hiding.mask

    def _store(self, data_config: ConfigDict, source: Any) -> reader.Store:
        names = data_config.transforms[:transform.shared_prefix(data_config)]
        facts = data_config.folder, names, [data_config[transform.short_name(name)].to_dict() for name in names]
        return self.once(('store', id(source), _digest(facts)),
                          lambda: reader.open(data_config.folder, identity.settings(data_config, source), source))

    def _describe(self, dataset: Dataset) -> None:
        """Log once what the transforms say of the training cases; those that a store is behind were described before.
        """
        data_config, read = dataset.config, _reader(dataset.source, dataset.store)
        indices, stored = dataset.partition.indices('train'), dataset.transforms.shared if dataset.store else 0
        for name in data_config.transforms[stored:]:
            short, describe = transform.short_name(name), transform.plugin(name).describe
            if describe:
                self.once(('describe', id(dataset.source), short, _digest([data_config[short].to_dict(), indices])),
                           functools.partial(_log_description, describe, short, data_config[short], read, indices))

    def _name_silent_labels(self, dataset: Dataset) -> None:
        """Log once the labels of which no training case says anything."""
        source, indices = dataset.source, dataset.partition.indices('train')
        if not isinstance(label_share.whole(source), FileSource) or source.values is None:
            return  # phantoms say something of all labels
        known = np.isin(source.values[indices], (0, 1))
        silent = [name for c, name in enumerate(source.labels) if not known[:, c].any()]
        if silent:
            self.once(('silent', id(source), *silent), lambda: log.info(
                f'{source.name}: of {", ".join(silent)} no training case says 1 or 0, so nothing is learned of '
                f'{"it" if len(silent) == 1 else "them"} unless the transform "labels" counts other values'))

    def _fit(self, data_config: ConfigDict, short: str, plugin: Any, source: Any, store: Any,
             indices: list[int], fitted: Mapping[str, Any]) -> Any:
        """What a transform learns; fitted: what those before it have learned."""
        def progress(items: Iterable) -> Iterable:
            return log.progress(items, f'{short}: learning from training cases')
        read = _reader(source, store)
        steps = transform.before(data_config, short) if plugin.fit_optional else ()
        if plugin.fit_prepared:  # a store holds what the first ones made
            steps = transform.before(data_config, short, True,
                                     transform.shared_prefix(data_config) if store is not None else 0)
        options = [[n, data_config[transform.short_name(n)].to_dict()] for n in steps]
        learned = {transform.short_name(n): fitted.get(transform.short_name(n)) for n in steps}
        learned = {n: value for n, value in learned.items() if value is not None}
        facts = data_config[short].to_dict(), options, indices, *([learned] if learned else [])
        return self.once(('fit', id(source), short, _digest(facts)), lambda: plugin.fit(
            data_config[short], transform.TransformedSource(read, data_config, steps, learned) if steps else read,
            indices, progress))


def _log_description(describe: Callable, short: str, hp: ConfigDict, source: Any, indices: list[int]) -> None:
    if line := describe(hp, source, indices):
        log.info(f'{short}, training part: {line}')


def _reader(source: Any, store: Any) -> Any:
    """What transforms learn from: no file of the source is opened where there is a store."""
    if store is not None and isinstance(source, label_share.HiddenLabels):
        return label_share.HiddenLabels(reader.CachedSource(source.source, store), source.mask)
    return source if store is None else reader.CachedSource(source, store)


def build(data_config: ConfigDict, workdir: Any = None, fitted: dict[str, Any] | None = None,
          fit: bool = True) -> Dataset:
    """A Dataset that shares nothing with others, see `DataPool.get`."""
    return DataPool().get(data_config, workdir, fitted, fit)


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
