"""Images that the tables of an archive list, with labels, reports and boxes: what most sources of radiographs are."""
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxkd import errors
from jaxkd.data import image, table

MOST_TEXT = 2**20  # bytes of a report


@dataclasses.dataclass
class Archive:
    """A source (see jaxkd/data/source.py): each case is an image file. `text(i)` reads the report alone.

    files   for each case (folder, path below it); the path may not leave the folder
    texts   for each case its report: strings, or what reads them when asked, such as Texts; () where there are none
    boxes   {case id: float32 [n,5]} in pixels of the stored image
    sizes   {case id: (width, height)} that the boxes are told for, where the archive says so
    """

    name: str
    note: str
    labels: tuple
    cases: tuple
    values: np.ndarray  # float32 [n,C]
    files: Sequence
    texts: Sequence = ()
    boxes: Mapping = dataclasses.field(default_factory=dict)
    sizes: Mapping = dataclasses.field(default_factory=dict)
    max_pixels: int = image.MAX_PIXELS
    skipped: tuple = ()

    def __len__(self):
        return len(self.cases)

    def __getitem__(self, i):
        pixels = self.pixels(i)
        return dict(image=pixels, text=self.text(i), label=self.values[i].copy(), boxes=self.boxes_of(i, pixels.shape))

    def pixels(self, i):
        """uint8 or uint16 [H,W], or uint8 [H,W,3]."""
        return image.read(table.resolve(*self.files[i]), self.max_pixels)

    def text(self, i):
        return self.texts[i] if len(self.texts) else ''

    def boxes_of(self, i, shape):
        """float32 [n,5] of an image of this shape. Raises BadData where they cannot be of it."""
        case, (height, width) = self.cases[i].id, shape[:2]
        boxes = self.boxes.get(case, np.zeros((0, 5), np.float32))
        if len(boxes) and self.sizes.get(case, (width, height)) != (width, height):
            w, h = self.sizes[case]
            raise errors.BadData(f'Case {case}: its boxes are for an image of {w} x {h} pixels, the file has {width} x {height}. Use '
                                 'the files that they were drawn on, or leave the boxes out.')
        for x, y, w, h in boxes[:, 1:]:
            if x + w > width + 1 or y + h > height + 1:  # 1: rounding
                raise errors.BadData(f'Case {case}: a box reaches to ({x + w:g}, {y + h:g}), the image only to ({width}, {height}). '
                                     'Boxes are x, y, w, h in pixels of the stored image.')
        return boxes.copy()

    def without(self, bad):
        """The same source less the cases {index: reason}."""
        keep = [i for i in range(len(self)) if i not in bad]
        return dataclasses.replace(
            self, cases=tuple(self.cases[i] for i in keep), values=self.values[keep], files=_chosen(self.files, keep),
            texts=_chosen(self.texts, keep) if len(self.texts) else (),
            skipped=self.skipped + tuple((self.cases[i].id, reason) for i, reason in bad.items()))


@dataclasses.dataclass
class Texts(Sequence):
    """Reports in UTF-8 files, read when asked for: files as in Archive; '' where a case has none."""

    files: Sequence

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        folder, name = self.files[i]
        return read_text(table.resolve(folder, name)) if name else ''

    def chosen(self, keep):
        return Texts(_chosen(self.files, keep))


def read_text(path):
    """A report: at most MOST_TEXT bytes of UTF-8, any line ends, with or without byte-order mark. Raises BadData, MissingInput."""
    try:
        return '\n'.join(image.contents(path, MOST_TEXT).decode('utf-8-sig').splitlines()).strip()
    except UnicodeDecodeError as e:
        raise errors.BadData(f'{path} is not UTF-8 (byte {e.start}). Save it as UTF-8.') from e


def _chosen(sequence, keep):
    return sequence.chosen(keep) if hasattr(sequence, 'chosen') else tuple(sequence[i] for i in keep)
