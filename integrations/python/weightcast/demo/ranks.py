"""What the demo's trainer and server processes do. Orders come through a pipe; each gets one answer."""

from __future__ import annotations

import select
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from .. import Phase, Server, Shard, Trainer
from ..catalog import Manifest
from . import layouts, oracle, perturb
from .model import CHECKPOINT
from .processes import answer, orders
from .reader import Reader

PASS_INTERVAL_S = 0.05  # between two passes of a server's reader


@dataclass(frozen=True)
class Setting:
    """What every rank is told at its start."""

    config: dict[str, Any]
    checkpoint: Path  # folder
    expected: Path  # the oracle's output
    versions: int
    wait_s: float  # bound of every wait


def manifest_of(checkpoint: Path) -> Manifest:
    """Names and shapes of the checkpoint's tensors, in its order."""
    with safe_open(checkpoint / CHECKPOINT, "np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def load(shards: dict[str, Shard], checkpoint: Path) -> None:
    """Reads this rank's rows, and nothing else, from the checkpoint."""
    with safe_open(checkpoint / CHECKPOINT, "np") as file:
        for name, shard in shards.items():
            first = shard.offset[0]
            shard.array[...] = file.get_slice(name)[first : first + shard.array.shape[0]]


def optimiser_step(shards: dict[str, Shard], version: int) -> None:
    for name, shard in shards.items():
        row_elements = int(np.prod(shard.shape[1:], dtype=np.int64))
        perturb.step(shard.array, shard.offset[0] * row_elements, name, version)


def trainer(pipe: Connection, setting: Setting, rank: int) -> None:
    """Orders: ("copy", file, first byte, rounds), ("join",), ("step", version), ("push", version)."""
    shards = layouts.trainer_shards(manifest_of(setting.checkpoint), rank)
    load(shards, setting.checkpoint)
    answer(pipe, {"bytes": sum(shard.array.nbytes for shard in shards.values())})
    handle = None
    try:
        for order, *arguments in orders(pipe):
            if order == "join":
                handle = Trainer(setting.config, rank, shards)
                handle.wait_connected(setting.wait_s)
                answer(pipe, {"catalog": handle.catalog})
            elif order == "copy":
                answer(pipe, copy_plainly(shards, *arguments))
            elif order == "step":
                optimiser_step(shards, *arguments)
                answer(pipe, None)
            elif order == "push":
                began = time.monotonic()
                handle.push(*arguments)
                pushed_s = time.monotonic() - began
                report = handle.wait(*arguments, setting.wait_s)
                answer(pipe, {"report": report, "pushed_s": pushed_s, "whole_s": time.monotonic() - began})
    finally:
        if handle:
            handle.close()


def expectations(pipe: Connection, checkpoint: Path, output: Path, versions: int) -> None:
    """The oracle's process."""
    oracle.expect(checkpoint / CHECKPOINT, output, versions)
    answer(pipe, None)


def copy_plainly(shards: dict[str, Shard], file: Path, first_byte: int, rounds: int) -> dict[str, Any]:
    """Copies this rank's weights into a shared file again and again: what the host can move at best."""
    sources = [oracle.bytes_of(shard.array) for shard in shards.values()]
    bytes_ = sum(source.size for source in sources)
    target = np.memmap(file, np.uint8, "r+", first_byte, bytes_)
    target[:] = 0  # its pages exist before the clock starts
    began = time.monotonic()
    for _ in range(rounds):
        start = 0
        for source in sources:
            target[start : start + source.size] = source
            start += source.size
    return {"bytes": bytes_ * rounds, "began": began, "ended": time.monotonic()}


class Engine:
    """Stands in for an inference engine: forward passes all the time, commits between two of them."""

    def __init__(self, setting: Setting, rank: int, replica: int) -> None:
        self._setting, self._rank = setting, rank % layouts.SERVERS_PER_REPLICA
        parameters = layouts.server_parameters(manifest_of(setting.checkpoint), self._rank)
        self._arrays = layouts.server_arrays(parameters)
        known = oracle.known_fingerprints(setting.expected, setting.versions, self._rank)
        self._reader = Reader(self._arrays, known, self._between_passes)
        self._stalls_ms: dict[int, float] = {}
        self.server = Server(setting.config, rank, replica, parameters, self._arrays)

    def serve(self) -> None:
        self.server.wait_connected(self._setting.wait_s)
        self._reader.start()

    def _between_passes(self) -> None:
        select.select([self.server], [], [], PASS_INTERVAL_S)
        state = self.server.state()
        if state.phase == Phase.COMMIT_DUE:
            self._stalls_ms[state.next_version] = self.server.commit(state.next_version)

    def verify(self, version: int) -> dict[str, Any]:
        """Waits until the live weights are `version` and compares every byte with the oracle's."""
        end = time.monotonic() + self._setting.wait_s
        while version not in self._stalls_ms:
            self._reader.check()
            if time.monotonic() > end:
                raise TimeoutError(f"version {version} was not due for commit within {self._setting.wait_s:g} s; "
                                   f"the rank says {self.server.state()}")  # fmt: skip
            time.sleep(0.002)
        found = oracle.compare(self._setting.expected, version, self._rank, self._arrays)
        return {"bytes": found.bytes, "differing": found.differing, "stall_ms": self._stalls_ms[version]}

    def leave(self) -> dict[str, Any]:
        seen = self._reader.stop()
        self.server.close()
        return {"passes": seen.passes, "versions": seen.versions, "mixed": seen.mixed}


def server(pipe: Connection, setting: Setting, rank: int, replica: int) -> None:
    """Orders: ("join",), ("verify", version), ("leave",)."""
    engine = None
    answer(pipe, None)
    for order, *arguments in orders(pipe):
        if order == "join":
            engine = Engine(setting, rank, replica)
            engine.serve()
            answer(pipe, {"catalog": engine.server.catalog})
        elif order == "verify":
            answer(pipe, engine.verify(*arguments))
        elif order == "leave":
            answer(pipe, engine.leave())
