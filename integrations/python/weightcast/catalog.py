"""Catalogs: what one rank holds, as data for the core (the format is in schedule/FORMATS.md).

A catalog entry ties a box of a checkpoint tensor to an extent of this rank's memory. Rules say how an engine's fused and
tensor-parallel parameters are made of checkpoint tensors; applying them gives parameters made of parts, and with the
arrays of the process these give entries. Nothing else maps names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import memory

FORMAT = "weightcast.catalog/1"
FP8_BLOCK = "fp8_e4m3_128x128_fp32"
FP8_BLOCK_UE8M0 = "fp8_e4m3_128x128_ue8m0"  # scales are powers of two
FP8_TENSOR = "fp8_e4m3_tensor"
FP8_CHANNEL = "fp8_e4m3_channel"
MXFP8 = "mxfp8_e4m3_1x32"  # scales are E8M0 bytes
NVFP4 = "nvfp4_e2m1_1x16"  # two values to a byte; scales are E4M3 bytes, and each tensor has one in FP32
BLOCK = 128  # edge of a quantisation block of FP8_BLOCK, in elements
# Rows and columns that share a scale; None: all of the axis.
_BLOCKS = {FP8_BLOCK: (BLOCK, BLOCK), FP8_BLOCK_UE8M0: (BLOCK, BLOCK), FP8_TENSOR: (None, None), FP8_CHANNEL: (1, None),
           MXFP8: (1, 32), NVFP4: (1, 16)}  # fmt: skip
_DTYPE_OF_SCALES = {MXFP8: "e8m0", NVFP4: "e4m3"}  # others: FP32

Shape = tuple[int, ...]
Manifest = Mapping[str, Shape]  # checkpoint tensor -> shape


@dataclass(frozen=True)
class Part:
    """A box of a checkpoint tensor; `at` is the index of its first element in the parameter that holds it.

    The parameter may have more axes than the tensor (an expert stack); its last axes are the tensor's. `scales_at` is
    the same for the part's scales in the array of the parameter's scales, `tensor_scale_at` in that of tensors' scales.
    """

    tensor: str
    shape: Shape
    offset: Shape
    extent: Shape
    at: Shape
    scales_at: Shape | None = None
    tensor_scale_at: Shape | None = None


@dataclass(frozen=True)
class Scales:
    """The array of a parameter's scales, one per block: E8M0 bytes of MXFP8, E4M3 bytes of NVFP4, else FP32. Or the
    array of NVFP4's second scales, in FP32, one per tensor: a row for each."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Parameter:
    """One array of a server rank: parts of checkpoint tensors in one recipe, with the array of their scales, if any.
    `shape` counts values; an array of NVFP4 has half as many columns, of bytes.

    `landing` is "direct" (the engine reads these bytes), "swapped_halves" (direct, for the reader of the catalog) or
    "staged_repair" (the engine makes what it reads from the staged bytes, itself, when it commits).
    """

    name: str
    shape: Shape
    recipe: str
    parts: tuple[Part, ...]
    scales: Scales | None = None
    landing: str = "direct"
    tensor_scale: Scales | None = None
    packed_scales: Scales | None = None


@dataclass(frozen=True)
class Rule:
    """How checkpoint tensors become a parameter; `{}` stands for the same text in every name.

    The tensors are stacked along the first axis in the order given, each divided along axis `split` over the ranks of
    a replica (None: every rank holds all of it). With `groups`, each is divided into so many shares along axis 0, a rank
    holds as many of them as the others, and they are stacked share by share: Megatron's query groups. The scales are an
    array of their own, `PARAMETER_scale_inv` of block recipes and `PARAMETER_scale` of FP8_TENSOR (a row for each tensor),
    FP8_CHANNEL (a row for each row) and NVFP4, whose tensors' scales are `PARAMETER_scale_2` (a row for each tensor):
    tensors that an engine multiplies as one, as gate and up, have scales of their own. With `packed_scales` a commit also
    writes the scales of FP8_BLOCK_UE8M0 as DeepGEMM reads them on Blackwell, into `PARAMETER_scale_packed`: 32-bit
    integers, for each four blocks of columns a row of as many as the parameter has rows, rounded up to four (DeepGEMM
    takes its transpose).
    """

    tensors: tuple[str, ...]
    parameter: str
    split: int | None = None
    recipe: str = "bf16"
    groups: int | None = None
    packed_scales: bool = False

    def text_of(self, tensor: str) -> str | None:
        """What `{}` stands for if `tensor` is the rule's first tensor."""
        before, _, after = self.tensors[0].partition("{}")
        if not (tensor.startswith(before) and tensor.endswith(after)) or len(tensor) < len(before) + len(after):
            return None
        return tensor[len(before) : len(tensor) - len(after)]


