"""CBIS-DDSM: digitised film mammograms with masses and calcifications, their outlines, and a table of descriptors.

Lee et al.: A curated mammography data set for use in computer-aided detection and diagnosis research. Sci Data 4:170177
(2017), CC BY 3.0. At `root`, or in one folder below it that `tables` names, the four tables

    {mass,calc}_case_description_{train,test}_set.csv

and anywhere below `root` the DICOM files. A case is an image, patient x side x view, e.g. P_00001_LEFT_CC, and holds
every lesion that the tables list for it. Label: malignant, 1 if any of them is MALIGNANT, else 0 (both kinds of
BENIGN).

Irregularities of the archive and their treatment:
 *  the paths in the tables do not exist on disk. A file belongs to the image that names its folder, at any depth
    (Mass-Training_P_00001_LEFT_CC, and ..._1 for the crop and the mask of lesion 1); in other folders the PatientID of
    the file has the same form
 *  the numbers, and some descriptions, of mask and crop are exchanged: the mask is the file with the rows and columns
    of the image. If several or none match, SeriesInstanceUID and SeriesDescription decide, then size
 *  some masks differ in size from their image. A mask of the same aspect to 2 % is scaled; any other is dropped, and
    its lesion has no region (misfit='error' refuses both)
 *  the columns `breast_density` and `breast density` are both read as the latter. Some cells end in a line break
 *  "NA" is a descriptor, not a missing cell
 *  with both kinds, 13 patients are in the training table of masses and in the test table of calcifications, 18 in the
    opposite pair: their images and rows are dropped from training

The test part of the archive is `test`; its training part is split by data.split.fractions, by patient.

Only tables and file names are read at the start; headers and pixels when a case is read. on_error='skip' reads all of
them once and lists the cases left out in `skipped`. `lesions` reads the tables alone and needs no images.
"""
import collections
import dataclasses
import os
import re
from collections.abc import Collection
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import SourcePlugin
from jaxkd.data.formats import checks, csv_table, film, image
from jaxkd.data.source import Case, Source
from jaxkd.data.sources.shared import loading_errors
from jaxkd.data.sources.shared.boxes import boxes_of_masks
from jaxkd.data.sources.shared.loading_errors import FileSource
from jaxkd.runtime import log

DEFAULTS = dict(
    root='',  # the folder of the DICOM files and tables
    tables='',  # folder of the tables below root; '': root itself
    kind='both',  # of lesions: mass, calc or both
    on_error='fail',  # at bad images: fail (stop) or skip (read all once at the start and leave the bad ones out)
    misfit='scale',  # masks of another size than their image: scale, or error
    max_pixels=image.MAX_PIXELS,  # most pixels of an image; a larger one is refused
)

KINDS = {'both': ('mass', 'calc'), 'mass': ('mass',), 'calc': ('calc',)}
PARTS = {'train': 'Training', 'test': 'Test'}
PATHOLOGY = ('MALIGNANT', 'BENIGN', 'BENIGN_WITHOUT_CALLBACK')
_FILES = ('image file path', 'cropped image file path', 'ROI mask file path')
_COMMON = ('patient_id', 'left or right breast', 'image view', 'abnormality id', 'abnormality type', 'assessment',
           'pathology', 'subtlety', *_FILES)
_OWN = {'mass': ('breast_density', 'mass shape', 'mass margins'),
        'calc': ('breast density', 'calc type', 'calc distribution')}
_SAME_SHAPE = 0.02  # how far aspects of a mask and its image may be apart for the mask to be scaled [our choice]
_PICTURE = re.compile(r'(?:Mass|Calc)-(?:Training|Test)_P_\d+_(?:LEFT|RIGHT)_(?:CC|MLO)(?:_\d+)?')


@dataclasses.dataclass(frozen=True)
class Lesion:
    """One row of a table."""

    row: dict  # column -> cell, without paths
    split: str  # train or test
    image: str  # what the archive calls its image, Mass-Training_P_00001_LEFT_CC
    roi: str  # and its crop and mask, Mass-Training_P_00001_LEFT_CC_1
    series: str  # SeriesInstanceUID of the mask, as the table has it

    @property
    def id(self) -> str:
        """The image, whatever table it is in."""
        return '_'.join(self.row[c] for c in ('patient_id', 'left or right breast', 'image view'))


