"""What all convolutional classifiers share: volumes in, five levels, a projection, the mean over places, linear logits.

    x -> trunk -> level0 ... level4 -> 1^3 convolution to `features`, norm, leaky ReLU = features -> mean over places =
    pooled -> linear = logits
features=0 leaves the projection out: features are then level4.

Input: a dict of volumes [B,D,H,W,C] (dims=2: images [B,H,W,C]) under any names, of one shape, and optionally
inputs['present'] {name: [B]}: a volume that is absent where it is 0 is not read at all. Integers are fixed point and
are divided by jaxkd.data.volume.FIXED here, floats are taken as they are. With mean and std (given together) they
become (x - mean) / std, one value for all channels or one for each; three values make three channels of a grey image,
as networks trained on photographs expect. With several volumes:
    fuse='mean'      one encoder reads each of them; levels, features and pooled are means over those that are present
                     (zeros
                     where none is), logits come from the mean pooled
    fuse='channels'  they are stacked as channels in alphabetical order, an absent one as zeros

Returns: logits float32 [B,outputs] (absent for outputs=0), pooled float32 [B,features], features [B,d,h,w,features],
level0 ... level4 [B,D,H,W,C] (in some models under second names, too).
Parameters: trunk/..., project/{conv/kernel, norm/{scale, bias}}, head/linear/{kernel, bias}.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Num
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.data.volume import FIXED
from jaxkd.models.layers import transformer
from jaxkd.models.layers.convolution import NORMS, Style, Unit
from jaxkd.models.layers.operations import FeatureMap

DEFAULTS = dict(
    dims=3,  # 2 for images, 3 for volumes
    width=1.0,  # factor of all channels but `features`, above 0
    features=256,  # channels of features and pooled; 0: those of the last level
    norm='group',  # normalisation: group, layer or instance; some models: batch
    weight_standardisation=True,  # standardise the kernels of convolutions, for small batches
    fuse='mean',  # several volumes: mean (one encoder for all, mean of what it gives) or channels (stacked)
    mean=(),  # of the input, subtracted first: one value for all channels or one for each; (): it comes normalised
    std=(),  # of the input, divided by: as many values as `mean`
    stem_stride=(1, 2, 2),  # of the first convolution: depth, height, width; dims=2 reads the last two
    dropout=0.0,  # share of pooled features dropped before the head, 0 to below 1
    remat=False,  # compute the blocks again in the backward pass: less memory, about a third more time
)


def build(hp: ConfigDict, trunk: nn.Module, outputs: int, style: Style,
          aliases: Sequence[tuple[str, str]] = ()) -> 'Backbone':
    """The module around `trunk`, a flax module x -> five levels (x, train -> five levels where the norm is batch).

    aliases: pairs (second name, output). Raises ConfigError for a choice that does not exist.
    """
    errors.check_choice('model.fuse', hp.fuse, ('mean', 'channels'))
    check_mean_std(hp)
    return Backbone(trunk, FrozenConfigDict(hp), outputs, style, tuple(aliases))


def check_mean_std(hp: ConfigDict) -> None:
    """ConfigError unless model.mean and model.std of the input have one length, 0 for none, and std is positive."""
    if len(hp.mean) != len(hp.std) or min(hp.std, default=1) <= 0:
        raise errors.ConfigError(f'model.mean = {tuple(hp.mean)} and model.std = {tuple(hp.std)}: give as many values '
                                 'of mean as of std, and positive std.')


def check_dims(hp: ConfigDict) -> None:
    """ConfigError unless model.dims is 2 or 3."""
    if hp.dims not in (2, 3):
        raise errors.ConfigError(f'model.dims = {hp.dims}: a network reads images (2) or volumes (3).')


def style(hp: ConfigDict, dtype: DTypeLike, norms: Sequence[str] = tuple(NORMS)) -> Style:
    """What the layers share. Raises ConfigError for norms, dims and widths that do not exist."""
    errors.check_choice('model.norm', hp.norm, norms)
    check_dims(hp)
    if hp.width <= 0 or hp.features < 0:
        raise errors.ConfigError(f'model.width = {hp.width} must be positive and model.features = {hp.features} not '
                                 'negative.')
    if len(hp.stem_stride) != 3 or min(hp.stem_stride) < 1:
        raise errors.ConfigError(f'model.stem_stride = {tuple(hp.stem_stride)} must be three positive numbers: depth, '
                                 'height, width.')
    return Style(hp.norm, hp.weight_standardisation, jnp.dtype(dtype))


def strides(hp: ConfigDict, count: int) -> tuple[tuple[int, ...], ...]:
    """`count` strides of the levels that halve the plane, their depth from hp.depth_strides; see the model's
    DEFAULTS.
    """
    if len(hp.depth_strides) != count or min(hp.depth_strides) < 1:
        raise errors.ConfigError(f'model.depth_strides = {tuple(hp.depth_strides)} must be {count} positive numbers.')
    return tuple((d, 2, 2)[-hp.dims:] for d in hp.depth_strides)


def channels(width: float, n: int) -> int:
    """`n` channels times `width`, to the nearest multiple of 8, at least 8 and not below 90 % (as MobileNetV2's code
    does).
    """
    nearest = max(8, int(width * n + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * width * n else nearest + 8


class Backbone(nn.Module):
    """See the module's docstring."""

    trunk: nn.Module
    hp: FrozenConfigDict
    outputs: int
    style: Style
    aliases: tuple[tuple[str, str], ...]

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        hp = self.hp
        names, volumes, present = read(inputs, hp.dims, hp.mean, hp.std)
        batch = volumes[0].shape[0]
        x = jnp.concatenate(volumes, -1 if hp.fuse == 'channels' else 0)

        levels = self.trunk(x, train) if self.style.norm == 'batch' else self.trunk(x)
        last = levels[-1]
        if hp.features:
            last = Unit(hp.features, 1, style=self.style, name='project')(last, train)
        out = {f'level{i}': level for i, level in enumerate(levels)} | {'features': last}
        if hp.fuse == 'mean' and (len(names) > 1 or present):
            flags = jnp.stack([present.get(name, jnp.ones(batch, bool)) for name in names])  # [volumes,B]
            out = {name: masked_mean(value.reshape(len(names), batch, *value.shape[1:]), flags)
                   for name, value in out.items()}
        places = tuple(range(1, out['features'].ndim - 1))
        out |= {alias: out[name] for alias, name in self.aliases}
        out['pooled'] = jnp.mean(out['features'].astype(jnp.float32), places)
        return transformer.with_logits(out, self.outputs, hp.dropout, train)