@dataclass(frozen=True)
class Shard:
    """A trainer's piece of a tensor: an array and where it lies in the whole tensor of `shape`."""

    array: Any
    shape: Shape
    offset: Shape


def slice_of(shape: Shape, axis: int | None, rank: int, ranks: int) -> tuple[Shape, Shape]:
    """Offset and extent of `rank`'s even share along `axis`; ValueError if it does not divide."""
    if axis is None:
        return (0,) * len(shape), shape
    if shape[axis] % ranks:
        raise ValueError(f"axis {axis} of shape {list(shape)} does not divide over {ranks} ranks")
    share = shape[axis] // ranks
    offset = tuple(share * rank if i == axis else 0 for i in range(len(shape)))
    return offset, tuple(share if i == axis else n for i, n in enumerate(shape))


def parameters_of(manifest: Manifest, rules: Sequence[Rule], rank: int, ranks: int) -> list[Parameter]:
    """The parameters of a server rank. A tensor goes by the first rule that begins with it; ValueError if none places it."""
    parameters, placed = [], set()
    for tensor in manifest:
        for rule in rules:
            if (text := rule.text_of(tensor)) is None:
                continue
            names = [pattern.replace("{}", text) for pattern in rule.tensors]
            if missing := [name for name in names if name not in manifest]:
                raise ValueError(f"rule for {rule.parameter!r} needs {missing[0]!r}, which the manifest does not have")
            placed.update(names)
            parameters.append(_stack(rule, rule.parameter.replace("{}", text), names, manifest, rank, ranks))
            break
    if left := [tensor for tensor in manifest if tensor not in placed]:
        raise ValueError(f"no rule places tensor {left[0]!r}; add one, or leave the tensor out of the manifest")
    return parameters


