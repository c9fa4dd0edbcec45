"""CheXpert: 224,316 chest radiographs of 65,240 patients, 14 findings read from reports by a program (Irvin et al.,
AAAI 2019).

    root      train.csv, valid.csv, {train,valid}/patient00001/study1/view1_frontal.jpg, as CheXpert-v1.0-small or
              CheXpert-v1.0 hold them; or the folder above. `Path` starts with the name of that archive, which is
              stripped
    localize  the folder CheXpert of CheXlocalize, or the one above: {val,test}_labels.csv, {val,test}/..., without sex,
              age and view. Its test images are those that the article tests on; its val images are those of valid.csv.
              gt_segmentations_{val,test}.json, in that folder or in CheXlocalize next to it: masks of ten findings by
              radiologists, {patient64741_study1_view1_frontal: {finding: {size, counts}}}, see
              jaxkd/data/formats/rle.py. The record holds one mask for each finding present, with its bounding box

Label values are those of the tables: 1, 0, -1 uncertain, nan not mentioned. The transform `labels` or the source
`binary` maps them. valid.csv and CheXlocalize hold labels of radiologists, without uncertain ones; their "Airspace
Opacity" is Lung Opacity.

Groups: sex, view (AP, PA, ...; lateral), age (see jaxkd/data/sources/shared/age_groups.py). A row of the tables is a
case, and files are opened only when a case is read, so that 223,414 rows are listed in seconds. on_error='skip' reads
every image once at the start, which takes hours.
"""
import array
import dataclasses
import functools
import json
import os
import re
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import SourcePlugin
from jaxkd.data import splits
from jaxkd.data.formats import csv_table, image, rle
from jaxkd.data.source import Case, Source
from jaxkd.data.sources.shared import age_groups, image_archive, loading_errors

LABELS = ('No Finding', 'Enlarged Cardiomediastinum', 'Cardiomegaly', 'Lung Opacity', 'Lung Lesion', 'Edema',
          'Consolidation', 'Pneumonia', 'Atelectasis', 'Pneumothorax', 'Pleural Effusion', 'Pleural Other', 'Fracture',
          'Support Devices')
HEADER = ('Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA', *LABELS)
DEFAULTS = dict(
    root='',  # the folder of train.csv, or the one above; '': only CheXlocalize
    localize='',  # the folder of CheXlocalize; '': without it
    train='train',  # the part of the split that train.csv makes; '': drawn by the run; none: left out
    valid='val',  # the part that valid.csv makes, likewise; 'test' is usual where train.csv is divided
    localize_val='none',  # the part that the val images of CheXlocalize make, likewise
    localize_test='test',  # the part that its test images make, likewise
    masks=True,  # read the masks of CheXlocalize, where they are there
    labels=LABELS,  # findings that are labels; some of these
    frontal=True,  # frontal images alone; False: laterals, too
    on_error='fail',  # at bad images: fail (stop) or skip (read all once at the start and leave the bad ones out)
    max_pixels=image.MAX_PIXELS,  # most pixels of an image; a larger one is refused
)

_ALSO = {'Airspace Opacity': 'Lung Opacity'}
_ARCHIVES = ('', 'CheXpert-v1.0-small', 'CheXpert-v1.0')
_TABLES = {  # option -> (option of the folder, table, folder of the images, columns)
    'train': ('root', 'train.csv', 'train', HEADER), 'valid': ('root', 'valid.csv', 'valid', HEADER),
    'localize_val': ('localize', 'val_labels.csv', 'val', ('Path',)),
    'localize_test': ('localize', 'test_labels.csv', 'test', ('Path',))}
_PATH = re.compile(r'(?:CheXpert-v1\.0(?:-small)?/)?(?:train|valid|val|test)/'
                   r'((patient\d{1,9})/study\d{1,9}/view\d{1,9}_(frontal|lateral)\.jpg)')


