"""Ways to move bytes from senders to receivers, behind one small interface, so that they can be compared.

Every mover gets the same memory and the same list of extents. Set-up (registration, connection) is timed apart.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WAIT_S = 60.0


@dataclass(frozen=True)
class Extent:
    """Bytes of `sender`'s memory that belong into `receiver`'s."""

    sender: int
    receiver: int
    from_byte: int
    to_byte: int
    bytes: int


@dataclass(frozen=True)
class Place:
    """Who this process is."""

    sends: bool
    rank: int  # among senders or receivers
    senders: int
    receivers: int
    rendezvous: str  # a file that does not exist yet, the same for all


class Mover:
    """One process's end. card() goes to all others, connect() gets all cards, then any number of move()."""

    def __init__(self, place: Place, memory: np.ndarray, extents: Sequence[Extent]) -> None:
        self.place, self.memory = place, memory
        self.by_peer: dict[int, list[Extent]] = {}  # only peers that share bytes with this end
        for extent in extents:
            ours, theirs = (extent.sender, extent.receiver) if place.sends else (extent.receiver, extent.sender)
            if ours == place.rank:
                self.by_peer.setdefault(theirs, []).append(extent)

    def card(self) -> Any:
        return None

    def connect(self, cards: dict[tuple[bool, int], Any]) -> None:
        """`cards` by (sends, rank)."""

    def move(self, round_: int) -> None:
        """A sender: until all its bytes are delivered. A receiver: until all its bytes have arrived."""
        raise NotImplementedError


class Gloo(Mover):
    """torch.distributed's gloo: one isend per extent, one irecv for each."""

    def connect(self, cards: dict[tuple[bool, int], Any]) -> None:
        import torch
        import torch.distributed as dist

        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        place = self.place
        rank = place.rank if place.sends else place.senders + place.rank
        dist.init_process_group("gloo", init_method=f"file://{place.rendezvous}", rank=rank,
                                world_size=place.senders + place.receivers)  # fmt: skip
        memory = torch.from_numpy(self.memory)
        start, to = ("from_byte", place.senders) if place.sends else ("to_byte", 0)
        self._pieces = [(peer + to, memory[getattr(e, start) :][: e.bytes])
                        for peer, extents in self.by_peer.items() for e in extents]  # fmt: skip
        self._call = dist.isend if place.sends else dist.irecv

    def move(self, round_: int) -> None:
        for work in [self._call(piece, peer) for peer, piece in self._pieces]:
            work.wait()


class Nixl(Mover):
    """NIXL's UCX backend: one prepared WRITE of all extents per pair, with a notification."""

    def __init__(self, place: Place, memory: np.ndarray, extents: Sequence[Extent]) -> None:
        super().__init__(place, memory, extents)
        from nixl._api import nixl_agent, nixl_agent_config

        self._agent = nixl_agent(f"{'sender' if place.sends else 'receiver'} {place.rank}", nixl_agent_config())
        self._agent.register_memory([(memory.ctypes.data, memory.size, 0, "")], "DRAM")

    def card(self) -> Any:
        return self._agent.get_agent_metadata(), self.memory.ctypes.data

    def connect(self, cards: dict[tuple[bool, int], Any]) -> None:
        self._transfers = []
        for peer, extents in self.by_peer.items() if self.place.sends else ():
            metadata, address = cards[False, peer]
            name = self._agent.add_remote_agent(metadata)
            name = name.decode() if isinstance(name, bytes) else name
            ours = [(self.memory.ctypes.data + e.from_byte, e.bytes, 0) for e in extents]
            theirs = [(address + e.to_byte, e.bytes, 0) for e in extents]
            ours, theirs = (self._agent.get_xfer_descs(descs, "DRAM") for descs in (ours, theirs))
            self._transfers.append(self._agent.initialize_xfer("WRITE", ours, theirs, name, b"landed"))

    def move(self, round_: int) -> None:
        end = time.monotonic() + WAIT_S
        if not self.place.sends:
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

    def __init__(self, place: Place, memory: np.ndarray, extents: Sequence[Extent]) -> None:
        super().__init__(place, memory, extents)
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
        for peer, extents in self.by_peer.items() if self.place.sends else ():
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


MOVERS: dict[str, type[Mover]] = {"gloo": Gloo, "nixl": Nixl, "mooncake": Mooncake}
MODULES = {"gloo": "torch", "nixl": "nixl", "mooncake": "mooncake"}
