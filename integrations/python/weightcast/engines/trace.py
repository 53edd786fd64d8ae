"""What a model's own `load_weights` does with a checkpoint, found by letting it load one that has no bytes.

The loader is fed meta tensors of the checkpoint's names, shapes and types. Every narrow, view, transpose and chunk that it
makes is a view of theirs, and every copy into a parameter is seen with both views: so the exact map of checkpoint slices
to parameter slices comes out, for any architecture, and no name is transcribed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..catalog import Shape
from .boxes import NotABox, Piece, View, elements, overlapping, pieces_of

aten = torch.ops.aten
_SAME_VALUES = {aten._to_copy.default, aten.clone.default}  # new storage, the same elements in the same order
_FILLS = {aten.zero_.default, aten.fill_.Scalar, aten.fill_.Tensor}


@dataclass(frozen=True)
class TensorMeta:
    """A checkpoint tensor without its bytes."""

    shape: Shape
    dtype: torch.dtype


Manifest = Mapping[str, TensorMeta]


@dataclass(frozen=True)
class Copy:
    """A box of a checkpoint tensor and where it goes: `piece.at` and strides count elements of the target's storage."""

    tensor: str
    target: str
    piece: Piece


@dataclass
class Trace:
    """`faults` names each target that the loader fills in a way that is no copy of boxes, with the reason. Copies are in the
    order of the manifest, whatever the loader's."""

    copies: list[Copy] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)  # checkpoint tensors that go nowhere on this rank

    def sort(self, manifest: Manifest) -> None:
        places = {name: place for place, name in enumerate(manifest)}
        self.copies.sort(key=lambda copy: places[copy.tensor])

    def copies_of(self) -> dict[str, list[Copy]]:
        """By target."""
        found: dict[str, list[Copy]] = {}
        for copy in self.copies:
            found.setdefault(copy.target, []).append(copy)
        return found


def trace(load_weights: Callable[[Iterable[tuple[str, torch.Tensor]]], Any], manifest: Manifest,
          targets: Mapping[str, torch.Tensor]) -> Trace:  # fmt: skip
    """Runs `load_weights` over a checkpoint of meta tensors; nothing is written, whatever device `targets` are on.

    `targets` are the parameters and buffers that it may fill, by name. A loader that needs values (`.item()`) fails here
    with its own exception.
    """
    recorder = _Recorder(manifest, targets)
    checkpoint = recorder.checkpoint()
    with torch.no_grad(), recorder:
        load_weights(iter(checkpoint))
    return recorder.result()


def uncovered(copies: Iterable[Copy], target_elements: int) -> int:
    """How many elements of a target no copy fills."""
    return target_elements - sum(elements(copy.piece) for copy in copies)


def overlap(copies: Iterable[Copy]) -> tuple[str, str] | None:
    """Two checkpoint tensors that are copied to the same place, or None."""
    return overlapping([(copy.tensor, copy.piece) for copy in copies])


class _Recorder(TorchDispatchMode):
    def __init__(self, manifest: Manifest, targets: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._manifest = manifest
        self._targets = {_storage(tensor): name for name, tensor in targets.items()}
        self._sources: dict[int, str] = {}
        self._derived: dict[int, tuple[int, View]] = {}  # storage -> the view that it repeats in row-major order
        self._kept: list[Any] = [targets]  # storages are told apart by address: none may be freed in between
        self._used: set[str] = set()
        self._trace = Trace()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and to say so for every call takes longer than the call."""
        return False

    def checkpoint(self) -> list[tuple[str, torch.Tensor]]:
        """Made before recording, which would take as long again."""
        made = [(name, torch.empty(meta.shape, dtype=meta.dtype, device="meta")) for name, meta in self._manifest.items()]
        self._sources = {_storage(tensor): name for name, tensor in made}
        self._kept.append(made)
        return made

    def result(self) -> Trace:
        self._trace.unused = [name for name in self._manifest if name not in self._used]
        self._trace.copies = [copy for copy in self._trace.copies if copy.target not in self._trace.faults]
        self._trace.sort(self._manifest)
        return self._trace

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is aten.copy_.default:
            return self._copy(args[0], args[1])
        if func in _SAME_VALUES and (view := self._view_of(args[0])):
            made = func(*args, **(kwargs or {}))
            if made.is_contiguous():
                self._derived[_storage(made)] = view
            self._kept.append(made)
            return made
        if func._schema.is_mutable and args and isinstance(args[0], torch.Tensor):
            target = self._targets.get(_storage(args[0]))
            if target is not None:
                if func not in _FILLS:
                    self._trace.faults.setdefault(target, f"its loader changes it with {func}")
                return args[0]  # not even a fill reaches live weights
            self._derived.pop(_storage(args[0]), None)
        made = func(*args, **(kwargs or {}))
        self._kept.append(made)
        return made

    def _view_of(self, tensor: Any) -> tuple[int, View] | None:
        if not isinstance(tensor, torch.Tensor):
            return None
        storage = _storage(tensor)
        if storage in self._sources:
            return storage, View(tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))
        whole = self._derived.get(storage)
        return whole if whole and _is_whole(tensor) and tuple(tensor.shape) == whole[1].shape else None

    def _copy(self, into: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        target = self._targets.get(_storage(into))
        if target is None:
            self._derived.pop(_storage(into), None)
            if (view := self._view_of(tensor)) and _is_whole(into) and into.shape == tensor.shape:
                self._derived[_storage(into)] = view
            self._kept.append(into)
            return into
        view = self._view_of(tensor)
        if view is None:
            self._trace.faults.setdefault(target, "its loader computes what it copies, so it is no slice of a checkpoint tensor")
            return into
        name = self._sources[view[0]]
        self._used.add(name)
        place = View(into.storage_offset(), tuple(into.shape), tuple(into.stride()))
        source = view[1]
        if source.shape != place.shape:  # copy_ broadcasts; what only differs by axes of one element is still a copy
            source, place = _squeezed(source), _squeezed(place)
        try:
            pieces = pieces_of(self._manifest[name].shape or (1,), source, place)
        except NotABox as error:
            self._trace.faults.setdefault(target, f"tensor {name!r}: {error}")
            return into
        self._trace.copies += [Copy(name, target, piece) for piece in pieces]
        return into


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_whole(tensor: torch.Tensor) -> bool:
    """The tensor is its storage, in row-major order."""
    return tensor.is_contiguous() and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _squeezed(view: View) -> View:
    kept = [i for i, n in enumerate(view.shape) if n != 1]
    return View(view.offset, tuple(view.shape[i] for i in kept), tuple(view.strides[i] for i in kept))
