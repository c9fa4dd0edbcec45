"""Patients of the breast phantom on disk, as public archives of mammograms lay theirs out.

cbis_ddsm   the four tables at the top, DICOM files below CBIS-DDSM in folders as the archive's retriever names them: not the
            paths that the tables tell. Every second image has a path that ends in a line break; every third mask is called
            after the crop, and the other way round; every fifth mask has 5 % more rows and columns than its image; every
            seventh lesion has crop and mask in one folder. Every fourth patient is tested. One with lesions of both kinds
            may have one table say training and the other test, as some do in the archive.
mini_mias   films of 1024 x 1024 pixels, MLO alone, two to a patient, the even ones of left breasts, Info.txt. Patients with
            lesions in one breast get a normal film of the other.
"""
import csv
import io
import os

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import checks
from jaxkd.data.sources import cbis_ddsm, mini_mias
from jaxkd.phantoms.breast import findings, renderer
from jaxkd.runtime import files

SHORT = {'mass': 'mass', 'calcification': 'calc'}
_ROOT = '1.2.826.0.1.3680043.10.1561.7.'  # what UIDs begin with
_INTRODUCTION = 'A phantom, rendered: no film and no patient.\nFilm  tissue  class  severity  x  y  radius\n\n'


def write(layout, folder, patients, seed=0, size=128, difficulty=0.5, kind='both'):
    """Lay out patients 0..patients-1 of the phantom in a layout of LAYOUTS. Raises ConfigError, CannotWrite."""
    renderer.check(size, difficulty, seed, kind, patients)
    if layout not in LAYOUTS:
        raise errors.ConfigError(f'breast: there is no layout "{layout}".{errors.nearest(layout, LAYOUTS)}')
    LAYOUTS[layout](os.fspath(folder), patients, seed, size, difficulty, kind)


