"""Strided views as boxes: which part of a checkpoint tensor a view is, and where a copy of it lands. Pure; no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..catalog import Shape

MOST_PIECES = 4096  # of one copy; a loader that picks single elements is not described, but refused


class NotABox(ValueError):
    """The view cannot be written as a few boxes; the text says why."""


@dataclass(frozen=True)
class View:
    """Elements of a storage: the first one's index, then extent and stride per axis, in elements."""

    offset: int
    shape: Shape
    strides: Shape


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, and where it lies: element index of its first element and stride per axis of the tensor."""

    offset: Shape
    extent: Shape
    at: int
    strides: Shape


def row_major(shape: Sequence[int]) -> Shape:
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def pieces_of(tensor: Sequence[int], source: View, target: View) -> list[Piece]:
    """The boxes of a row-major `tensor` that `source` views, with the place of each in `target`, a view of equal shape.

    Views may narrow, transpose, split and merge axes, as weight loaders do. Raises NotABox for what is none: expanded
    axes, or more than MOST_PIECES boxes.
    """
    if tuple(source.shape) != tuple(target.shape):
        raise NotABox(f"a view of shape {list(source.shape)} is copied into one of {list(target.shape)}")
    if math.prod(source.shape) == 0:
        return []
    runs = _joined([(n, s, d) for n, s, d in zip(source.shape, source.strides, target.strides, strict=True) if n > 1])
    whole, picked = _by_axis(runs, tensor, _index_of(source.offset, tensor))
    if math.prod(n for n, *_ in picked) > MOST_PIECES:
        raise NotABox(f"{math.prod(n for n, *_ in picked)} separate pieces; at most {MOST_PIECES} are described")
    pieces = []
    for chosen in itertools.product(*(range(n) for n, *_ in picked)):
        first = source.offset + sum(i * s for i, (_, s, _) in zip(chosen, picked, strict=True))
        at = target.offset + sum(i * d for i, (_, _, d) in zip(chosen, picked, strict=True))
        pieces.append(_piece(tensor, _index_of(first, tensor), at, whole))
    return pieces


def _index_of(element: int, tensor: Sequence[int]) -> list[int]:
    index = []
    for stride in row_major(tensor):
        index.append(element // stride)
        element %= stride
    return index


def _joined(runs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbouring axes that are one run on both sides become one."""
    joined: list[tuple[int, int, int]] = []
    for n, s, d in runs:
        if joined and joined[-1][1] == n * s and joined[-1][2] == n * d:
            n *= joined.pop()[0]
        joined.append((n, s, d))
    return joined


Run = tuple[int, int, int]  # extent; stride, or the axis that it is, in the tensor; stride in the target


def _by_axis(runs: list[Run], tensor: Sequence[int], start: list[int]) -> tuple[list[Run], list[Run]]:
    """The runs that lie along an axis of the tensor each (with the axis), and those that pick single elements."""
    strides = row_major(tensor)
    whole: list[Run] = []
    picked: list[Run] = []
    waiting = list(runs)
    while waiting:
        n, s, d = waiting.pop()
        if s <= 0 or d <= 0:
            raise NotABox("an axis is expanded or reversed")
        axis = next((a for a in range(len(tensor)) if strides[a] == s and tensor[a] > 1), None)
        if axis is None or any(axis == other for _, other, _ in whole):
            picked.append((n, s, d))
            continue
        if start[axis] + n > tensor[axis]:  # several axes in one run
            if start[axis] or n % tensor[axis]:
                raise NotABox(f"{n} elements from {start[axis]} do not fit axis {axis} of {list(tensor)}")
            waiting.append((n // tensor[axis], s * tensor[axis], d * tensor[axis]))
            n = tensor[axis]
        whole.append((n, axis, d))
    return whole, picked


def _piece(tensor: Sequence[int], offset: list[int], at: int, whole: list[Run]) -> Piece:
    extent, strides = [1] * len(tensor), [0] * len(tensor)
    for n, axis, stride in whole:
        extent[axis], strides[axis] = n, stride
    if any(o + n > size for o, n, size in zip(offset, extent, tensor, strict=True)):
        raise NotABox(f"the view leaves the tensor {list(tensor)}")
    span = 1
    for axis in reversed(range(len(tensor))):  # an axis of one element has no stride of its own: a row-major one
        strides[axis] = strides[axis] or span
        span = max(span, strides[axis] * extent[axis])
    return Piece(tuple(offset), tuple(extent), at, tuple(strides))


def elements(piece: Piece) -> int:
    return math.prod(piece.extent)


def overlapping(pieces: Sequence[tuple[str, Piece]]) -> tuple[str, str] | None:
    """The names of two pieces that share an element of the target, or None. Exact; quick where pieces lie apart."""
    spans = sorted(((piece.at, piece.at + _reach(piece), name, piece) for name, piece in pieces), key=lambda s: s[:2])
    near: list[tuple[int, str, Piece]] = []
    for first, last, name, piece in spans:
        near = [other for other in near if other[0] >= first]
        for _, other_name, other in near:
            runs = sorted([*_runs(piece), *_runs(other)])
            if any(run[1] > following[0] for run, following in itertools.pairwise(runs)):
                return other_name, name
        near.append((last, name, piece))
    return None


def _reach(piece: Piece) -> int:
    return sum((n - 1) * s for n, s in zip(piece.extent, piece.strides, strict=True))


def _runs(piece: Piece) -> Iterator[tuple[int, int]]:
    """First index and end of every run of neighbouring elements."""
    axes = sorted(zip(piece.strides, piece.extent, strict=True), reverse=True)
    length = 1
    while axes and axes[-1][0] == length:
        length *= axes.pop()[1]
    for index in itertools.product(*(range(n) for _, n in axes)):
        first = piece.at + sum(i * s for i, (s, _) in zip(index, axes, strict=True))
        yield first, first + length
