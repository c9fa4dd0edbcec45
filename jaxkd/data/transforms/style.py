"""The same image as another scanner might have shown it, beside the image: record['style'], for contrastive training.

One of these, drawn for each image, in the place of the generative networks of MSVCL (Li et al., MICCAI 2021), whose
styles are six CycleGANs between vendors [our choice of substitutes]:

    gamma      x^(2^g), g in +- `gamma`
    histogram  the quantiles of x become those of a random training image, see harmonise
    fourier    the amplitudes of the lowest frequencies become (1 - l) A + l A', A' those of a random training image,
               l in 0..`mix`; phases stay (Yang and Soatto, CVPR 2020 [published])

`views` are further keys that change their style in place, by draws of their own. What is where stays: no geometry
changes, so list it behind the transforms that change geometry. The references are quantiles and amplitudes of
`references` training images, kept with the checkpoint. Arrays float32 [H,W,c] in [0,1].
"""
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data.transforms import harmonise

DEFAULTS = dict(
    kinds=('gamma', 'histogram', 'fourier'),  # the styles that are drawn from
    gamma=1.0,  # gamma: octaves of the power, either way, 0 to 4
    mix=1.0,  # fourier: the greatest share of the other image's amplitudes, 0 to 1
    frequencies=3,  # fourier: of each axis, beside the mean; below half a side
    references=16,  # training images whose grey values and amplitudes are learned
    key='image',  # the image that is shown in another style
    out='style',  # key of the result
    views=(),  # further images, which change their style in place
)
KINDS = ('gamma', 'histogram', 'fourier')
QUANTILES = 33
Image = Float[np.ndarray, 'h w c']


def build(hp: ConfigDict, fitted: dict[str, Any] | None = None) -> Transform:
    """fitted: what `fit` returned; without it, in checks before training, styles are those of gamma."""
    for kind in hp.kinds:
        errors.check_choice('style.kinds', kind, KINDS)
    for key, bounds in dict(gamma='[0, 4]', mix='[0, 1]', frequencies='[0, 64]', references='[1, 1024]').items():
        errors.check_range(f'style.{key}', hp[key], bounds)
    if not hp.kinds:
        raise errors.ConfigError(f'style.kinds is empty. Name some of {", ".join(KINDS)}.')
    kinds = tuple(hp.kinds) if fitted else ('gamma',)
    return Transform(functools.partial(apply, fitted=fitted, kinds=kinds, gamma=hp.gamma, mix=hp.mix, key=hp.key,
                                       out=hp.out, views=tuple(hp.views)), random=True,
                     eval_mode=functools.partial(unchanged, key=hp.key, out=hp.out),
                     reads=(hp.key, *hp.views), writes=(hp.out, *hp.views))


def fit(hp: ConfigDict, source: Any, indices: Sequence[int], progress: Callable[[Iterable], Iterable]) -> dict:
    """{'quantiles' [R, QUANTILES], 'amplitudes' [R, 2 f + 1, f + 1]} of training images, plain JSON."""
    chosen = [indices[k] for k in np.unique(np.linspace(0, len(indices) - 1, min(hp.references, len(indices)))
                                            .astype(int))]
    images = [_checked(source[i], hp.key) for i in progress(chosen)]
    if min(images[0].shape[:2]) <= 2 * hp.frequencies:
        raise errors.ConfigError(f'style.frequencies = {hp.frequencies} must be below half the side of the image, '
                                 f'{min(images[0].shape[:2])}.')
    quantiles = [harmonise.quantiles_of(image[image > 0] if (image > 0).any() else image, QUANTILES).tolist()
                 for image in images]
    return dict(quantiles=quantiles,
                amplitudes=[amplitudes(image.mean(-1), hp.frequencies).tolist() for image in images])


def apply(record: Record, rng: np.random.Generator, fitted: dict[str, Any] | None, kinds: tuple[str, ...], gamma: float,
          mix: float, key: str, out: str, views: tuple[str, ...]) -> Record:
    """Adds `out`, of the shape of `key`."""
    drawn = functools.partial(restyled, rng=rng, fitted=fitted, kinds=kinds, gamma=gamma, mix=mix)
    return {**record, out: drawn(_checked(record, key)), **{view: drawn(_checked(record, view)) for view in views}}


def unchanged(record: Record, key: str, out: str) -> Record:
    """In evaluation the style of an image is its own."""
    return {**record, out: record[key]}


def restyled(image: Image, rng: np.random.Generator, fitted: dict[str, Any] | None, kinds: tuple[str, ...],
             gamma: float, mix: float) -> Image:
    """In a style that is drawn."""
    kind, amount = kinds[rng.integers(len(kinds))], rng.random()
    if kind == 'gamma' or fitted is None:
        return image ** np.float32(2 ** (gamma * (2 * amount - 1)))
    reference = rng.integers(len(fitted['quantiles']))
    if kind == 'histogram':
        target = dict(quantiles=fitted['quantiles'][reference])
        return np.clip(harmonise.harmonised(image, target, 'histogram', 0.0), 0, 1).astype(np.float32)
    return mixed(image, np.array(fitted['amplitudes'][reference]), mix * amount)


def amplitudes(plane: Float[np.ndarray, 'h w'], frequencies: int) -> Float[np.ndarray, 'rows columns']:
    """|F| / pixels of frequencies 0, 1 ... f, -f ... -1 along the rows and 0 ... f along the columns."""
    rows = np.r_[0:frequencies + 1, -frequencies:0]
    return np.abs(np.fft.rfft2(plane))[rows, :frequencies + 1] / plane.size


def mixed(image: Image, reference: Float[np.ndarray, 'rows columns'], share: float) -> Image:
    """With `share` of the reference's amplitudes at low frequencies, every channel alike, clipped to [0,1]."""
    frequencies = reference.shape[1] - 1
    rows, planes = np.r_[0:frequencies + 1, -frequencies:0], []
    for plane in np.moveaxis(image.astype(np.float64), -1, 0):
        spectrum = np.fft.rfft2(plane)
        low = spectrum[rows, :frequencies + 1]
        wanted = (1 - share) * np.abs(low) + share * reference * plane.size
        spectrum[rows, :frequencies + 1] = wanted * np.exp(1j * np.angle(low))
        planes.append(np.fft.irfft2(spectrum, plane.shape))
    return np.clip(np.stack(planes, -1), 0, 1).astype(np.float32)


def _checked(record: Record, key: str) -> Image:
    image = record.get(key)
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.dtype != np.float32:
        raise errors.ConfigError(f'style: "{key}" is no float32 [H,W,c] in [0,1]. List "image", and "view" for a '
                                 'second view, in data.transforms.')
    return image


PLUGIN = TransformPlugin(fit=fit, fit_prepared=True)
