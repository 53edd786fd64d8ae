"""The processes of a comparison: their memory, and what they do when told."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from movers import MOVERS, REPLICAS, End, Extent, Piece
from safetensors import safe_open
from weightcast.demo.layouts import fsdp_rows
from weightcast.demo.processes import answer, orders

Shapes = dict[str, tuple[int, ...]]


def placed(rows: list[tuple[str, tuple[int, ...], int, int]]) -> tuple[Piece, ...]:
    """Rows of tensors, (tensor, shape, first, rows), one after another as BF16."""
    pieces, start = [], 0
    for tensor, shape, first, count in rows:
        row_bytes = 2 * int(np.prod(shape[1:], dtype=np.int64))
        pieces.append(Piece(tensor, shape, first, count, row_bytes, start))
        start += -(-count * row_bytes // 64) * 64
    return tuple(pieces)


def sent_by(shapes: Shapes, rank: int, ranks: int) -> tuple[Piece, ...]:
    """A sender's share: FSDP rows of every tensor."""
    return placed([(name, shape, *fsdp_rows(shape[0], rank, ranks)) for name, shape in shapes.items()])


def held_by(shapes: Shapes, rank: int, ranks: int) -> tuple[Piece, ...]:
    """A receiver's share: a pipeline stage, whole tensors that make an even part of the bytes."""
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    before = np.cumsum([0, *sizes[:-1]])
    stages = np.minimum(before * ranks // sum(sizes), ranks - 1)
    return placed([(name, shape, 0, shape[0])
                   for (name, shape), stage in zip(shapes.items(), stages, strict=True) if stage == rank])  # fmt: skip


def ends_of(shapes: Shapes, senders: int, receivers: int, folder: str, port: int) -> list[End]:
    """All processes, with every overlap of a sender's rows and a receiver's tensors; contiguous on both sides."""
    sources = [sent_by(shapes, rank, senders) for rank in range(senders)]
    stages = receivers // REPLICAS
    targets = [held_by(shapes, rank % stages, stages) for rank in range(receivers)]
    extents = tuple(
        Extent(sender, receiver, theirs.start, ours.start + theirs.first * ours.row_bytes, theirs.bytes)
        for receiver, held in enumerate(targets)
        for sender, sent in enumerate(sources)
        for ours in held
        for theirs in sent
        if theirs.tensor == ours.tensor and theirs.rows
    )
    return [End(sends, rank, senders, receivers, pieces, extents, folder, port)
            for sends, all_pieces in ((True, sources), (False, targets)) for rank, pieces in enumerate(all_pieces)]  # fmt: skip


def fill(memory: np.ndarray, pieces: tuple[Piece, ...], checkpoint: Path, round_: int) -> None:
    """The checkpoint's rows with the last bits of every weight changed by the round, so that old bytes are noticed."""
    with safe_open(checkpoint, "np") as file:
        for piece in pieces:
            rows = file.get_slice(piece.tensor)[piece.first : piece.first + piece.rows]
            memory[piece.start :][: rows.nbytes] = (rows.view(np.uint16) ^ np.uint16(round_ % 8)).reshape(-1).view(np.uint8)


def run(pipe: Connection, kind: str, end: End, checkpoint: Path) -> None:
    """Orders: ("connect", cards), ("fill", round), ("move", round), ("check", round). A move is answered with when it
    ended and the CPU time of all threads meanwhile."""
    memory = np.zeros(end.pieces[-1].start + end.pieces[-1].bytes, np.uint8)
    fill(memory, end.pieces, checkpoint, 7)  # its pages exist before any clock starts
    began = time.monotonic()
    mover = MOVERS[kind](end, memory)
    answer(pipe, mover.card())
    for order, argument in orders(pipe):
        if order == "connect":
            mover.connect(argument)
            answer(pipe, time.monotonic() - began)
        elif order == "fill":
            fill(memory, end.pieces, checkpoint, argument)
            answer(pipe, None)
        elif order == "move":
            used = time.process_time()
            mover.move(argument)
            answer(pipe, (time.monotonic(), time.process_time() - used))
        elif order == "check":
            expected = np.zeros_like(memory)
            fill(expected, end.pieces, checkpoint, argument)
            answer(pipe, mover.count_wrong(expected))
