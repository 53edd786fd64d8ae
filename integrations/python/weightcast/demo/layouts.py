"""The demo's two layouts: FSDP trainers with rows of every tensor, servers with an engine's fused and sliced parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from ..catalog import BLOCK, FP8_BLOCK, Manifest, Parameter, Rule, Shape, Shard, parameters_of

TRAINERS = 4
REPLICAS = 2
SERVERS_PER_REPLICA = 2
ALIGNMENT_BYTES = 256

# Attention is replicated (9 heads do not divide over 2 ranks), MLP and vocabulary are tensor-parallel.
SERVER_RULES = (
    Rule(("model.embed_tokens.weight",), "model.embed_tokens.weight", split=0),
    Rule(("{}.q_proj.weight", "{}.k_proj.weight", "{}.v_proj.weight"), "{}.qkv_proj.weight", recipe=FP8_BLOCK),
    Rule(("{}.gate_proj.weight", "{}.up_proj.weight"), "{}.gate_up_proj.weight", split=0, recipe=FP8_BLOCK),
    Rule(("{}.down_proj.weight",), "{}.down_proj.weight", split=1, recipe=FP8_BLOCK),
    Rule(("{}.o_proj.weight",), "{}.o_proj.weight", recipe=FP8_BLOCK),
    Rule(("{}norm.weight",), "{}norm.weight"),
)

_NUMPY_TYPES = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp32": np.dtype(np.float32),
    FP8_BLOCK: np.dtype(ml_dtypes.float8_e4m3fn),
}


def fsdp_rows(rows: int, rank: int, ranks: int) -> tuple[int, int]:
    """First row and number of rows that FSDP2 gives `rank` of a tensor: equal chunks, the last ones short or empty."""
    chunk = -(-rows // ranks)
    first = min(rank * chunk, rows)
    return first, min(chunk, rows - first)


def allocate(shapes: Mapping[str, tuple[Shape, np.dtype]]) -> dict[str, np.ndarray]:
    """Zeroed arrays by name, side by side in one allocation, each aligned to ALIGNMENT_BYTES."""
    starts, bytes_ = {}, 0
    for name, (shape, dtype) in shapes.items():
        starts[name] = bytes_
        bytes_ += -(-int(np.prod(shape)) * dtype.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    raw = np.empty(bytes_ + ALIGNMENT_BYTES, np.uint8)
    raw.fill(0)  # touched, as an engine's weights are: the first commit is not to pay for page faults
    memory = raw[-raw.ctypes.data % ALIGNMENT_BYTES :]
    return {
        name: memory[starts[name] :][: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)
        for name, (shape, dtype) in shapes.items()
    }


def trainer_shards(manifest: Manifest, rank: int, ranks: int = TRAINERS) -> dict[str, Shard]:
    """Zeroed BF16 shards of `rank`: FSDP rows of every tensor."""
    rows = {name: fsdp_rows(shape[0], rank, ranks) for name, shape in manifest.items()}
    shapes = {name: ((rows[name][1], *shape[1:]), _NUMPY_TYPES["bf16"]) for name, shape in manifest.items()}
    return {
        name: Shard(array, tuple(manifest[name]), (rows[name][0],) + (0,) * (array.ndim - 1))
        for name, array in allocate(shapes).items()
    }


def server_parameters(manifest: Manifest, rank: int, ranks: int = SERVERS_PER_REPLICA) -> list[Parameter]:
    """What server `rank` of a replica holds."""
    return parameters_of(manifest, SERVER_RULES, rank, ranks)


def server_arrays(parameters: Sequence[Parameter]) -> dict[str, np.ndarray]:
    """Zeroed arrays for the parameters and their scales, by name."""
    shapes = {}
    for parameter in parameters:
        shapes[parameter.name] = parameter.shape, _NUMPY_TYPES[parameter.recipe]
        if scales := parameter.scales:
            shapes[scales.name] = scales.shape, _NUMPY_TYPES["fp32"]
    return allocate(shapes)


def straddling_blocks(manifest: Manifest, ranks: int = TRAINERS) -> int:
    """How many 128-row bands of the cast tensors lie on more than one trainer; for people."""
    bands = 0
    for parameter in server_parameters(manifest, 0):
        for part in parameter.parts if parameter.scales else ():
            cuts = {fsdp_rows(part.shape[0], rank, ranks)[0] for rank in range(1, ranks)}
            bands += len({cut // BLOCK for cut in cuts if cut % BLOCK and cut < part.shape[0]})
    return bands
