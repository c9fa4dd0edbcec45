"""CT pairs of your own for pulmonary embolism: a non-contrast scan of every case, a CT angiography and an embolus mask
of some.

cases.csv, one row for each case, in any order of columns:
    case_id      the folder of the case, relative to the root
    patient_id   cases of a patient are in one part of the split
    pe           1 present, 0 absent, -1 unknown; empty: present where the mask has a voxel, unknown without a mask
    split        train, val, test, or empty for "to be drawn"
    residual_mm  optional: measured registration error, mm; empty is unknown and counts as small
    any others   `groups` for subgroup tables, beside pe, or unused

<case_id>/ holds, each as .nii.gz, .nii, .nrrd or a folder of one DICOM series,
    nct          non-contrast CT, required, never moved or resampled here: in use nothing registers it
    ctpa         CT angiography, may be missing
    label        (or as the option `label` names it) index into `labels`, 255 where it is not known; may be missing:
                 then nothing is known of any voxel. Where no mask of the folder holds a 1, and some hold 255, 255 is
                 the embolus. `white` decides where some masks hold 1, some only 0 and 255, and none both; if pe is 0
                 or -1, 255 is then not known
    warp_x, warp_y, warp_z  optional, all or none, on one grid: displacement in mm (RAS). The CTPA that belongs to a
                            point p of the NCT is at p + warp(p), after ctpa_to_nct.txt. The CTPA (and a label drawn on
                            it) is then resampled onto the grid of the NCT, linearly (the label to the nearest voxel)
    ctpa_to_nct.txt  optional: four rows of four numbers, world mm (RAS) of the CTPA -> world mm of the NCT; applied to
                 the affine of the CTPA, and of the label where label_on = 'ctpa', so that no voxel is interpolated
Without either, both scans are in one space.
`second_label` names the mask of a second reader, on the grid of `label`: it trains nothing, and the evaluator
`segmentation` measures it against `label`. Some cases may lack it.

A pair whose residual_mm is above max_residual counts as one without CTPA [proposed by the specification of CPMN]. A
mask drawn on that CTPA is still used, with the same error.
"""
import concurrent.futures
import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from jaxkd import errors
from jaxkd.contracts import SourcePlugin
from jaxkd.data import fields_of_view, mask_values, volume
from jaxkd.data.formats import checks, csv_table, image
from jaxkd.data.source import IGNORED, Case, Source
from jaxkd.data.sources.shared import case_files, embolism, loading_errors
from jaxkd.runtime import log

DEFAULTS = dict(
    root='',  # the folder that holds the table and the folders of cases
    table='cases.csv',  # name of the table of cases
    label_on='ctpa',  # the scan that masks were drawn on: ctpa or nct
    label='label',  # name of the mask, such as label_1
    second_label='',  # name of the mask of a second reader, such as label_2; '': none
    white='',  # what 255 in masks is: ignored or embolus; '': read from the masks
    max_residual=3.0,  # mm of registration error beyond which a pair counts as without CTPA
    groups=(),  # columns of the table for subgroup tables
    allow_ids=(),  # patient ids that look like none, such as 'NA', and are ids
    on_error='fail',  # at bad cases: fail (stop) or skip (read all once at the start and leave the bad ones out)
    nifti_form='auto',  # which affine of NIfTI files holds: sform, qform, or auto (refuse a file whose two disagree)
    max_voxels=2**28,  # most voxels of a scan; a larger one is refused
)

_VALUES = {**dict(enumerate(embolism.LABELS)), mask_values.WHITE: 'not known'}
_WARP = ('warp_x', 'warp_y', 'warp_z')
Place = tuple[int, str]  # (case, key of a mask)


