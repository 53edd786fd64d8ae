"""Stands in for an optimiser: BF16 weights move by about one unit in the last place, differently in every version.

The step of an element depends on its tensor, its place in the whole tensor and the version alone, so a rank that steps
its own shard and a process that steps the whole tensor get the same values.
"""

from __future__ import annotations

import zlib

import ml_dtypes
import numpy as np

RELATIVE_STEP = np.float32(2.0**-8)
_NOISE_VALUES = 65537  # a prime, so that rows of a matrix do not repeat the same noise


def step(values: np.ndarray, first_element: int, tensor: str, version: int) -> None:
    """Takes BF16 `values` from `version` - 1 to `version`, in place.

    `values` is contiguous and holds the elements of `tensor` from row-major index `first_element` on.
    """
    if not values.flags.c_contiguous:
        raise ValueError(f"{tensor}: a shard must be contiguous to be stepped in place")
    noise = np.random.default_rng([version, zlib.crc32(tensor.encode())]).standard_normal(_NOISE_VALUES, np.float32)
    noise = np.roll(noise, -(first_element % _NOISE_VALUES))
    flat = values.reshape(-1)
    for first in range(0, flat.size, _NOISE_VALUES):
        piece = flat[first : first + _NOISE_VALUES]
        before = piece.astype(np.float32)
        piece[...] = (before + before * noise[: piece.size] * RELATIVE_STEP).astype(ml_dtypes.bfloat16)
