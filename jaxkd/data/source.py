"""What a data source is: the contract of files of data/sources, and of modules that users name instead.

The file offers `DEFAULTS` and `build(hp) -> Source`. A source knows files, never augmentation. It must pickle (workers
get a copy) and `source[i]`, the record of case i, must be thread-safe. A record is a dict of numpy arrays, Volumes and
strings. Every key is required that is not called optional.

Images:
    image  [H,W] or [H,W,3]: uint8, float32 in [0,1], or uint16 whose depth the transform `image` decides; a source of
           reports alone has no such key
    text   str, '' when the case has none; optional where no network reads it
    label  float32 [C]: 1 present, 0 absent, -1 uncertain, nan not mentioned; -2 where data.labels hides it, which no
           source says itself
    boxes  float32 [n,5]: label index (-1: tied to no label), x, y, w, h in pixels of this image
    masks  uint8 [n,H,W], optional, the region in each box: attention is then scored against it
    table  list of dicts, optional: the description of each finding, column -> cell, both strings

Volumes, whose labels exclude each other:
    <modality>  jaxkd.data.volume.Volume on its own grid; a case that lacks the modality has no such key
    label       int32, index into `labels`; -1 where data.labels hides it
    <task>      int32, index into tasks[task], -1 where it is not known
    centre      {modality: world mm (x,y,z), RAS}, optional: what the crop is centred on

A label for each place (segmentation). `labels` names all classes, the background first; 255 is ignored.
    slices   image [H,W] or [H,W,3] as above; label uint8 [H,W]; case str, optional: the name in messages; spacing
             float32 [3], optional: mm between slices, rows and columns (nan, as without it, where it is not known:
             distances then count voxels). The cases of one `study`, in the order of `cases`, are the slices of one
             volume
    volumes  <modality> Volume; label Volume of whole numbers on its own grid (without one all of it is ignored); case
             as above; instances Volume, optional: the number of the lesion that a voxel belongs to; <task> int32 as
             above
"""
import collections
import dataclasses
import functools
import gc
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import contracts, errors
from jaxkd.config import plugins, typed_options
from jaxkd.runtime import log

# Texts, in lower case, that say that there is no value; those that as a patient id say that nobody knows whose it is.
MISSING = frozenset(('', 'nan', '-nan', 'na', 'n/a', '<na>', '#n/a', 'null', 'nat'))
NOBODY = MISSING | {'none', 'nil', 'n.a.', 'unknown', 'undefined', 'missing', '-', '--', '?', '.'}
IGNORED = 255  # the label of a place that counts nowhere
HIDDEN = -2.0  # a finding that data.labels hides from the stage
MOST_GROUPS = 12  # values of a column that are counted one by one


@dataclasses.dataclass(frozen=True)
class Case:
    """One image, or one set of volumes.

    Images of a study share report and labels; images of a patient never part in a split.
    """

    id: str
    patient: str
    study: str = ''
    split: str = ''  # given by the archive; '' means: to be drawn
    groups: dict[str, str] = dataclasses.field(default_factory=dict)  # {'view': 'AP'}: subgroups, strata of a split


class Source:
    """Base class of all sources: a subclass sets name, labels, cases, and defines `[i]`."""

    name: str  # how reports call it
    labels: tuple[str, ...]  # C names
    cases: Sequence[Case]  # known without decoding a single image
    note: str = ''  # one line that stands beside every number made from it; '' when there is nothing to warn of
    skipped: tuple[tuple[str, str], ...] = ()  # (case id, reason) of what `on_error='skip'` left out
    tasks: Mapping[str, Sequence[str]] = {}  # further labels that a network may be trained for: name -> class names
    targets: Mapping[str, np.ndarray] = {}  # 'label' and every task -> int32 [n], where a case has one class: splits
    # and priors then need no volume
    values: np.ndarray | None = None  # float32 [n,C], the labels of all cases, where no image must be decoded to know
    # them; may be a functools.cached_property
    text_without_image: bool = False  # `values` are known and text(i) opens no image: networks of reports open none
    table_without_image: bool = False  # table(i) opens no image

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """The record of case i, see the head of the file."""
        raise NotImplementedError(f'{type(self).__name__} must define __getitem__, the record of a case.')

    def id(self, i: int) -> str:
        """The id of case i."""
        return self.cases[i].id

    def text(self, i: int) -> str:
        """The text of case i."""
        return self[i]['text']

    def table(self, i: int) -> list[dict[str, str]]:
        """The table of case i."""
        return self[i]['table']

    def second_reader(self, i: int) -> Any:
        """The label of each place of case i by a second reader, in the form of record['label']; None without one.

        Read in evaluation alone, which compares the two readers.
        """
        return None

    def crop_regions(self, i: int) -> Mapping[str, Any]:
        """{modality: Volume} of the masks, not 0 inside, that crops of case i are centred on; {} without."""
        return {}

    def paths(self, i: int) -> Sequence[str] | None:
        """The files and DICOM folders of case i, whose sizes a store of prepared cases compares; None without."""
        return None

    def identity(self) -> dict[str, Any]:
        """What a store of prepared cases compares beside the ids, known without opening a file of a case.

        Arrays or {key: array}, and under 'texts' a sequence of strings.
        """
        return {'targets': self.targets} | ({} if self.values is None else {'values': self.values})


def cohort(source: Source) -> dict[str, Any]:
    """{'found', 'used': numbers of cases, 'skipped': {reason without names and numbers: number of cases}}."""
    reasons = collections.Counter(' '.join(re.sub(r'\S*[/\\]\S*|\S*\d\S*', '...', reason).split())
                                  for _, reason in source.skipped)
    return dict(found=len(source.cases) + len(source.skipped), used=len(source.cases),
                skipped=dict(reasons.most_common()))


