"""mini-MIAS: 322 digitised films of 161 women, both breasts in the MLO view, and a circle around most abnormalities.

Suckling et al.: The Mammographic Image Analysis Society digital mammogram database. Excerpta Medica 1069 (1994). At
`root` or in one folder below it: mdb001.pgm ... mdb322.pgm, 1024 x 1024 pixels of 8 bits, and Info.txt with one line
for each abnormality,

    mdb001 G CIRC B 535 425 197      film, tissue, class, severity, x and y of the centre, radius in pixels
    mdb003 D NORM
    mdb059 F CIRC B                  no position;  mdb216 D CALC M *NOTE 3*  calcifications over the entire film

in any order, between lines of other text. y is counted from the lower edge of the film; a film may have several lines;
each pair of films, 1 and 2, 3 and 4, ..., shows the right (odd) and the left (even) breast of one woman, one patient.

Label: malignant, 1 if any abnormality is M. normals=False leaves out films without one. Table: a row for each line,
with the columns tissue (F fatty, G fatty-glandular, D dense-glandular), class (CALC CIRC SPIC MISC ARCH ASYM NORM) and
side. There are no descriptors in the sense of BI-RADS, and the class NORM is the label of its film.
Boxes and masks are those of the circles, cut at the film's edge; label 0 for a malignant one, -1 for another.
"""
import dataclasses
import io
import os
import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.formats import checks, image
from jaxkd.data.source import Case, Source
from jaxkd.data.sources.shared import loading_errors
from jaxkd.data.sources.shared.boxes import boxes_of_masks
from jaxkd.data.sources.shared.loading_errors import FileSource

DEFAULTS = dict(
    root='',  # the folder of the films and Info.txt, or the one above
    normals=True,  # False: only films with an abnormality
    on_error='fail',  # at bad films: fail (stop) or skip (read all once at the start and leave the bad ones out)
    max_pixels=2**22,  # most pixels of an image; a larger one is refused
)

SIDE = 1024  # pixels of a film, which y is counted from
TISSUE, CLASSES = ('F', 'G', 'D'), ('CALC', 'CIRC', 'SPIC', 'MISC', 'ARCH', 'ASYM', 'NORM')
_LINE = re.compile(r'(mdb(\d{3}))\s+(\S+)\s+(\S+)(?:\s+([BM]))?(?:\s+(\d+)\s+(\d+)\s+(\d+)|\s+\*?NOTE.*)?\s*')
_MAX_TEXT_BYTES = 2**20  # bytes


@dataclasses.dataclass
class Mias(FileSource):
    """A source (see jaxkd/data/source.py)."""

    folder: str
    cases: tuple
    findings_by_case: tuple  # for each case its findings: (tissue, class, severity, circle or None)
    max_pixels: int
    skipped: tuple = ()
    name: str = 'mini_mias'
    note: str = 'films of the 1990s, one view'
    labels: tuple = ('malignant',)
    table_without_image = True
    per_case = ('findings_by_case',)

    def __getitem__(self, i: int) -> dict[str, Any]:
        case, findings = self.cases[i], self.findings_by_case[i]
        pixels = pgm(os.path.join(self.folder, f'{case.id}.pgm'), self.max_pixels)
        circles = [(severity, circle) for _, _, severity, circle in findings if circle]
        masks = np.array([disc(circle, pixels.shape) for _, circle in circles], np.uint8).reshape(-1, *pixels.shape)
        if len(masks) and not masks.any((1, 2)).all():
            raise errors.BadData(f'Case {case.id}: a circle of Info.txt lies outside its film of {pixels.shape[1]} x '
                                 f'{pixels.shape[0]} pixels. Use the files of mini-MIAS, which have {SIDE} x {SIDE}.')
        return dict(image=pixels, label=np.array([any(severity == 'M' for _, _, severity, _ in findings)], np.float32),
                    masks=masks, boxes=boxes_of_masks([0 if severity == 'M' else -1 for severity, _ in circles], masks),
                    table=self.table(i), case=case.id)

    def table(self, i: int) -> list[dict[str, str]]:
        side = self.cases[i].groups['side']
        return [{'tissue': tissue, 'class': kind, 'side': side} for tissue, kind, _, _ in self.findings_by_case[i]]


