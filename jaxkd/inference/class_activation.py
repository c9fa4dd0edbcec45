"""Class activation maps of networks with logits that are linear in the mean of their features, and grey pictures.

    CAM_c = relu(sum_k W_kc F_k)             (Zhou et al., 2016) [published]; relu and linear upsampling [our choice]

W is the weight matrix of the network, of any name, that reproduces its logits numerically.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

CLOSE = 0.02  # of the largest logit: bfloat16 has three digits


def activation(maps: np.ndarray, kernel: np.ndarray, predicted: np.ndarray, size: tuple[int, ...],
               planes: Sequence[int] = ()) -> np.ndarray:
    """Class activation maps, middle slice: maps [n,d,h,w,C], kernel [C,K], predicted int [n] -> [n,H,W], not negative.

    size: (D, H, W) of the network's input. planes: slices of D in place of the middle one, -> [n,planes,H,W]. Linear
    upsampling with half-pixel centres.
    """
    cams = np.maximum(np.einsum('ndhwc,cn->ndhw', np.asarray(maps, np.float32), kernel[:, predicted]), 0)
    depth, height, width = size
    chosen = jax.image.resize(cams, (len(cams), depth, *cams.shape[2:]), 'linear')[:, np.array(planes or [depth // 2])]
    shown = np.asarray(jax.image.resize(chosen, (*chosen.shape[:2], height, width), 'linear'))
    return shown if planes else shown[:, 0]


def head(params: Any, outputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The weights [C, K] from the mean of outputs['features'] [n,d,h,w,C] to outputs['logits'] [n, K], or None."""
    pooled, logits = outputs['features'].mean((1, 2, 3)), outputs['logits']
    smallest: float = CLOSE * max(1.0, np.abs(logits).max())
    best = None
    leaves = {jax.tree_util.keystr(path): np.asarray(a, np.float32)
              for path, a in jax.tree_util.tree_leaves_with_path(jax.device_get(params))}
    for name, kernel in leaves.items():
        if kernel.shape == (pooled.shape[1], logits.shape[1]):
            bias = leaves.get(name.replace("'kernel'", "'bias'"), np.zeros(1, np.float32))
            error = np.abs(pooled @ kernel + bias - logits).max()
            if error < smallest:
                smallest, best = error, kernel
    return best


def grey(plane: np.ndarray) -> np.ndarray:
    """[H, W] -> uint8, from the 1st to the 99th percentile; a slice without contrast is 0."""
    low, high = np.percentile(plane, (1, 99))
    scaled = (plane.astype(np.float32) - low) / max(float(high - low), 1e-6)
    return (255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def upright(pictures: np.ndarray) -> np.ndarray:
    """[..., H, W] of a volume with rows to anterior and columns to the patient's right: both axes flipped."""
    return np.ascontiguousarray(pictures[..., ::-1, ::-1])
