"""Ways to move bytes from senders to receivers, behind one small interface, so that they can be compared.

Every mover gets the same memory and the same list of extents. Set-up (registration, connection) is timed apart.
"""

from __future__ import annotations

import abc
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from weightcast.catalog import FP8_BLOCK
from weightcast.demo import oracle
from weightcast.demo.layouts import server_arrays

WAIT_S = 60.0
REPLICAS = 2  # every replica's receivers hold the whole model once


@dataclass(frozen=True)
class Extent:
    """Bytes of `sender`'s memory that belong into `receiver`'s."""

    sender: int
    receiver: int
    from_byte: int
    to_byte: int
    bytes: int


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor, at a byte of an end's memory."""

    tensor: str
    shape: tuple[int, ...]  # of the whole tensor
    first: int
    rows: int
    row_bytes: int
    start: int

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class End:
    """One process of a comparison."""

    sends: bool
    rank: int  # among senders or receivers
    senders: int
    receivers: int
    pieces: tuple[Piece, ...]  # what its memory holds, in BF16
    extents: tuple[Extent, ...]  # of all ends
    folder: str  # for this mover's processes alone
    port: int  # a free one


class Mover(abc.ABC):
    """One process's way to move bytes. card() goes to all others, connect() gets all cards, then any number of move()."""

    def __init__(self, end: End, memory: np.ndarray) -> None:
        self.end, self.memory = end, memory
        self.by_peer: dict[int, list[Extent]] = {}  # only peers that share bytes with this end
        for extent in end.extents:
            ours, theirs = (extent.sender, extent.receiver) if end.sends else (extent.receiver, extent.sender)
            if ours == end.rank:
                self.by_peer.setdefault(theirs, []).append(extent)

    def card(self) -> Any:
        return None

    def connect(self, cards: dict[tuple[bool, int], Any]) -> None:
        """`cards` by (sends, rank)."""

    @abc.abstractmethod
    def move(self, round_: int) -> None:
        """A sender: until all its bytes are delivered. A receiver: until all its bytes have arrived."""

    def count_wrong(self, expected: np.ndarray) -> int:
        """Bytes that differ; `expected` is what the memory must hold in BF16."""
        return int(np.count_nonzero(self.memory != expected))


class Gloo(Mover):
    """torch.distributed's gloo: one isend per extent, one irecv for each."""

    def connect(self, cards: dict[tuple[bool, int], Any]) -> None:
        import torch
        import torch.distributed as dist

        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        end = self.end
        rank = end.rank if end.sends else end.senders + end.rank
        dist.init_process_group("gloo", init_method=f"file://{end.folder}/gloo", rank=rank,
                                world_size=end.senders + end.receivers)  # fmt: skip
        memory = torch.from_numpy(self.memory)
        start, to = ("from_byte", end.senders) if end.sends else ("to_byte", 0)
        self._pieces = [(peer + to, memory[getattr(e, start) :][: e.bytes])
                        for peer, extents in self.by_peer.items() for e in extents]  # fmt: skip
        self._call = dist.isend if end.sends else dist.irecv

    def move(self, round_: int) -> None:
        for work in [self._call(piece, peer) for peer, piece in self._pieces]:
            work.wait()


class Nixl(Mover):
    """NIXL's UCX backend: one prepared WRITE of all extents per pair, with a notification."""

    def __init__(self, end: End, memory: np.ndarray) -> None:
        super().__init__(end, memory)
        from nixl._api import nixl_agent, nixl_agent_config

        self._agent = nixl_agent(f"{'sender' if end.sends else 'receiver'} {end.rank}", nixl_agent_config())
        self._agent.register_memory([(memory.ctypes.data, memory.size, 0, "")], "DRAM")

    def card(self) -> Any:
        return self._agent.get_agent_metadata(), self.memory.ctypes.data

    def connect(self, cards: dict[tuple[bool, int], Any]) -> None:
        self._transfers = []
        for peer, extents in self.by_peer.items() if self.end.sends else ():
            metadata, address = cards[False, peer]
            name = self._agent.add_remote_agent(metadata)
            name = name.decode() if isinstance(name, bytes) else name
            ours = [(self.memory.ctypes.data + e.from_byte, e.bytes, 0) for e in extents]
            theirs = [(address + e.to_byte, e.bytes, 0) for e in extents]
            ours, theirs = (self._agent.get_xfer_descs(descs, "DRAM") for descs in (ours, theirs))
            self._transfers.append(self._agent.initialize_xfer("WRITE", ours, theirs, name, b"landed"))

    def move(self, round_: int) -> None:
        end = time.monotonic() + WAIT_S
        if not self.end.sends:
            landed = 0
            while landed < len(self.by_peer) and time.monotonic() < end:
                landed += sum(len(texts) for texts in self._agent.get_new_notifs().values())
                time.sleep(0.0005)
            if landed < len(self.by_peer):
                raise TimeoutError(f"{landed} of {len(self.by_peer)} notifications")
            return
        pending = [t for t in self._transfers if self._agent.transfer(t) != "DONE"]
        while pending:
            states = [self._agent.check_xfer_state(t) for t in pending]
            if "ERR" in states or time.monotonic() > end:
                raise RuntimeError(f"NIXL says {states}")
            pending = [t for t, state in zip(pending, states, strict=True) if state != "DONE"]
            time.sleep(0.0002)


