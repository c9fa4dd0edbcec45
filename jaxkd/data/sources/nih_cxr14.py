"""NIH ChestX-ray14: 112,120 frontal radiographs of 30,805 patients, 14 findings read from reports by a program, 984
boxes of eight findings (Wang et al., CVPR 2017). The reports themselves were never published.

    root    Data_Entry_2017_v2020.csv or Data_Entry_2017.csv, also .csv.gz: findings joined by "|", patient, age, sex,
            view images/00000001_000.png ..., or images_001/images ... images_012/images, as the archives unpack
            train_val_list.txt, test_list.txt, optional: the official test part, by patient. What is not tested is
            divided by data.split, so set fractions=(0.9, 0.1, 0.0) to draw validation patients from it
            BBox_List_2017.csv, optional: Image Index, Finding Label, "Bbox [x", "y", "w", "h]" in pixels of 1024 x 1024

The header of the boxes ends in columns without a name, or has one quoted column "Bbox [x,y,w,h]"; boxes have Infiltrate
for Infiltration; ages are 058Y in the first release, and those above 130 years have no age group. Boxes are in pixels
of 1024 x 1024 images. With resized=True, for a copy scaled without a crop, boxes are scaled to each file; without it,
another size is an error.

"No Finding" is not a target: such images have label 0 for all findings. `labels` may also hold names of CheXpert, to
test networks trained on it: Pleural Effusion is Effusion; findings outside of the archive, such as Lung Opacity, are
uncertain (-1) for all images.

Groups: view (PA, AP), sex, age (see jaxkd/data/sources/shared/age_groups.py). Images are opened only when a case is
read; folders are listed once. Names are found in any letter case, and the log says what lies unused.
"""
import os
import re
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.formats import csv_table, image
from jaxkd.data.source import Case, Source
from jaxkd.data.sources.shared import age_groups, case_files, image_archive, loading_errors

LABELS = ('Atelectasis', 'Cardiomegaly', 'Effusion', 'Infiltration', 'Mass', 'Nodule', 'Pneumonia', 'Pneumothorax',
          'Consolidation', 'Edema', 'Emphysema', 'Fibrosis', 'Pleural_Thickening', 'Hernia')
HEADER = ('Image Index', 'Finding Labels', 'Follow-up #', 'Patient ID', 'Patient Age', 'Patient Gender',
          'View Position', 'OriginalImage[Width', 'Height]', 'OriginalImagePixelSpacing[x', 'y]')
BOXES_HEADER = ('Image Index', 'Finding Label', 'Bbox [x', 'y', 'w', 'h]', '', '', '')
TABLES = 'Data_Entry_2017_v2020.csv', 'Data_Entry_2017.csv'
LISTS = {'train_val_list.txt': '', 'test_list.txt': 'test'}
SIDE = 1024  # pixels of the images that boxes are told for
DEFAULTS = dict(
    root='',  # the folder of the tables and images
    labels=LABELS,  # findings that are labels; some of these, or names of CheXpert
    lists=True,  # the official test part, where its lists are there; False: the run draws all
    boxes='BBox_List_2017.csv',  # table of boxes, which may be absent under this name; '': none
    resized=False,  # True: the images are those of the archive, each scaled as a whole
    present=False,  # True: only rows whose image is there, as where not all twelve archives were unpacked
    on_error='fail',  # at bad images: fail (stop) or skip (read all once at the start and leave the bad ones out)
    max_pixels=image.MAX_PIXELS,  # most pixels of an image; a larger one is refused
)

_ALSO = {'Infiltrate': 'Infiltration', 'Pleural Effusion': 'Effusion', 'Pleural Thickening': 'Pleural_Thickening'}
_NOT_TOLD = 'Enlarged Cardiomediastinum', 'Lung Opacity', 'Lung Lesion', 'Pleural Other', 'Fracture', 'Support Devices'
_NAME = re.compile(r'(\d{8})_\d{3}\.png')
_AGE = re.compile(r'(\d{1,3})([YMD]?)')