def cbis_ddsm_tree(folder, patients, seed, size, difficulty, kind):
    tables = {(k, part): [] for k in SHORT.values() for part in cbis_ddsm.PARTS}
    count = lesions = 0
    for patient in range(patients):
        known = renderer.facts(seed, patient, kind)
        for side, view in known.images:
            case = renderer.render(seed, patient, side, view, size, difficulty, kind)
            told = renderer.rows(seed, patient, side, view, kind)
            written = set()
            for row, mask in zip(told, case['masks']):
                k = SHORT[row['abnormality type']]
                part = 'test' if (patient + (k == 'calc' and len({r['abnormality type'] for r in told}) > 1)) % 4 == 0 else 'train'
                name = f'{k.capitalize()}-{cbis_ddsm.PARTS[part]}_{row["patient_id"]}_{side}_{view}'
                roi = f'{name}_{row["abnormality id"]}'
                full, drawn, crop = (f'{_ROOT}{seed}.{patient}.{count}.{lesions}.{j}' for j in range(3))
                if name not in written:
                    written.add(name)
                    dicom(os.path.join(folder, 'CBIS-DDSM', name, '08-07-2016-DDSM-1', '1.000000-full mammogram images-1', '1-1.dcm'),
                          case['image'], name, full, 'full mammogram images')
                swap, together = lesions % 3 == 2, lesions % 7 == 6
                top, left = (int(a[0]) for a in np.nonzero(mask.any(1)) + np.nonzero(mask.any(0)))
                cut = case['image'][np.ix_(mask.any(1), mask.any(0))] if mask.sum() > 1 else case['image'][top:top + 2, left:left + 2]
                stored = mask if lesions % 5 != 4 else _larger(mask)
                words = ('cropped images', 'ROI mask images')[::-1 if swap else 1]
                for number, (pixels, series, what) in enumerate(((cut, crop, words[0]), (stored * np.uint8(255), drawn, words[1])), 1):
                    below = '1.000000-ROI mask images-1' if together else f'1.000000-{what}-{number}'
                    dicom(os.path.join(folder, 'CBIS-DDSM', roi, '07-20-2016-DDSM-1', below, f'1-{number}.dcm'), pixels, roi, series, what)
                end = '\n' if count % 2 else ''
                row = dict(row)
                density = row.pop('breast density')
                row |= {'breast_density' if k == 'mass' else 'breast density': density}
                row |= dict(zip(('image file path', 'cropped image file path', 'ROI mask file path'), (
                    f'{name}/{_ROOT}1/{full}/000000.dcm', f'{roi}/{_ROOT}2/{crop}/00000{int(k == "calc")}.dcm{end}',
                    f'{roi}/{_ROOT}2/{drawn}/00000{int(k == "mass")}.dcm{end}')))
                tables[k, part].append(row)
                lesions += 1
            count += 1
    for (k, part), rows in tables.items():
        first, second = findings.COLUMNS['mass' if k == 'mass' else 'calcification']
        columns = ['patient_id', 'breast_density' if k == 'mass' else 'breast density', 'left or right breast', 'image view',
                   'abnormality id', 'abnormality type', first, second, 'assessment', 'pathology', 'subtlety', 'image file path',
                   'cropped image file path', 'ROI mask file path']
        text = io.StringIO(newline='')
        writer = csv.DictWriter(text, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        files.write(os.path.join(folder, f'{k}_case_description_{part}_set.csv'), text.getvalue())


def mini_mias_tree(folder, patients, seed, size, difficulty, kind):
    lines = []
    for patient in range(patients):
        known = renderer.facts(seed, patient, kind)
        tissue = mini_mias.TISSUE[min(2, known.anatomy.density - 1)]
        for side in ('RIGHT', 'LEFT'):
            film = f'mdb{2 * patient + 1 + (side == "LEFT"):03d}'
            here = side in known.lesions
            other = side if here else next(iter(known.lesions))
            case = renderer.render(seed, patient, other, 'MLO', size, difficulty, kind, draw=here)
            picture = case['image'] if here else case['image'][:, ::-1]
            pixels, scale, left = _film(picture)
            files.write(os.path.join(folder, f'{film}.pgm'), f'P5\n{mini_mias.SIDE} {mini_mias.SIDE}\n255\n'.encode() + pixels.tobytes())
            if not here:
                lines.append(f'{film} {tissue} NORM')
            for k, (lesion, box) in enumerate(zip(known.lesions[side], case['boxes'][:, 1:]) if here else ()):
                x, y, w, h = box * scale
                place = f'{int(left + x + w / 2)} {mini_mias.SIDE - 1 - int(y + h / 2)} {max(1, int(np.hypot(w, h) / 2))}'
                place = place if (patient + k) % 9 else '*NOTE 3*' if lesion.kind == 'calcification' else ''
                lines.append(f'{film} {tissue} {_class(lesion)} {"M" if lesion.malignant else "B"} {place}'.strip())
    files.write(os.path.join(folder, 'Info.txt'), _INTRODUCTION + '\n'.join(lines) + '\n')


def dicom(path, pixels, name, series, what):
    """One Secondary Capture file of grey pixels, uint8 or uint16 [H,W]."""
    with checks.needs('pydicom', path):
        import pydicom
    d = pydicom.Dataset()
    d.SOPClassUID, d.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, f'{series}.1'
    d.StudyInstanceUID, d.SeriesInstanceUID = f'{series}.2', series
    d.Modality, d.PatientName, d.PatientID, d.SeriesDescription = 'MG', name, name, what
    d.StudyDate = d.StudyTime = d.AccessionNumber = d.PatientBirthDate = d.PatientSex = d.ReferringPhysicianName = ''
    d.StudyID, d.SeriesNumber, d.InstanceNumber, d.ConversionType = 'DDSM', '1', '1', 'DF'
    d.Rows, d.Columns = pixels.shape
    bits = pixels.dtype.itemsize * 8
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, 'MONOCHROME2', 0
    d.BitsAllocated, d.BitsStored, d.HighBit = bits, bits, bits - 1
    stored = np.ascontiguousarray(pixels).astype('<u2' if bits == 16 else np.uint8).tobytes()
    d.PixelData = stored + b'\0' * (len(stored) % 2)
    d.file_meta = pydicom.dataset.FileMetaDataset()
    d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    buffer = io.BytesIO()
    d.save_as(buffer, enforce_file_format=True)
    files.write(path, buffer.getvalue())


def _larger(mask):
    """The mask with 5 % more rows and columns, by the nearest pixel."""
    rows, columns = (np.arange(round(1.05 * n)) * n // round(1.05 * n) for n in mask.shape)
    return mask[rows[:, None], columns]


def _film(picture):
    """(uint8 [1024,1024], scale, left): the picture scaled to the height of a film and centred in it."""
    from PIL import Image
    scale = mini_mias.SIDE / picture.shape[0]
    width = round(picture.shape[1] * scale)
    grey = Image.fromarray((np.ascontiguousarray(picture) >> 8).astype(np.uint8)).resize((width, mini_mias.SIDE))
    out, left = np.zeros((mini_mias.SIDE, mini_mias.SIDE), np.uint8), (mini_mias.SIDE - width) // 2
    out[:, left:left + width] = np.asarray(grey)
    return out, scale, left


def _class(lesion):
    """The class that mini-MIAS would give a lesion."""
    if lesion.kind == 'calcification':
        return 'CALC'
    words = (('SPIC', 'SPICULATED'), ('ARCH', 'ARCHITECTURAL_DISTORTION'), ('ASYM', 'ASYMMETRIC_BREAST_TISSUE'),
             ('ASYM', 'FOCAL_ASYMMETRIC_DENSITY'), ('CIRC', 'CIRCUMSCRIBED'))
    return next((short for short, word in words if lesion.has(word)), 'MISC')


LAYOUTS = dict(cbis_ddsm=cbis_ddsm_tree, mini_mias=mini_mias_tree)
