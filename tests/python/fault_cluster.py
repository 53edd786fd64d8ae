"""A small cluster of real processes for tests that kill, stop and mislead it. Every wait has a bound.

The weights of a version are a pattern that no other version shares in any element, so that what a server holds is one
version or none. Parts of trainers are rows, rank by rank; so are those of servers within their replica.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from command_line import weightcast as run_command
from weightcast import Controller, Part, Parameter, Phase, Server, Shard, Trainer, WeightcastError
from weightcast.catalog import BLOCK, FP8_BLOCK, Scales, slice_of
from weightcast.demo.oracle import cast_fp8
from weightcast.demo.processes import Children, answer, orders

COLUMNS = 1024
SHAPES = {"embed": (1024, COLUMNS), "mlp": (512, COLUMNS)}  # 3 MiB of BF16
VERSIONS = range(1, 8)
BOUND_S = 8.0  # of every answer that a test waits for


def pattern(name: str, version: int, rows: range, columns: int = COLUMNS) -> np.ndarray:
    """Elements of `version` as BF16 bits; all finite, and none equal to the same element of another version."""
    first = np.uint32(sum(name.encode()) + version * 0x5A1)
    index = np.arange(rows.start * columns, rows.stop * columns, dtype=np.uint32)
    return ((index * np.uint32(31) + first) & np.uint32(0x3FFF)).astype(np.uint16).reshape(len(rows), columns)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def configuration(folder: Path, *, trainers: int = 2, replicas: int = 2, **keys: Any) -> dict[str, Any]:
    """Bounds that suit a test: an update ends within 4 s, a silent rank is dead after 1 s. `keys` are laid over it."""
    secret = folder / "secret"
    if not secret.exists():
        run_command("keygen", secret)
    config = {
        "run": "faults",
        "secret_file": str(secret),
        "log_level": "error",
        "controller": {"address": f"tcp://127.0.0.1:{free_port()}", "embedded": False, "trainers": trainers,
                       "replicas": replicas},
        "times": {"join_ms": 6000, "update_ms": 4000, "commit_ms": 1500, "heartbeat_busy_ms": 20,
                  "heartbeat_idle_ms": 100, "death_busy_ms": 1000, "death_idle_ms": 1200, "lease_ms": 700},
    }  # fmt: skip
    for key, value in keys.items():
        config[key] = config[key] | value if key in config and isinstance(value, dict) else value
    return config


@dataclass(frozen=True)
class Failure:
    """What an order raised in its process."""

    kind: str
    text: str
    after_s: float


class TrainerRank:
    """Holds its share of the rows of every tensor, or those rows that `odd` says."""

    def __init__(self, config: dict, rank: int, shapes: dict[str, tuple[int, int]], trainers: int,
                 odd: dict[str, range]) -> None:  # fmt: skip
        self._config, self._rank, self._shards = config, rank, {}
        for name, (rows, columns) in shapes.items():
            share = odd.get(name, range(rows * rank // trainers, rows * (rank + 1) // trainers))
            self._shards[name] = Shard(np.zeros((len(share), columns), np.uint16), (rows, columns), (share.start, 0))
        self._handle: Trainer | None = None

    def open(self) -> None:
        self._handle = Trainer(self._config, self._rank, self._shards)

    def connect(self, timeout_s: float) -> None:
        self._handle.wait_connected(timeout_s)

    def spoil(self, name: str, row: int, column: int, bits: int) -> None:
        self._shards[name].array[row, column] = bits

    def fill(self, version: int) -> None:
        for name, shard in self._shards.items():
            rows, columns = shard.array.shape
            shard.array[...] = pattern(name, version, range(shard.offset[0], shard.offset[0] + rows), columns)

    def push(self, version: int) -> None:
        self._handle.push(version)

    def push_and_wait(self, version: int) -> dict[str, Any]:
        self._handle.push(version)
        return self._handle.wait(version, BOUND_S)

    def update(self, version: int) -> dict[str, Any]:
        """Fills, pushes, and waits for the report."""
        self.fill(version)
        return self.push_and_wait(version)

    def status(self) -> dict[str, Any]:
        return self._handle.status()

    def close(self) -> None:
        if self._handle:
            self._handle.close()


class ServerRank:
    """Holds its replica's share of the rows of every tensor; those in `cast` as FP8, with the blocks' scales.

    A thread stands in for the engine: it allows and commits as told.
    """

    def __init__(self, config: dict, rank: int, shapes: dict[str, tuple[int, int]], cast: tuple[str, ...]) -> None:
        self._config, self._rank, self._shapes, self._cast = config, rank, shapes, cast
        self._ranks = config["controller"].get("servers_per_replica", 1)
        self._boxes = {name: slice_of(shape, 0, rank % self._ranks, self._ranks) for name, shape in shapes.items()}
        self._arrays = {}
        for name, (_, extent) in self._boxes.items():
            self._arrays[name] = np.zeros(extent, np.uint8 if name in cast else np.uint16)
            if name in cast:
                self._arrays[f"{name} scales"] = np.zeros([-(-n // BLOCK) for n in extent], np.float32)
        self._handle: Server | None = None
        self._commits, self._allows, self._stop = True, True, False
        self._committing = threading.Lock()
        self._engine = threading.Thread(target=self._serve)

    def open(self) -> None:
        parameters = [self._parameter(name, *box) for name, box in self._boxes.items()]
        self._handle = Server(self._config, self._rank, self._rank // self._ranks, parameters, self._arrays)

    def _parameter(self, name: str, offset: tuple[int, int], extent: tuple[int, int]) -> Parameter:
        if name not in self._cast:
            return Parameter(name, extent, "bf16", (Part(name, self._shapes[name], offset, extent, (0, 0)),))
        part = Part(name, self._shapes[name], offset, extent, (0, 0), (0, 0))
        scales = Scales(f"{name} scales", self._arrays[f"{name} scales"].shape)
        return Parameter(name, extent, FP8_BLOCK, (part,), scales)

    def connect(self, timeout_s: float) -> None:
        self._handle.wait_connected(timeout_s)
        if not self._engine.is_alive():
            self._engine.start()

    def _serve(self) -> None:
        while not self._stop:
            # An update may end between the question and the answer; a failed rank says so when asked for its state.
            with self._committing, contextlib.suppress(WeightcastError):
                state = self._handle.state()
                if state.phase == Phase.ALLOW_DUE and self._allows:
                    self._handle.allow(state.next_version)
                if state.phase == Phase.COMMIT_DUE and self._commits:
                    self._handle.commit(state.next_version)
            time.sleep(0.002)

    def engine(self, commits: bool, allows: bool) -> None:
        with self._committing:
            self._commits, self._allows = commits, allows

    def phase(self) -> str:
        return self._handle.state().phase.name

    def holds(self) -> dict[str, Any]:
        """What it says it holds, and what its bytes are: one version, 0 (what it began with), or "mixed"."""
        with self._committing:
            state = self._handle.state()
            found = [version for version in (0, *VERSIONS) if all(self._is(version, name) for name in self._shapes)]
        return {"says": state.committed_version, "torn": state.torn, "bytes": found[0] if found else "mixed"}

    def _is(self, version: int, name: str) -> bool:
        (first, _), (rows, columns) = self._boxes[name]
        if version == 0:
            return not self._arrays[name].any()
        expected = pattern(name, version, range(first, first + rows), columns)
        if name not in self._cast:
            return np.array_equal(self._arrays[name], expected)
        codes, scales = cast_fp8(expected.view(ml_dtypes.bfloat16))
        found = self._arrays[name], self._arrays[f"{name} scales"]
        return np.array_equal(found[0], codes.view(np.uint8)) and np.array_equal(found[1], scales)

    def has_row(self, name: str, row: int, version: int) -> bool:
        """Whether it holds that row of the tensor, in `version`; of a tensor that is not cast."""
        at = row - self._boxes[name][0][0]
        return np.array_equal(self._arrays[name][at : at + 1], pattern(name, version, range(row, row + 1)))

    def flip(self, name: str, row: int, column: int) -> None:
        self._arrays[name][row, column] ^= 1

    def free(self, name: str) -> None:
        """Gives the array's whole pages back to the system, as an engine with a bug would."""
        first, end = self._arrays[name].ctypes.data, self._arrays[name].ctypes.data + self._arrays[name].nbytes
        first, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        assert ctypes.CDLL(None).munmap(ctypes.c_void_p(first), ctypes.c_size_t(end - first)) == 0

    def status(self) -> dict[str, Any]:
        return self._handle.status()

    def close(self) -> None:
        self._stop = True
        if self._engine.is_alive():
            self._engine.join(BOUND_S)
        if self._handle:
            self._handle.close()


