"""SimBA: T1-weighted volumes of the brain phantom as NIfTI, the same subjects without and with bias.

    clean/{train,val,test}/00012_0.318_S_1.204_D.nii.gz             half, a quarter and a quarter of the subjects
    biased/{train,val,test}/00012_0.318_S_1.204_D_2.113_B.nii.gz    `_B` where the subject has the bias
    */{train,val,test}.csv                                          a row for each file; the first column has no name

Numbers start at 0 in every part, the biased first. S is the coefficient of the subject's first component. Bins, by
which SimBA draws its parts, are ten equal intervals of the range of values; here they only fill their columns. Voxels
are int16, and x and y run against RAS, as in files of SimpleITK.
"""
import os

import numpy as np

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.formats import nifti
from jaxkd.phantoms.brain import renderer
from jaxkd.runtime import files

HEADER = ',isv_dst,effect_dst,isv_bin,effect_bin,both_bins,bias_label,class_label,strat_col,filepath,filename'
PARTS = {'train': 0.5, 'val': 0.75, 'test': 1.0}  # the fraction of the subjects up to the end of the part
HOME = '/home/someone/datasets'  # `filepath` has the paths of the author of the files


def write(folder: str | os.PathLike, patients: int, region: str = 'near', size: tuple[int, int, int] = (28, 32, 24),
          noise: float = 0.02, seed: int = 0, biased: float = 1.0) -> None:
    """Write two experiments of the same subjects.

    patients: subjects, 8 or more. region: of the bias, 'near' the disease or 'far' from it. size: voxels x y z, 16..256
    each. noise: standard deviation, of the brightest tissue. biased: fraction of the subjects with bias in the second
    experiment, equal in both classes. Raises ConfigError, CannotWrite.
    """
    renderer.check(patients, size, region, noise, seed)
    if not 0 <= biased <= 1 or patients < 8:
        raise errors.ConfigError(f'brain: biased={biased} must be 0 to 1 and patients={patients} at least 8, two for '
                                 'each part.')
    truths = [renderer.facts(seed, k) for k in range(patients)]
    bins = [_bins([t.subject[0] for t in truths]), _bins([t.disease for t in truths])]
    start = 0
    for part, fraction in PARTS.items():
        stop = round(fraction * patients / 2) * 2  # both subjects of a pair of ill and well in one part
        subjects, start = list(range(start, stop)), stop
        marked = _marked(subjects, truths, biased)
        rows = {'clean': [HEADER], 'biased': [HEADER]}
        for n, k in enumerate(sorted(subjects, key=lambda k: k not in marked)):
            for name, twin in (('clean', False), ('biased', k in marked)):
                file = _file(n, truths[k], twin)
                save(os.path.join(folder, name, part, file), renderer.render(seed, k, size, region, noise, twin=twin))
                rows[name].append(_row(k, truths[k], bins[0][k], bins[1][k], twin, f'{HOME}/{name}/{part}', file))
        for name, lines in rows.items():
            files.write(os.path.join(folder, name, f'{part}.csv'), '\n'.join(lines) + '\n')


def _file(number: int, truth: renderer.Facts, twin: bool) -> str:
    """The name of a subject's file in a part."""
    name = f'{number:05d}_{round(truth.subject[0], 3)}_S_{round(truth.disease, 3)}_D'
    return name + f'_{round(truth.bias, 3)}_B' * twin + '.nii.gz'


def _row(subject: int, truth: renderer.Facts, subject_bin: int, effect_bin: int, twin: bool, folder: str,
         file: str) -> str:
    return (f'{subject},{truth.subject[0]!r},{truth.disease!r},{subject_bin},{effect_bin},{subject_bin}_{effect_bin},'
            f'{int(twin)},{truth.label},{truth.label}_{int(twin)}_{effect_bin}_{subject_bin},{folder}/{file},{file}')


def _marked(subjects: list[int], truths: list[renderer.Facts], fraction: float) -> set[int]:
    """The first subjects of each class, up to the fraction."""
    by_class = [[k for k in subjects if truths[k].label == label] for label in (0, 1)]
    return {k for members in by_class for k in members[:round(fraction * len(members))]}


def _bins(values: list[float]) -> list[int]:
    low, high = min(values), max(values)
    return np.minimum(((np.array(values) - low) / (high - low) * 10).astype(int), 9).tolist()


def save(path: str | os.PathLike, image: volume.Volume) -> None:
    """Write a Volume as a file of SimBA's axes."""
    affine = image.affine @ np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = volume.world(image.affine, [image.voxels.shape[0] - 1, image.voxels.shape[1] - 1, 0])
    nifti.write(os.fspath(path), np.ascontiguousarray(image.voxels[::-1, ::-1]), affine)
