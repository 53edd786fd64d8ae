"""The demo's oracle: what each server must hold, byte for byte, from the checkpoint alone.

Runs as a process of its own and shares no code with the transfer: NumPy and ml_dtypes do the cast, and the engine's
layout is written down here a second time. It writes, per version and server rank, one file of bytes and one index:

    OUTPUT/version-2/rank-0.bin    the parameters one after another
    OUTPUT/version-2/rank-0.json   {parameter: {"start", "bytes", "fingerprint"}}
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import safe_open

from ..output import whole_file
from . import perturb

RANKS = 2  # servers of a replica
BLOCK = 128
LEAST_AMAX = np.float32(1e-10)
INVERSE_OF_LARGEST_CODE = np.float32(1) / np.float32(448)


def cast_fp8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E4M3 codes and FP32 scales of a BF16 matrix, one scale per 128x128 block; edge blocks are padded with zeros."""
    rows, cols = weight.shape
    block_rows, block_cols = -(-rows // BLOCK), -(-cols // BLOCK)
    padded = np.zeros((block_rows * BLOCK, block_cols * BLOCK), np.float32)
    padded[:rows, :cols] = weight.astype(np.float32)
    blocks = padded.reshape(block_rows, BLOCK, block_cols, BLOCK)
    scale = np.maximum(np.abs(blocks).max(axis=(1, 3)), LEAST_AMAX) * INVERSE_OF_LARGEST_CODE
    scaled = blocks * (np.float32(1) / scale)[:, None, :, None]
    codes = np.clip(scaled, -448, 448).astype(ml_dtypes.float8_e4m3fn).reshape(padded.shape)
    return codes[:rows, :cols], scale


def is_cast(name: str) -> bool:
    """Linear layers are; norms and the embedding stay BF16."""
    return name.endswith("_proj.weight")


def server_parameters(tensors: Mapping[str, np.ndarray], cast: Mapping[str, tuple[np.ndarray, np.ndarray]],
                      rank: int) -> Iterator[tuple[str, np.ndarray]]:  # fmt: skip
    """Name and value of every parameter of server `rank`, in the engine's layout; `cast` by tensor name."""

    def half(array: np.ndarray, axis: int) -> np.ndarray:
        return np.split(array, RANKS, axis)[rank]

    def both(name: str, halve: Callable[[np.ndarray], np.ndarray], *sources: str) -> Iterator[tuple[str, np.ndarray]]:
        codes, scales = zip(*(cast[f"{source}.weight"] for source in sources), strict=True)
        yield f"{name}.weight", np.concatenate([halve(c) for c in codes])
        yield f"{name}.weight_scale_inv", np.concatenate([halve(s) for s in scales])

    yield "model.embed_tokens.weight", half(tensors["model.embed_tokens.weight"], 0)
    yield "model.norm.weight", tensors["model.norm.weight"]
    layers = sum(name.endswith(".input_layernorm.weight") for name in tensors)
    for layer in (f"model.layers.{i}" for i in range(layers)):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{norm}.weight", tensors[f"{layer}.{norm}.weight"]
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        yield from both(f"{attention}.qkv_proj", lambda a: a, *(f"{attention}.{x}_proj" for x in "qkv"))
        yield from both(f"{attention}.o_proj", lambda a: a, f"{attention}.o_proj")
        yield from both(f"{mlp}.gate_up_proj", lambda a: half(a, 0), f"{mlp}.gate_proj", f"{mlp}.up_proj")
        yield from both(f"{mlp}.down_proj", lambda a: half(a, 1), f"{mlp}.down_proj")


def bytes_of(array: np.ndarray) -> np.ndarray:
    """A contiguous array as bytes; no copy if it is contiguous already."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def fingerprint(bytes_: np.ndarray) -> int:
    """Sum modulo 2^64 of the bytes as 64-bit words. Fast, for telling known versions apart; not a proof of equality."""
    words = bytes_.size // 8 * 8
    rest = int.from_bytes(bytes_[words:].tobytes(), "little")
    return (int(bytes_[:words].view(np.uint64).sum(dtype=np.uint64)) + rest) % 2**64


def write_expected(tensors: Mapping[str, np.ndarray], folder: Path) -> list[int]:
    """Writes the files of one version; returns the number of bytes that each rank holds."""
    folder.mkdir(parents=True, exist_ok=True)
    cast = {name: cast_fp8(values) for name, values in tensors.items() if is_cast(name)}
    held = []
    for rank in range(RANKS):
        index, start = {}, 0
        with whole_file(folder / f"rank-{rank}.bin", "wb") as file:
            for name, value in server_parameters(tensors, cast, rank):
                raw = bytes_of(value)
                file.write(raw)
                index[name] = {"start": start, "bytes": raw.size, "fingerprint": fingerprint(raw)}
                start += raw.size
        with whole_file(folder / f"rank-{rank}.json") as file:
            file.write(json.dumps(index))
        held.append(start)
    return held


@dataclass(frozen=True)
class Comparison:
    """What a server holds against what it must hold."""

    bytes: int  # compared
    differing_bytes: int
    differing: tuple[str, ...]  # parameters, with a reason

    @property
    def equal(self) -> bool:
        return not self.differing


def compare(expected: Path, version: int, rank: int, live: Mapping[str, np.ndarray]) -> Comparison:
    """Compares every byte of `live` with the oracle's files for `version` and `rank`; missing and extra names differ."""
    folder = expected / f"version-{version}"
    index = json.loads((folder / f"rank-{rank}.json").read_text())
    oracle = np.memmap(folder / f"rank-{rank}.bin", np.uint8, "r")
    compared, wrong, differing = 0, 0, []
    for name in sorted(index.keys() | live.keys()):
        if name not in index or name not in live:
            differing.append(f"{name}: only {'on the server' if name in live else 'in the oracle'}")
            continue
        entry, found = index[name], bytes_of(live[name])
        wanted = oracle[entry["start"] : entry["start"] + entry["bytes"]]
        compared += wanted.size
        if found.size != wanted.size:
            differing.append(f"{name}: {found.size} bytes instead of {wanted.size}")
        elif not np.array_equal(found, wanted):
            places = np.flatnonzero(found != wanted)
            wrong += places.size
            differing.append(f"{name}: {places.size} of {wanted.size} bytes, the first at {places[0]}")
    return Comparison(compared, wrong, tuple(differing))


def known_fingerprints(expected: Path, versions: int, rank: int) -> dict[int, dict[str, int]]:
    """{version: {parameter: fingerprint}} of the oracle's files."""
    known = {}
    for version in range(1, versions + 1):
        index = json.loads((expected / f"version-{version}" / f"rank-{rank}.json").read_text())
        known[version] = {name: entry["fingerprint"] for name, entry in index.items()}
    return known


def expect(checkpoint: Path, output: Path, versions: int) -> None:
    """Writes the files of all versions: the checkpoint is version 1, each later one an optimiser step further."""
    with safe_open(checkpoint, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    for version in range(1, versions + 1):
        if version > 1:
            for name, values in tensors.items():
                perturb.step(values, 0, name, version)
        write_expected(tensors, output / f"version-{version}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the bytes that each server must hold, version by version.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="BF16 safetensors file: version 1")
    parser.add_argument("--output", type=Path, required=True, help="folder for the expected bytes")
    parser.add_argument("--versions", type=int, default=3)
    arguments = parser.parse_args()
    expect(arguments.checkpoint, arguments.output, arguments.versions)


if __name__ == "__main__":
    main()
