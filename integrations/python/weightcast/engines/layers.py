"""Layers that are alike are traced once: of each kind the first, one in the middle and the last, whose maps must agree.

A loader takes a fraction of a millisecond for each tensor, and a model of experts has tens of thousands. Two layers are
alike if their checkpoint tensors are, and their modules are in every attribute that can be compared; whatever differs, or
cannot be told, is traced itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch

from .trace import Copy, Manifest, Trace, trace

_NUMBER = re.compile(r"(?:^|\.)(0|[1-9]\d*)\.")  # the first part of a name that is one
_FEW = 3  # of a kind: then all are traced
Place = tuple[str, str]  # a name before and after its layer's number
Named = TypeVar("Named")


def trace_model(model: torch.nn.Module, manifest: Manifest, targets: Mapping[str, torch.Tensor]) -> Trace:
    """What `trace` finds of the model's own `load_weights`, in a fraction of its time where layers repeat."""
    kinds = [kind for kind in _kinds(model, manifest, targets) if len(kind) > _FEW]
    skipped = {number for kind in kinds for number in kind if number not in _samples(kind)}
    if skipped:
        part = {name: meta for name, meta in manifest.items() if _split(name)[1] not in skipped}
        try:
            found = trace(model.load_weights, part, targets)
        except Exception:  # it wants the whole checkpoint, or fails with that too
            found = None
        if found and (whole := _repeated(found, kinds, manifest)):
            return whole
    return trace(model.load_weights, manifest, targets)


