"""Images that the tables of an archive list, with labels, reports and boxes: what most sources of radiographs are."""
import dataclasses
import functools
import os
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import csv_table, image, picture
from jaxkd.data.sources.shared import loading_errors
from jaxkd.data.sources.shared.boxes import boxes_of_masks
from jaxkd.data.sources.shared.loading_errors import FileSource

MAX_TEXT_BYTES = 2**20  # bytes of a report


@dataclasses.dataclass
class Archive(FileSource):
    """A source (see jaxkd/data/source.py): each case is an image file. `text(i)` reads the report alone.

    files   for each case (folder, path below it); the path may not leave the folder. () where there are reports alone
    texts   for each case its report: strings, or what reads them when asked, such as Texts; () where there are none
    boxes   {case id: float32 [n,5]} in pixels of the stored image
    sizes   {case id: (width, height)} that the boxes are told for, where the archive says so
    resized whether an image of another size is the whole one, scaled, so that its boxes are scaled likewise
    regions (case id, (height, width)) -> label indices [n] and masks uint8 [n,H,W], none of them empty: they are in the
    record,
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
    per_case: ClassVar[tuple[str, ...]] = ('values', 'files')

    def __getitem__(self, i: int) -> dict[str, Any]:
        record = dict(text=self.text(i), label=self.values[i].copy())
        if not len(self.files):
            return record
        pixels = self.pixels(i)
        if not self.regions:
            return dict(image=pixels, **record, boxes=self.boxes_of(i, pixels.shape))
        region_labels, masks = self.regions(self.cases[i].id, pixels.shape[:2])
        return dict(image=pixels, **record, boxes=boxes_of_masks(region_labels, masks), masks=masks)

    def pixels(self, i: int) -> np.ndarray:
        """uint8, uint16 or float32 [H,W], or uint8 [H,W,3], see jaxkd/data/formats/picture.py."""
        return picture.read(csv_table.resolve(*self.files[i]), self.max_pixels)

    def text(self, i: int) -> str:
        return self.texts[i] if len(self.texts) else ''

    def boxes_of(self, i: int, shape: tuple[int, ...]) -> np.ndarray:
        """float32 [n,5] of an image of this shape. Raises BadData where they cannot be of it."""
        case, (height, width) = self.cases[i].id, shape[:2]
        boxes = self.boxes.get(case, np.zeros((0, 5), np.float32)).copy()
        w, h = self.sizes.get(case, (width, height)) if len(boxes) else (width, height)
        if (w, h) != (width, height) and not self.resized:
            raise errors.BadData(f'Case {case}: its boxes are for an image of {w} x {h}, the file has {width} x '
                                 f'{height}. Use the files that they were drawn on, or leave the boxes out.')
        boxes[:, 1:] *= np.array([width / w, height / h] * 2, np.float32)
        for x, y, w, h in boxes[:, 1:]:
            if x + w > width + 1 or y + h > height + 1:  # 1: rounding
                raise errors.BadData(f'Case {case}: a box reaches to ({x + w:g}, {y + h:g}), the image only to '
                                     f'({width}, {height}). Boxes are x, y, w, h in pixels of the stored image.')
        return boxes

    def paths(self, i: int) -> tuple[str, ...]:
        """The files of case i, its report included where that is one of its own."""
        reports = [self.texts.files[i]] if isinstance(self.texts, Texts) else []
        files = [*([self.files[i]] if len(self.files) else []), *reports]
        return tuple(csv_table.in_any_case(folder, name) for folder, name in files
                     if name and not folder.endswith('.zip'))

    def identity(self) -> dict[str, Any]:
        texts = {'texts': self.texts} if isinstance(self.texts, (tuple, list)) else {}  # else they are in files
        return {**super().identity(), 'boxes': self.boxes, 'sizes': self.sizes, **texts}

    def without(self, bad: Mapping[int, str]) -> Self:
        """The same source less the cases {index: reason}."""
        keep = [i for i in range(len(self)) if i not in bad]
        texts = self.texts.select(keep) if isinstance(self.texts, Texts) else loading_errors.select(self.texts, keep)
        return dataclasses.replace(super().without(bad), texts=texts)


@dataclasses.dataclass
class Texts(Sequence):
    """Reports in UTF-8 files, read when asked for: files as in Archive, where a .zip is a folder, too; '' where a case
    has none.

    empty: what to do about a file without a word, for the error that then is raised; '' allows it.
    """

    files: Sequence
    empty: str = ''

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> str:  # type: ignore[override]
        folder, name = self.files[i]
        if not name:
            return ''
        text = zipped_text(folder, name) if folder.endswith('.zip') else read_text(csv_table.resolve(folder, name))
        if not text and self.empty:
            raise errors.BadData(f'{os.path.join(folder, name)} is empty. {self.empty}')
        return text

    def select(self, keep: Sequence[int]) -> Self:
        """The reports of the cases `keep`."""
        return dataclasses.replace(self, files=loading_errors.select(self.files, keep))


def check_labels(source_name: str, labels: Sequence[str], choices: Collection[str]) -> None:
    """ConfigError unless labels are some of the known ones, each once."""
    if len({*labels}) < len(labels) or not labels:
        raise errors.ConfigError(f'{source_name}: labels = {tuple(labels)} must name each label once.')
    if unknown := [label for label in labels if label not in choices]:
        raise errors.ConfigError(f'{source_name}: labels: there is no label "{unknown[0]}".'
                                 f'{errors.nearest(unknown[0], choices)}')


def read_text(path: str) -> str:
    """A report: at most MAX_TEXT_BYTES bytes of UTF-8, any line ends, with or without byte-order mark. Raises BadData,
    MissingInput.
    """
    return '\n'.join(image.read_lines(path, MAX_TEXT_BYTES)).strip()


def zipped_text(path: str, name: str) -> str:
    """As `read_text`, of a member of a zip file."""
    location = f'{path}, {name}'
    try:
        packed = _zip(path, os.getpid())
        with packed.open(name) as f:
            data = f.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError as e:
        raise errors.MissingInput(f'{path} does not exist. Correct the path.') from e
    except KeyError as e:
        raise errors.MissingInput(f'{path} holds no {name}. Copy the file again from where it came, or remove '
                                  'the case.') from e
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as e:
        raise errors.BadData(f'{location} cannot be read ({e}). Copy the file again from where it came.') from e
    if len(data) > MAX_TEXT_BYTES:
        raise errors.BadData(f'{location} has more than {MAX_TEXT_BYTES:,} bytes, which is no report. Replace it.')
    return '\n'.join(image.decode_lines(location, data)).strip()


@functools.lru_cache(maxsize=2)
def _zip(path: str, process: int) -> zipfile.ZipFile:
    """An open zip file, one for each process: its table of 227,835 names takes seconds, and its position is not
    shared.
    """
    return zipfile.ZipFile(path)
