"""ACDC in the form of SSL4MIS and WSL4MIS: slices and volumes of the heart phantom as HDF5, all slices as NPZ.

    ACDC_training_slices/<frame>_slice_<z>.h5   two thirds of the patients      train_slices.list
    ACDC_training_volumes/<frame>.h5            a third of the patients         test.list
    acdc_slices_128.npz                         all slices, padded to a square and resized to 128 x 128

Grey values of HDF5 are scaled to 0..1 slice by slice. The patients 1 to 20 are DCM, the next 20 HCM, and so on, as in
ACDC.
"""
import os

import numpy as np

from jaxkd.data.formats import checks
from jaxkd.phantoms import encode
from jaxkd.phantoms.heart import archive, renderer
from jaxkd.runtime import files

SQUARE = 128  # pixels in the NPZ


def write(folder: str | os.PathLike, patients: int, domain: str = 'A', seed: int = 0, size: int = 64,
          slices: tuple[int, int] = (8, 10), difficulty: float = 0.5) -> None:
    """Write end-diastole and end-systole of each patient, 100 at most.

    domain: the scanner, 'A' or 'B'. size: pixels of the square picture, 32..512. slices: fewest and most of a patient,
    6..16. difficulty: 0 plain .. 1 noise, and a liver of the muscle's grey. Raises ConfigError, CannotWrite.
    """
    archive.check_numbered(patients)
    cohort = archive.Cohort(patients, domain, seed, size, slices, difficulty)
    lists: dict[str, list[str]] = {'train_slices.list': [], 'test.list': []}
    columns: dict[str, list] = {}
    for patient, truth in enumerate(cohort.facts()):
        for phase, k in zip(renderer.PHASES, renderer.FRAMES):
            number = archive.number(truth, patient)
            name = f'patient{number:03d}_frame{k + 1:02d}'
            image, label = (np.ascontiguousarray(archive.narrow(a, patient)) for a in cohort.frame(patient, k)[:2])
            image = _scaled(image.astype(np.float32))
            if patient % 3 == 2:
                _write_hdf5(os.path.join(folder, 'ACDC_training_volumes', f'{name}.h5'), image, label)
                lists['test.list'].append(name)
            for z in range(len(image)):
                if patient % 3 < 2:
                    path = os.path.join(folder, 'ACDC_training_slices', f'{name}_slice_{z}.h5')
                    _write_hdf5(path, image[z], label[z])
                    lists['train_slices.list'].append(f'{name}_slice_{z}')
                row = dict(image=_square(np.rint(image[z] * 255).astype(np.uint8), True),
                           label=_square(label[z], False), patient=np.int16(number), frame=np.int16(k + 1),
                           slice=np.int16(z), phase=phase, group=truth.group,
                           orig_hw=np.array(label[z].shape, np.int16))
                for key, value in row.items():
                    columns.setdefault(key, []).append(value)
    for name, lines in lists.items():
        files.write(os.path.join(folder, name), '\n'.join(lines) + '\n')
    files.write_npz(os.path.join(folder, f'acdc_slices_{SQUARE}.npz'), {key: np.array(v) for key, v in columns.items()})


def _scaled(image: np.ndarray) -> np.ndarray:
    """float32 [Z,H,W], 0 to 1 in each slice, as in the original."""
    low, high = (f(image, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return (image - low) / np.maximum(high - low, 1)


def _write_hdf5(path: str, image: np.ndarray, label: np.ndarray) -> None:
    with checks.needs('h5py', path):
        import h5py
    with encode.buffered(path) as buffer, h5py.File(buffer, 'w') as f:
        for key, value in (('image', image), ('label', label)):
            f.create_dataset(key, data=value, compression='gzip')


def _square(picture: np.ndarray, linear: bool) -> np.ndarray:
    """uint8 [128,128]: padded to a square, then resized."""
    from PIL import Image
    gap = picture.shape[0] - picture.shape[1]
    square = Image.fromarray(np.pad(picture, ((0, 0), (gap // 2, gap - gap // 2))))
    method = Image.Resampling.BILINEAR if linear else Image.Resampling.NEAREST
    return np.asarray(square.resize((SQUARE, SQUARE), method))