def build(hp: ConfigDict) -> Source:
    if {*hp.groups} & {'pe', 'split', 'case_id', 'patient_id'}:
        raise errors.ConfigError(f'dualphase.groups = {tuple(hp.groups)}: name further columns; pe is a group already.')
    if len({*_names(hp).values()}) < len(_names(hp)) or not hp.label:
        raise errors.ConfigError(f'dualphase: label = "{hp.label}" and second_label = "{hp.second_label}" must be '
                                 'names of their own.')
    loading_errors.check_options('dualphase', hp, label_on=('nct', 'ctpa'), white=('', 'ignored', 'embolus'))
    loading_errors.check_root('dualphase', hp.root, hp.table)
    path = csv_table.find_file(hp.root, hp.table)
    columns, rows = csv_table.read(path, ('case_id', 'patient_id', 'pe', 'split', *hp.groups))
    folders: set[str] = set()

    def parse(row: tuple[int, list[str]]) -> embolism.Row:
        number, cells = row
        return _row(hp, path, number, dict(zip(columns, cells)), folders)
    case_column = columns.index('case_id')
    if hp.on_error == 'fail':
        patient = columns.index('patient_id')
        csv_table.check_patients(path, 'patient_id', [(n, cells[patient]) for n, cells in rows], hp.allow_ids)
    loading_errors.log_columns(path, columns, ('pe',), ('case_id', 'patient_id', 'split', 'residual_mm', *hp.groups))
    parsed, skipped = loading_errors.collect(rows, parse, hp.on_error, lambda row: row[1][case_column])
    looked_for = ', '.join(f'{name}.nii.gz' for name in _names(hp).values())
    used = [hp.table, *(name for _, _, files, _ in parsed for name in files.values())]
    case_files.report_unused('dualphase', hp.root, used, f'{looked_for}, ctpa_to_nct.txt')
    source = embolism.scans(hp, 'dualphase', parsed, skipped, load, read_mask, dict(label_on=hp.label_on))
    loading_errors.log_second_reader('dualphase', ['second' in files for files in source.files], hp.second_label)
    source = dataclasses.replace(source, read_second=read_second)
    return embolism.complete(_with_masks(source, hp), hp.on_error, path)


def _with_masks(source: embolism.Scans, hp: ConfigDict) -> embolism.Scans:
    """The source after a look at all masks: what 255 is, pe where the table leaves it open, and no contradiction."""
    drawn = [(i, key) for i, files in enumerate(source.files) for key in ('label', 'second') if key in files]

    cut: list[fields_of_view.Outside] = []

    def values(place: Place) -> set[float] | errors.JaxkdError:
        try:
            mask, path = source.read(*place), source.path(*place)
            counts = mask_values.distinct(mask.voxels)
            mask_values.check(counts, _VALUES, path)
            if place[1] == 'second':
                _check_grid(mask, source.read(place[0], 'label'), path)
            elif scan := _scan_of_mask(source, place[0]):
                scan_path = source.path(place[0], scan)
                if (drawn_on := volume.read_grid(scan_path, source.nifti_form)) is not None:
                    fields_of_view.check(mask, path, drawn_on, scan_path)
                    drawn = mask.voxels == 1 if 1 in counts else mask.voxels != 0
                    cut.append(fields_of_view.outside(dataclasses.replace(mask, voxels=drawn), path, drawn_on))
            return {*counts}
        except (errors.BadData, errors.MissingInput) as e:
            return e
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # a mask or two in memory
        results = dict(zip(drawn, log.progress(pool.map(values, drawn), 'dualphase: reading masks', len(drawn))))
    values_by_mask = {place: v for place, v in results.items() if isinstance(v, set)}
    if line := fields_of_view.describe(cut):
        log.info(f'dualphase: {line}')
    white, undecided = _white(source, hp.white, values_by_mask)
    bad = {i: e for (i, _), e in results.items() if isinstance(e, Exception)} | undecided
    pe = list(source.pe)
    for i, v in ((i, v) for (i, key), v in values_by_mask.items() if key == 'label' and i not in bad):
        present = 1 in v or white and IGNORED in v
        if present and pe[i] == 0:
            bad[i] = errors.BadData(f'Case {source.cases[i].id}: the table says that pe is absent (0), but its mask '
                                    'shows some. Correct one of them.')
        pe[i] = int(present) if pe[i] is None else pe[i]
    if bad and hp.on_error == 'fail':
        raise bad[min(bad)]
    source = dataclasses.replace(source, pe=tuple(pe), options={**source.options, 'white': white})
    return source.without({i: str(bad[i]) for i in sorted(bad)})


def _scan_of_mask(source: embolism.Scans, i: int) -> str:
    """The key of the scan that the mask of case i was drawn on; '' where that is left out."""
    scan = source.options['label_on']
    return scan if scan in source.files[i] else ''


def _check_grid(second: volume.Volume, label: volume.Volume, path: str) -> None:
    """BadData unless the masks of two readers are on one grid."""
    same = second.voxels.shape == label.voxels.shape and checks.max_distance(
        np.linalg.inv(label.affine) @ second.affine, np.eye(4), label.voxels.shape) < volume.SAME
    if not same:
        raise checks.bad(path, 'it is not on the grid of the mask of the first reader', 'Save both on one grid')


