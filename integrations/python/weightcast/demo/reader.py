"""Reads a server's live weights as an engine's forward passes would, and records which version every pass saw.

The reader shares no lock with the receiver. Between two passes it calls `boundary`, where an engine would switch
versions; whatever changes the weights at any other time shows up as a pass that saw a mix.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .oracle import bytes_of, fingerprint

UNKNOWN = -1  # bytes that no known version has


@dataclass
class Seen:
    """What the reader saw so far."""

    passes: int = 0
    versions: dict[int, int] = field(default_factory=dict)  # version -> passes that saw it alone
    mixed: list[str] = field(default_factory=list)  # one line per pass that fits no single version

    def record(self, candidates: Mapping[str, frozenset[int]]) -> None:
        """One pass: for each parameter the versions whose bytes it may be."""
        self.passes += 1
        common = frozenset.intersection(*candidates.values())
        if common and UNKNOWN not in common:
            version = max(common)
            self.versions[version] = self.versions.get(version, 0) + 1
            return
        by_version: dict[frozenset[int], list[str]] = {}
        for name, versions in candidates.items():
            by_version.setdefault(versions, []).append(name)
        counts = ", ".join(f"{len(names)} of version {_text(v)} ({names[0]})" for v, names in by_version.items())
        self.mixed.append(f"pass {self.passes}: {counts}")


class Reader:
    """A thread that reads all parameters again and again until it is stopped.

    `known` gives each version's fingerprints by parameter; what the parameters hold at construction is version 0.
    `boundary` runs in the reader's thread between two passes. An exception there ends the thread and is raised by
    stop().
    """

    def __init__(self, parameters: Mapping[str, np.ndarray], known: Mapping[int, Mapping[str, int]],
                 boundary: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        self._bytes = {name: bytes_of(array) for name, array in parameters.items()}
        if copied := [name for name, array in parameters.items() if not np.shares_memory(array, self._bytes[name])]:
            raise ValueError(f"parameter {copied[0]!r} is not contiguous, so its live bytes cannot be read in place")
        self._versions_of: dict[str, dict[int, set[int]]] = {name: {} for name in parameters}
        first = {name: fingerprint(raw) for name, raw in self._bytes.items()}
        for version, prints in {**known, 0: first}.items():
            for name in parameters:
                self._versions_of[name].setdefault(prints[name], set()).add(version)
        self.seen = Seen()
        self._boundary = boundary
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Raises what ended the thread, if anything did."""
        if self._error:
            raise self._error

    def stop(self, wait_s: float = 10.0) -> Seen:
        """Ends the thread after its pass and returns what it saw; raises what ended it before, or TimeoutError."""
        self._stop.set()
        self._thread.join(wait_s)
        if self._thread.is_alive():
            raise TimeoutError(f"the reader did not end its pass within {wait_s} s")
        self.check()
        return self.seen

    def read_once(self) -> None:
        """One forward pass over all parameters."""
        candidates = {}
        for name, raw in self._bytes.items():
            versions = self._versions_of[name].get(fingerprint(raw), {UNKNOWN})
            candidates[name] = frozenset(versions)
        self.seen.record(candidates)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.read_once()
                self._boundary()
        except BaseException as error:
            self._error = error


def _text(versions: frozenset[int]) -> str:
    return "unknown" if UNKNOWN in versions else " or ".join(map(str, sorted(versions)))
