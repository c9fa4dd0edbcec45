"""Masks as COCO writes them: lengths of runs, down the columns, 0 first, as text.

A length is told as its difference from the last but one (from the fourth on), in groups of five bits, the lowest first,
each a character from 48 on; 32 says that another group follows, and 16 in the last one that the number is negative.
"""
import itertools
from collections.abc import Sequence

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import checks


def decode(counts: str, size: Sequence[int], max_pixels: int, location: str) -> np.ndarray:
    """uint8 [H,W] of 0 and 1 from the text and its size (H, W). Raises BadData, naming `where`."""
    def bad(reason: str) -> errors.BadData:
        return checks.bad(location, f'the mask {reason}', 'Copy the file again from where it came')
    if not (isinstance(counts, str) and isinstance(size, (list, tuple)) and len(size) == 2 and all(
            type(n) is int and n > 0 for n in size)):
        raise bad('is not {"size": [rows, columns], "counts": text}')
    if size[0] * size[1] > max_pixels:
        raise bad(f'claims {size[1]} x {size[0]} pixels, more than max_pixels = {max_pixels:,}')
    number, shift = 0, 0
    runs: list[int] = []
    for group in (ord(character) - 48 for character in counts):
        if not 0 <= group < 64 or shift > 35:
            raise bad('has a length that cannot be read')
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            number -= (group & 16) << shift - 4
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            if runs[-1] < 0:
                raise bad('has a run of negative length')
            number = shift = 0
    if shift or sum(runs) != size[0] * size[1]:
        raise bad(f'covers {sum(runs):,} pixels, its size claims {size[0] * size[1]:,}')
    return np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs).reshape(size[::-1]).T


def encode(mask: np.ndarray) -> str:
    """The text of a mask [H,W], to be read with its shape."""
    flat = np.asarray(mask, bool).T.ravel()
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    runs = [0] * bool(flat[0]) + [b - a for a, b in itertools.pairwise(edges)]
    out = []
    for k, number in enumerate(runs):
        number -= runs[k - 2] if k > 2 else 0
        while True:
            group, number = number & 31, number >> 5
            last = number == (-1 if group & 16 else 0)
            out.append(chr(48 + group + (0 if last else 32)))
            if last:
                break
    return ''.join(out)


def encode_masks(masks: np.ndarray) -> str:
    """Masks [n,H,W] of one image as one text: 'H W', then a line for each; '' for none."""
    return '\n'.join(['{} {}'.format(*masks.shape[1:]), *map(encode, masks)]) if len(masks) else ''


def decode_masks(text: str, location: str) -> np.ndarray:
    """uint8 [n,H,W] from what `encode_masks` made. Raises BadData, naming `where`."""
    first, *lines = text.split('\n')
    size = [int(n) for n in first.split()] or [0, 0]
    masks = [decode(line, size, size[0] * size[1], location) for line in lines]
    return np.array(masks, np.uint8).reshape(len(lines), *size)