def build(hp: ConfigDict) -> Source:
    _check(hp)
    cases, values, files = [], [], []
    problems = loading_errors.Problems(hp.on_error)
    masks: dict[str, dict[int, dict]] = {}
    for option, (root_option, name, folder, required) in _TABLES.items():
        if hp[root_option] and hp[option] != 'none':
            top = _root(hp, root_option, name)
            read = _Table(os.path.join(top, name), folder, hp[option], hp, required, problems)
            cases += read.cases
            values.append(read.values)
            files += [(top, case.id) for case in read.cases]
            if root_option == 'localize' and hp.masks:
                masks |= _masks(top, folder, hp.labels)
    _check_patients(cases)
    array = np.concatenate([np.zeros((0, len(hp.labels)), np.float32), *values])
    source = image_archive.Archive('chexpert', 'training labels were read from reports by a program', tuple(hp.labels),
                                   tuple(cases), array, tuple(files), regions=Masks(masks, hp.max_pixels) if masks
                                   else None, max_pixels=hp.max_pixels, skipped=tuple(problems.skipped))
    return loading_errors.usable(source, hp.on_error, f'chexpert: {hp.root or hp.localize}',
                                 'Set train or valid to a part of the split.')


@dataclasses.dataclass
class Masks:
    """Masks by radiologists, see image_archive.Archive.regions."""

    encoded_by_case: dict  # case id -> {label index: {'size': [H, W], 'counts': text}}
    max_pixels: int

    def __call__(self, case: str, shape: tuple[int, ...]) -> tuple[list[int], np.ndarray]:
        encoded = self.encoded_by_case.get(case, {})
        for mask in encoded.values():
            if list(mask['size']) != list(shape):
                raise errors.BadData(f'Case {case}: its masks have {mask["size"][1]} x {mask["size"][0]} pixels, the '
                                     f'file has {shape[1]} x {shape[0]}. Use the images of CheXlocalize, or set '
                                     'masks=False.')
        masks = {label: rle.decode(mask['counts'], mask['size'], self.max_pixels, case)
                 for label, mask in encoded.items()}
        masks = {label: mask for label, mask in masks.items() if mask.any()}  # most findings are drawn in few images
        return [*masks], np.array([*masks.values()], np.uint8).reshape(-1, *shape)


def _masks(top: str, folder: str, labels: Sequence[str]) -> dict[str, dict[int, dict]]:
    """{case id: {label index: {'size', 'counts'}}} of a part of CheXlocalize; {} where there is no file of it."""
    candidates = [os.path.join(place, f'gt_segmentations_{folder}.json')
             for place in (top, os.path.join(os.path.dirname(os.path.abspath(top)), 'CheXlocalize'),
                           os.path.dirname(os.path.abspath(top)))]
    path = next((path for path in candidates if os.path.lexists(path)), None)
    if path is None:
        return {}
    masks: dict[str, dict[int, dict]] = {}
    try:
        for name, by_finding in json.loads(image.read_bytes(path, 2**28)).items():
            case = f'{folder}/{name.replace("_", "/", 2)}.jpg'
            if not _PATH.fullmatch(case):
                raise ValueError(f'{name!r} is no image')
            for finding, mask in by_finding.items():
                finding = _ALSO.get(finding, finding)
                if finding not in LABELS or not isinstance(mask['counts'], str) or len(mask['size']) != 2:
                    raise ValueError(f'{finding!r} of {name} is no finding, or has no mask')
                if finding in labels:
                    masks.setdefault(case, {})[labels.index(finding)] = mask
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise errors.BadData(f'{path} is not a file of masks of CheXlocalize ({type(e).__name__}: {str(e)[:160]}). '
                             'Copy it again from where it came, or set masks=False.') from e
    return masks


