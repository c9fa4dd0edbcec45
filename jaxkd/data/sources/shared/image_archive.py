"""Images that the tables of an archive list, with labels, reports and boxes: what most sources of radiographs are."""
import dataclasses
import functools
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import csv_table, image
from jaxkd.data.source import Source
from jaxkd.data.sources.shared.boxes import around

MOST_TEXT = 2**20  # bytes of a report
VALUES = {'1': 1.0, '1.0': 1.0, '0': 0.0, '0.0': 0.0, '-1': -1.0, '-1.0': -1.0, '': np.nan}  # cells of labels


@dataclasses.dataclass
class Archive(Source):
    """A source (see jaxkd/data/source.py): each case is an image file. `text(i)` reads the report alone.

    files   for each case (folder, path below it); the path may not leave the folder. () where there are reports alone
    texts   for each case its report: strings, or what reads them when asked, such as Texts; () where there are none
    boxes   {case id: float32 [n,5]} in pixels of the stored image
    sizes   {case id: (width, height)} that the boxes are told for, where the archive says so
    resized whether an image of another size is the whole one, scaled, so that its boxes are scaled likewise
    regions (case id, (height, width)) -> label indices [n] and masks uint8 [n,H,W], none of them empty: they are in the record,
            and the boxes are those around them
    """

    name: str
    note: str = dataclasses.field()
    labels: tuple
    cases: tuple
    values: np.ndarray = dataclasses.field()  # float32 [n,C]
    files: Sequence
    texts: Sequence = ()
    boxes: Mapping = dataclasses.field(default_factory=dict)
    sizes: Mapping = dataclasses.field(default_factory=dict)
    resized: bool = False
    regions: Callable | None = None
    max_pixels: int = image.MAX_PIXELS
    skipped: tuple = ()
    text_without_image = True

    def __getitem__(self, i):
        record = dict(text=self.text(i), label=self.values[i].copy())
        if not len(self.files):
            return record
        pixels = self.pixels(i)
        if not self.regions:
            return dict(image=pixels, **record, boxes=self.boxes_of(i, pixels.shape))
        found, masks = self.regions(self.cases[i].id, pixels.shape[:2])
        return dict(image=pixels, **record, boxes=around(found, masks), masks=masks)

    def pixels(self, i):
        """uint8 or uint16 [H,W], or uint8 [H,W,3]."""
        return image.read(csv_table.resolve(*self.files[i]), self.max_pixels)

    def text(self, i):
        return self.texts[i] if len(self.texts) else ''

    def boxes_of(self, i, shape):
        """float32 [n,5] of an image of this shape. Raises BadData where they cannot be of it."""
        case, (height, width) = self.cases[i].id, shape[:2]
        boxes = self.boxes.get(case, np.zeros((0, 5), np.float32)).copy()
        w, h = self.sizes.get(case, (width, height)) if len(boxes) else (width, height)
        if (w, h) != (width, height) and not self.resized:
            raise errors.BadData(f'Case {case}: its boxes are for an image of {w} x {h}, the file has {width} x {height}. Use the '
                                 'files that they were drawn on, or leave the boxes out.')
        boxes[:, 1:] *= np.float32([width / w, height / h] * 2)
        for x, y, w, h in boxes[:, 1:]:
            if x + w > width + 1 or y + h > height + 1:  # 1: rounding
                raise errors.BadData(f'Case {case}: a box reaches to ({x + w:g}, {y + h:g}), the image only to ({width}, {height}). '
                                     'Boxes are x, y, w, h in pixels of the stored image.')
        return boxes

    def paths(self, i):
        """The files of case i, its report included where that is one of its own."""
        told = [self.texts.files[i]] if isinstance(self.texts, Texts) else []
        return tuple(os.path.join(folder, name) for folder, name in [*([self.files[i]] if len(self.files) else []), *told]
                     if name and not folder.endswith('.zip'))

    def identity(self):
        texts = {'texts': self.texts} if isinstance(self.texts, (tuple, list)) else {}  # else they are in files
        return {**super().identity(), 'boxes': self.boxes, 'sizes': self.sizes, **texts}

    def without(self, bad):
        """The same source less the cases {index: reason}."""
        keep = [i for i in range(len(self)) if i not in bad]
        return dataclasses.replace(
            self, cases=tuple(self.cases[i] for i in keep), values=self.values[keep],
            files=_chosen(self.files, keep) if len(self.files) else (), texts=_chosen(self.texts, keep) if len(self.texts) else (),
            skipped=self.skipped + tuple((self.cases[i].id, reason) for i, reason in bad.items()))


@dataclasses.dataclass
class Texts(Sequence):
    """Reports in UTF-8 files, read when asked for: files as in Archive, where a .zip is a folder, too; '' where a case has none.

    empty: what to do about a file without a word, for the error that then is raised; '' allows it.
    """

    files: Sequence
    empty: str = ''

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        folder, name = self.files[i]
        if not name:
            return ''
        text = zipped_text(folder, name) if folder.endswith('.zip') else read_text(csv_table.resolve(folder, name))
        if not text and self.empty:
            raise errors.BadData(f'{os.path.join(folder, name)} is empty. {self.empty}')
        return text

    def chosen(self, keep):
        return dataclasses.replace(self, files=_chosen(self.files, keep))


def check(who, labels, known, on_error):
    """ConfigError unless labels are some of those that are known, each once, and on_error is an option that there is."""
    if on_error not in ('fail', 'skip'):
        raise errors.ConfigError(f'{who}: on_error = "{on_error}" is none of fail, skip.')
    if len({*labels}) < len(labels) or not labels:
        raise errors.ConfigError(f'{who}: labels = {tuple(labels)} must name each label once.')
    for label in labels:
        if label not in known:
            raise errors.ConfigError(f'{who}: labels: there is no label "{label}".{errors.nearest(label, known)}')


def read_text(path):
    """A report: at most MOST_TEXT bytes of UTF-8, any line ends, with or without byte-order mark. Raises BadData, MissingInput."""
    return _decoded(path, image.contents(path, MOST_TEXT))


def zipped_text(path, name):
    """As `read_text`, of a member of a zip file."""
    where = f'{path}, {name}'
    try:
        packed = _zip(path, os.getpid())
        with packed.open(name) as f:
            data = f.read(MOST_TEXT + 1)
    except FileNotFoundError as e:
        raise errors.MissingInput(f'{path} does not exist. Correct the path.') from e
    except KeyError as e:
        raise errors.MissingInput(f'{path} holds no {name}. Copy the file again from where it came, or remove the case.') from e
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as e:
        raise errors.BadData(f'{where} cannot be read ({e}). Copy the file again from where it came.') from e
    if len(data) > MOST_TEXT:
        raise errors.BadData(f'{where} has more than {MOST_TEXT:,} bytes, which is no report. Replace it.')
    return _decoded(where, data)


@functools.lru_cache(maxsize=2)
def _zip(path, process):
    """An open zip file, one for each process: its table of 227,835 names takes seconds, and its position is not shared."""
    return zipfile.ZipFile(path)


def _decoded(where, data):
    try:
        return '\n'.join(data.decode('utf-8-sig').splitlines()).strip()
    except UnicodeDecodeError as e:
        raise errors.BadData(f'{where} is not UTF-8 (byte {e.start}). Save it as UTF-8.') from e


def _chosen(sequence, keep):
    return sequence.chosen(keep) if isinstance(sequence, Texts) else tuple(sequence[i] for i in keep)
