"""Which part of a tensor a trainer holds: from a Shard, from a DTensor's placements, or the whole. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .catalog import Shape, Shard


def shard_of(name: str, tensor: Any) -> Shard:
    """The shard that `tensor` is; ValueError, naming the tensor, for placements that are not a box of it."""
    if isinstance(tensor, Shard):
        return tensor
    if hasattr(tensor, "placements") and hasattr(tensor, "device_mesh"):
        mesh = tensor.device_mesh
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            raise ValueError(f"tensor {name!r}: this process is not in the tensor's device mesh")
        try:
            offset, extent = box_of(tuple(tensor.shape), tuple(mesh.shape), coordinate, tensor.placements)
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from None
        local = tensor.to_local()
        if tuple(local.shape) != extent:
            raise ValueError(f"tensor {name!r}: placements {tensor.placements} give {list(extent)} here, "
                             f"but the local part is {list(local.shape)}")  # fmt: skip
        return Shard(local.detach() if hasattr(local, "detach") else local, tuple(tensor.shape), offset)
    shape = tuple(tensor.shape)
    return Shard(tensor, shape, (0,) * len(shape))


def box_of(shape: Shape, mesh: Sequence[int], coordinate: Sequence[int], placements: Sequence[Any]) -> tuple[Shape, Shape]:
    """Offset and extent of the part at `coordinate` of a mesh.

    Mesh axes divide a tensor axis from left to right into chunks of ceil(size / ranks). A strided shard (FSDP2 over
    tensor parallelism on the same axis) is divided after the mesh axes on its right.
    """
    offset, extent = [0] * len(shape), list(shape)
    for axis in _order(mesh, placements):
        placement = placements[axis]
        if placement.is_replicate():
            continue
        dim = placement.dim
        chunk = -(-extent[dim] // mesh[axis])
        first = min(coordinate[axis] * chunk, extent[dim])
        offset[dim], extent[dim] = offset[dim] + first, min(chunk, extent[dim] - first)
    return tuple(offset), tuple(extent)


def _order(mesh: Sequence[int], placements: Sequence[Any]) -> list[int]:
    """Mesh axes in the order in which they divide the tensor."""
    strided = []
    for axis, placement in enumerate(placements):
        if placement.is_partial():
            raise ValueError(f"placement {placement} holds partial sums; reduce it first")
        if (factor := getattr(placement, "split_factor", 1)) > 1:
            inner = [a for a in range(axis + 1, len(placements)) if getattr(placements[a], "dim", None) == placement.dim]
            if math.prod(mesh[a] for a in inner) != factor:
                raise ValueError(f"placement {placement} is strided by {factor}, which is not what the mesh "
                                 f"{list(mesh)} divides; redistribute it to plain shards")  # fmt: skip
            strided.append(axis)
    return [axis for axis in range(len(placements)) if axis not in strided] + strided[::-1]