def build(hp: ConfigDict) -> Source:
    loading_errors.check_options('mini_mias', hp)
    folder = _folder(hp.root)
    films: dict[str, list[tuple]] = read(os.path.join(folder, 'Info.txt'))
    if not hp.normals:
        films = {name: findings for name, findings in films.items()
                 if any(kind != 'NORM' for _, kind, _, _ in findings)}
    names = sorted(films)
    source = Mias(folder, tuple(_case(name, films[name]) for name in names),
                  tuple(tuple(films[name]) for name in names), hp.max_pixels)
    missing = {i: f'{name}.pgm does not exist in {folder}' for i, name in enumerate(names)
               if not os.path.isfile(os.path.join(folder, f'{name}.pgm'))}
    if missing and hp.on_error == 'fail':
        raise errors.MissingInput(f'mini_mias: {next(iter(missing.values()))} ({len(missing)} of {len(names)} are '
                                  'missing). Unpack them there, or set on_error="skip".')
    source = source.without(missing)
    return loading_errors.usable(source, hp.on_error, f'mini_mias: {folder}')


def read(path: str) -> dict[str, list[tuple]]:
    """{film: [(tissue, class, 'B', 'M' or '', (x, y, radius) with y from below, or None)]} of an Info.txt."""
    films: dict[str, list[tuple]] = {}
    for number, line in enumerate(image.read_lines(path, _MAX_TEXT_BYTES), 1):
        if not re.match(r'\s*mdb\d', line):
            continue
        match = _LINE.fullmatch(line.strip())
        if not match or match[3] not in TISSUE or match[4] not in CLASSES or (match[5] is None) != (match[4] == 'NORM'):
            raise errors.BadData(f'{path}, line {number}: this is not film, tissue, class, severity, x, y and radius, '
                                 'as in "mdb001 G CIRC B 535 425 197". Copy it again from where it came.')
        circle = tuple(int(n) for n in match.group(6, 7, 8)) if match[6] else None
        films.setdefault(match[1], []).append((match[3], match[4], match[5] or '', circle))
    if not films:
        raise errors.BadData(f'{path} names no film. Copy it again from where it came.')
    return films


def pgm(path: str, max_pixels: int) -> np.ndarray:
    """uint8 [H,W] of a binary PGM of 8 bits. Any other file is BadData."""
    from PIL import PpmImagePlugin  # by name, as in jaxkd/data/image.py
    content = image.read_bytes(path, max_pixels + 2**16)
    with checks.reading(path):
        picture = PpmImagePlugin.PpmImageFile(io.BytesIO(content))
        checks.check_pixels(picture.size, max_pixels, path)
        if content[:2] != b'P5' or picture.mode != 'L':
            raise checks.bad(path, 'it is not a binary PGM of 8 bits', 'Convert it')
        return np.array(picture)


def disc(circle: tuple[int, int, int], shape: tuple[int, ...]) -> np.ndarray:
    """bool [H,W] of a circle (x, y, radius), y counted from the lower edge."""
    x, y, radius = circle
    rows, columns = np.ogrid[:shape[0], :shape[1]]
    return (columns - x) ** 2 + (shape[0] - 1 - rows - y) ** 2 <= radius ** 2


def _folder(root: str) -> str:
    loading_errors.check_root('mini_mias', root, 'Info.txt')
    candidates = [root, *(os.path.join(root, name) for name in sorted(os.listdir(root)))]
    for folder in candidates:
        if os.path.isfile(os.path.join(folder, 'Info.txt')):
            return folder
    raise errors.MissingInput(f'mini_mias: neither {root} nor a folder in it holds Info.txt. Put it beside the films.')


def _case(name: str, findings: list[tuple]) -> Case:
    number = int(name[3:])
    kinds = sorted({kind for _, kind, _, _ in findings})
    groups = {'side': 'LEFT' if number % 2 == 0 else 'RIGHT', 'tissue': findings[0][0], 'class': '+'.join(kinds)}
    return Case(name, f'pair{(number + 1) // 2:03d}', groups=groups)
