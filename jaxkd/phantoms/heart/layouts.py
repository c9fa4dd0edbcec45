"""The heart phantom on disk, in the layouts of public data sets, to try what reads them.

acdc    database/training/patient001/...: the cine and the frames 01 (ED) and 12 (ES) as NIfTI int16, labels as uint8
mnms    OpenDataset/{Training/{Labeled,Unlabeled},Validation,Testing}/<ID>/...: the cine and its labels, which are 0 in all
        frames but two; 1 is the left ventricle and 3 the right one. A table with frames counted from 0
slices  ACDC as HDF5, slices of two thirds of the patients and volumes of the others, with lists; and all slices in one NPZ
masks   images/ and masks/ of PNG files: grey pictures and one mask each

Axes of NIfTI: columns of the picture, rows, slices from base to apex; all three run against RAS. Columns are fewer than
rows in two patients of three. The patients 1 to 20 of acdc and slices are DCM, the next 20 HCM, and so on, as in ACDC.
"""
import gzip
import io
import os

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import checks, nifti
from jaxkd.phantoms.heart import renderer
from jaxkd.runtime import files

VENDORS = (('Siemens', 'A', 1), ('Philips', 'B', 2), ('GE', 'C', 4), ('Canon', 'D', 5))
PARTS = 'Training/Labeled', 'Training/Labeled', 'Training/Unlabeled', 'Validation', 'Testing', 'Testing'
TABLE = '211230_M&Ms_Dataset_information_diagnosis_opendataset.csv'
TO_MNMS = np.array([0, 3, 2, 1], np.uint8)
MASKS = {'binary': (0, 0, 0, 255), 'refuge': (255, 255, 128, 0)}  # grey values of heart.LABELS
MOST = 100  # patients, where their number tells their group
SQUARE = 128  # pixels in the NPZ


def write(folder, layout, patients, domain='A', seed=0, size=64, slices=(8, 10), difficulty=0.5, frames=30, values='binary'):
    """Lay out `patients` patients under `folder`. frames: of a cine. values: 'binary', the left ventricle alone, 255; or
    'refuge', where it is the cup, 0, and the muscle the rest of the disc, 128."""
    renderer.check(patients, size, slices, domain, difficulty, seed)
    if layout not in LAYOUTS:
        raise errors.ConfigError(f'heart: layout={layout!r} is unknown.{errors.nearest(layout, LAYOUTS)}')
    if values not in MASKS:
        raise errors.ConfigError(f'heart: values={values!r} is unknown.{errors.nearest(values, MASKS)}')
    if layout in ('acdc', 'slices') and patients > MOST:
        raise errors.ConfigError(f'heart: patients={patients} are too many for ACDC, which numbers them by group; give at '
                                 f'most {MOST}.')
    if frames <= renderer.FRAMES[1] + 1:
        raise errors.ConfigError(f'heart: frames={frames} are too few, end-systole is number {renderer.FRAMES[1]} from 0; give '
                                 f'at least {renderer.FRAMES[1] + 2}.')

    def frame(patient, number):
        return renderer.render(seed, patient, contraction(number, frames), domain, size, slices, difficulty, number)

    known = [renderer.facts(seed, k, tuple(slices)) for k in range(patients)]
    LAYOUTS[layout](folder, known, frame, dict(frames=frames, values=values))


def contraction(frame, frames):
    """Of a frame of a cine that begins at end-diastole, 0 to 1."""
    top = renderer.FRAMES[1]
    return float(np.sin(np.pi / 2 * (frame / top if frame <= top else (frames - frame) / (frames - top))) ** 2)


def number(known, patient):
    """The number of a patient in ACDC."""
    return MOST // len(renderer.GROUPS) * renderer.GROUPS.index(known.group) + patient // len(renderer.GROUPS) + 1


def _narrow(stack, patient):
    """Fewer columns, by patient."""
    cut = 2 * (patient % 3)
    return stack[..., cut:stack.shape[-1] - cut]


def _voxels(stack, patient):
    """[Z,H,W] as [X,Y,Z]."""
    return np.ascontiguousarray(_narrow(stack, patient).transpose(2, 1, 0))


def _affine(shape, spacing):
    step = -spacing[::-1].astype(np.float64)
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = -step * (np.array(shape[:3]) - 1) / 2
    return affine


def _cine(path, voxels, affine):
    """Write [X,Y,Z,T]."""
    with checks.needs('nibabel', path):
        import nibabel
    made = nibabel.Nifti1Image(voxels, affine)
    made.header.set_xyzt_units('mm', 'sec')
    made.header.set_zooms((*made.header.get_zooms()[:3], 0.03))
    files.write(path, gzip.compress(made.to_bytes(), 3, mtime=0))


def _acdc(folder, known, frame, how):
    for patient, facts in enumerate(known):
        name = f'patient{number(facts, patient):03d}'
        at = os.path.join(folder, 'database', 'training', name)
        cine = []
        for k in range(how['frames']):
            image, label, spacing = frame(patient, k)
            cine.append(_voxels(image, patient))
            if k in renderer.FRAMES:
                affine = _affine(cine[-1].shape, spacing)
                nifti.write(os.path.join(at, f'{name}_frame{k + 1:02d}.nii.gz'), cine[-1], affine)
                nifti.write(os.path.join(at, f'{name}_frame{k + 1:02d}_gt.nii.gz'), _voxels(label, patient), affine)
        _cine(os.path.join(at, f'{name}_4d.nii.gz'), np.stack(cine, -1), affine)
        ed, es = (k + 1 for k in renderer.FRAMES)
        files.write(os.path.join(at, 'Info.cfg'), f'ED: {ed}\nES: {es}\nGroup: {facts.group}\nHeight: {160 + patient % 30}.0\n'
                                                  f'NbFrame: {how["frames"]}\nWeight: {55 + patient % 40}.0\n')