class _Table:
    """cases and values float32 [n,C] of one table."""

    def __init__(self, path: str, folder: str, part: str, hp: ConfigDict, required: Sequence[str],
                 problems: loading_errors.Problems) -> None:
        columns, rows = csv_table.read(path, required)
        columns = [_ALSO.get(name, name) for name in columns]
        index = {name: j for j, name in enumerate(columns)}
        groups_by_cells: dict[tuple, dict[str, str]] = {}
        self.cases, ids = [], set()
        flat_values, frontal = array.array('f'), hp.frontal  # flat: millions of lists would keep the garbage collector
        # busy
        label_at, path_at, side_at = [csv_table.column(path, columns, name)
                                      for name in hp.labels], index['Path'], index.get('Frontal/Lateral')
        group_at = [index[name] for name in ('Sex', 'Age', 'AP/PA') if name in index]
        labels = functools.lru_cache(2**16)(lambda *cells: [csv_table.label(cell) for cell in cells])  # many rows agree
        for number, cells in rows:
            problem, values = '', labels(*[cells[j] for j in label_at])
            if match := _PATH.fullmatch(cells[path_at]):
                name, patient, side_in_name = match.groups()
                case, side = f'{folder}/{name}', side_in_name if side_at is None else cells[side_at].lower()
                if frontal and side == side_in_name == 'lateral':
                    continue
                group_cells = side, *[cells[j] for j in group_at]
                try:
                    # one for all that are alike
                    groups = groups_by_cells.get(group_cells) or groups_by_cells.setdefault(
                        group_cells, _groups(*group_cells))
                except ValueError:
                    problem = f'column "Age" of {case} is no number of years'
                if side != side_in_name:
                    problem = f'column "Frontal/Lateral" of {case} is not what its name says'
                elif case in ids:
                    problem = f'column "Path" names {case} a second time'
                elif None in values:
                    problem = f'column "{hp.labels[values.index(None)]}" of {case} is not 1.0, 0.0, -1.0 or empty'
            else:
                problem = 'column "Path" is not train/patient00001/study1/view1_frontal.jpg, or the like'
            if not problem:
                ids.add(case)
                self.cases.append(Case(case, patient, case[:case.rindex('/')], part, groups))
                flat_values.extend(values)  # type: ignore[arg-type]  # none is None
            else:
                problems(f'{folder}, row {number}', f'{path}, row {number}: {problem}. Restore the table.')
        self.values = np.array(flat_values, np.float32).reshape(-1, len(hp.labels))


def _groups(side: str, sex: str | None = None, years: str = '', view: str = '') -> dict[str, str]:
    """Groups of a case; without sex, as in CheXlocalize, the side is all that is known."""
    if sex is None:
        return {'view': side}
    return {'sex': '' if sex == 'Unknown' else sex, 'view': 'lateral' if side == 'lateral' else view,
            'age': age_groups.group(years)}


def _check_patients(cases: Sequence[Case]) -> None:
    """BadData where a patient is in two tables, such as valid.csv and CheXlocalize's copy of it."""
    first: dict[str, Case] = {}
    for case in cases:
        first_case = first.setdefault(case.patient, case)
        if first_case is not case and first_case.id.partition('/')[0] != case.id.partition('/')[0]:
            raise errors.BadData(f'chexpert: {first_case.id} and {case.id} are of one patient. Leave one of the tables '
                                 'out: set train, valid, localize_val or localize_test to "none".')


def _root(hp: ConfigDict, root_option: str, name: str) -> str:
    tops = [os.path.join(hp[root_option], archive) for archive in (_ARCHIVES if root_option == 'root'
                                                                   else ('', 'CheXpert'))]
    matches = [top for top in tops if os.path.isfile(os.path.join(top, name))]
    if not matches:
        raise errors.MissingInput(f'chexpert: {root_option} "{hp[root_option]}" holds no {name}. Set {root_option} to '
                                  'the folder that does, or the option of that table to "none".')
    return matches[0]


def _check(hp: ConfigDict) -> None:
    if not hp.root and not hp.localize:
        raise errors.MissingInput('chexpert: root and localize are empty. Set root to the folder that holds train.csv.')
    for option in _TABLES:
        choices = (*splits.NAMES, '', 'none')
        if hp[option] not in choices:
            raise errors.ConfigError(f'chexpert: {option} = "{hp[option]}" is no part of the split.'
                                     f'{errors.nearest(hp[option], choices)}')
    loading_errors.check_options('chexpert', hp)
    image_archive.check_labels('chexpert', hp.labels, LABELS)


PLUGIN = SourcePlugin(paths=('root', 'localize'))
