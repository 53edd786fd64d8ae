"""Which of an engine's parameters hold the checkpoint's bytes as they are, and the catalog that follows from a trace.

Engines post-process what they loaded: transpose, pad, swap, repack. Shape and type tell nothing (a repacked matrix keeps
both), so the bytes before and after are compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import memory
from ..catalog import BLOCK, FP8_BLOCK, Shape
from .boxes import Piece
from .trace import Copy, Manifest, Trace, overlap, uncovered

DIRECT, SWAPPED_HALVES, STAGED = "direct", "swapped_halves", "staged_repair"
_RECIPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float8_e4m3fn: FP8_BLOCK}
_SCALES = "_scale_inv"
_WORDS = 1 << 20  # summed at a time
_ONE_KIND = "weightcast makes FP8 with one FP32 scale per 128x128 block and no other kind; serve such a checkpoint, or BF16"


class NotServable(ValueError):
    """The engine's weights cannot be updated as they lie; the text names the parameter and says what to do."""


@dataclass(frozen=True)
class Print:
    """A tensor's bytes in the order of its memory, by digest; `swapped` is that of its halves exchanged."""

    elements: int
    dtype: torch.dtype
    shape: Shape
    digest: int
    swapped: int | None


def print_of(tensor: torch.Tensor) -> Print | None:
    """None for what has no dense memory of its own: empty, expanded or meta tensors."""
    flat = flat_of(tensor)
    if flat is None:
        return None
    swapped = None
    if tensor.dim() == 3 and tensor.is_contiguous() and tensor.shape[1] % 2 == 0:  # a stack of experts' gate and up
        low, high = tensor.view(torch.uint8).chunk(2, 1)
        swapped = _digest(torch.cat((high, low), 1).view(-1))
    return Print(tensor.numel(), tensor.dtype, tuple(tensor.shape), _digest(flat.view(torch.uint8)), swapped)


def flat_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor's elements in the order of its memory, if they lie there without gaps."""
    if tensor.is_meta or tensor.numel() == 0:
        return None
    axes = sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1)
    span = 1
    for stride, extent in axes:
        if stride != span:
            return None
        span *= extent
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _digest(raw: torch.Tensor) -> int:
    """A sum modulo 2^64 of words times their odd index: tells different bytes, and a different order, apart."""
    if raw.numel() % 8:
        raw = torch.cat((raw, raw.new_zeros(8 - raw.numel() % 8)))
    words = raw.contiguous().view(torch.int64) if raw.storage_offset() % 8 == 0 else raw.clone().view(torch.int64)
    index = torch.arange(1, 2 * min(_WORDS, words.numel()), 2, dtype=torch.int64, device=raw.device)
    total = 0
    for number, part in enumerate(words.split(_WORDS)):
        total += int((part * (index[: part.numel()] + 2 * _WORDS * number)).sum())
    return total % (1 << 64)


def class_of(before: Print | None, after: Print | None) -> str:
    """How a parameter that was loaded as `before` is read by the engine, as `after`."""
    if before and after and (before.elements, before.dtype) == (after.elements, after.dtype):
        if before.digest == after.digest:
            return DIRECT
        if before.swapped is not None and before.swapped == after.digest:
            return SWAPPED_HALVES
    return STAGED


@dataclass(frozen=True)
class Target:
    """A parameter as its loader fills it (`loaded`, on any device) and as the engine reads it (`live`)."""

    loaded: torch.Tensor
    live: torch.Tensor | None
    landing: str
    padding: int = 0  # elements that no checkpoint tensor fills, and need not
    optional: bool = False  # a buffer: may stay as the engine made it


@dataclass(frozen=True)
class Staged:
    """Where a parameter that the engine post-processes itself lands, in the form in which it is loaded."""

    region: int
    byte_offset: int
    shape: Shape
    dtype: torch.dtype