def _samples(kind: list[int]) -> tuple[int, ...]:
    return kind[0], kind[len(kind) // 2], kind[-1]


def _split(name: str) -> tuple[str, int | None, str]:
    found = _NUMBER.search(name)
    return (name[: found.start(1)], int(found[1]), name[found.end(1) :]) if found else (name, None, "")


def _by_layer(named: Iterable[tuple[str, Named]]) -> dict[int, dict[Place, Named]]:
    layers: dict[int, dict[Place, Named]] = {}
    for name, item in named:
        head, number, tail = _split(name)
        if number is not None:
            layers.setdefault(number, {})[head, tail] = item
    return layers


def _kinds(model: torch.nn.Module, manifest: Manifest, targets: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """The numbers of the layers, ascending, that are alike in all that bears the number."""
    checkpoint, tensors = _by_layer(manifest.items()), _by_layer(targets.items())
    modules = _by_layer((name + ".", module) for name, module in model.named_modules())
    kinds: list[list[int]] = []
    for number in sorted(checkpoint):
        for kind in kinds:
            first = kind[0]
            if checkpoint[first] != checkpoint[number]:
                continue
            of_first, of_number = ((tensors.get(n, {}), modules.get(n, {})) for n in (first, number))
            if _Comparison(first, number).same(of_first, of_number):
                kind.append(number)
                break
        else:
            kinds.append([number])
    return kinds


class _Comparison:
    """Of what belongs to layer `first` with what belongs to layer `second`: their own numbers count as equal."""

    def __init__(self, first: int, second: int) -> None:
        self._first, self._second = first, second
        self._compared: dict[tuple[int, int], tuple[Any, Any]] = {}  # or being compared; kept, so that no id is used again

    def same(self, a: tuple[dict, dict], b: tuple[dict, dict]) -> bool:
        """Of tensors and modules by place; False, too, of what cannot be compared."""
        (tensors, modules), (others, other_modules) = a, b
        try:
            return (self._alike(tensors, others) and modules.keys() == other_modules.keys()
                    and all(type(m) is type(other_modules[k]) and self._alike(vars(m), vars(other_modules[k])) for k, m in modules.items()))  # fmt: skip
        except Exception:
            return False

    def _alike(self, a: Any, b: Any) -> bool:
        if a is b:
            return True
        if type(a) is not type(b):
            return False
        if isinstance(a, torch.nn.Module):
            return True  # listed by itself
        if isinstance(a, (bool, float, complex, bytes, torch.dtype, torch.device)):
            return a == b
        if isinstance(a, int):
            return a == b or (a, b) == (self._first, self._second)
        if isinstance(a, str):
            return a == b or _without(a, self._first) == _without(b, self._second)
        pair = id(a), id(b)
        if pair in self._compared:
            return True
        self._compared[pair] = a, b
        return self._alike_inside(a, b)

    def _alike_inside(self, a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return self._alike_tensors(a, b)
        if isinstance(a, Mapping):
            return list(a) == list(b) and all(self._alike(value, b[key]) for key, value in a.items())
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(self._alike, a, b))
        if isinstance(a, MethodType):
            return a.__func__ is b.__func__ and self._alike(a.__self__, b.__self__)
        if isinstance(a, functools.partial):
            return all(map(self._alike, (a.func, a.args, a.keywords), (b.func, b.args, b.keywords)))
        if isinstance(a, FunctionType):
            held = [[one.__defaults__, one.__kwdefaults__, *(cell.cell_contents for cell in one.__closure__ or ())] for one in (a, b)]
            return a.__code__ is b.__code__ and self._alike(*held)
        if type(a).__eq__ is object.__eq__ and hasattr(a, "__dict__"):
            return self._alike(vars(a), vars(b))
        return bool(a == b)

    def _alike_tensors(self, a: torch.Tensor, b: torch.Tensor) -> bool:
        """Weights differ in their values; numbers that say how to load, as the places of experts, must not."""
        like = [(t.shape, t.stride(), t.dtype, t.device, t.storage_offset(), t.untyped_storage().nbytes()) for t in (a, b)]
        if like[0] != like[1] or not self._alike(vars(a), vars(b)):
            return False
        return a.dtype.is_floating_point or isinstance(a, torch.nn.Parameter) or (not a.is_meta and torch.equal(a, b))


def _without(text: str, number: int) -> str:
    return re.sub(rf"(?<!\d){number}(?!\d)", "#", text)


@dataclass
class _OfLayer:
    """The part of a trace that concerns one layer, without its number."""

    copies: list[tuple[Place, Place, Any]] = field(default_factory=list)
    faults: list[tuple[Place, str]] = field(default_factory=list)
    unused: set[Place] = field(default_factory=set)


def _repeated(found: Trace, kinds: list[list[int]], manifest: Manifest) -> Trace | None:
    """The trace of all layers; None where the samples of a kind differ, or a layer reaches into another."""
    sampled = {number: _OfLayer() for kind in kinds for number in _samples(kind)}
    for copy in found.copies:
        (head, number, tail), (target, into, rest) = _split(copy.tensor), _split(copy.target)
        if number in sampled or into in sampled:
            if number != into:
                return None
            sampled[number].copies.append(((head, tail), (target, rest), copy.piece))
    for name, fault in found.faults.items():
        head, number, tail = _split(name)
        if number in sampled:
            sampled[number].faults.append(((head, tail), _without(fault, number)))
    for name in found.unused:
        head, number, tail = _split(name)
        if number in sampled:
            sampled[number].unused.add((head, tail))
    whole = Trace(list(found.copies), dict(found.faults))
    unused = set(found.unused)
    for kind in kinds:
        samples = _samples(kind)
        like = sampled[samples[0]]
        if any(sampled[number] != like for number in samples):
            return None
        for number in set(kind) - set(samples):
            whole.copies += [Copy(f"{a}{number}{b}", f"{c}{number}{d}", piece) for (a, b), (c, d), piece in like.copies]
            whole.faults |= {f"{head}{number}{tail}": fault for (head, tail), fault in like.faults}
            unused |= {f"{head}{number}{tail}" for head, tail in like.unused}
    whole.unused = [name for name in manifest if name in unused]
    whole.sort(manifest)
    return whole
