"""Patients of the pulmonary phantom on disk, as public archives of pulmonary embolism lay theirs out.

dualphase  cases.csv (case_id, patient_id, pe, split) and <case_id>/{nct,ctpa,label}.nii.gz. In every other case the CTPA,
           and the mask drawn on it, lie elsewhere in the world and ctpa_to_nct.txt (4 x 4, world mm RAS) brings them back,
           voxel upon voxel of the NCT.
fumpe      CT_scans/PAT001/*.dcm, GroundTruth/PAT001.mat (Mask, y x z). Every other patient has file names that run from
           head to foot; the mask follows the names.
cad_pe     images/001.nrrd, rs/001RefStd.nrrd, a number for each clot; every third reference is called 0001RefStd.nrrd,
           every third case e0001.
read       images/GE (DICOM files)/01GE, images/TOSHIBA (DICOM files)/01TS, rs/01GE.nii.gz. Slice k of a mask is slice k of
           the series by position. In every other case the headers disagree about the direction of slices, and that of
           the mask is right; the spacing in its header is rounded to half a millimetre in every third.
rspect     train/<study>/<series>/<instance>.dcm in no order, train.csv.
All but dualphase show CTPA alone, as it was taken: not displaced.
"""
import csv
import io
import os

import numpy as np

from jaxkd.data import volume
from jaxkd.data.formats import checks
from jaxkd.phantoms.pulmonary import renderer
from jaxkd.runtime import files

COLUMNS = ('StudyInstanceUID SeriesInstanceUID SOPInstanceUID pe_present_on_image negative_exam_for_pe qa_motion qa_contrast '
           'flow_artifact rv_lv_ratio_gte_1 rv_lv_ratio_lt_1 leftsided_pe chronic_pe true_filling_defect_not_pe rightsided_pe '
           'acute_and_chronic_pe central_pe indeterminate').split()
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS
_ROOT = '1.2.826.0.1.3680043.10.1561.'  # what UIDs begin with


def dualphase(folder, k, seed, options, missing_ctpa):
    """The row of patient k in cases.csv."""
    lacks = renderer.absent(seed, k, missing_ctpa)
    volumes, clots = renderer.render(seed, k, **options, modalities=[m for m in renderer.MODALITIES if m not in lacks])
    name, label = f'p{k:06d}', (clots.voxels > 0).astype(np.uint8)
    there = clots.affine
    if 'ctpa' in volumes and k % 2:
        home = _rigid(np.random.default_rng((seed, k)), volume.middle(clots))
        there = np.linalg.inv(home) @ clots.affine
        files.write(os.path.join(folder, name, 'ctpa_to_nct.txt'),
                    ''.join(' '.join(f'{x:.12g}' for x in row) + '\n' for row in home))
    for what, voxels, affine in (('nct', volumes['nct'].voxels, clots.affine), ('label', label, there),
                                 *((('ctpa', volumes['ctpa'].voxels, there),) if 'ctpa' in volumes else ())):
        volume.save(os.path.join(folder, name, f'{what}.nii.gz'), voxels, volume.Volume(voxels, affine))
    return [[name, name, renderer.facts(seed, k, options['pe']).pe, '']]


def fumpe(folder, k, seed, options, _):
    from scipy import io as matlab
    ctpa, clots = _ctpa(seed, k, options)
    pixels, affine, order = _rows(ctpa.voxels), _lps(ctpa), np.arange(ctpa.voxels.shape[2])[::-1 if k % 2 else 1]
    name = f'PAT{k + 1:03d}'
    _series(os.path.join(folder, 'CT_scans', name), pixels[order], affine, order, [f'D{j:04d}' for j in range(len(order))],
            _uid(seed, k))
    buffer = io.BytesIO()
    matlab.savemat(buffer, {'Mask': (_rows(clots.voxels)[order] > 0).astype(np.uint8).transpose(1, 2, 0)},
                   do_compression=True)
    files.write(os.path.join(folder, 'GroundTruth', f'{name}.mat'), buffer.getvalue())


