"""Grey values to a mask by Otsu's threshold (IEEE Trans SMC 1979 [published])."""
import numpy as np


def min_max_scaled(values: np.ndarray) -> np.ndarray:
    """Scaled to [0, 1] from the smallest to the largest value, any shape; all 0 for a constant array."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros(values.shape)


def otsu(values: np.ndarray) -> np.ndarray:
    """Bool mask above Otsu's threshold, of the scaled array in 256 grey levels; the lowest among equals."""
    grey = np.rint(255 * min_max_scaled(values)).astype(np.uint8)
    count = np.bincount(grey.ravel(), minlength=256).astype(float)
    below, total_below = np.cumsum(count), np.cumsum(count * np.arange(256))
    n, total = below[-1], total_below[-1]
    top, bottom = np.square(total * below - n * total_below), below * (n - below)
    # variance between the two sides
    between = np.divide(top, bottom, out=np.full(bottom.shape, -1.0), where=bottom != 0)
    return grey > np.argmax(np.nan_to_num(between, nan=-1))