def _white(source: embolism.Scans, option: str,
           values: Mapping[Place, set]) -> tuple[bool, dict[int, errors.JaxkdError]]:
    """(whether 255 is the embolus, {case: error} of masks of which that cannot be said)."""
    white = [place for place, v in values.items() if mask_values.only_white(v)]
    ones = [place for place, v in values.items() if 1 in v]
    if option or not white:
        return option == 'embolus', {}
    if ones and not any(mask_values.WHITE in values[place] for place in ones):
        reason = (f'it holds only 0 and 255, and other masks, such as {source.path(*ones[0])}, 1: 255 may be '
                  'the embolus, or "not known"')
        return False, {i: checks.bad(source.path(i, key), reason, 'Set data.source.white=embolus, or =ignored')
                       for i, key in white if key == 'second' or source.pe[i] in (None, 1)}
    if ones:
        log.info(f'dualphase: 255 is "not known" in masks; {len(white)} hold no 1 beside it, the first '
                 f'{source.path(*white[0])}')
        return False, {}
    log.info(f'dualphase: {len(white)} masks hold only 0 and 255, and none holds 1: 255 is read as embolus')
    return True, {}


def load(source: embolism.Scans, i: int) -> dict[str, volume.Volume]:
    """{'nct': Volume, and 'ctpa' and 'label' where they are}."""
    record = {'nct': source.read(i, 'nct')}
    files, move = source.files[i], _Move(source, i)
    drawn_on = {'nct': record['nct'], **({'ctpa': source.read(i, 'ctpa')} if 'ctpa' in files else {})}
    if 'ctpa' in files:
        record['ctpa'] = move(drawn_on['ctpa'], record['nct'], -1024.0, 1)
    if (mask := read_mask(source, i)) is not None:
        if scan := _scan_of_mask(source, i):
            fields_of_view.check(mask, source.path(i, 'label'), drawn_on[scan], source.path(i, scan))
        if source.pe[i] == 0 and (mask.voxels == 1).any():
            raise errors.BadData(f'Case {source.cases[i].id}: the table says that pe is absent (0), but its mask shows '
                                 'some. Correct one of them.')
        record['label'] = move(mask, record['nct'], float(IGNORED), 0) if source.options['label_on'] == 'ctpa' else mask
    return record


def read_second(source: embolism.Scans, i: int) -> volume.Volume | None:
    """The mask of a second reader where `load` has the label, a Volume uint8, or None."""
    if (mask := read_mask(source, i, 'second')) is None or source.options['label_on'] == 'nct':
        return mask
    return _Move(source, i)(mask, source.read(i, 'nct'), float(IGNORED), 0)


def read_mask(source: embolism.Scans, i: int, key: str = 'label') -> volume.Volume | None:
    """The mask where it was drawn, a Volume uint8, or None."""
    if key not in source.files[i]:
        return None
    mask = source.read(i, key)
    voxels = mask_values.indices(mask.voxels, embolism.LABELS, source.path(i, key), ignored=True)
    if source.options['white']:
        voxels = (voxels > 0).astype(np.uint8)
    return dataclasses.replace(mask, voxels=voxels)


class _Move:
    """Brings what was scanned with the CTPA to where the NCT has it."""

    def __init__(self, source: embolism.Scans, i: int) -> None:
        self.matrix = matrix(source.path(i, 'matrix')) if 'matrix' in source.files[i] else None
        self.warp = [source.read(i, axis) for axis in _WARP if axis in source.files[i]]
        if any(w.voxels.shape != self.warp[0].voxels.shape or np.abs(w.affine - self.warp[0].affine).max() > 1e-3
               for w in self.warp):
            raise errors.BadData(f'Case {source.cases[i].id}: its {", ".join(_WARP)} are on different grids. Save them '
                                 'on that of the NCT.')

    def __call__(self, scan: volume.Volume, nct: volume.Volume, fill: float, order: int) -> volume.Volume:
        if self.matrix is not None:
            scan = volume.Volume(scan.voxels, self.matrix @ scan.affine)
        return warped(scan, self.warp, nct, fill, order) if self.warp else scan