def build(hp: ConfigDict) -> Source:
    labels = _check(hp)
    path = next((p for p in (csv_table.find_file(hp.root, name) for name in TABLES) if os.path.lexists(p)), None)
    if path is None:
        raise errors.MissingInput(f'nih_cxr14: root "{hp.root}" holds no {TABLES[0]}. Set it to the folder that does.')
    folders, names_seen = _images(hp.root), set()
    problems = loading_errors.Problems(hp.on_error)
    parts: dict[str, str] = _parts(hp)
    cases, files, rows = [], [], []
    groups: dict[tuple, dict[str, str] | None] = {}
    distinct: dict[str, list[int] | None] = {}
    for number, (name, findings, patient, *attributes) in csv_table.iterate(
            path, ('Image Index', 'Finding Labels', 'Patient ID', 'View Position', 'Patient Gender', 'Patient Age')):
        match, group_cells, problem = _NAME.fullmatch(name), tuple(attributes), ''
        if group_cells not in groups:
            groups[group_cells] = _groups(*group_cells)  # one for all that are alike
        if findings not in distinct:
            distinct[findings] = _values(findings, labels)
        if not match:
            problem = 'column "Image Index" is not 00000001_000.png, or the like'
        elif name in names_seen:
            problem = f'column "Image Index" names {name} a second time'
        elif match[1] != patient.zfill(8):
            problem = f'column "Patient ID" of {name} is not what its name says'
        elif groups[group_cells] is None:
            problem = f'column "Patient Age" of {name} is no age'
        elif distinct[findings] is None:
            problem = (f'column "Finding Labels" of {name} names another finding than the {len(LABELS)} of the '
                       'archive, or none')
        elif parts and name not in parts:
            problem = f'{name} is in none of {", ".join(LISTS)}'
        names_seen.add(name)
        if problem:
            problems(f'row {number}', f'{path}, row {number}: {problem}. Restore the table.')
        elif name in folders or not hp.present:
            cases.append(Case(name, patient.zfill(8), split=parts.get(name, ''), groups=groups[group_cells] or {}))
            files.append((hp.root, folders[name]) if name in folders else None)
            rows.append(distinct[findings])
    tables = [os.path.basename(path), os.path.basename(_boxes_path(hp)), *LISTS]
    case_files.report_unused('nih_cxr14', hp.root, [*tables, *(file[1] for file in files if file)],
                             f'{", ".join(tables)}, images of the table in images and images_001/images')
    n_present, n_rows = len(cases), len(names_seen)
    incomplete = f'; {n_present:,} of {n_rows:,} images are present' * (hp.present and n_present < n_rows)
    source = image_archive.Archive('nih_cxr14', f'labels were read from reports by a program{incomplete}',
                     tuple(hp.labels), tuple(cases),
                     np.array(rows, np.float32).reshape(-1, len(labels)), tuple(files), (),
                     _boxes(hp, labels, names_seen), dict.fromkeys((case.id for case in cases), (SIDE, SIDE)),
                     hp.resized, max_pixels=hp.max_pixels, skipped=tuple(problems.skipped))
    absent = {i: f'{source.cases[i].id} is in no folder of images of {hp.root}' for i, file in enumerate(files)
              if file is None}
    if absent and hp.on_error == 'fail':
        raise errors.MissingInput(f'nih_cxr14: {next(iter(absent.values()))} ({len(absent)} of {len(files)} are '
                                  'missing). Unpack all archives, or set present=True to use the images that are '
                                  'there.')
    source = source.without(absent) if absent else source
    return loading_errors.usable(source, hp.on_error, f'nih_cxr14: {hp.root}', 'No image of the table is there.')


def _images(root: str) -> dict[str, str]:
    """{file name, its ending in lower case: path below root} of all images."""
    try:
        tops = sorted(entry.name for entry in os.scandir(root) if entry.name.lower().startswith('images_'))
        paths = (csv_table.in_any_case(root, f) for f in ('images', *(f'{top}/images' for top in tops)))
        folders = [os.path.relpath(path, root) for path in paths if os.path.isdir(path)]
        return {name.lower(): f'{folder}/{name}' for folder in reversed(folders)
                for name in sorted(os.listdir(os.path.join(root, folder)))}
    except OSError as e:
        raise errors.MissingInput(f'nih_cxr14: the folders of images in {root} cannot be listed ({e.strerror}). Set '
                                  'root to the folder that holds them.') from e