def read(inputs: Mapping[str, Any], dims: int, mean: tuple[float, ...] = (),
         std: tuple[float, ...] = ()) -> tuple[list[str], list[Array], dict[str, Array]]:
    """-> names in alphabetical order, their volumes decoded, normalised and zero where absent, {name: bool [B]} of
    flags.
    """
    names = sorted(k for k in inputs if k != 'present')
    shapes = {name: inputs[name].shape for name in names}
    if not names:
        raise errors.ConfigError('A convolutional network has no volume as input. Name at least one in inputs.')
    for name, shape in shapes.items():
        if len(shape) != dims + 2:
            raise errors.ConfigError(f'Input "{name}" has the shape {shape}, but model.dims = {dims} reads '
                                     f'{"[B,D,H,W,C]" if dims == 3 else "[B,H,W,C]"}. Set dims to {len(shape) - 2}, or '
                                     'choose another input.')
    if len(set(shapes.values())) > 1:
        raise errors.ConfigError(f'The volumes of one network must have one shape, these have {shapes}. Cut them to '
                                 'one size.')
    volumes = [normalise(decode(inputs[name]), mean, std) for name in names]
    present = inputs.get('present', {})
    present = {n: jnp.asarray(present[n]) > 0 for n in names if n in present}
    return names, [zero_absent(present.get(name), volume) for name, volume in zip(names, volumes)], present


def decode(x: Num[Array, '*shape']) -> Float[Array, '*shape']:
    """Fixed point (integers) to float32; floats as they are."""
    return x.astype(jnp.float32) / FIXED if jnp.issubdtype(x.dtype, jnp.integer) else x


def normalise(x: FeatureMap, mean: tuple[float, ...],
              std: tuple[float, ...]) -> Float[Array, 'batch *places out_channels']:
    """(x - mean) / std for one value, or one for each channel; a single channel becomes as many as there are values."""
    if mean and len(mean) != 1 and x.shape[-1] not in (1, len(mean)):
        raise errors.ConfigError(f'An input has {x.shape[-1]} channels, model.mean and model.std have {len(mean)} '
                                 'values. Give one for all channels or one for each.')
    return (x - jnp.array(mean)) / jnp.array(std) if mean else x


def zero_absent(present: Bool[Array, ' batch'] | None, x: Float[Array, ' batch *rest']) -> Float[Array, ' batch *rest']:
    """x [B,...] with zeros in the rows that are not present; None: all are."""
    return x if present is None else jnp.where(present.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def masked_mean(x: Float[Array, 'n batch *rest'], flags: Bool[Array, 'n batch']) -> Float[Array, ' batch *rest']:
    """Mean over the first axis of x [n,B,...] where flags [n,B] are set; zeros where none is."""
    flags = flags.reshape(*flags.shape, *[1] * (x.ndim - 2))
    count = jnp.maximum(jnp.sum(flags, 0), 1)
    return (jnp.sum(jnp.where(flags, x.astype(jnp.float32), 0), 0) / count).astype(x.dtype)
