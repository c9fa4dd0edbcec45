"""ACDC in prepared forms: HDF5 files of slices or of volumes, or all slices in one NPZ file.

`kind` selects the form; '' takes the one present, npz beside others. Names are found in any letter case, and the log
says what lies unused.
    slices   patient001_frame01_slice_0.h5, one for each slice: image [H,W] within [0,1], label [H,W]; in root/slices,
             root/data/slices, root/ACDC_training_slices, or root
    volumes  patient001_frame01.h5, one for each volume: image and label [Z,H,W]; in root/volumes, root/data,
             root/ACDC_training_volumes, or root
    npz      root/<npz>, or the one .npz there is: image [n,H,W] uint8, uint16 or float within [0,1], label [n,H,W],
             patient [n] (a number, or a name), frame [n], slice [n]; optional phase [n] and group [n]
The first two are the layouts of SSL4MIS and WSL4MIS. Other data sets in these forms fit too: name their `classes`.

Cases are slices, patient001_frame01_slice_0; their study is the volume patient001_frame01, their patient patient001.
Groups:
    phase       where a patient has two volumes, ED is the one with more of the last class (of ACDC, the left
                ventricle), else ''; npz: as it says, if it says
    group       by the number of an ACDC patient: 1 to 20 DCM, then HCM, MINF, NOR, RV, else ''; npz: as it says, if it
                says
    foreground  yes, no: whether any pixel of the slice is labelled
Spacing is nan: these forms do not hold it. In the published ones, images were scaled slice by slice.

HDF5 may come with lists (`train`, `val`, `test`: files at root, a name without .h5 on each line, of a slice or a
volume; absent lists are ignored), which define the parts of patients. A listed name without a file is an error, and so
is a patient in two lists.

on_error is that of jaxkd/data/sources/acdc.py. A gap in the slice numbers is an error of the volume.
"""
import dataclasses
import functools
import os
import re
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import mask_values, splits
from jaxkd.data.formats import arrays, checks, csv_table, image
from jaxkd.data.source import Source
from jaxkd.data.sources.shared import case_files, slice_stacks
from jaxkd.runtime import log

MAX_VOXELS = 2**28
DEFAULTS = dict(
    root='',  # the folder of the files, or the one above
    kind='',  # form of the files: slices, volumes or npz; '': the one that is there
    npz='',  # name of the file of kind='npz'; '': the only one
    classes=('background', 'RV', 'MYO', 'LV'),  # names of the classes, background first
    train='train_slices.list',  # HDF5: list of files of the training part, which may be absent under this name; '':
    # none
    val='val.list',  # HDF5: list of the validation part, likewise
    test='test.list',  # HDF5: list of the test part, likewise
    foreground=False,  # True: slices without any label are no cases
    on_error='fail',  # at bad volumes: fail (stop) or skip (read all once at the start and leave the bad ones out)
    max_voxels=MAX_VOXELS,  # most voxels of a file; a larger one is refused
)

_FOLDERS = {'slices': ('slices', 'data/slices', 'ACDC_training_slices', ''),
            'volumes': ('volumes', 'data', 'ACDC_training_volumes', '')}
_NAME = re.compile(r'((.+)_frame\d+)(?:_slice_(\d{1,4}))?', re.IGNORECASE)  # volume, patient, slice
_GROUPS = ('DCM', 'HCM', 'MINF', 'NOR', 'RV')
_MAX_TEXT_BYTES = 2**24  # bytes
_ROUNDING = 1e-6


def build(hp: ConfigDict) -> Source:
    slice_stacks.check(hp, 'slices')
    if len(hp.classes) < 2 or len({*hp.classes}) < len(hp.classes):
        raise errors.ConfigError(f'slices: classes = {tuple(hp.classes)} must be names that differ, background first.')
    kind, path = _kind(hp)
    if kind == 'npz':
        studies, first, rows = _rows(path, hp.max_voxels)
        read = functools.partial(_read_npz, rows=rows, classes=tuple(hp.classes))
        skipped: list[tuple[str, str]] = []
    else:
        studies, first, skipped = _files(hp, kind, path)
        read = functools.partial(_read_hdf5, classes=tuple(hp.classes), max_voxels=hp.max_voxels)
    lists = [] if kind == 'npz' else [hp[part] for part in splits.NAMES]
    used = [*lists, *(os.path.abspath(file) for study in studies for file in study.files)]
    case_files.report_unused('slices', hp.root, used, f'{kind}, see jaxkd/data/sources/slices.py')
    studies, counts, bad = slice_stacks.survey('slices', studies, read, hp.on_error)
    studies = [dataclasses.replace(study, groups={'phase': phase, 'group': _group(study.patient), **study.groups})
               for study, phase in zip(studies, _phases(studies, counts, len(hp.classes) - 1))]
    return slice_stacks.assemble('slices', studies, counts, read, hp, hp.classes, skipped + bad, first=first)