def lesions(root: str, kind: str = 'both', leaking: bool = False) -> list[Lesion]:
    """Every row of the tables of a kind, as Lesions. leaking=True keeps the training rows of patients who are tested
    too.
    """
    findings: list[Lesion] = []
    for table_kind in KINDS[kind]:
        for part in PARTS:
            path = os.path.join(root, f'{table_kind}_case_description_{part}_set.csv')
            columns, rows = csv_table.read(path, (*_COMMON, *_OWN[table_kind]))
            findings += [_lesion(path, number, dict(zip(columns, cells)), part) for number, cells in rows]
    tested = {x.row['patient_id'] for x in findings if x.split == 'test'}
    return [x for x in findings if leaking or x.split == 'test' or x.row['patient_id'] not in tested]


def build(hp: ConfigDict) -> Source:
    loading_errors.check_options('cbis_ddsm', hp, kind=tuple(KINDS), misfit=('scale', 'error'))
    loading_errors.check_root('cbis_ddsm', hp.root, 'the tables')
    tables = os.path.join(hp.root, hp.tables)
    rows, every = lesions(tables, hp.kind), lesions(tables, hp.kind, leaking=True)
    images: dict[str, list[Lesion]] = {}
    for lesion in rows:
        images.setdefault(lesion.id, []).append(lesion)
    patients = {part: {x.row['patient_id'] for x in every if x.split == part} for part in PARTS}
    leaked = patients['train'] & patients['test']
    if leaked:
        log.info(f'cbis_ddsm: {len(leaked)} patients are in a training and in a test table; {len(every) - len(rows)} '
                 'training rows of theirs are dropped')
    files = _files(hp.root, {name for x in rows for name in (x.image, x.roi)})
    complete = {i: findings for i, findings in sorted(images.items()) if any(x.image in files for x in findings)}
    skipped = tuple((i, f'no DICOM file of {images[i][0].image} lies below {hp.root}') for i in sorted(images)
                    if i not in complete)
    if skipped and hp.on_error == 'fail':
        raise errors.MissingInput(f'cbis_ddsm: {skipped[0][1]} ({len(skipped)} images of {len(images)} are missing). '
                                  'Download them, or set on_error="skip".')
    source = Cbis(hp.root, tuple(map(_case, complete, complete.values())), tuple(complete.values()), files, hp.misfit,
                  hp.max_pixels, skipped)
    return loading_errors.usable(source, hp.on_error, f'cbis_ddsm: {hp.root}')


