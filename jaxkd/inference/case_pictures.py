"""Overlays of predictions, PNG on the grid of the network: the outline of a mask in the slice with most of it, or a map
of where a classifier looks: the attention of a ViT (mean over the heads of the last block), or the class activation map
of the most probable label for networks that are linear in their pooled features (there Grad-CAM gives the same).
"""
import io
import pathlib

import numpy as np

from jaxkd import contracts, parallel
from jaxkd.inference import class_activation
from jaxkd.inference.case_reader import Prepared
from jaxkd.inference.deployed import Deployed, NetworkModel
from jaxkd.inference.masks import safe
from jaxkd.inference.predictor import Batch
from jaxkd.metrics import attention
from jaxkd.runtime import files

COLOURS = np.array([(230, 60, 60), (60, 160, 240), (250, 190, 50), (80, 200, 120), (200, 100, 220), (0, 200, 200)],
                   np.uint8)
_LEAST = 256  # pixels of the longer side of a picture


def maps(deployed: Deployed, batch: Batch, logits: np.ndarray) -> np.ndarray | None:
    """Where the network looks, float [B,H,W] over the picture or the middle slice; None where it cannot be said."""
    model, places = deployed.model, batch[deployed.inputs[0]].shape[1:-1]
    if not isinstance(model, NetworkModel) or len(places) not in (2, 3):
        return None
    module = model.network.module
    if isinstance(module, contracts.ShowsAttention) and len(places) == 2 and places[0] == places[1]:
        weights = parallel.to_host(model.predict_batch(batch, ('attention',), ('attention',)))['attention']
        return attention.upsample(attention.last_mean(weights, module.registers), places[0])
    shapes = model.shapes(batch)
    if 'features' not in shapes or len(shapes['features'].shape) != len(places) + 2:
        return None
    features = np.asarray(parallel.to_host(model.predict_batch(batch, ('features',)))['features'], np.float32)
    features = features if len(places) == 3 else features[:, None]
    kernel = class_activation.head(model.variables['params'], {'features': features, 'logits': logits})
    size = (1, *places)[-3:]
    return None if kernel is None else class_activation.activation(features, kernel, logits.argmax(1), size)


def write_case(out: pathlib.Path, case: str, prepared: Prepared, deployed: Deployed, heat: np.ndarray | None
               ) -> dict[str, str]:
    """The picture of a whole case, under the map of it -> {'overlay': name}; {} of text and tables."""
    pixels = prepared.case[deployed.inputs[0]]
    if pixels.ndim not in (3, 4):
        return {}
    plane = (pixels if pixels.ndim == 3 else pixels[pixels.shape[0] // 2])[..., :3]
    picture = _grey(plane)
    if heat is not None:
        strength = (heat - heat.min()) / max(float(np.ptp(heat)), 1e-12)
        picture = _blend(picture, np.array([255, 60, 0], np.uint8), 0.6 * strength[..., None])
    return _write(out, case, _upright(picture, prepared.volumetric))


def write_scan(out: pathlib.Path, case: str, prepared: Prepared, deployed: Deployed, label: np.ndarray
               ) -> dict[str, str]:
    """The slice with most foreground, and the outline of each class of the label map [D,H,W] in it."""
    from scipy import ndimage
    z = int((label > 0).sum((1, 2)).argmax())
    picture = _grey(prepared.scan[deployed.inputs[0]][z][..., :3])
    for c in range(1, len(deployed.labels)):
        inside = label[z] == c
        edge = inside & ~ndimage.binary_erosion(inside)
        picture[edge] = COLOURS[(c - 1) % len(COLOURS)]
    return _write(out, case, _upright(picture, prepared.volumetric))


def _grey(plane: np.ndarray) -> np.ndarray:
    """[H,W,1 or 3] -> uint8 [H,W,3]."""
    channels = [class_activation.grey(plane[..., c]) for c in range(plane.shape[-1] if plane.shape[-1] == 3 else 1)]
    return np.stack(channels * (3 // len(channels)), -1)


def _upright(picture: np.ndarray, volumetric: bool) -> np.ndarray:
    return np.ascontiguousarray(picture[::-1, ::-1]) if volumetric else picture


def _blend(picture: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.rint(picture * (1 - alpha) + colour * alpha).astype(np.uint8)


def _write(out: pathlib.Path, case: str, picture: np.ndarray) -> dict[str, str]:
    from PIL import Image
    times = max(1, -(-_LEAST // max(picture.shape[:2])))
    name, content = f'overlays/{safe(case)}.png', io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(picture, times, 0), times, 1)).save(content, 'PNG')
    files.write(out / name, content.getvalue())
    return {'overlay': name}