def _kind(hp: ConfigDict) -> tuple[str, str]:
    """(kind, its folder or file)."""
    paths_by_kind: dict[str, str] = {}
    for kind, folders in _FOLDERS.items():
        for folder in folders:
            path = csv_table.in_any_case(hp.root, folder) if folder else hp.root
            if os.path.isdir(path) and any(_parsed(name, kind) for name in os.listdir(path)):
                paths_by_kind.setdefault(kind, path)
    packed = [hp.npz] if hp.npz else sorted(name for name in os.listdir(hp.root) if name.lower().endswith('.npz'))
    if len(packed) > 1 and hp.kind in ('', 'npz'):
        raise errors.ConfigError(f'slices: {hp.root} holds {" and ".join(packed[:2])}. Set npz to the name of one.')
    if packed:
        paths_by_kind['npz'] = os.path.join(hp.root, packed[0])
    if hp.kind and hp.kind not in (*_FOLDERS, 'npz'):
        raise errors.ConfigError(f'slices: kind = "{hp.kind}".{errors.nearest(hp.kind, (*_FOLDERS, "npz"))}')
    if hp.kind and hp.kind not in paths_by_kind or not paths_by_kind:
        expected = {'slices': 'patient001_frame01_slice_0.h5', 'volumes': 'patient001_frame01.h5'}.get(
            hp.kind, 'file of any kind')
        raise errors.MissingInput(f'slices: {hp.root} holds no {expected}. Set root to the folder that does, or '
                                  'another kind.')
    if not hp.kind and len(paths_by_kind) > 1 and not packed:
        raise errors.ConfigError(f'slices: {hp.root} holds {" and ".join(paths_by_kind)}. Set kind to one of them.')
    kind = hp.kind or ('npz' if packed else next(iter(paths_by_kind)))
    if others := [other for other in paths_by_kind if other != kind]:
        log.info(f'slices: {hp.root} holds {" and ".join(paths_by_kind)}; {kind} is read, and kind={others[0]} would '
                 'read another')
    return kind, paths_by_kind[kind]


def _split(name: str) -> tuple[str, str, str | None]:
    """(volume, patient, number of the slice or None) of a valid name."""
    volume_name, patient, z = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]
    return volume_name, patient, z


def _parsed(name: str, kind: str) -> re.Match | None:
    """The match (volume, patient, slice) of a file's name, or None for one of another kind."""
    match = _NAME.fullmatch(name[:-3]) if name.lower().endswith('.h5') else None
    return match if match and bool(match[3]) == (kind == 'slices') else None