class Mooncake(Mover):
    """Mooncake's transfer engine over TCP: one synchronous batch per pair, each on a thread."""

    def __init__(self, end: End, memory: np.ndarray) -> None:
        super().__init__(end, memory)
        from mooncake.engine import TransferEngine

        self._engine = TransferEngine()
        if self._engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""):
            raise RuntimeError("Mooncake's engine cannot be initialised")
        if self._engine.register_memory(memory.ctypes.data, memory.size):
            raise RuntimeError("Mooncake cannot register the memory")

    def card(self) -> Any:
        return f"127.0.0.1:{self._engine.get_rpc_port()}", self.memory.ctypes.data

    def connect(self, cards: dict[tuple[bool, int], Any]) -> None:
        self._batches = []
        for peer, extents in self.by_peer.items() if self.end.sends else ():
            session, address = cards[False, peer]
            self._batches.append((session, [self.memory.ctypes.data + e.from_byte for e in extents],
                                  [address + e.to_byte for e in extents], [e.bytes for e in extents]))  # fmt: skip

    def move(self, round_: int) -> None:
        results: list[int] = []
        threads = [threading.Thread(target=lambda b=b: results.append(self._engine.batch_transfer_sync_write(*b)))
                   for b in self._batches]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        if len(results) != len(self._batches) or any(result < 0 for result in results):
            raise RuntimeError(f"Mooncake says {results}")


class Weightcast(Mover):
    """weightcast straight into the live memory, as the other movers put; verified by digest, then committed."""

    recipe = "bf16"
    landing = "in_place"

    def __init__(self, end: End, memory: np.ndarray) -> None:
        super().__init__(end, memory)
        import weightcast

        views = {p.tensor: view_of(memory, p) for p in end.pieces if p.rows}
        if end.sends:
            shards = {p.tensor: weightcast.Shard(views[p.tensor], p.shape, (p.first,) + (0,) * (len(p.shape) - 1))
                      for p in end.pieces if p.rows}  # fmt: skip
            self._rank = weightcast.Trainer(self._config(), end.rank, shards)
        else:
            rules = [weightcast.Rule(("{}_proj.weight",), "{}_proj.weight", recipe=self.recipe), weightcast.Rule(("{}",), "{}")]
            self._parameters = weightcast.parameters_of({p.tensor: p.shape for p in end.pieces}, rules, 0, 1)
            self._arrays = views if self.recipe == "bf16" else server_arrays(self._parameters)
            replica = end.rank // (end.receivers // REPLICAS)
            self._rank = weightcast.Server(self._config(), end.rank, replica, self._parameters, self._arrays)

    def _config(self) -> dict[str, Any]:
        return {
            "run": "compare",
            "secret_file": f"{self.end.folder}/secret",
            "log_level": "warning",
            "controller": {"address": f"tcp://127.0.0.1:{self.end.port}", "trainers": self.end.senders,
                           "replicas": REPLICAS, "servers_per_replica": self.end.receivers // REPLICAS},
            "landing": self.landing,
            "fabric": {"same_host_shortcuts": os.environ["PEERS_PATH"] == "shm"},
        }  # fmt: skip

    def connect(self, cards: dict[tuple[bool, int], Any]) -> None:
        self._rank.wait_connected(WAIT_S)

    def move(self, round_: int) -> None:
        if self.end.sends:
            self._rank.push(round_ + 1)
            self._rank.wait(round_ + 1, WAIT_S)
        else:
            from weightcast import Phase

            if self.landing == "in_place":
                self._rank.wait(Phase.ALLOW_DUE, WAIT_S)
                self._rank.allow(round_ + 1)
            self._rank.wait(Phase.COMMIT_DUE, WAIT_S)
            self._rank.commit(round_ + 1)


class WeightcastFp8(Weightcast):
    """The same, with the linear layers cast to FP8 on the way."""

    recipe = FP8_BLOCK

    def count_wrong(self, expected: np.ndarray) -> int:
        wanted = {}
        for piece in self.end.pieces:
            value = view_of(expected, piece)
            if oracle.is_cast(piece.tensor):
                value, wanted[f"{piece.tensor}_scale_inv"] = oracle.cast_fp8(value)
            wanted[piece.tensor] = value
        return sum(int(np.count_nonzero(oracle.bytes_of(self._arrays[name]) != oracle.bytes_of(value)))
                   for name, value in wanted.items())  # fmt: skip


class WeightcastStaged(Weightcast):
    """With a shadow in between, so that readers never see two versions mixed."""

    landing = "staged"


class WeightcastFp8Staged(WeightcastFp8):
    landing = "staged"


def view_of(memory: np.ndarray, piece: Piece) -> np.ndarray:
    return memory[piece.start :][: piece.bytes].view(ml_dtypes.bfloat16).reshape(piece.rows, *piece.shape[1:])


MOVERS: dict[str, type[Mover]] = {
    "weightcast": Weightcast,
    "weightcast-staged": WeightcastStaged,
    "weightcast-fp8": WeightcastFp8,
    "weightcast-fp8-staged": WeightcastFp8Staged,
    "gloo": Gloo,
    "nixl": Nixl,
    "mooncake": Mooncake,
}
MODULES = {"gloo": "torch", "nixl": "nixl", "mooncake": "mooncake"}  # what to import, where it is not weightcast
