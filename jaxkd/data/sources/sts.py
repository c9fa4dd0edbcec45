"""Soft-tissue-sarcoma: CT, T1-weighted MR and FDG-PET of one tumour, its mask, and the label lung metastasis.

Vallieres et al.: A radiomics model from joint FDG-PET and MRI texture features for the prediction of lung metastases in
soft-tissue sarcomas of the extremities. Phys Med Biol 60 (2015). Data: The Cancer Imaging Archive, Soft-tissue-Sarcoma,
CC BY 3.0. Layouts read here: labels.csv (patient, lung_metastasis, gtv_ml) and
nifti_3mm/<patient>/{CT_image,MR_T1_image,PET_image,mask}.nii.gz, all of a patient on one grid of 3 mm; or, as the
validation data of IBSI are published, nifti/<patient>/{CT,MR_T1,PET}_{image,mask}.nii.gz, each modality on its own grid
and with its own mask; or, as the collection itself is published and as those data are in DICOM, below
Soft-tissue-Sarcoma/<patient> or dicom/<patient> a folder for each series, at any depth and of any name, and for each
RTSTRUCT: CT, PET and the MR series of which SeriesDescription contains `t1`, each with the RTSTRUCT that refers to it
and draws `region` there. CT is required. The labels are not in the collection: they are a table of the paper's authors.

**The size of the tumour leaks.** Volumes were cropped around the tumour, so their shape tells its volume: over 36
patients the rank correlation of gtv_ml with the number of voxels is 0.90, and with the padded share of a crop -0.88
(192 mm), -0.80 (96 mm), still -0.48 (54 x 54 x 78 mm); gtv_ml in turn goes along with the label. Only a crop that lies
inside what was scanned of every patient has the same shape and no padding for all. `build` measures the largest one
(`field`), and the transform `volume` refuses more unless outside='allow'. For those 36 it spans 47.6 x 49.8 x 71.6 mm
between outermost voxels, so take

    data.volume = dict(keys=('ct', 't1', 'pet'), spacing=(3.0, 3.0, 3.0), size=(16, 16, 24))

(48 x 48 x 72 mm, nothing padded) or less; with other patients it may have to be less.

That closes the leak through the field of view only: the size stays visible in the image. Around a small tumour a crop
holds more air and fat. Within 42 mm (14 voxels a side) the fraction of CT voxels that the window clips to 0 has a rank
correlation of -0.60 with gtv_ml; for T1, with few zeros, it is 0.12. So a CT network may still learn the size, and a
score above chance does not prove that it learned more.

STS_019 is excluded: the position of the tumour in CT differs from that in MR and mask, so a crop around the mask misses
it. With exclude=() it is used without registration.
"""
import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.formats import csv_table, dicom, pet, rtstruct
from jaxkd.data.formats.rtstruct import Contours
from jaxkd.data.source import Case, Source
from jaxkd.data.sources import paired
from jaxkd.data.sources.shared import case_files, loading_errors

DEFAULTS = dict(
    root='',  # the folder of the table and of the patients' folders
    table='labels.csv',  # name of the table of labels
    volumes='',  # folder of the patients' folders; '': nifti_3mm, nifti, dicom, Soft-tissue-Sarcoma, or the root
    modalities=('ct', 't1', 'pet'),  # some of ct, t1, pet; the first is required
    exclude=('STS_019',),  # patients to leave out
    outside='refuse',  # crops that reach outside of some patient's scan: refuse or allow
    on_error='fail',  # at bad cases: fail (stop) or skip (read all once at the start and leave the bad ones out)
    nifti_form='auto',  # which affine of NIfTI files holds: sform, qform, or auto (refuse a file whose two disagree)
    region='GTV_Mass',  # DICOM: with what the name of the contoured region begins, in any letter case
    t1='T1',  # DICOM: what SeriesDescription of the T1-weighted MR contains, in any letter case
    pet_units='',  # of PET in DICOM: '' as stored; suv makes Bq/ml SUV by body weight
    max_voxels=2**28,  # most voxels of a scan; a larger one is refused
)

