"""Views as boxes, against NumPy: the pieces of a copy, applied one by one, give what the copy gives."""

import random

import numpy as np
import pytest
from weightcast.engines import boxes
from weightcast.engines.boxes import NotABox, Piece, View, overlapping, pieces_of


def view_of(array: np.ndarray, base: np.ndarray) -> View:
    offset = (array.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // base.itemsize
    return View(offset, array.shape, tuple(stride // base.itemsize for stride in array.strides))


def applied(pieces: list[Piece], tensor: np.ndarray, target: np.ndarray) -> np.ndarray:
    flat = target.reshape(-1).copy()
    for piece in pieces:
        box = tensor[tuple(slice(o, o + n) for o, n in zip(piece.offset, piece.extent, strict=True))]
        strides = tuple(stride * flat.itemsize for stride in piece.strides)
        np.lib.stride_tricks.as_strided(flat[piece.at :], piece.extent, strides)[...] = box
    return flat.reshape(target.shape)


def some_view(random_: random.Random, array: np.ndarray) -> np.ndarray:
    """What weight loaders do to a tensor, one after another."""
    for _ in range(random_.randint(0, 3)):
        kind, axis = random_.choice(("narrow", "transpose", "split", "select")), random_.randrange(array.ndim)
        if kind == "narrow" and array.shape[axis] > 1:
            first = random_.randrange(array.shape[axis])
            last = random_.randint(first + 1, array.shape[axis])
            array = array[tuple(slice(first, last) if a == axis else slice(None) for a in range(array.ndim))]
        elif kind == "transpose":
            array = array.swapaxes(axis, random_.randrange(array.ndim))
        elif kind == "split" and array.shape[axis] % 2 == 0:
            shape = (*array.shape[:axis], 2, array.shape[axis] // 2, *array.shape[axis + 1 :])
            if np.shares_memory(array.reshape(shape), array):
                array = array.reshape(shape)
        elif kind == "select" and array.ndim > 1:
            array = array[(slice(None),) * axis + (random_.randrange(array.shape[axis]),)]
    return array


def test_the_pieces_of_any_view_a_loader_makes_give_the_same_bytes_as_its_copy():
    described = 0
    for seed in range(3000):
        random_ = random.Random(seed)
        shape = tuple(random_.choice((1, 2, 3, 4, 6, 8)) for _ in range(random_.randint(1, 3)))
        tensor = np.arange(1, 1 + np.prod(shape)).reshape(shape)
        source = some_view(random_, tensor)
        spare = np.zeros((2, *source.shape[::-1], 2), tensor.dtype)
        target = spare[1, ..., 0].transpose() if random_.random() < 0.5 else spare.reshape(-1)[: source.size].reshape(source.shape)
        expected = spare.copy()
        target_there = np.lib.stride_tricks.as_strided(
            expected.reshape(-1)[view_of(target, spare).offset :], target.shape, target.strides)  # fmt: skip
        target_there[...] = source
        pieces = pieces_of(shape, view_of(source, tensor), view_of(target, spare))
        assert (applied(pieces, tensor, spare) == expected).all(), (seed, shape, source.shape)
        described += len(pieces) == 1
    assert described > 1500  # most are one box, which is what makes a plan small


def test_expanded_and_unequal_views_are_refused_with_the_reason():
    with pytest.raises(NotABox, match="expanded"):
        pieces_of((4,), View(0, (3, 4), (0, 1)), View(0, (3, 4), (4, 1)))
    with pytest.raises(NotABox, match=r"shape \[4\] is copied into one of \[2\]"):
        pieces_of((4,), View(0, (4,), (1,)), View(0, (2,), (1,)))
    with pytest.raises(NotABox, match="separate pieces"):
        pieces_of((2 * boxes.MOST_PIECES + 2,), View(0, (boxes.MOST_PIECES + 1,), (2,)), View(0, (boxes.MOST_PIECES + 1,), (1,)))


def test_overlap_is_found_and_interleaved_pieces_are_not_mistaken_for_it():
    left, right = Piece((0, 0), (4, 3), 0, (6, 1)), Piece((0, 0), (4, 3), 3, (6, 1))
    assert overlapping([("left", left), ("right", right)]) is None
    assert overlapping([("left", left), ("wide", Piece((0, 0), (2, 4), 6, (6, 1)))]) == ("left", "wide")