@dataclasses.dataclass
class Cbis(FileSource):
    """A source (see jaxkd/data/source.py)."""

    root: str
    cases: tuple
    findings: tuple  # for each case its Lesions
    files: dict  # picture -> paths
    misfit: str
    max_pixels: int
    skipped: tuple = ()
    name: str = 'cbis_ddsm'
    note: str = ''
    labels: tuple = ('malignant',)
    table_without_image = True
    per_case = ('findings',)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """image uint16 [H,W]; label float32 [1]; masks uint8 [n,H,W] and boxes [n,5] of the lesions with a region;
        table; case.
        """
        pixels = film.read(self._image(i).path, self.max_pixels)
        pairs = [(lesion, self._mask(lesion, pixels.shape)) for lesion in self.findings[i]]
        masks = [(lesion, mask) for lesion, mask in pairs if mask is not None]
        labels = [0 if lesion.row['pathology'] == 'MALIGNANT' else -1 for lesion, _ in masks]
        drawn = np.array([mask for _, mask in masks], np.uint8).reshape(-1, *pixels.shape)
        malignant = any(lesion.row['pathology'] == 'MALIGNANT' for lesion in self.findings[i])
        return dict(image=pixels, label=np.array([malignant], np.float32), boxes=boxes_of_masks(labels, drawn),
                    masks=drawn, table=self.table(i), case=self.cases[i].id)

    def table(self, i: int) -> list[dict[str, str]]:
        return [lesion.row for lesion in self.findings[i]]

    def _image(self, i: int) -> film.Head:
        """Head of the full image: the largest of its files, should there be several."""
        heads = [film.head(path) for lesion in self.findings[i] for path in self.files.get(lesion.image, ())]
        return max(heads, key=lambda h: (not re.search('crop|mask', h.description), h.shape[0] * h.shape[1], h.path))

    def _mask(self, lesion: Lesion, shape: tuple[int, ...]) -> np.ndarray | None:
        """bool [H,W] of a lesion, None for one without a region."""
        heads = [film.head(path) for path in self.files.get(lesion.roi, ())]
        if not heads:
            raise errors.MissingInput(f'cbis_ddsm: no DICOM file of {lesion.roi} lies below {self.root}. Download it, '
                                      'or set on_error="skip".')
        best = max(heads, key=lambda h: (h.shape == shape, 'mask' in h.description and 'crop' not in h.description
                                         and h.series == lesion.series, h.shape[0] * h.shape[1], h.path))
        if best.shape != shape:
            aspects = [s[0] / s[1] for s in (best.shape, shape)]
            similar = abs(aspects[0] / aspects[1] - 1) <= _SAME_SHAPE and 4 * best.shape[0] >= shape[0]
            if self.misfit == 'error':
                raise checks.bad(best.path,
                                 f'a mask of {best.shape[0]} x {best.shape[1]} pixels does not fit its image, '
                                 f'{shape[0]} x {shape[1]}', 'Exclude the case, or set misfit="scale"')
            if not similar:
                return None
        pixels = film.read(best.path, self.max_pixels)
        mask = pixels > pixels.max() // 2
        if len(np.unique(pixels[::7, ::7])) > 2 or not mask.any():
            raise checks.bad(best.path, 'it is no mask: it is empty, or has more than two values')
        if best.shape != shape:
            rows, columns = (np.arange(n) * m // n for n, m in zip(shape, best.shape))
            mask = mask[rows[:, None], columns]
        return mask


def _lesion(path: str, number: int, row: dict[str, str], part: str) -> Lesion:
    def bad(column: str, problem: str) -> errors.BadData:
        return errors.BadData(f'{path}, row {number}: column "{column}" {problem}. Copy the table again from where it '
                              'came.')
    for column, choices in (('pathology', PATHOLOGY), ('left or right breast', ('LEFT', 'RIGHT')),
                          ('image view', ('CC', 'MLO')), ('abnormality type', ('mass', 'calcification'))):
        if row[column] not in choices:
            raise bad(column, f'is none of {", ".join(choices)}')
    if not re.fullmatch(r'P_\d+', row['patient_id']):
        raise bad('patient_id', 'is not of the form P_00001')
    names = [row.pop(column).replace('\\', '/') for column in _FILES]
    first, _, mask = [[part.strip() for part in name.split('/')] for name in names]
    if not _PICTURE.fullmatch(first[0]) or not _PICTURE.fullmatch(mask[0]):
        raise bad(_FILES[0], 'does not begin with a name such as Mass-Training_P_00001_LEFT_CC')
    row = {'breast density' if column == 'breast_density' else column: cell for column, cell in row.items() if column}
    return Lesion(row, part, first[0], mask[0], mask[-2] if len(mask) > 2 else '')


def _case(name: str, lesions: list[Lesion]) -> Case:
    row = lesions[0].row
    kinds = sorted({lesion.row['abnormality type'] for lesion in lesions})
    groups = {'side': row['left or right breast'], 'view': row['image view'], 'density': row['breast density'],
              'abnormality': '+'.join(kinds)}
    return Case(name, row['patient_id'], groups=groups, split='test' if lesions[0].split == 'test' else '')


def _files(root: str, names: Collection[str]) -> dict[str, list[str]]:
    """{picture: paths of its DICOM files}: by the name of a folder above them, or by their PatientID."""
    unassigned: list[str] = []
    paths_by_picture: dict[str, list[str]] = collections.defaultdict(list)
    for folder, folders, file_names in os.walk(root):
        folders.sort()
        pictures = [p for p in os.path.relpath(folder, root).split(os.sep) if _PICTURE.fullmatch(p)]
        for name in sorted(file_names):
            if name.lower().endswith('.dcm') and not name.startswith('.'):
                (paths_by_picture[pictures[-1]] if pictures else unassigned).append(os.path.join(folder, name))
    for path in log.progress(unassigned, 'cbis_ddsm: headers', len(unassigned)) if unassigned else ():
        try:
            name = film.head(path).name
        except errors.BadData:  # other files may lie there too
            continue
        if name in names:
            paths_by_picture[name].append(path)
    return {name: paths for name, paths in paths_by_picture.items() if name in names}


PLUGIN = SourcePlugin(read_picture=film.read)