class ControllerRank:
    def __init__(self, config: dict) -> None:
        self._config, self._handle = config, None

    def open(self) -> None:
        self._handle = Controller(self._config)

    def status(self) -> dict[str, Any]:
        return self._handle.status()

    def close(self) -> None:
        if self._handle:
            self._handle.close()


def obey(pipe: Any, make: Callable[..., Any], *arguments: Any) -> None:
    """A child's body: carries out orders (method, arguments), and answers with what they return or raise."""
    faulthandler.enable()  # a crash says where
    rank = make(*arguments)
    answer(pipe, os.getpid())
    try:
        for method, arguments_ in orders(pipe):
            began = time.monotonic()
            try:
                answer(pipe, getattr(rank, method)(*arguments_))
            except WeightcastError as error:
                answer(pipe, Failure(type(error).__name__, str(error), time.monotonic() - began))
    finally:
        rank.close()


def ranks_of_servers(config: dict) -> int:
    return config["controller"]["replicas"] * config["controller"].get("servers_per_replica", 1)


def is_stopped(task: Path) -> bool:
    """By /proc/PID/task/TID/stat: T behind the name, which may hold anything but ends in the last bracket."""
    try:
        return (task / "stat").read_text().rpartition(") ")[2][0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return True  # it has ended


class Cluster:
    """The processes of one test, by name: "controller", "trainer 0", "server 1"."""

    def __init__(self, config: dict, children: Children) -> None:
        self.config, self._children = config, children
        self._processes: dict[str, str] = {}  # rank -> the child that has it now
        self._pids: dict[str, int] = {}
        self.trainers = [f"trainer {rank}" for rank in range(config["controller"]["trainers"])]
        self.servers = [f"server {rank}" for rank in range(ranks_of_servers(config))]

    def start(self, name: str, config: dict | None = None, shapes: dict[str, tuple[int, int]] | None = None,
              odd: dict[str, range] | None = None, cast: tuple[str, ...] = ()) -> None:  # fmt: skip
        """Starts a process for `name`; one that had the name before is no longer spoken to."""
        role, _, rank = name.partition(" ")
        child = f"{name}, process {len(self._pids)}"
        config, shapes = config or self.config, shapes or SHAPES
        arguments = {"controller": (ControllerRank, config),
                     "trainer": (TrainerRank, config, int(rank or 0), shapes, len(self.trainers), odd or {}),
                     "server": (ServerRank, config, int(rank or 0), shapes, cast)}[role]  # fmt: skip
        self._children.start(child, obey, *arguments)
        self._processes[name] = child
        self._pids[child] = 0

    def process_of(self, name: str) -> str:
        """The process that has the name now; it is called so even when another takes its place."""
        return self._processes.get(name, name)

    def await_start(self, *names: str) -> None:
        for child, pid in self._children.gather([self._processes[n] for n in names], "start", BOUND_S).items():
            self._pids[child] = pid

    def join(self, *names: str) -> None:
        """Waits until the processes run, then opens and connects them all."""
        self.await_start(*names)
        self.all(names, "open")
        self.all([name for name in names if name != "controller"], "connect", BOUND_S)

    def tell(self, name: str, method: str, *arguments: Any) -> None:
        self._children.tell([self.process_of(name)], (method, arguments))

    def take(self, name: str, what: str) -> Any:
        """The answer to the oldest order that has none yet."""
        return next(iter(self._children.gather([self.process_of(name)], what, BOUND_S).values()))

    def ask(self, name: str, method: str, *arguments: Any) -> Any:
        self.tell(name, method, *arguments)
        return self.take(name, method)

    def all(self, names: Any, method: str, *arguments: Any) -> dict[str, Any]:
        """The same order for all at once; AssertionError if any fails."""
        names = list(names)
        answers = self.try_all(names, method, *arguments)
        failures = {name: found for name, found in answers.items() if isinstance(found, Failure)}
        assert not failures, failures
        return answers

    def try_all(self, names: Any, method: str, *arguments: Any) -> dict[str, Any]:
        for name in names:
            self.tell(name, method, *arguments)
        return {name: self.take(name, method) for name in names}

    def signal(self, name: str, number: signal.Signals) -> None:
        """SIGSTOP has stopped every thread when this returns: the kernel lets them run until one has taken the signal."""
        pid = self._pids[self.process_of(name)]
        os.kill(pid, number)
        if number == signal.SIGSTOP:
            tasks = Path(f"/proc/{pid}/task")
            self.until(f"{name} stopped", lambda: all(map(is_stopped, tasks.iterdir())))

    def until(self, what: str, is_so: Callable[[], bool], bound_s: float = 5.0) -> None:
        end = time.monotonic() + bound_s
        while not is_so():
            assert time.monotonic() < end, f"{what}: not within {bound_s:g} s"
            time.sleep(0.002)

    def until_phase(self, name: str, phase: str) -> None:
        self.until(f"{name} in phase {phase}", lambda: self.ask(name, "phase") == phase)

    def assert_hold(self, version: int, *names: str) -> None:
        """The bytes of `names` (all servers if none) are `version`, whole, and they say so."""
        for name, found in self.all(names or self.servers, "holds").items():
            assert found == {"says": version, "torn": False, "bytes": version}, (name, found)

    def update(self, version: int) -> dict[str, Any]:
        """An update that must succeed on all that are connected; the report."""
        return self.all(self.trainers, "update", version)["trainer 0"]


@contextlib.contextmanager
def opened(config: dict, trainer_shapes: dict, server_shapes: dict, odd: dict | None = None,
           cast: tuple[str, ...] = ()) -> Iterator[Cluster]:  # fmt: skip
    """All ranks of `config` in processes of their own, joined but perhaps never connected; none is left at the end."""
    with Children() as children:
        found = Cluster(config, children)
        for names, shapes in ((["controller"], {}), (found.trainers, trainer_shapes), (found.servers, server_shapes)):
            for name in names:
                found.start(name, shapes=shapes, odd=(odd or {}).get(name), cast=cast)
        names = ["controller", *found.trainers, *found.servers]
        found.await_start(*names)
        found.all(names, "open")
        yield found


@contextlib.contextmanager
def cluster(config: dict, shapes: dict[str, tuple[int, int]] | None = None, odd: dict | None = None,
            cast: tuple[str, ...] = ()) -> Iterator[Cluster]:  # fmt: skip
    """The same, with every rank connected."""
    with opened(config, shapes or SHAPES, shapes or SHAPES, odd, cast) as found:
        found.all([*found.trainers, *found.servers], "connect", BOUND_S)
        yield found
