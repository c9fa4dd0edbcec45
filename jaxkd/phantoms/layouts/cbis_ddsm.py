"""CBIS-DDSM: mammograms of the breast phantom as DICOM, with crops, masks and the four tables of lesions.

    {mass,calc}_case_description_{train,test}_set.csv, CBIS-DDSM/<image>/..., CBIS-DDSM/<image>_<lesion>/...

The DICOM files are in folders named by the archive's retriever, not at the paths of the tables. The irregularities of
the archive are present: every second image has a path that ends in a line break; every third mask is called after the
crop, and the other way round; every fifth mask has 5 % more rows and columns than its image; every seventh lesion has
crop and mask in one folder. Every fourth patient is tested. A patient with lesions of both kinds may be in training by
one table and in test by the other, as some are in the archive.
"""
import os

import numpy as np

from jaxkd.data.sources import cbis_ddsm
from jaxkd.phantoms import encode
from jaxkd.phantoms.breast import findings, renderer
from jaxkd.runtime import files

SHORT = {'mass': 'mass', 'calcification': 'calc'}
_ROOT = '1.2.826.0.1.3680043.10.1561.7.'  # prefix of UIDs


def write(folder: str | os.PathLike, patients: int, seed: int = 0, size: int = 128, difficulty: float = 0.5,
          kind: str = 'both') -> None:
    """Write images, crops, masks and tables of the patients.

    size: rows of an image, 64..1024. difficulty: 0 plain .. 1 faint lesions and noise. kind: of lesions, 'mass', 'calc'
    or 'both'. Raises ConfigError, CannotWrite.
    """
    renderer.check(size, difficulty, seed, kind, patients)
    tables: dict[tuple[str, str], list] = {(k, part): [] for k in SHORT.values() for part in cbis_ddsm.PARTS}
    image = lesion = 0
    for patient in range(patients):
        for side, view in renderer.facts(seed, patient, kind).images:
            case = renderer.render(seed, patient, side, view, size, difficulty, kind)
            rows = renderer.rows(seed, patient, side, view, kind)
            for key, row in _write_image(folder, case, rows, patient, image, lesion, seed):
                tables[key].append(row)
            image, lesion = image + 1, lesion + len(rows)
    for (short, part), rows in tables.items():
        columns = _columns(short)
        text = encode.table(columns, [[row[column] for column in columns] for row in rows])
        files.write(os.path.join(folder, f'{short}_case_description_{part}_set.csv'), text)


def _write_image(folder: str | os.PathLike, case: dict, rows: list[dict], patient: int, image: int, first: int,
                 seed: int) -> list[tuple[tuple[str, str], dict]]:
    """Write one mammogram with its lesions. Returns ((kind, part), row of that table) of each lesion.

    image: number of the image among all; first: that of its first lesion.
    """
    mixed = len({row['abnormality type'] for row in rows}) > 1
    entries, names = [], set()
    for lesion, (row, mask) in enumerate(zip(rows, case['masks']), first):
        short = SHORT[row['abnormality type']]
        part = 'test' if (patient + (short == 'calc' and mixed)) % 4 == 0 else 'train'
        name = '_'.join((f'{short.capitalize()}-{cbis_ddsm.PARTS[part]}', row['patient_id'],
                         row['left or right breast'], row['image view']))
        roi = f'{name}_{row["abnormality id"]}'
        full, drawn, crop = (f'{_ROOT}{seed}.{patient}.{image}.{lesion}.{j}' for j in range(3))
        if name not in names:
            names.add(name)
            write_dicom(os.path.join(folder, 'CBIS-DDSM', name, '08-07-2016-DDSM-1', '1.000000-full mammogram images-1',
                                     '1-1.dcm'), case['image'], name, full, 'full mammogram images')
        _write_lesion(folder, case['image'], mask, roi, crop, drawn, lesion)
        end = '\n' if image % 2 else ''
        paths = (f'{name}/{_ROOT}1/{full}/000000.dcm', f'{roi}/{_ROOT}2/{crop}/00000{int(short == "calc")}.dcm{end}',
                 f'{roi}/{_ROOT}2/{drawn}/00000{int(short == "mass")}.dcm{end}')
        row = dict(row, **dict(zip(('image file path', 'cropped image file path', 'ROI mask file path'), paths)))
        row[_density(short)] = row.pop('breast density')
        entries.append(((short, part), row))
    return entries


def _write_lesion(folder: str | os.PathLike, image: np.ndarray, mask: np.ndarray, roi: str, crop: str, drawn: str,
                  lesion: int) -> None:
    """Write the crop and the mask of a lesion; crop, drawn: the UIDs of their series."""
    rows, columns = mask.any(1), mask.any(0)
    top, left = int(np.argmax(rows)), int(np.argmax(columns))
    cut = image[np.ix_(rows, columns)] if mask.sum() > 1 else image[top:top + 2, left:left + 2]
    stored = (mask if lesion % 5 != 4 else _larger(mask)) * np.uint8(255)
    words = ('cropped images', 'ROI mask images')[::-1 if lesion % 3 == 2 else 1]
    for number, (pixels, series, word) in enumerate(((cut, crop, words[0]), (stored, drawn, words[1])), 1):
        below = '1.000000-ROI mask images-1' if lesion % 7 == 6 else f'1.000000-{word}-{number}'
        path = os.path.join(folder, 'CBIS-DDSM', roi, '07-20-2016-DDSM-1', below, f'1-{number}.dcm')
        write_dicom(path, pixels, roi, series, word)


def _density(short: str) -> str:
    """The column of the density; the archive spells it in two ways."""
    return 'breast_density' if short == 'mass' else 'breast density'


def _columns(short: str) -> list[str]:
    first, second = findings.COLUMNS['mass' if short == 'mass' else 'calcification']
    return ['patient_id', _density(short), 'left or right breast', 'image view', 'abnormality id', 'abnormality type',
            first, second, 'assessment', 'pathology', 'subtlety', 'image file path', 'cropped image file path',
            'ROI mask file path']


def write_dicom(path: str | os.PathLike, pixels: np.ndarray, name: str, series: str, description: str) -> None:
    """Write one Secondary Capture file of grey pixels, uint8 or uint16 [H,W]; series: its UID."""
    encode.write_dicom(path, pixels, 'SecondaryCaptureImageStorage', SOPInstanceUID=f'{series}.1',
                       StudyInstanceUID=f'{series}.2', SeriesInstanceUID=series, Modality='MG', PatientName=name,
                       PatientID=name, SeriesDescription=description, StudyID='DDSM', SeriesNumber='1',
                       InstanceNumber='1', ConversionType='DF')


def _larger(mask: np.ndarray) -> np.ndarray:
    """The mask [H,W] with 5 % more rows and columns, by the nearest pixel."""
    rows, columns = (np.arange(round(1.05 * n)) * n // round(1.05 * n) for n in mask.shape)
    return mask[rows[:, None], columns]