def composition(source: Source, indices: Sequence[int]) -> dict[str, Any]:
    """Labels and groups of some cases as counts, known without decoding an image; parts that are not known are {}.

    {'labels': {label: {'positive', 'negative', 'uncertain', 'unmentioned'}}, or {class: {'positive'}} of classes,
    'groups': {column: {value: cases}} with the MOST_GROUPS most frequent values and 'others' for what is beyond}.
    """
    rows, labels, groups = np.asarray(indices, int), {}, {}
    if (classes := source.targets.get('label')) is not None:
        labels = {name: dict(positive=int((classes[rows] == k).sum())) for k, name in enumerate(source.labels)}
    elif source.values is not None:
        for name, raw in zip(source.labels, np.asarray(source.values)[rows].T):
            counts = dict(positive=raw == 1, negative=raw == 0, uncertain=raw == -1, unmentioned=np.isnan(raw))
            labels[name] = {kind: int(cases.sum()) for kind, cases in counts.items()}
    for column in dict.fromkeys(column for i in rows for column in source.cases[i].groups):
        values = collections.Counter(str(source.cases[i].groups.get(column, '')) for i in rows).most_common()
        groups[column] = dict(values[:MOST_GROUPS])
        if values[MOST_GROUPS:]:
            groups[column]['others'] = sum(n for _, n in values[MOST_GROUPS:])
    return dict(labels=labels, groups=groups)


class DerivedSource(Source):
    """The cases, labels and texts of another source, whose records a subclass makes without opening an image."""

    text_without_image = True

    def __init__(self, source: Source) -> None:
        self.source, self.cases = source, source.cases
        self.name, self.note, self.labels = source.name, source.note, source.labels
        self.skipped, self.tasks, self.targets = source.skipped, source.tasks, source.targets

    @functools.cached_property
    def values(self) -> np.ndarray | None:  # type: ignore[override]
        """float32 [n,C] of the source, computed at the first use."""
        return self.source.values

    def text(self, i: int) -> str:
        """The text of case i."""
        return self.source.text(i)


class WrappedSource(DerivedSource):
    """A derived source with the tables, second readers, crops and files of the other."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.text_without_image, self.table_without_image = source.text_without_image, source.table_without_image

    def table(self, i: int) -> list[dict[str, str]]:
        return self.source.table(i)

    def second_reader(self, i: int) -> Any:
        return self.source.second_reader(i)

    def crop_regions(self, i: int) -> Mapping[str, Any]:
        return self.source.crop_regions(i)

    def paths(self, i: int) -> Sequence[str] | None:
        return self.source.paths(i)


def build(hp: ConfigDict, key: str = '') -> Source:
    """The source of a resolved data.source. Raises ConfigError where its `build` returns something else.

    key: where the options stand in the config, 'data.source', so that messages name them as they are typed; '' within
    another source, which knows.

    Tables make millions of small objects, all of which stay: Python's search for cycles among them, again and again,
    would take longer than to read them, so it waits.
    """
    module, collects = plugins.load('data/sources', hp.name), gc.isenabled()
    gc.disable()
    try:
        source = module.build(hp)
    except errors.JaxkdError as e:
        if key:
            e.args = (typed_options.typed(str(e), hp.to_dict(), key),)
        raise
    finally:
        if collects:
            gc.enable()
    if not isinstance(source, Source):
        raise errors.ConfigError(f'data.source.name = "{hp.name}": its build returned a {type(source).__name__}. Let '
                                 'that class inherit from jaxkd.data.source.Source.')
    _check_patients(source, hp.get('allow_ids', ()))
    return source


def without_paths(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a data.source without those that say where files lie."""
    if 'name' not in options:  # differences to another one
        return dict(options)
    try:
        plugin = plugins.contract('data/sources', options['name'])
    except errors.ConfigError:  # of a package that is not here any more
        plugin = contracts.SourcePlugin()
    return {key: without_paths(value) if key in plugin.nested else value for key, value in options.items()
            if key not in plugin.paths}


def _check_patients(source: Source, allowed: Sequence[str]) -> None:
    """BadData where a patient id means that there is none: all such cases would be one patient. Names, in the log, ids
    that differ in letter case or in the .0 of a spreadsheet alone.
    """
    patients = {case.patient for case in source.cases}
    nobody = {p for p in patients if str(p).lower() in NOBODY} - {*allowed}
    if bad := [case.id for case in source.cases if case.patient in nobody] if nobody else []:
        raise errors.BadData(f'{source.name}: {len(bad)} cases have no patient, the first is {bad[0]}: "'
                             f'{next(iter(nobody))}" means none. Give each case its patient in the source.')
    spellings = collections.Counter(map(_plain, patients))
    if len(spellings) < len(patients):
        similar = next(name for name, count in spellings.items() if count > 1)
        first = {case.patient: case.id for case in reversed(source.cases) if _plain(case.patient) == similar}
        log.info(f'{source.name}: {sum(count > 1 for count in spellings.values())} patient ids stand there in several '
                 'spellings, which differ in letter case or ".0" alone, as those of cases '
                 f'{" and ".join(sorted(first.values())[:2])}. They count as different patients, who may part in a '
                 'split')


def _plain(patient: str) -> str:
    return str(patient).lower().removesuffix('.0')


def innermost(source: Mapping[str, Any] | ConfigDict) -> tuple[tuple[str, ...], Any]:
    """(keys that lead to it, its options) of the source that reads files, within others such as `binary`."""
    nested = plugins.contract('data/sources', source['name']).nested
    if not nested:
        return (), source
    keys, options = innermost(source[nested[0]])
    return (nested[0], *keys), options