LABELS = ('no', 'yes')
_FOLDERS = 'nifti_3mm', 'nifti', 'dicom', 'Soft-tissue-Sarcoma', ''
_FILES = {'ct': 'CT_image', 't1': 'MR_T1_image', 'pet': 'PET_image'}
_MODALITIES = {'ct': 'CT', 't1': 'MR', 'pet': 'PT'}  # in DICOM
_SUFFIXES = {'ct': ('CT',), 't1': ('T1',), 'pet': ('PET', 'PT')}  # of the names of regions
_SIZES = ((150, 'small'), (450, 'middle'), (np.inf, 'large'))  # ml, about thirds [our choice]


def build(hp: ConfigDict) -> Source:
    """A `paired.Paired` of the label lung_metastasis; groups: class, and size (small below 150 ml, large from 450)."""
    if not hp.modalities or len({*hp.modalities}) < len(hp.modalities) or {*hp.modalities} - _FILES.keys():
        raise errors.ConfigError(f'sts: modalities {tuple(hp.modalities)} must be some of {", ".join(_FILES)}.')
    loading_errors.check_options('sts', hp, outside=('refuse', 'allow'), pet_units=pet.UNITS)
    loading_errors.check_root('sts', hp.root, hp.table)
    path = csv_table.find_file(hp.root, hp.table)
    columns, rows = csv_table.read(path, ('patient', 'lung_metastasis', 'gtv_ml'))
    records = [(f'{path}, row {number}', dict(zip(columns, cells))) for number, cells in rows]
    volumes = hp.volumes or next(name for name in _FOLDERS if os.path.isdir(os.path.join(hp.root, name)))
    patients: set[str] = set()
    parsed, skipped = loading_errors.collect(
        [record for record in records if record[1]['patient'] not in hp.exclude],
        lambda record: _case(hp, volumes, record, patients), hp.on_error, lambda record: record[1]['patient'])
    cases, values, files, rois = zip(*parsed) if parsed else ((),) * 4
    used = [rtstruct.path_of(path) for paths in (*files, *rois) for path in paths.values()]
    case_files.report_unused('sts', hp.root, [hp.table, *used],
                             f'{hp.table}, {", ".join(_FILES.values())}, mask, or CT_mask and the like, or DICOM')
    source = paired.Paired(
        hp.root, 'sts', LABELS, {}, cases, {'label': np.array(values, np.int32)}, files, rois, hp.max_voxels,
        skipped=skipped, nifti_form=hp.nifti_form, pet_units=hp.pet_units, note='51 patients or fewer; where scans '
        'were cropped around their tumours, a crop that reaches outside tells their size')
    source = loading_errors.usable(paired.with_masks(source, hp.on_error), hp.on_error, path)
    return dataclasses.replace(source, field=field(source)) if hp.outside == 'refuse' else source


def field(source: paired.Paired) -> tuple[float, ...]:
    """(x, y, z) mm between the outermost voxels of the largest box around the centroid inside every scan."""
    extents = []
    for i in range(len(source)):
        record = source[i]
        extents += [extent(record[key], record['centre'][key]) for key in source.files[i]]
    return tuple((2 * np.min(extents, axis=0)).tolist())


def extent(scan: volume.Volume, centre: np.ndarray) -> np.ndarray:
    """(x, y, z) mm from a centre to the nearer of the two outermost planes of voxels of an axis-aligned Volume."""
    position = volume.index(scan.affine, centre)
    return np.minimum(position, np.array(scan.voxels.shape) - 1 - position) * volume.spacing(scan.affine)