def matrix(path: str) -> np.ndarray:
    """float64 [4,4] from a text file of 16 numbers; BadData unless it moves a body about, keeping its size roughly."""
    try:
        affine = np.array(image.read_bytes(path, 2**16).decode().split(), float).reshape(4, 4)
    except ValueError as e:  # also what is no text
        raise errors.BadData(f'{path} is not four rows of four numbers. Write the 4 x 4 matrix, nothing else.') from e
    scale = np.linalg.det(affine[:3, :3]) if np.isfinite(affine).all() else np.nan
    if not (0.1 < scale < 10 and np.abs(affine[3] - (0, 0, 0, 1)).max() < 1e-6):
        raise errors.BadData(f'{path} is no affine map of a patient: its last row must be 0 0 0 1, its determinant '
                             f'({scale:.3g}) within 0.1 to 10. Save the map from CTPA to NCT in mm (RAS).')
    return affine


def warped(scan: volume.Volume, warp: Sequence[volume.Volume], nct: volume.Volume, fill: float,
           order: int) -> volume.Volume:
    """The Volume int16 on the grid of `nct`, each voxel p taken from p + warp(p), three Volumes of mm; order 1 or 0."""
    shape, to_index = nct.voxels.shape, np.linalg.inv(scan.affine)
    out = np.empty(shape, np.int16, order='F')
    for z in range(shape[2]):
        affine = np.array(nct.affine)
        affine[:3, 3] += affine[:3, 2] * z
        shift = np.concatenate([volume.resample(w, affine, (*shape[:2], 1)) for w in warp], axis=-1)  # mm [X,Y,3]
        plane = np.stack([*np.indices(shape[:2]), np.zeros(shape[:2])], axis=-1)
        positions = volume.world(to_index, volume.world(affine, plane) + shift)
        out[:, :, z] = ndimage.map_coordinates(scan.voxels, positions.transpose(2, 0, 1), np.float32, order,
                                               mode='grid-constant', cval=fill, prefilter=False).round()
    return volume.Volume(out, nct.affine)


def _row(hp: ConfigDict, path: str, number: int, row: dict[str, str], folders: set[str]) -> embolism.Row:
    """(Case, pe, files, None) of a row."""
    case, split, location = row['case_id'], row['split'], f'{path}, row {number}'
    csv_table.check_case(path, number, hp.root, row, folders, hp.allow_ids)
    if (pe := csv_table.label(row['pe'])) is None:
        raise errors.BadData(f'{location}: column "pe" of case {case} is none of 0, 1, -1 or empty. Correct it.')
    try:
        residual = float(row.get('residual_mm') or 0)
    except ValueError:
        residual = -1
    if not 0 <= residual < np.inf:  # also nan
        raise errors.BadData(f'{location}: column "residual_mm" of case {case} is no distance in mm. Correct or empty '
                             'it.')
    files = _files(hp, case)
    if residual > hp.max_residual:
        files.pop('ctpa', None)
    groups = {name: row[name] for name in hp.groups}
    return Case(case, row['patient_id'], split=split, groups=groups), None if np.isnan(pe) else int(pe), files, None


def _names(hp: ConfigDict) -> dict[str, str]:
    """{what: the name that it is looked for}."""
    second = {'second': hp.second_label} if hp.second_label else {}
    return {'nct': 'nct', 'ctpa': 'ctpa', 'label': hp.label, **{axis: axis for axis in _WARP}, **second}


def _files(hp: ConfigDict, case: str) -> dict[str, str]:
    """{what: path relative to the root} of what the folder of a case holds."""
    folder = os.path.join(hp.root, case)
    try:
        names = set(os.listdir(folder))
    except OSError as e:
        raise errors.MissingInput(f'Case {case}: {folder} is not a folder that can be read. Put its volumes there or '
                                  f'remove its row from {hp.table}.') from e
    file_names = {key: case_files.locate(names, stem, folder) for key, stem in _names(hp).items()}
    file_names = {key: name for key, name in file_names.items() if name and (key != 'second' or file_names['label'])}
    if 'nct' not in file_names:
        raise errors.MissingInput(f'Case {case}: {folder} has no nct.nii.gz, nct.nii, nct.nrrd or DICOM folder nct. '
                                  f'Add it or remove the row from {hp.table}.')
    if len(file_names.keys() & {*_WARP}) % 3:
        raise errors.MissingInput(f'Case {case}: {folder} has some of {", ".join(_WARP)}, but not all. Add the others.')
    matrix_name = os.path.basename(csv_table.in_any_case(folder, 'ctpa_to_nct.txt'))
    if matrix_name in names:
        file_names['matrix'] = matrix_name
    return {key: f'{case}/{name}' for key, name in file_names.items()}


PLUGIN = SourcePlugin(case_count=csv_table.count)
