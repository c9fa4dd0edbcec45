"""A folder of pictures and masks: labelled slices of the heart phantom as PNG, grey pictures and one mask each.

    images/p000000_ED_03.png, masks/p000000_ED_03.png
"""
import os

import numpy as np

from jaxkd.phantoms import common, encode
from jaxkd.phantoms.heart import archive, renderer
from jaxkd.runtime import files

VALUES = {'binary': (0, 0, 0, 255), 'refuge': (255, 255, 128, 0)}  # grey values of the phantom's labels


def write(folder: str | os.PathLike, patients: int, domain: str = 'A', seed: int = 0, size: int = 64,
          slices: tuple[int, int] = (8, 10), difficulty: float = 0.5, values: str = 'binary') -> None:
    """Write the labelled slices of each patient at end-diastole and end-systole.

    domain: the scanner, 'A' or 'B'. size: pixels of the square picture, 32..512. slices: fewest and most of a patient,
    6..16. difficulty: 0 plain .. 1 noise, and a liver of the muscle's grey. values: grey values of the masks, 'binary',
    the left ventricle alone, 255; or 'refuge', where it is the cup, 0, and the muscle is the rim of the disc, 128.
    Raises ConfigError, CannotWrite.
    """
    common.check_choice('heart', 'values', values, VALUES)
    cohort = archive.Cohort(patients, domain, seed, size, slices, difficulty)
    grey = np.array(VALUES[values], np.uint8)
    for patient, truth in enumerate(cohort.facts()):
        for phase, k in zip(renderer.PHASES, renderer.FRAMES):
            image, label, _ = cohort.frame(patient, k)
            image = renderer.grey(image)
            for z in np.flatnonzero(truth.labelled(phase)):
                for kind, picture in (('images', image[z]), ('masks', grey[label[z]])):
                    path = os.path.join(folder, kind, f'{renderer.study(patient, phase)}_{z:02d}.png')
                    files.write(path, encode.picture(archive.narrow(picture, patient), 'png'))