def _parts(hp: ConfigDict) -> dict[str, str]:
    """{file name: part} of the lists; {} without them."""
    paths = dict(zip(_list_paths(hp.root), LISTS.values()))
    present = [path for path in paths if os.path.lexists(path)]
    if not hp.lists or not present:
        return {}
    parts = {}
    first: dict[str, tuple[str, str]] = {}
    for path, part in paths.items():
        for name in ' '.join(image.read_lines(path, 2**24)).split():
            earlier = first.setdefault(name.partition('_')[0], (name, path))
            if earlier[1] != path:
                raise errors.BadData(f'{path} has {name}, and {earlier[1]} has {earlier[0]} of the same patient, who '
                                     'must be in one part. Restore the lists, or set lists=False to draw all parts.')
            parts[name] = part
    return parts


def _list_paths(root: str) -> list[str]:
    return [csv_table.in_any_case(root, name) for name in LISTS]


def _groups(view: str, sex: str, cell: str) -> dict[str, str] | None:
    """None where the cell is no age."""
    match = _AGE.fullmatch(cell)
    if not match:
        return None
    years = int(match[1]) if match[2] in ('', 'Y') else 0
    return {'view': view, 'sex': sex, 'age': age_groups.group(years) if years <= 130 else ''}


def _values(findings: str, labels: Sequence[str]) -> list[int] | None:
    """1, 0 or -1 for each label; None where something else is said."""
    findings_of_row = {_ALSO.get(name, name) for name in findings.split('|')}
    if not findings_of_row <= {*LABELS} and findings_of_row != {'No Finding'}:
        return None
    return [-1 if label in _NOT_TOLD else int(label in findings_of_row) for label in labels]


def _boxes(hp: ConfigDict, labels: Sequence[str], names: set[str]) -> dict[str, np.ndarray]:
    """{file name: float32 [n,5]} of the findings in `labels`."""
    path = _boxes_path(hp)
    if not hp.boxes or hp.boxes == DEFAULTS['boxes'] and not os.path.lexists(path):
        return {}
    columns, rows = csv_table.read(path, BOXES_HEADER[:2])
    quoted = columns.index('Bbox [x,y,w,h]') if 'Bbox [x,y,w,h]' in columns[:-3] else None
    box_columns = [*range(quoted, quoted + 4)] if quoted is not None else [csv_table.column(path, columns, name)
                                                                  for name in BOXES_HEADER[2:6]]
    boxes: dict[str, list[tuple]] = {}
    for number, cells in rows:
        name, finding = (cells[columns.index(c)] for c in BOXES_HEADER[:2])
        finding = _ALSO.get(finding, finding)
        try:
            x, y, w, h = (float(cells[j]) for j in box_columns)
        except ValueError:
            x = y = w = h = -1
        problem = ('its image is not in the table of labels' if name not in names else
                 f'the finding of {name} is none of the archive' if finding not in LABELS else
                 f'the box of {name} is not x, y, w, h within {SIDE} x {SIDE} pixels'
                 if not (x >= 0 and y >= 0 and w > 0 and h > 0 and max(x + w, y + h) <= SIDE + 1) else '')
        if problem:
            raise errors.BadData(f'{path}, row {number}: {problem}. Restore the table, or set boxes="".')
        if finding in labels:
            boxes.setdefault(name, []).append((labels.index(finding), x, y, w, h))
    return {name: np.array(rows, np.float32) for name, rows in boxes.items()}


def _boxes_path(hp: ConfigDict) -> str:
    return csv_table.find_file(hp.root, hp.boxes)


def _check(hp: ConfigDict) -> list[str]:
    """The archive's own names of the labels that are asked for."""
    labels = [_ALSO.get(label, label) for label in hp.labels]
    loading_errors.check_options('nih_cxr14', hp)
    image_archive.check_labels('nih_cxr14', labels, (*LABELS, *_NOT_TOLD, *_ALSO))
    return labels
