"""The receiving side: weights as they lie in a worker process of an inference engine."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import abi
from .abi import Phase
from .catalog import Manifest, Parameter, Rule, parameters_of, server_catalog


@dataclass(frozen=True)
class State:
    """What a server rank is doing, and which version its live weights are."""

    phase: Phase
    committed_version: int  # 0: what the engine loaded itself
    next_version: int  # the version under way; else 0
    torn: bool  # in_place: the live weights are a mix, do not serve


class Server(abi.Handle):
    """One rank of an inference engine, whose live weights are updated in place of what they are.

    `parameters` say what the rank holds (`parameters_of` makes them from rules), `arrays` where, by the parameters'
    names. The arrays must stay where they are until close(); this object keeps them alive. With `landing: staged` the
    shadow memory is taken here, so open it before the engine sizes its KV cache.

    Joins and returns; connecting goes on in the background.
    """

    _closer = "server_close"

    def __init__(self, config: abi.Config, rank: int, replica: int, parameters: Sequence[Parameter],
                 arrays: Mapping[str, Any]) -> None:  # fmt: skip
        self._join(config, server_catalog(rank, replica, parameters, arrays), list(arrays.values()))

    def _join(self, config: abi.Config, catalog: dict[str, Any], arrays: list[Any]) -> None:
        self._arrays, self.catalog = arrays, catalog
        text = abi.config_text(config, rank=catalog["rank"], replica=catalog["replica"])
        super().__init__(lambda out: abi.api().server_open(text, json.dumps(catalog).encode(), out))

    @classmethod
    def from_catalog(cls, config: abi.Config, catalog: dict[str, Any], arrays: Sequence[Any]) -> Server:
        """A server whose catalog is known already (schedule/FORMATS.md); `arrays` own the memory that it names."""
        server = cls.__new__(cls)
        server._join(config, catalog, list(arrays))
        return server

    @classmethod
    def from_rules(cls, config: abi.Config, rank: int, replica: int, ranks: int, manifest: Manifest,
                   rules: Sequence[Rule], arrays: Mapping[str, Any]) -> Server:  # fmt: skip
        """A server whose parameters follow from the checkpoint's shapes and the engine's rules.

        `rank` counts over all replicas; `ranks` is the size of one.
        """
        return cls(config, rank, replica, parameters_of(manifest, rules, rank % ranks, ranks), arrays)

    def wait_connected(self, timeout_s: float = 60.0) -> None:
        """Until every rank has joined, the plan is proved and this rank is connected: the end of first contact."""
        abi.until(timeout_s, lambda wait_ms: abi.api().server_wait_connected(self._open, wait_ms))

    def fileno(self) -> int:
        """Readable when the phase has changed since the last state(): for select, poll, an event loop. Do not read."""
        fd = ctypes.c_int()
        abi.check(abi.api().server_event_fd(self._open, ctypes.byref(fd)))
        return fd.value

    def state(self) -> State:
        """Never waits. Raises the reason once the rank has failed."""
        found = _empty_state()
        abi.check(abi.api().server_state(self._open, ctypes.byref(found)))
        return _state(found)

    def wait(self, phase: Phase, timeout_s: float = 60.0) -> State:
        """Until the rank is in `phase`; raises Aborted if the version under way ended without it."""
        found = _empty_state()
        abi.until(timeout_s, lambda ms: abi.api().server_wait(self._open, phase, ms, ctypes.byref(found)))
        return _state(found)

    def allow(self, version: int) -> None:
        """`in_place`: the engine is paused, and the live weights may be overwritten with `version`."""
        abi.check(abi.api().server_allow(self._open, version))

    def staged(self, version: int) -> list[dict[str, Any]]:
        """Between ready and commit: where the new bytes stand, one object per catalog entry."""
        return abi.json_from(lambda out: abi.api().server_staged(self._open, version, out))

    def commit(self, version: int) -> float:
        """Switches the live weights to `version`, between two forward passes; returns how long it took, in ms."""
        stall_ms = ctypes.c_double()
        abi.check(abi.api().server_commit(self._open, version, ctypes.byref(stall_ms)))
        return stall_ms.value

    def commit_if_due(self) -> float | None:
        """For every step of an engine: commits if the controller has decided so; how long it took in ms, or None."""
        state = self.state()
        return self.commit(state.next_version) if state.phase == Phase.COMMIT_DUE else None

    def status(self) -> dict[str, Any]:
        """State, version and peers of this rank; see plugin/PROTOCOL.md."""
        return abi.json_from(lambda out: abi.api().server_status(self._open, out))


def _empty_state() -> abi.ServerState:
    return abi.ServerState(struct_size=ctypes.sizeof(abi.ServerState))


def _state(found: abi.ServerState) -> State:
    return State(Phase(found.phase), found.committed_version, found.next_version, bool(found.torn))