def _stack(rule: Rule, name: str, tensors: Sequence[str], manifest: Manifest, rank: int, ranks: int) -> Parameter:
    parts, rows, scale_rows = [], 0, 0
    for number, (tensor, share, shares) in enumerate(_shares(rule, name, tensors, rank, ranks)):
        shape = tuple(manifest[tensor])
        try:
            offset, extent = slice_of(shape, rule.split, share, shares)
        except ValueError as error:
            raise ValueError(f"tensor {tensor!r} for parameter {name!r}: {error}") from None
        columns = (0,) * (len(shape) - 1)
        scales_at = (scale_rows, *columns) if rule.recipe in _BLOCKS else None
        leading = _blocks(extent, FP8_TENSOR)[0]  # of tensors of more than two axes: a scale for each matrix
        tensor_scale_at = (number * leading, *columns) if rule.recipe == NVFP4 else None
        parts.append(Part(tensor, shape, offset, extent, (rows, *columns), scales_at, tensor_scale_at))
        rows += extent[0]
        scale_rows += _blocks(extent, rule.recipe)[0]  # a ragged last block takes a row of scales of its own
    rest = parts[0].extent[1:]
    scales = None
    if rule.recipe in _BLOCKS:
        suffix = "_scale" if rule.recipe in (FP8_TENSOR, FP8_CHANNEL, NVFP4) else "_scale_inv"
        scales = Scales(name + suffix, (scale_rows, *_blocks(parts[0].extent, rule.recipe)[1:]))
    tensor_scale = None
    if rule.recipe == NVFP4:
        leading, *ones = _blocks(parts[0].extent, FP8_TENSOR)
        tensor_scale = Scales(f"{name}_scale_2", (len(parts) * leading, *ones))
    packed_scales = None
    if rule.packed_scales:
        if rule.recipe != FP8_BLOCK_UE8M0 or len(rest) != 1:
            raise ValueError(f"parameter {name!r}: packed scales are of matrices under {FP8_BLOCK_UE8M0}")
        packed_scales = Scales(f"{name}_scale_packed", (-(-rest[0] // (4 * BLOCK)), -(-rows // 4) * 4))
    return Parameter(name, (rows, *rest), rule.recipe, tuple(parts), scales, tensor_scale=tensor_scale,
                     packed_scales=packed_scales)  # fmt: skip


def _shares(rule: Rule, name: str, tensors: Sequence[str], rank: int, ranks: int) -> list[tuple[str, int, int]]:
    """(tensor, which share of it, of how many) in the order in which they are stacked."""
    if rule.groups is None:
        return [(tensor, rank, ranks) for tensor in tensors]
    if rule.split != 0 or rule.groups % ranks:
        raise ValueError(f"parameter {name!r}: {rule.groups} groups are shares of axis 0 and do not divide over {ranks} ranks along "
                         f"axis {rule.split}")  # fmt: skip
    mine = rule.groups // ranks
    return [(tensor, group, rule.groups) for group in range(rank * mine, (rank + 1) * mine) for tensor in tensors]


def _blocks(extent: Shape, recipe: str) -> Shape:
    edges = ((1,) * len(extent) + _BLOCKS.get(recipe, (1, 1)))[-len(extent) :]
    return tuple(-(-n // edge) if edge else 1 for n, edge in zip(extent, edges, strict=True))


def server_catalog(rank: int, replica: int, parameters: Sequence[Parameter], arrays: Mapping[str, Any]) -> dict:
    """The catalog of a server rank whose parameters and scales lie in `arrays`, by name."""
    regions, entries = memory.Regions(), []
    for parameter in parameters:
        entry = {"parameter": parameter.name, "recipe": parameter.recipe, "landing": parameter.landing}
        entry |= _array_of(parameter.name, parameter.shape, parameter.recipe, arrays, regions)
        if scales := parameter.scales:
            dtype = _DTYPE_OF_SCALES.get(parameter.recipe, "fp32")
            entry["scales"] = _array_of(scales.name, scales.shape, dtype, arrays, regions)
        if scales := parameter.tensor_scale:
            entry["tensor_scale"] = _array_of(scales.name, scales.shape, "fp32", arrays, regions)
        if scales := parameter.packed_scales:
            packed = _array_of(scales.name, scales.shape, "word", arrays, regions)
            if packed["strides_bytes"] != (4 * scales.shape[1], 4):
                raise ValueError(f"the packed scales {scales.name!r} are not rows without gaps")
            entry["packed_scales"] = {key: packed[key] for key in ("region", "byte_offset")}
        entry["parts"] = [{key: value for key, value in vars(part).items() if value is not None} for part in parameter.parts]
        entries.append(entry)
    return _catalog("server", rank, replica, regions, entries)


def _array_of(name: str, shape: Shape, recipe: str, arrays: Mapping[str, Any], regions: memory.Regions) -> dict:
    if name not in arrays:
        raise ValueError(f"parameter {name!r} has no array")
    view = memory.view_of(arrays[name])
    stored = (*shape[:-1], shape[-1] // 2) if recipe == NVFP4 else tuple(shape)
    if view.shape != stored:
        raise ValueError(f"parameter {name!r} has shape {list(view.shape)}, but its parts make {list(stored)}")
    if view.dtype not in memory.DTYPES_OF_RECIPE[recipe]:
        raise ValueError(f"parameter {name!r} is {view.dtype}, but its recipe is {recipe}")
    return {"shape": shape} | regions.extent_of(view)


def shards_of(parameters: Sequence[Parameter], arrays: Mapping[str, Any]) -> dict[str, list[Shard]]:
    """The checkpoint tensors that a trainer rank holds in `arrays`, whose fused parameters these are.

    A parameter without an array belongs to other ranks (pipeline stages, experts); ValueError for an array without a
    parameter.
    """
    if left := [name for name in arrays if name not in {parameter.name for parameter in parameters}]:
        raise ValueError(f"no rule makes array {left[0]!r}; add one, or leave the array out")
    shards: dict[str, list[Shard]] = {}
    for parameter in parameters:
        array = arrays.get(parameter.name)
        if array is None:
            continue
        if tuple(array.shape) != tuple(parameter.shape):
            raise ValueError(f"array {parameter.name!r} has shape {list(array.shape)}, but its parts make {list(parameter.shape)}")
        array = array.detach() if hasattr(array, "detach") else array
        for part in parameter.parts:
            box = tuple(slice(at, at + n) for at, n in zip(part.at, part.extent, strict=True))
            shards.setdefault(part.tensor, []).append(Shard(array[box], part.shape, part.offset))
    return shards


def trainer_catalog(rank: int, shards: Mapping[str, Shard | Sequence[Shard]]) -> dict:
    """The catalog of a trainer rank; `shards` by checkpoint tensor name, several of one tensor as a list."""
    regions, entries = memory.Regions(), []
    for tensor, held in shards.items():
        for shard in [held] if isinstance(held, Shard) else held:
            view = memory.view_of(shard.array)
            if view.bytes:  # an uneven split leaves some ranks with nothing
                box = {"tensor": tensor, "shape": shard.shape, "offset": shard.offset, "extent": view.shape}
                entries.append(box | {"dtype": view.dtype} | regions.extent_of(view))
    return _catalog("trainer", rank, 0, regions, entries)


def _catalog(role: str, rank: int, replica: int, regions: memory.Regions, entries: list[dict]) -> dict:
    return {"format": FORMAT, "role": role, "rank": rank, "replica": replica, "regions": regions.listed(),
            "entries": entries}  # fmt: skip
