"""Several inputs, of which those that a case lacks are made of what it has (SMIL, Ma et al., AAAI 2021 [published]).

    f_m = pooled features of input m by an encoder of its own; of an input that the case lacks
          sum_k w_k c_mk / sum_k w_k,  w = softplus(W_m [f] + b_m),  c_m1 ... c_mK centroids of f_m    [published K: 10]
    h_0 = [f_1, ..., f_M],  h_i = relu(dense(g_{i-1})),  g_0 = h_0,  g_i = h_i + softplus(mu_i(h_i) + e),  e ~ N(0, 1)
    logits = linear of g_2

[f] are the features that the case has, with zeros for the others, so that of two inputs one is made of the other
[published], and of more of all that there are [our choice]. Centroids are no parameters: the method `smil` fits them
before its first step, until then they are random. Noise is added in training [published: 30 draws in tests, too]; in
evaluation it is its expectation over e, by quadrature [our choice], so that equal inputs have equal outputs.

Input: those that `encoders` names, and optionally inputs['present'] {name: [B]}. Returns: logits [B,outputs] (absent
for outputs=0), pooled [B,width] (g_2), fused1, fused2 [B,width] (h_1, h_2), feature_<input> [B,d] (zeros where it is
lacking), present float32 [B,M]. Parameters: <input>/..., weights_<input>, fuse1, fuse2, noise1, noise2, head/linear;
its own collection `centroids`:
<input>_centroids [K,d].
"""
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import ModelPlugin
from jaxkd.models.layers import inputs as several
from jaxkd.models.layers import transformer

DEFAULTS = dict(
    encoders={},  # input -> name and options of a model with the output pooled
    clusters=10,  # number of centroids of the features of an input
    width=64,  # number of fused features
    dropout=0.0,  # share of pooled features dropped before the head, 0 to below 1
)
# e, weight: the mean over e ~ N(0, 1) of a smooth function is sum weight function(e)
NODES, WEIGHTS = (a.astype(np.float32) for a in np.polynomial.hermite_e.hermegauss(12))
WEIGHTS /= WEIGHTS.sum()


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Errors are those of the encoders."""
    errors.check_range('model.clusters', hp.clusters, '[1, inf)')
    errors.check_range('model.width', hp.width, '[1, inf)')
    names, encoders = several.encoders(hp, 'smil', dtype)
    return Smil(names, encoders, hp.clusters, hp.width, outputs, hp.dropout)


def mixed(scores: Float[Array, 'batch k'], centroids: Float[Array, 'k d']) -> Float[Array, 'batch d']:
    """sum_k w_k c_k / sum_k w_k, w = softplus(scores)."""
    w = jax.nn.softplus(scores)
    return w @ centroids / jnp.maximum(w.sum(-1, keepdims=True), 1e-12)


def expected_noise(mu: Float[Array, '*shape']) -> Float[Array, '*shape']:
    """The mean of softplus(mu + e) over e ~ N(0, 1)."""
    return jax.nn.softplus(mu[..., None] + NODES) @ WEIGHTS


class Smil(nn.Module):
    """See the module's docstring."""

    names: tuple[str, ...]
    encoders: tuple[nn.Module, ...]
    clusters: int
    width: int
    outputs: int
    dropout: float

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        present = several.flags('smil', self.names, inputs)
        features = {name: several.pooled(encoder.clone(name=name, parent=self), name, inputs, present[:, m], train)
                    for m, (name, encoder) in enumerate(zip(self.names, self.encoders))}
        known, complete = jnp.concatenate([*features.values()], -1), []
        for m, (name, feature) in enumerate(features.items()):
            centroids = self.variable('centroids', f'{name}_centroids', lambda shape: jax.random.normal(
                self.make_rng('params'), shape), (self.clusters, feature.shape[-1]))
            made = mixed(nn.Dense(self.clusters, name=f'weights_{name}')(known), centroids.value)
            complete.append(jnp.where(present[:, m, None] > 0, feature, made))
        h, out = jnp.concatenate(complete, -1), {f'feature_{name}': feature for name, feature in features.items()}
        for i in (1, 2):
            out[f'fused{i}'] = h = nn.relu(nn.Dense(self.width, name=f'fuse{i}')(h))
            mu = nn.Dense(self.width, name=f'noise{i}')(h)
            h = h + (jax.nn.softplus(mu + jax.random.normal(self.make_rng('dropout'), mu.shape)) if train else
                     expected_noise(mu))
        out |= {'present': present, 'pooled': h}
        return transformer.with_logits(out, self.outputs, self.dropout, train)


PLUGIN = ModelPlugin(parts={'encoders': 'models'})
