"""mini-MIAS: films of the breast phantom as PGM of 1024 x 1024 pixels, and Info.txt with a line for each lesion.

    mdb001.pgm ..., Info.txt

MLO alone, two films to a patient, the even ones of left breasts. Patients with lesions in one breast get a normal film
of the other. Every ninth lesion has no position.
"""
import os

import numpy as np

from jaxkd.data.sources import mini_mias
from jaxkd.phantoms.breast import findings, renderer
from jaxkd.runtime import files

_INTRODUCTION = 'A phantom, rendered: no film and no patient.\nFilm  tissue  class  severity  x  y  radius\n\n'


def write(folder: str | os.PathLike, patients: int, seed: int = 0, size: int = 128, difficulty: float = 0.5,
          kind: str = 'both') -> None:
    """Write two films for each patient, and the list of lesions.

    size: rows of an image before it is enlarged to a film, 64..1024. difficulty: 0 plain .. 1 faint lesions and noise.
    kind: of lesions, 'mass', 'calc' or 'both'. Raises ConfigError, CannotWrite.
    """
    renderer.check(size, difficulty, seed, kind, patients)
    lines = []
    for patient in range(patients):
        truth = renderer.facts(seed, patient, kind)
        tissue = mini_mias.TISSUE[min(2, truth.anatomy.density - 1)]
        for side in ('RIGHT', 'LEFT'):
            name = f'mdb{2 * patient + 1 + (side == "LEFT"):03d}'
            normal = side not in truth.lesions
            rendered = next(iter(truth.lesions)) if normal else side
            case = renderer.render(seed, patient, rendered, 'MLO', size, difficulty, kind, draw=not normal)
            pixels, scale, left = _film(case['image'][:, ::-1] if normal else case['image'])
            header = f'P5\n{mini_mias.SIDE} {mini_mias.SIDE}\n255\n'
            files.write(os.path.join(folder, f'{name}.pgm'), header.encode() + pixels.tobytes())
            if normal:
                lines.append(f'{name} {tissue} NORM')
                continue
            for k, (lesion, box) in enumerate(zip(truth.lesions[side], case['boxes'][:, 1:] * scale)):
                missing = '*NOTE 3*' if lesion.kind == 'calcification' else ''
                place = _place(box, left) if (patient + k) % 9 else missing
                lines.append(f'{name} {tissue} {_class(lesion)} {"M" if lesion.malignant else "B"} {place}'.strip())
    files.write(os.path.join(folder, 'Info.txt'), _INTRODUCTION + '\n'.join(lines) + '\n')


def _place(box: np.ndarray, left: int) -> str:
    """Centre and radius of a lesion in pixels of the film, y from the bottom; box x, y, w, h."""
    x, y, w, h = box
    return f'{int(left + x + w / 2)} {mini_mias.SIDE - 1 - int(y + h / 2)} {max(1, int(np.hypot(w, h) / 2))}'


def _film(picture: np.ndarray) -> tuple[np.ndarray, float, int]:
    """(uint8 [1024,1024], scale, left): the picture, uint16 [H,W], scaled to the height of a film and centred in it."""
    from PIL import Image
    scale = mini_mias.SIDE / picture.shape[0]
    width = round(picture.shape[1] * scale)
    grey = Image.fromarray((np.ascontiguousarray(picture) >> 8).astype(np.uint8)).resize((width, mini_mias.SIDE))
    film, left = np.zeros((mini_mias.SIDE, mini_mias.SIDE), np.uint8), (mini_mias.SIDE - width) // 2
    film[:, left:left + width] = np.asarray(grey)
    return film, scale, left


def _class(lesion: findings.Lesion) -> str:
    """The class that mini-MIAS would give a lesion."""
    if lesion.kind == 'calcification':
        return 'CALC'
    words = (('SPIC', 'SPICULATED'), ('ARCH', 'ARCHITECTURAL_DISTORTION'), ('ASYM', 'ASYMMETRIC_BREAST_TISSUE'),
             ('ASYM', 'FOCAL_ASYMMETRIC_DENSITY'), ('CIRC', 'CIRCUMSCRIBED'))
    return next((short for short, word in words if lesion.has(word)), 'MISC')
