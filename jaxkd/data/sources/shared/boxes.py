"""Boxes [n,5]: label, x, y, w, h in pixels."""
from collections.abc import Sequence

import numpy as np


def boxes_of_masks(labels: Sequence[int], masks: np.ndarray) -> np.ndarray:
    """The box of each mask [n,H,W], of which none is empty -> float32 [n,5]."""
    out = np.zeros((len(labels), 5), np.float32)
    for box, label, mask in zip(out, labels, masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = label, columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1
    return out