def _files(hp: ConfigDict, kind: str,
           folder: str) -> tuple[list[slice_stacks.Study], dict[str, int], list[tuple[str, str]]]:
    """(studies, {study: its first slice}, skipped) of HDF5 files."""
    parts, list_by_name = _lists(hp)
    problems: dict[str, errors.JaxkdError] = {}
    slices_by_study: dict[str, dict[int, str]] = {}
    spelling: dict[str, str] = {}  # the first one of each volume and patient, whose names may differ in letter case
    for name in sorted(os.listdir(folder)):
        if match := _parsed(name, kind):
            study = spelling.setdefault(match[1].lower(), match[1])
            spelling.setdefault(match[2].lower(), match[2])
            slices = slices_by_study.setdefault(study, {})
            if (z := int(match[3] or 0)) in slices:
                problems[study] = errors.BadData(f'{folder} has slice {z} of {study} twice. Keep one of the files.')
            slices[z] = name
    present = {name[:-3].lower() for slices in slices_by_study.values() for name in slices.values()}
    for name, path in list_by_name.items():
        if bool(_split(name)[2]) == (kind == 'slices') and name.lower() not in present:
            study = _split(name)[0]
            problems.setdefault(spelling.get(study.lower(), study), errors.MissingInput(
                f'{path} lists {name}, and {folder} has no {name}.h5. Copy it there or remove the line.'))
    for study, slices in slices_by_study.items():
        if max(slices) - min(slices) >= len(slices):
            gap = next(z for z in range(min(slices), max(slices)) if z not in slices)
            problems.setdefault(study, errors.BadData(f'{folder} lacks slice {gap} of {study}, and has others before '
                                                      'and after it. Copy it there.'))
    if problems and hp.on_error == 'fail':
        raise problems[min(problems)]
    studies = []
    for study, slices in slices_by_study.items():
        patient = spelling[_split(study)[1].lower()]
        files = tuple(os.path.join(folder, slices[z]) for z in sorted(slices))
        studies.append(slice_stacks.Study(study, patient, {}, files, parts.get(patient.lower(), '')))
    return ([study for study in studies if study.id not in problems],
            {study: min(slices) for study, slices in slices_by_study.items()},
            [(study, str(problems[study])) for study in sorted(problems)])


def _lists(hp: ConfigDict) -> tuple[dict[str, str], dict[str, str]]:
    """({patient in lower case: part}, {name: the list that it stands in})."""
    list_by_name: dict[str, str] = {}
    list_by_patient: dict[str, str] = {}
    parts: dict[str, str] = {}
    for part in splits.NAMES:
        path = csv_table.in_any_case(hp.root, hp[part])
        if not hp[part] or hp[part] == DEFAULTS[part] and not os.path.lexists(path):
            continue
        for number, line in enumerate(image.read_lines(path, _MAX_TEXT_BYTES), 1):
            if not (name := re.sub(r'\.h5$', '', line.strip(), flags=re.IGNORECASE)):
                continue
            if not (match := _NAME.fullmatch(name)):
                raise errors.BadData(f'{path}, line {number}: this is no name like patient001_frame01 or '
                                     'patient001_frame01_slice_0. Correct it.')
            if parts.setdefault(match[2].lower(), part) != part:
                raise errors.BadData(f'{path}, line {number}: {name} is of a patient whom '
                                     f'{list_by_patient[match[2].lower()]} '
                                     'lists too. A patient must be in one part of the split: remove the lines of one '
                                     'of the lists.')
            list_by_patient[match[2].lower()] = list_by_name[name] = path
    return parts, list_by_name


def _phases(studies: Sequence[slice_stacks.Study], counts: Sequence[np.ndarray], last: int) -> list[str]:
    """ED or ES for each study, '' where that cannot be told."""
    size_by_study = {study.id: int(n[:, last].sum()) for study, n in zip(studies, counts)}
    sizes_by_patient: dict[str, list[int]] = {}
    for study in studies:
        sizes_by_patient.setdefault(study.patient, []).append(size_by_study[study.id])
    return ['' if len(sizes_by_patient[s.patient]) != 2 or len({*sizes_by_patient[s.patient]}) < 2 else 'ED'
            if size_by_study[s.id] == max(sizes_by_patient[s.patient]) else 'ES' for s in studies]


