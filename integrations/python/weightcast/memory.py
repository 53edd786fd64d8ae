"""Arrays as memory: address, strides and allocation of NumPy arrays and torch tensors, without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# Names of element types as the core spells them; `uint16` and `uint8` are how NumPy carries BF16 and FP8 (and scales of one
# byte) without ml_dtypes.
_DTYPES = {
    "bfloat16": "bf16",
    "uint16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e8m0fnu": "e8m0",
    "uint8": "byte",
    "int32": "word",
}
DTYPES_OF_RECIPE = {
    "bf16": {"bf16"},
    "fp16": {"fp16"},
    "fp32": {"fp32"},
    "fp8_e4m3_128x128_fp32": {"fp8_e4m3", "byte"},
    "fp8_e4m3_128x128_ue8m0": {"fp8_e4m3", "byte"},
    "fp8_e4m3_tensor": {"fp8_e4m3", "byte"},
    "fp8_e4m3_channel": {"fp8_e4m3", "byte"},
    "mxfp8_e4m3_1x32": {"fp8_e4m3", "byte"},
    "nvfp4_e2m1_1x16": {"byte"},
    "e8m0": {"e8m0", "byte"},
    "word": {"word"},
    "e4m3": {"fp8_e4m3", "byte"},
}


@dataclass(frozen=True)
class View:
    """Where an array lies. `allocation` is the run of memory that it is a part of: (first address, bytes)."""

    address: int
    shape: tuple[int, ...]
    strides_bytes: tuple[int, ...]
    dtype: str
    kind: str  # "host" or "cuda"
    bytes: int
    allocation: tuple[int, int]


def view_of(array: Any) -> View:
    """The view of a NumPy array or a torch tensor; TypeError for anything else or for an element type we do not move."""
    if isinstance(array, np.ndarray):
        name, address, kind = array.dtype.name, array.__array_interface__["data"][0], "host"
        strides, bytes_, allocation = array.strides, array.nbytes, _allocation_of_numpy(array)
    elif hasattr(array, "untyped_storage"):
        name, address = str(array.dtype).removeprefix("torch."), array.data_ptr()
        kind = {"cpu": "host", "cuda": "cuda"}[array.device.type]
        strides = tuple(s * array.element_size() for s in array.stride())
        bytes_, storage = array.numel() * array.element_size(), array.untyped_storage()
        allocation = (storage.data_ptr(), storage.nbytes())
    else:
        raise TypeError(f"expected a NumPy array or a torch tensor, got {type(array).__name__}")
    if name not in _DTYPES:
        raise TypeError(f"elements of type {name} are not moved; known are {', '.join(sorted(_DTYPES))}")
    return View(address, tuple(array.shape), tuple(strides), _DTYPES[name], kind, bytes_, allocation)


def _allocation_of_numpy(array: np.ndarray) -> tuple[int, int]:
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    first = root.__array_interface__["data"][0]
    reach = [(n - 1) * stride for n, stride in zip(root.shape, root.strides, strict=True) if n > 1]
    low, high = first + sum(r for r in reach if r < 0), first + sum(r for r in reach if r > 0)
    return low, high + root.itemsize - low


class Regions:
    """The allocations that the entries of one catalog lie in; each is registered once, however many tensors it holds."""

    def __init__(self) -> None:
        self._regions: list[dict] = []
        self._index: dict[tuple[int, int], int] = {}

    def extent_of(self, view: View) -> dict:
        """Where the view lies, as catalog fields."""
        first, bytes_ = view.allocation
        if view.allocation not in self._index:
            self._index[view.allocation] = len(self._regions)
            name = f"allocation {len(self._regions)}"
            self._regions.append({"name": name, "bytes": bytes_, "kind": view.kind, "address": first})
        index = self._index[view.allocation]
        return {"region": index, "byte_offset": view.address - first, "strides_bytes": view.strides_bytes}

    def listed(self) -> list[dict]:
        return self._regions
