"""The processes of a comparison: their memory, and what they do when told."""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from movers import MOVERS, Extent, Place
from safetensors import safe_open
from weightcast.demo.layouts import fsdp_rows
from weightcast.demo.processes import answer, orders

REPLICAS = 2  # receivers 0 and 1 hold one half of every tensor's rows each, 2 and 3 the same again


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor, at a byte of an end's memory."""

    tensor: str
    first: int
    rows: int
    row_bytes: int
    start: int


def pieces_of(shapes: dict[str, tuple[int, ...]], rank: int, ranks: int) -> list[Piece]:
    """Even rows of every tensor, one after another, as BF16."""
    pieces, start = [], 0
    for name, shape in shapes.items():
        first, rows = fsdp_rows(shape[0], rank, ranks)
        row_bytes = 2 * int(np.prod(shape[1:], dtype=np.int64))
        pieces.append(Piece(name, first, rows, row_bytes, start))
        start += -(-rows * row_bytes // 64) * 64
    return pieces


def bytes_of(pieces: list[Piece]) -> int:
    return pieces[-1].start + pieces[-1].rows * pieces[-1].row_bytes


def extents_of(shapes: dict[str, tuple[int, ...]], senders: int, receivers: int) -> list[Extent]:
    """Every overlap of a sender's and a receiver's rows: contiguous on both sides."""
    extents = []
    for receiver in range(receivers):
        held = pieces_of(shapes, receiver % (receivers // REPLICAS), receivers // REPLICAS)
        for sender in range(senders):
            for ours, theirs in zip(pieces_of(shapes, sender, senders), held, strict=True):
                first = max(ours.first, theirs.first)
                rows = min(ours.first + ours.rows, theirs.first + theirs.rows) - first
                if rows > 0:
                    extents.append(Extent(sender, receiver, ours.start + (first - ours.first) * ours.row_bytes,
                                          theirs.start + (first - theirs.first) * theirs.row_bytes,
                                          rows * ours.row_bytes))  # fmt: skip
    return extents


def fill(memory: np.ndarray, pieces: list[Piece], checkpoint: Path, round_: int) -> None:
    """The checkpoint's rows with the last bits of every weight changed by the round, so that old bytes are noticed."""
    with safe_open(checkpoint, "np") as file:
        for piece in pieces:
            rows = file.get_slice(piece.tensor)[piece.first : piece.first + piece.rows]
            memory[piece.start :][: rows.nbytes] = (rows.view(np.uint16) ^ np.uint16(round_ % 8)).reshape(-1).view(np.uint8)


def run(pipe: Connection, kind: str, place: Place, checkpoint: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Orders: ("connect", cards), ("fill", round), ("move", round), ("check", round)."""
    ranks = place.senders if place.sends else place.receivers // REPLICAS
    pieces = pieces_of(shapes, place.rank % ranks, ranks)
    memory = np.zeros(bytes_of(pieces), np.uint8)
    fill(memory, pieces, checkpoint, 7)  # its pages exist before any clock starts
    began = time.monotonic()
    mover = MOVERS[kind](place, memory, extents_of(shapes, place.senders, place.receivers))
    answer(pipe, mover.card())
    for order, argument in orders(pipe):
        if order == "connect":
            mover.connect(argument)
            answer(pipe, time.monotonic() - began)
        elif order == "fill":
            fill(memory, pieces, checkpoint, argument)
            answer(pipe, None)
        elif order == "move":
            mover.move(argument)
            answer(pipe, time.monotonic())
        elif order == "check":
            expected = np.zeros_like(memory)
            fill(expected, pieces, checkpoint, argument)
            answer(pipe, int(np.count_nonzero(memory != expected)))