def _group(patient: str) -> str:
    match = re.fullmatch(r'patient(\d{3})', patient, re.IGNORECASE)
    return _GROUPS[(int(match[1]) - 1) // 20] if match and 1 <= int(match[1]) <= 100 else ''


def _read_hdf5(study: slice_stacks.Study, image: bool = True, classes: Sequence[str] = (),
               max_voxels: int = MAX_VOXELS) -> slice_stacks.Slices:
    """See jaxkd/data/sources/shared/slice_stacks.py."""
    stack: list[tuple[np.ndarray, np.ndarray]] = []
    for path in study.files:
        dataset = arrays.hdf5(path, ('image', 'label') if image else ('label',), max_voxels)
        label = _label(dataset['label'], path, classes)
        if label.ndim != (2 if _split(os.path.basename(path)[:-3])[2] else 3) or not label.size:
            raise checks.bad(path, f'its label has the shape {label.shape}', 'A slice is [H,W], a volume [Z,H,W]')
        if stack and label.shape[-2:] != stack[0][1].shape[-2:]:
            raise checks.bad(path, f'its slice is {label.shape[-2:]}, the first of its volume {stack[0][1].shape[-2:]}')
        pixels = _pixels(dataset['image'], label.shape, path) if image else label
        stack.append((pixels, label) if label.ndim == 3 else (pixels[None], label[None]))
    pixels, label = map(np.concatenate, zip(*stack))
    return pixels if image else None, label, None


def _rows(path: str, max_voxels: int) -> tuple[list[slice_stacks.Study], dict[str, int],
                                               dict[str, tuple[np.ndarray, np.ndarray, str]]]:
    """(studies, {study: its first slice}, {study: (images, labels, path)}) of an NPZ file."""
    by_key = arrays.npz(path, ('image', 'label', 'patient', 'frame', 'slice'), max_voxels, ('phase', 'group'))
    n = len(by_key['image']) if by_key['image'].ndim == 3 else 0
    for key, values in by_key.items():
        if values.shape[:1] != (n,) or values.ndim != (3 if key in ('image', 'label') else 1):
            raise checks.bad(path, f'"{key}" has the shape {values.shape} beside images {by_key["image"].shape}',
                             'image and label are [n,H,W], all others [n]')
    for key in ('frame', 'slice'):
        if by_key[key].dtype.kind not in 'iu' or n and not 0 <= by_key[key].min() <= by_key[key].max() < 10_000:
            raise checks.bad(path, f'"{key}" holds no numbers from 0 to 9999', 'Save whole numbers')
    names = [f'patient{p:03d}' if by_key['patient'].dtype.kind in 'iu' else str(p) for p in by_key['patient'].tolist()]
    ids = [f'{p}_frame{t:02d}' for p, t in zip(names, by_key['frame'].tolist())]
    rows_by_study: dict[str, list[int]] = {}
    for i in np.lexsort((by_key['slice'], np.array(ids))).tolist():
        rows_by_study.setdefault(ids[i], []).append(i)
    studies, first, rows = [], {}, {}
    for study, indices in rows_by_study.items():
        z = by_key['slice'][indices].astype(int)
        if (np.diff(z) != 1).any():
            raise checks.bad(path, f'the slices of {study} are numbered {z.tolist()[:20]}',
                             'They must follow each other')
        groups = {key: str(by_key[key][indices[0]]) for key in ('phase', 'group') if key in by_key}
        for key, value in groups.items():
            if {*map(str, by_key[key][indices])} != {value}:
                raise checks.bad(path, f'"{key}" differs among the slices of {study}', 'Give each volume one')
        studies.append(slice_stacks.Study(study, names[indices[0]], groups, (path,)))
        first[study], rows[study] = int(z[0]), (by_key['image'][indices], by_key['label'][indices], path)
    return studies, first, rows


def _read_npz(study: slice_stacks.Study, image: bool = True, *, rows: dict[str, tuple[np.ndarray, np.ndarray, str]],
              classes: Sequence[str] = ()) -> slice_stacks.Slices:
    """See jaxkd/data/sources/shared/slice_stacks.py."""
    pixels, label, path = rows[study.id]
    label = _label(label, path, classes)
    return _pixels(pixels, label.shape, path) if image else None, label, None


def _label(values: np.ndarray, path: str, classes: Sequence[str]) -> np.ndarray:
    if values.dtype.kind not in 'iuf' or not checks.finite(values) or not values.size:
        raise checks.bad(path, f'its label is {values.dtype} {values.shape}, empty or not finite', 'Save it as uint8')
    return mask_values.indices(values, classes, path)


def _pixels(values: np.ndarray, shape: tuple[int, ...], path: str) -> np.ndarray:
    """uint8, uint16 or float32 within [0,1]."""
    if values.shape != shape:
        raise checks.bad(path, f'its image is {values.shape}, its label {shape}')
    if values.dtype in (np.uint8, np.uint16):
        return values
    if values.dtype.kind != 'f' or not (-_ROUNDING <= values.min() and values.max() <= 1 + _ROUNDING):  # False for nan
        raise checks.bad(path, f'its image, {values.dtype}, is not real numbers within [0,1]', 'Scale it to [0,1]')
    return np.clip(values, 0, 1).astype(np.float32)