def _case(hp: ConfigDict, volumes: str, record: tuple[str, dict[str, str]], patients: set[str]
          ) -> tuple[Case, int, dict[str, str], dict[str, str | Contours]]:
    """(Case, label, files, masks) of a row."""
    location, row = record
    patient, label = row['patient'], csv_table.label(row['lung_metastasis'])
    csv_table.check_inside(hp.root, patient)
    if patient in patients:
        raise errors.BadData(f'{location}: names {patient} a second time. Keep one of the rows.')
    patients.add(patient)
    if label not in (0, 1):
        raise errors.BadData(f'{location}: column "lung_metastasis" of {patient} is not 0 or 1. Correct it.')
    try:
        ml = float(row['gtv_ml'])
    except ValueError:
        ml = -1
    if not 0 <= ml < np.inf:  # also nan
        raise errors.BadData(f'{location}: column "gtv_ml" of {patient} is no volume in ml. Correct it.')
    files, masks = _files(hp, volumes, patient)
    size = next(name for max_ml, name in _SIZES if ml < max_ml)
    return Case(patient, patient, groups={'class': LABELS[int(label)], 'size': size}), int(label), files, masks


def _files(hp: ConfigDict, volumes: str, patient: str) -> tuple[dict[str, str], dict[str, str | Contours]]:
    """({modality: path}, {modality: its mask}) of a patient, relative to the root."""
    folder = os.path.join(volumes, patient)
    file_names = set(os.listdir(path)) if os.path.isdir(path := os.path.join(hp.root, folder)) else set()
    matches = {m: case_files.locate(file_names, _FILES[m], path) for m in hp.modalities}
    first = hp.modalities[0]
    if not matches[first] and any(os.path.isdir(os.path.join(path, name)) for name in file_names):
        return _series(hp, patient, path)
    mask = case_files.locate(file_names, 'mask', path)
    masks = {m: mask or case_files.locate(file_names, _FILES[m].replace('image', 'mask'), path) for m in hp.modalities}
    files = {m: f'{folder}/{name}' for m, name in matches.items() if name}
    if first not in files or not all(masks[m] for m in files):
        lacking = 'mask' if first in files else _FILES[first]
        raise errors.MissingInput(f'Case {patient}: {path} lacks {lacking}.nii.gz. Copy it there or remove the row '
                                  f'from {hp.table}.')
    return files, {m: f'{folder}/{masks[m]}' for m in files}


def _series(hp: ConfigDict, patient: str, path: str) -> tuple[dict[str, str], dict[str, str | Contours]]:
    """As `_files`, of the DICOM series and RTSTRUCTs below the folder of a patient."""
    below = dicom.series_below(path)
    structures = [(file, *rtstruct.regions(file)) for file in (
        os.path.join(series.path, series.file) for series in below if series.modality == 'RTSTRUCT')]
    files: dict[str, str] = {}
    masks: dict[str, str | Contours] = {}
    for modality in hp.modalities:
        word = hp.t1.lower() if modality == 't1' else ''
        series = [s for s in below if s.modality == _MODALITIES[modality] and word in s.description.lower()]
        drawn = [(s, file, region) for s in series for file, names, uids in structures if s.uid in uids
                 for region in _regions(names, hp.region, modality)]
        if len(drawn) == 1:
            (found, file, region), = drawn
            files[modality], of_mask = (os.path.relpath(name, hp.root) for name in (found.path, file))
            masks[modality] = Contours(of_mask, region, files[modality])
        elif series or modality == hp.modalities[0]:
            seen = ', '.join(f'{s.modality} "{s.description}"' for s in below) or 'no DICOM'
            regions = sorted({name for _, names, _ in structures for name in names})
            raise errors.MissingInput(
                f'Case {patient}: {path} has {len(series)} series of {" ".join([_MODALITIES[modality], word]).strip()} '
                f'and {len(drawn)} regions {hp.region}... drawn on them, one is needed ({seen}; regions '
                f'{", ".join(regions) or "none"}). Set region or t1 of the source, take the others out of the folder, '
                f'or remove the row from {hp.table}.')
    return files, masks


def _regions(names: Sequence[str], start: str, modality: str) -> list[str]:
    """The names that begin so; where there are several, those that end as the modality is called."""
    matches = [name for name in names if name.lower().startswith(start.lower())]
    ending = tuple(suffix.lower() for suffix in _SUFFIXES[modality])
    return [name for name in matches if name.lower().endswith(ending)] or matches if len(matches) > 1 else matches
