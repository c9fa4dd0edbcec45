"""Scanners of the pancreas phantom: signals of tissues in CT and MRI, and the settings of each centre.

CT: Hounsfield units of the portal venous phase. MRI: spoiled gradient echo for T1 and spin echo for T2,
    GRE = PD sin(a) (1 - E) / (1 - E cos(a)) exp(-TE/T2),  E = exp(-TR/T1),        [published: Ernst]
    SE  = PD (1 - exp(-TR/T1)) exp(-TE/T2).
Relaxation times of organs at 3 T are those of the abstract of [published: de Bazelaire 2004, Radiology 230:652]. Those
at 1.5 T are after the same study, those of blood after Stanisz 2005 (Magn Reson Med 54:507); neither was compared with
the papers' tables. All else is [our choice]: fluid, bowel, tumour and cortical bone, the proton densities, T2 in the
place of T2*, a dark signal of flowing blood in the spin echo, the scanner settings.
"""
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from jaxkd.phantoms import common

F = np.float32
CT = dict(air=-1000, gas=-950, fat=-100, muscle=60, cortex=420, marrow=180, fluid=12, blood=160, liver=110, spleen=120,
          kidney=175, bowel=40, pancreas=100, tumour=60, cyst=15)
# Proton density, T1 and T2 in ms at 1.5 T, T1 and T2 at 3 T.
TISSUES = dict(
    air=(0, 1, 1, 1, 1), gas=(0, 1, 1, 1, 1), cortex=(0.15, 400, 2, 450, 2),
    fat=(0.9, 343, 58, 382, 68), marrow=(0.8, 549, 49, 586, 49), muscle=(0.8, 856, 27, 898, 29),
    liver=(0.75, 586, 46, 809, 34), spleen=(0.8, 1057, 79, 1328, 61), pancreas=(0.8, 584, 46, 725, 43),
    kidney=(0.85, 966, 87, 1142, 76), blood=(0.85, 1441, 290, 1932, 275), bowel=(0.8, 1000, 60, 1200, 55),
    tumour=(0.85, 1000, 70, 1250, 62), fluid=(1, 3000, 900, 3500, 800), cyst=(1, 2600, 700, 3000, 600))
FLOW = 0.15  # remaining fraction of the signal of flowing blood in a spin echo
SUPPRESSED = 0.12  # remaining fraction of the signal of fat


@dataclasses.dataclass(frozen=True)
class Centre:
    """One hospital. Voxel sizes are factors of the nominal voxel, in plane and across slices."""

    fraction: float  # of all patients
    ct_voxel: tuple
    blur: float  # mm, standard deviation of the kernel's point spread, and of the grain of noise
    noise: float  # HU in a point of a 3 mm slice
    tesla: float
    t1: tuple  # TR and TE in ms, flip angle in degrees
    t2: tuple  # TR and TE in ms
    suppression: tuple  # of fat, in T1 and in T2
    t1_voxel: tuple
    t2_voxel: tuple
    mr_noise: float  # as a fraction of the pancreas's T1 and T2 signal


CENTRES = dict(
    A=Centre(0.40, (1.0, 1.0), 0.7, 13, 3.0, (3.9, 1.3, 10), (3800, 85), (True, True), (1.1, 1.0), (1.1, 1.15), 0.05),
    B=Centre(0.27, (0.95, 0.85), 0.55, 18, 1.5, (4.6, 2.2, 11), (3200, 92), (True, True), (1.25, 1.0), (1.2, 1.2),
             0.07),
    C=Centre(0.20, (1.0, 1.1), 0.85, 11, 1.5, (120, 4.6, 70), (2800, 100), (False, False), (1.2, 1.1), (1.25, 1.25),
             0.08),
    D=Centre(0.13, (1.05, 1.0), 0.65, 16, 3.0, (4.2, 1.4, 9), (4500, 95), (True, False), (1.0, 1.0), (1.15, 1.1), 0.06))


@functools.lru_cache
def signals(centre: str, modality: str) -> dict[str, float]:
    """{tissue: MR signal} of modality 't1' or 't2' at a centre, the pancreas being 1."""
    c = CENTRES[centre]
    out = {}
    for name, (density, *times) in TISSUES.items():
        t1, t2 = times[:2] if c.tesla < 2 else times[2:]
        if modality == 't1':
            tr, te, flip = c.t1
            e, a = np.exp(-tr / t1), np.radians(flip)
            s = density * np.sin(a) * (1 - e) / (1 - e * np.cos(a)) * np.exp(-te / t2)
        else:
            tr, te = c.t2
            s = density * (1 - np.exp(-tr / t1)) * np.exp(-te / t2) * (FLOW if name == 'blood' else 1)
        out[name] = float(s * (SUPPRESSED if name == 'fat' and c.suppression[modality == 't2'] else 1))
    return {name: s / out['pancreas'] for name, s in out.items()}


def ct(image: np.ndarray, step: Sequence[float], centre: str, amount: float, rng: np.random.Generator) -> np.ndarray:
    """The image [X,Y,Z] in HU through the kernel of a centre, with the noise of the centre times `amount`.

    Noise of a Gaussian grain s, averaged over a voxel of width h, retains the fraction s^2 / (s^2 + h^2/12) of its
    variance in plane, and 3 mm / slice across.
    """
    c = CENTRES[centre]
    grain = (c.blur ** 2 + step[0] ** 2 / 12) ** 0.5
    level = c.noise * amount * c.blur / grain * (3 / step[2]) ** 0.5
    noise = smooth(rng.standard_normal(image.shape, dtype=F), c.blur / step[0], True)
    return smooth(image, c.blur / step[0]) + F(level) * noise


def mri(image: np.ndarray, centre: str, amount: float, rng: np.random.Generator) -> np.ndarray:
    """The signal [X,Y,Z] under a smooth bias field, with Rician noise, in a scanner's arbitrary units."""
    level = F(CENTRES[centre].mr_noise * amount)
    slope, bend, gain = rng.normal(0, 0.12, 3), rng.normal(0, 0.1, 3), rng.uniform(180, 420)
    for axis, at in enumerate(np.ix_(*(np.linspace(-1, 1, n, dtype=F) for n in image.shape))):
        image = image * np.exp(F(slope[axis]) * at + F(bend[axis]) * at * at)
    a, b = rng.standard_normal((2, *image.shape), dtype=F)
    return F(gain) * np.hypot(image + level * a, level * b)


def smooth(image: np.ndarray, sigma: float, unit: bool = False) -> np.ndarray:
    """A Gaussian blur in plane of `sigma` voxels; unit: the variance of white noise is preserved."""
    if sigma < 0.25:
        return image
    mx, my = (common.blur_matrix(n, float(sigma), unit) for n in image.shape[:2])
    return my @ (mx @ image.reshape(len(image), -1)).reshape(image.shape)