def cad_pe(folder, k, seed, options, _):
    ctpa, clots = _ctpa(seed, k, options)
    name, reference = [(f'{k + 1:03d}',) * 2, (f'{k + 1:03d}', f'{k + 1:04d}'), (f'e{k + 1:04d}',) * 2][k % 3]
    for path, voxels in ((f'images/{name}.nrrd', ctpa.voxels), (f'rs/{reference}RefStd.nrrd', clots.voxels)):
        with checks.needs('pynrrd', path):
            import nrrd
        buffer = io.BytesIO()
        affine = _lps(ctpa)
        header = {'space': 'left-posterior-superior', 'space directions': affine[:3, :3].T, 'space origin': affine[:3, 3]}
        nrrd.write(buffer, np.asfortranarray(voxels[::-1, ::-1]), header, compression_level=3)
        files.write(os.path.join(folder, path), buffer.getvalue())


def read(folder, k, seed, options, _):
    ctpa, clots = _ctpa(seed, k, options)
    pixels, mask, affine = _rows(ctpa.voxels), (_rows(clots.voxels) > 0).astype(np.uint8), _lps(ctpa)
    own = np.array(affine)
    if k % 2:  # the series was stored from head to foot; its DICOM headers have it the other way round
        pixels, mask = pixels[::-1], mask[::-1]
        own[:3, 3] += own[:3, 2] * (len(mask) - 1)
        own[:3, 2] *= -1
    if k % 3 == 2:
        own[:3, :3] *= 0.99
    scanner, short = (('GE', 'GE'), ('TOSHIBA', 'TS'))[k // 2 % 2]
    name = f'{k + 1:02d}{short}'
    _series(os.path.join(folder, 'images', f'{scanner} (DICOM files)', name), pixels, affine, np.arange(len(pixels)),
            [f'IM{j:04d}' for j in range(len(pixels))], _uid(seed, k))
    saved = mask.transpose(2, 1, 0)
    volume.save(os.path.join(folder, 'rs', f'{name}.nii.gz'), saved, volume.Volume(saved, _FLIP @ own))


def rspect(folder, k, seed, options, _):
    """The rows of patient k in train.csv."""
    ctpa, clots = _ctpa(seed, k, options)
    pixels, known = _rows(ctpa.voxels), renderer.facts(seed, k, options['pe'])
    rng = np.random.default_rng((seed, k))
    study, series = _uid(seed, k), _uid(seed, k, 1)
    names = [_uid(seed, k, 1, 1 + int(j)) for j in rng.permutation(len(pixels))]
    _series(os.path.join(folder, 'train', study, series), pixels, _lps(ctpa), np.arange(len(pixels)), names, study)
    shown = (clots.voxels > 0).any((0, 1))
    pe, where = int(shown.any()), clots.affine[0, 0] * np.argwhere(clots.voxels > 0)[:, 0] + clots.affine[0, 3]
    middle = volume.middle(clots)[0]
    unclear = int(not pe and rng.random() < 0.05)
    strain, chronic = rng.random() < (0.6 if 'central' in known.clots else 0.2), rng.choice(3, p=(0.85, 0.1, 0.05))
    exam = dict(negative_exam_for_pe=1 - pe - unclear, indeterminate=unclear, qa_motion=rng.random() < 0.02 or unclear,
                qa_contrast=rng.random() < 0.03, flow_artifact=rng.random() < 0.05,
                true_filling_defect_not_pe=rng.random() < 0.01)
    exam |= dict(rv_lv_ratio_gte_1=pe and strain, rv_lv_ratio_lt_1=pe and not strain, leftsided_pe=(where < middle).any(),
                 rightsided_pe=(where >= middle).any(), chronic_pe=pe and chronic == 1,
                 acute_and_chronic_pe=pe and chronic == 2, central_pe=pe and 'central' in known.clots)
    return [[study, series, name, int(here), *(int(exam[c]) for c in COLUMNS[4:])] for name, here in zip(names, shown)]


LAYOUTS = dict(dualphase=(dualphase, 'cases.csv', ('case_id', 'patient_id', 'pe', 'split')), fumpe=(fumpe, '', ()),
               cad_pe=(cad_pe, '', ()), read=(read, '', ()), rspect=(rspect, 'train.csv', COLUMNS))


def write(layout, folder, patients, seed, missing_ctpa, options):
    """Lay out patients 0..patients-1; options: the other arguments of `pulmonary.render`."""
    one, table, columns = LAYOUTS[layout]
    rows = [row for k in range(patients) for row in one(folder, k, seed, options, missing_ctpa) or ()]
    if table:
        text = io.StringIO(newline='')
        csv.writer(text, lineterminator='\n').writerows([columns, *rows])
        files.write(os.path.join(folder, table), text.getvalue())


def _ctpa(seed, k, options):
    volumes, clots = renderer.render(seed, k, **options | {'warp': 0}, modalities=('ctpa',))
    return volumes['ctpa'], clots


def _rigid(rng, middle):
    """World to world, float64 [4,4]: a few degrees about an axis through `middle`, and a shift of some mm."""
    from scipy.spatial import transform
    move = np.eye(4)
    move[:3, :3] = transform.Rotation.from_rotvec(rng.uniform(-6, 6, 3), degrees=True).as_matrix()
    move[:3, 3] = middle - move[:3, :3] @ middle + rng.uniform(-25, 25, 3)
    return move


def _rows(voxels):
    """[slice,row,column] of a CT on its back: columns run to the patient's left, rows to the back, slices to the head."""
    return np.ascontiguousarray(voxels[::-1, ::-1].T)


def _lps(scan):
    """The affine (column, row, slice) -> LPS mm of `_rows`."""
    affine = np.array(scan.affine)
    affine[:3, 3] = volume.world(affine, (scan.voxels.shape[0] - 1, scan.voxels.shape[1] - 1, 0))
    affine[:3, :2] *= -1
    return _FLIP @ affine


def _uid(*numbers):
    return _ROOT + '.'.join(str(n) for n in numbers)


def _series(folder, pixels, affine, heights, names, study):
    """One CT Image Storage file a slice: pixels int16 HU [slice,row,column], each at its height in units of the affine."""
    with checks.needs('pydicom', folder):
        import pydicom
    series = f'{study}.1'
    step = volume.spacing(affine)
    for pixel, height, name in zip(pixels, heights, names):
        d = pydicom.Dataset()
        d.SOPClassUID = pydicom.uid.CTImageStorage
        d.SOPInstanceUID = name if name.startswith(_ROOT) else f'{series}.{height + 1}'
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, f'{study}.2'
        d.Modality, d.PatientName, d.PatientID = 'CT', 'Phantom', study.rpartition('.')[2]
        d.ImageType, d.PatientPosition, d.KVP = ['ORIGINAL', 'PRIMARY', 'AXIAL'], 'HFS', '100'
        d.StudyID, d.SeriesNumber, d.InstanceNumber = '1', '1', str(height + 1)
        d.StudyDate = d.StudyTime = d.AccessionNumber = d.PatientBirthDate = d.PatientSex = d.ReferringPhysicianName = ''
        d.Manufacturer = d.PositionReferenceIndicator = d.AcquisitionNumber = ''
        d.ImagePositionPatient = [f'{x:.10g}' for x in volume.world(affine, (0, 0, height))]
        d.ImageOrientationPatient = ['1', '0', '0', '0', '1', '0']
        d.PixelSpacing, d.SliceThickness = [f'{step[1]:.10g}', f'{step[0]:.10g}'], f'{step[2]:.10g}'
        d.Rows, d.Columns = pixel.shape
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, 'MONOCHROME2'
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        d.RescaleSlope, d.RescaleIntercept, d.RescaleType = '1', '-1024', 'HU'
        d.PixelData = (pixel.astype(np.int32) + 1024).astype('<u2').tobytes()
        d.file_meta = pydicom.dataset.FileMetaDataset()
        d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        buffer = io.BytesIO()
        d.save_as(buffer, enforce_file_format=True)
        files.write(os.path.join(folder, f'{name}.dcm'), buffer.getvalue())