def _mnms(folder, known, frame, how):
    rows = [',External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight']
    count = how['frames']
    for patient, facts in enumerate(known):
        name, late = f'A{patient // 100}H{patient // 10 % 10}P{patient % 10}', patient % 4
        ed, es = ((k + late) % count for k in renderer.FRAMES)  # a cine may begin before end-diastole
        part, (vendor, letter, centre) = PARTS[patient % len(PARTS)], VENDORS[patient % len(VENDORS)]
        cine, labels = [], []
        for k in range(count):
            image, label, spacing = frame(patient, (k - late) % count)
            cine.append(_voxels(image, patient))
            labels.append(_voxels(TO_MNMS[label] * np.uint8(k in (ed, es)), patient))
        at, affine = os.path.join(folder, 'OpenDataset', part, name), _affine(cine[0].shape, spacing)
        _cine(os.path.join(at, f'{name}_sa.nii.gz'), np.stack(cine, -1), affine)
        if 'Unlabeled' not in part:
            _cine(os.path.join(at, f'{name}_sa_gt.nii.gz'), np.stack(labels, -1), affine)
        rows.append(f'{patient},{name},{vendor},{letter},{centre},{ed},{es},{40 + patient % 40},{facts.group},'
                    f'{"FM"[patient % 2]},{160 + patient % 30},{55 + patient % 40}')
    files.write(os.path.join(folder, 'OpenDataset', TABLE), '\n'.join(rows) + '\n')


def _slices(folder, known, frame, how):
    lists, kept = {'train_slices.list': [], 'test.list': []}, {}
    for patient, facts in enumerate(known):
        for phase, k in zip(renderer.PHASES, renderer.FRAMES):
            name = f'patient{number(facts, patient):03d}_frame{k + 1:02d}'
            image, label, _ = frame(patient, k)
            image, label = _narrow(image, patient).astype(np.float32), np.ascontiguousarray(_narrow(label, patient))
            low, high = (f(image, axis=(1, 2), keepdims=True) for f in (np.min, np.max))  # of each slice, as in the original
            image = (image - low) / np.maximum(high - low, 1)
            if patient % 3 == 2:
                _hdf5(os.path.join(folder, 'ACDC_training_volumes', f'{name}.h5'), image, label)
                lists['test.list'].append(name)
            for z in range(len(image)):
                if patient % 3 < 2:
                    _hdf5(os.path.join(folder, 'ACDC_training_slices', f'{name}_slice_{z}.h5'), image[z], label[z])
                    lists['train_slices.list'].append(f'{name}_slice_{z}')
                row = dict(image=_square(np.rint(image[z] * 255).astype(np.uint8), True), label=_square(label[z], False),
                           patient=np.int16(number(facts, patient)), frame=np.int16(k + 1), slice=np.int16(z), phase=phase,
                           group=facts.group, orig_hw=np.array(label[z].shape, np.int16))
                for key, value in row.items():
                    kept.setdefault(key, []).append(value)
    for name, lines in lists.items():
        files.write(os.path.join(folder, name), '\n'.join(lines) + '\n')
    files.write_npz(os.path.join(folder, f'acdc_slices_{SQUARE}.npz'), {key: np.array(v) for key, v in kept.items()})


def _hdf5(path, image, label):
    with checks.needs('h5py', path):
        import h5py
    buffer = io.BytesIO()
    with h5py.File(buffer, 'w') as f:
        for key, value in (('image', image), ('label', label)):
            f.create_dataset(key, data=value, compression='gzip')
    files.write(path, buffer.getvalue())


def _square(picture, linear):
    """uint8 [128,128]: padded to a square, then resized."""
    from PIL import Image
    gap = picture.shape[0] - picture.shape[1]
    square = Image.fromarray(np.pad(picture, ((0, 0), (gap // 2, gap - gap // 2))))
    return np.asarray(square.resize((SQUARE, SQUARE), Image.Resampling.BILINEAR if linear else Image.Resampling.NEAREST))


def _masks(folder, known, frame, how):
    grey = np.array(MASKS[how['values']], np.uint8)
    for patient, facts in enumerate(known):
        for phase, k in zip(renderer.PHASES, renderer.FRAMES):
            image, label, _ = frame(patient, k)
            image = renderer.grey(image)
            for z in np.flatnonzero(facts.labelled(phase)):
                for kind, picture in (('images', image[z]), ('masks', grey[label[z]])):
                    _png(os.path.join(folder, kind, f'{renderer.study(patient, phase)}_{z:02d}.png'), _narrow(picture, patient))


def _png(path, picture):
    from PIL import Image
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, 'png')
    files.write(path, buffer.getvalue())


LAYOUTS = dict(acdc=_acdc, mnms=_mnms, slices=_slices, masks=_masks)