@dataclass(frozen=True)
class Layout:
    """A rank's weights: the entries and regions of its catalog, and what must stay alive and in place for it."""

    entries: list[dict[str, Any]]
    regions: list[dict[str, Any]]
    kept: list[torch.Tensor]
    landings: dict[str, str]  # target -> class
    staged: dict[str, Staged]  # of those of class staged_repair
    unused: list[str]

    @property
    def fingerprint(self) -> str:
        """Of names, boxes, places and classes: 16 hex digits; addresses are not in it."""
        text = json.dumps([self.entries, [region["bytes"] for region in self.regions]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def count(self, landing: str) -> int:
        return sum(found == landing for found in self.landings.values())


def layout_of(trace: Trace, manifest: Manifest, targets: Mapping[str, Target]) -> Layout:
    """Every target is filled exactly once or refused: NotServable names the first that is not."""
    copies, regions, kept = trace.copies_of(), memory.Regions(), []
    filled = {_address(target) for name, target in targets.items() if name in copies} - {None}
    for name, target in targets.items():
        tied = name not in copies and _address(target) in filled
        if tied and target.landing == STAGED:
            raise NotServable(f"parameter {name!r} is tied to another, and the engine computes from a packed copy of it, which "
                              "no update reaches; for vLLM on a CPU set WEIGHTCAST_VLLM_CPU_PACKING=off")  # fmt: skip
        if not tied:
            _check_covered(name, target, trace, copies.get(name, []))
    scales = {copy.tensor: copy for copy in trace.copies if copy.tensor.endswith(_SCALES)}
    places, landings, entries = {}, {}, []
    for name in copies:
        place = _place_of(name, targets[name], copies[name], regions)
        places[name], landings[name] = place, place.landing
        kept.append(place.flat)
    for name, found in copies.items():
        for copy in found:
            if not _is_scales_of(copy, manifest):
                entries.append(_entry(copy, name, places, manifest, scales, targets))
    staged = {name: Staged(place.region, place.byte_offset, tuple(targets[name].loaded.shape), place.flat.dtype)
              for name, place in places.items() if place.landing == STAGED}  # fmt: skip
    return Layout(entries, regions.listed(), kept, landings, staged, trace.unused)


def region_starts(landed: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Address at which each region begins among the landed bytes; `landed` as Server.staged() says it."""
    starts: dict[int, int] = {}
    following = iter(landed)
    for entry in entries:
        for place in (entry, entry.get("scales")):  # as the core expands them
            if place is not None:
                starts[place["region"]] = next(following)["address"] - place["byte_offset"]
    return starts


@dataclass(frozen=True)
class _Place:
    flat: torch.Tensor  # where pieces are counted from
    region: int
    byte_offset: int
    landing: str
    half: int  # elements of half an expert's block, when halves are exchanged; else 0


def _address(target: Target) -> int | None:
    """Where the engine reads it; None where it has no memory."""
    return None if target.live is None or target.live.is_meta else target.live.data_ptr()


def _check_covered(name: str, target: Target, trace: Trace, copies: list[Copy]) -> None:
    if name in trace.faults:
        raise NotServable(f"parameter {name!r}: {trace.faults[name]}; weightcast cannot describe it, so this model cannot "
                          "be updated in place: load it with the engine's own reload instead")  # fmt: skip
    if not copies and (target.optional or _is_dropped_scalar(target)):
        return
    if twice := overlap(copies):
        raise NotServable(f"parameter {name!r}: {twice[0]!r} and {twice[1]!r} are both loaded into the same elements")
    if (missing := uncovered(copies, target.loaded.numel()) - target.padding) > 0:
        raise NotServable(f"parameter {name!r}: no tensor of the checkpoint fills {missing} of its {target.loaded.numel()} "
                          "elements; check that the checkpoint belongs to the model the engine runs")  # fmt: skip


def _is_dropped_scalar(target: Target) -> bool:
    """What an engine holds only while it loads, such as the scales of a KV cache in the rare checkpoints that have some."""
    return target.live is None and target.loaded.numel() == 1


def _place_of(name: str, target: Target, copies: list[Copy], regions: memory.Regions) -> _Place:
    flat, landing, half = _memory_of(target, copies)
    if flat.dtype not in _RECIPES:
        raise NotServable(f"parameter {name!r} is {flat.dtype}; weightcast has no recipe that makes it from BF16")
    extent = regions.extent_of(memory.view_of(flat))
    return _Place(flat, extent["region"], extent["byte_offset"], landing, half)


def _memory_of(target: Target, copies: list[Copy]) -> tuple[torch.Tensor, str, int]:
    """Where it lands, how, and the elements of the halves that are exchanged."""
    landing = target.landing
    live = flat_of(target.live) if target.live is not None else None
    half = 0
    if landing == SWAPPED_HALVES:
        experts, rows, columns = target.loaded.shape
        half = rows // 2 * columns
        if any(copy.piece.at // half != (copy.piece.at + _reach(copy.piece)) // half for copy in copies):
            landing = STAGED  # a piece over both halves has no one place
    if landing == STAGED or live is None or live.numel() != target.loaded.numel():
        if live is not None and (live.numel(), live.dtype) == (target.loaded.numel(), target.loaded.dtype):
            return live, STAGED, 0  # no memory of its own: the engine post-processes it where it is
        device = target.live.device if target.live is not None and not target.live.is_meta else torch.device("cpu")
        # Never touched when landing is staged: on a CPU an address range, no memory.
        return torch.empty(target.loaded.numel(), dtype=target.loaded.dtype, device=device), STAGED, 0
    return live, landing, half


def _reach(piece: Piece) -> int:
    return sum((n - 1) * s for n, s in zip(piece.extent, piece.strides, strict=True))


def _is_scales_of(copy: Copy, manifest: Manifest) -> bool:
    return copy.tensor.endswith(_SCALES) and copy.tensor.removesuffix(_SCALES) in manifest


def _entry(copy: Copy, name: str, places: Mapping[str, _Place], manifest: Manifest, scales: Mapping[str, Copy],
           targets: Mapping[str, Target]) -> dict[str, Any]:  # fmt: skip
    place = places[name]
    recipe = _RECIPES[place.flat.dtype]
    entry = {"tensor": copy.tensor, "shape": list(manifest[copy.tensor].shape) or [1], "offset": list(copy.piece.offset),
             "extent": list(copy.piece.extent), "recipe": recipe, "landing": place.landing, "parameter": name}  # fmt: skip
    entry |= _extent(copy.piece, place)
    if recipe == FP8_BLOCK:
        entry["scales"] = _scales(copy, name, places, scales, targets)
    return entry


def _extent(piece: Piece, place: _Place) -> dict[str, Any]:
    at = piece.at if not place.half else piece.at + (place.half if piece.at // place.half % 2 == 0 else -place.half)
    size = place.flat.element_size()
    return {"region": place.region, "byte_offset": place.byte_offset + at * size,
            "strides_bytes": [stride * size for stride in piece.strides]}  # fmt: skip


def _scales(copy: Copy, name: str, places: Mapping[str, _Place], scales: Mapping[str, Copy], targets: Mapping[str, Target]) -> dict[str, Any]:
    found = scales.get(copy.tensor + _SCALES)
    if found is None:
        raise NotServable(f"parameter {name!r} is FP8, but the checkpoint has no {copy.tensor + _SCALES!r}; {_ONE_KIND}")
    blocks = tuple(-(-n // BLOCK) for n in copy.piece.extent)
    if tuple(found.piece.extent) != blocks or tuple(o * BLOCK for o in found.piece.offset) != tuple(copy.piece.offset):
        raise NotServable(f"parameter {name!r}: scales {found.tensor!r} at {list(found.piece.offset)} of {list(found.piece.extent)} "
                          f"are not those of the weights at {list(copy.piece.offset)}; {_ONE_KIND}")  # fmt: skip
    if targets[found.target].loaded.dtype != torch.float32:
        raise NotServable(f"parameter {found.target!r}: scales are {targets[found.target].loaded.dtype}; {_ONE_KIND}")
    return _extent(found.piece, replace(places[found.target], landing=DIRECT))
