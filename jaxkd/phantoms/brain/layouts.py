"""The brain phantom on disk in the layout of SimBA: the same subjects in two experiments, without and with bias.

    clean/{train,val,test}/00012_0.318_S_1.204_D.nii.gz             half, a quarter and a quarter of the subjects
    biased/{train,val,test}/00012_0.318_S_1.204_D_2.113_B.nii.gz    `_B` where the subject has the bias
    */{train,val,test}.csv                                          a row for each file; the first column has no name

Numbers start at 0 in every part, the biased first. S is the coefficient of the subject's first component. Bins, which SimBA
draws its parts by, are ten equal intervals of what occurs; here they only fill their columns. Voxels are int16, and x and y run
against RAS, as in files that SimpleITK wrote.
"""
import os

import numpy as np

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.formats import nifti
from jaxkd.phantoms.brain import renderer
from jaxkd.runtime import files

HEADER = ',isv_dst,effect_dst,isv_bin,effect_bin,both_bins,bias_label,class_label,strat_col,filepath,filename'
PARTS = {'train': 0.5, 'val': 0.25, 'test': 0.25}
HOME = '/home/someone/datasets'  # `filepath` holds the paths of whoever wrote the files, not ours


def write(folder, cases, region='near', size=(28, 32, 24), noise=0.02, seed=0, biased=1.0):
    """Write two experiments of `cases` subjects. biased: share of them with bias in the second, alike in both classes."""
    renderer.check(cases, size, region, noise, seed)
    if not 0 <= biased <= 1 or cases < 8:
        raise errors.ConfigError(f'brain: biased={biased} must be 0 to 1 and cases={cases} at least 8, two for each part.')
    known = [renderer.facts(seed, k) for k in range(cases)]
    bins = [_bins([f.subject[0] for f in known]), _bins([f.disease for f in known])]
    start = total = 0
    for part, share in PARTS.items():
        total += share
        stop = round(total * cases / 2) * 2  # pairs of ill and well stay together
        here, start = list(range(start, stop)), stop
        has = _marked(here, known, biased)
        rows = {'clean': [HEADER], 'biased': [HEADER]}
        for n, k in enumerate(sorted(here, key=lambda k: k not in has)):
            for name, b in (('clean', False), ('biased', k in has)):
                f = known[k]
                file = f'{n:05d}_{round(f.subject[0], 3)}_S_{round(f.disease, 3)}_D'
                file += f'_{round(f.bias, 3)}_B' * b + '.nii.gz'
                image = renderer.render(seed, k, size, region, noise, twin=b)
                save(os.path.join(folder, name, part, file), image)
                i, e = bins[0][k], bins[1][k]
                rows[name].append(f'{k},{f.subject[0]!r},{f.disease!r},{i},{e},{i}_{e},{int(b)},{f.label},'
                                  f'{f.label}_{int(b)}_{e}_{i},{HOME}/{name}/{part}/{file},{file}')
        for name, lines in rows.items():
            files.write(os.path.join(folder, name, f'{part}.csv'), '\n'.join(lines) + '\n')


def _marked(here, known, share):
    """The first subjects of each class, as many as the share says."""
    by_class = [[k for k in here if known[k].label == y] for y in (0, 1)]
    return {k for of in by_class for k in of[:round(share * len(of))]}


def _bins(values):
    low, high = min(values), max(values)
    return np.minimum(((np.array(values) - low) / (high - low) * 10).astype(int), 9).tolist()


def save(path, image):
    """A Volume as a file of SimBA's axes."""
    own = image.affine @ np.diag([-1.0, -1.0, 1.0, 1.0])
    own[:3, 3] = volume.world(image.affine, [image.voxels.shape[0] - 1, image.voxels.shape[1] - 1, 0])
    nifti.write(os.fspath(path), np.ascontiguousarray(image.voxels[::-1, ::-1]), own)
