"""python -m weightcast.demo: four trainers update four servers with a real model, three versions in a row."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import WeightcastError, abi
from ..output import standard_output, whole_file
from . import layouts, model, ranks
from .processes import ChildFailed, Children

TRAINER_NAMES = [f"trainer {rank}" for rank in range(layouts.TRAINERS)]
SERVER_NAMES = [f"server {rank}" for rank in range(layouts.REPLICAS * layouts.SERVERS_PER_REPLICA)]
COPY_ROUNDS = 4
SHARED_MEMORY = Path("/dev/shm")


class DemoFailed(RuntimeError):
    """Something that the demo needs is missing, or something did not come out as it must."""


@dataclass
class Outcome:
    """What the demo measured; the fields are those of --json."""

    verified: bool = False
    versions: int = 0
    servers: int = len(SERVER_NAMES)
    trainers: int = len(TRAINER_NAMES)
    bytes: int = 0  # delivered by one update
    control_bytes: int = 0  # the most of any update
    first_contact_s: float = 0.0
    transfer_s: float = 0.0  # median of the updates
    gb_per_s: float = 0.0
    stall_ms: float = 0.0  # the longest of any server and update
    bound_s: float = 0.0
    host_copy_gb_per_s: float = 0.0
    mixed_versions: int = 0
    passes: int = 0  # forward passes that the readers made
    seen: dict[str, dict[int, int]] = field(default_factory=dict)  # server -> version -> passes
    updates: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def command_line() -> Path:
    """The program `weightcast`, beside the library."""
    path = abi.library_path().parent / "weightcast"
    if not path.is_file():
        raise DemoFailed(f"the program {path} is missing; build it or install the wheel")
    return path


def run_command(*arguments: Any) -> str:
    done = subprocess.run([str(command_line()), *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise DemoFailed(f"weightcast {arguments[0]} ended with exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def configuration(folder: Path) -> dict[str, Any]:
    secret = folder / "secret"
    run_command("keygen", secret)
    return {
        "run": "demo",
        "secret_file": str(secret),
        "log_level": "warning",
        "controller": {
            "address": f"tcp://127.0.0.1:{free_port()}",
            "trainers": layouts.TRAINERS,
            "replicas": layouts.REPLICAS,
            "servers_per_replica": layouts.SERVERS_PER_REPLICA,
        },
    }


class Demo:
    """The steps of the demo, in the order of run()."""

    def __init__(self, arguments: argparse.Namespace, console: Console, folder: Path, children: Children) -> None:
        self._arguments, self._console, self._folder, self._children = arguments, console, folder, children
        self._end = time.monotonic() + arguments.timeout
        self.outcome = Outcome(versions=arguments.versions)

    def run(self) -> Outcome:
        checkpoint = self._step("model", lambda: model.prepare(self._arguments.cache))
        expected, versions = self._folder / "expected", self._arguments.versions
        setting = ranks.Setting(configuration(self._folder), checkpoint, expected, versions, self._left())
        self._children.start("oracle", ranks.expectations, checkpoint, expected, versions)
        self._step("load", lambda: self._start_ranks(setting))
        self._step("oracle", self._finish_oracle)
        self._step("plain copy", self._measure_host)
        self._step("first contact", self._join)
        for version in range(1, self._arguments.versions + 1):
            self._step(f"version {version}", lambda version=version: self._update(version))
        self._step("readers", self._leave)
        return self.outcome

    def _left(self) -> float:
        if (left := self._end - time.monotonic()) <= 0:
            raise DemoFailed(f"not done within {self._arguments.timeout:g} s (--timeout)")
        return left

    def _step(self, name: str, body: Callable[[], Any]) -> Any:
        began = time.monotonic()
        with self._console.status(name):
            result = body()
        self._console.print(f"[dim]{name:>14}  {time.monotonic() - began:6.2f} s[/]  {result or ''}", highlight=False)
        return result

    def _tell(self, names: list[str], *order: Any) -> dict[str, Any]:
        self._children.tell(names, order)
        return self._children.gather(names, " ".join(map(str, order[:2])), self._left())

    def _finish_oracle(self) -> str:
        self._children.gather(["oracle"], "oracle", self._left())
        return "an independent cast of every version, by NumPy and ml_dtypes in a process of its own"

    def _start_ranks(self, setting: ranks.Setting) -> str:
        for rank, name in enumerate(TRAINER_NAMES):
            self._children.start(name, ranks.trainer, setting, rank)
        for rank, name in enumerate(SERVER_NAMES):
            self._children.start(name, ranks.server, setting, rank, rank // layouts.SERVERS_PER_REPLICA)
        self._children.gather(SERVER_NAMES, "start", self._left())
        self._loaded = self._children.gather(TRAINER_NAMES, "load", self._left())
        bands = layouts.straddling_blocks(ranks.manifest_of(setting.checkpoint))
        held = sum(trainer["bytes"] for trainer in self._loaded.values())
        return f"{held / 1e6:.1f} MB BF16 on {layouts.TRAINERS} trainers; {bands} rows of blocks straddle two of them"

    def _measure_host(self) -> str:
        start, first = 0, {}
        for name in TRAINER_NAMES:
            first[name], start = start, start + self._loaded[name]["bytes"]
        if (free := shutil.disk_usage(SHARED_MEMORY).free) < start:
            raise DemoFailed(f"{SHARED_MEMORY} has {free} bytes free, the plain copy needs {start}; make it larger")
        with tempfile.NamedTemporaryFile(prefix="weightcast-demo-", dir=SHARED_MEMORY) as file:
            file.truncate(start)
            for name in TRAINER_NAMES:
                self._children.tell([name], ("copy", Path(file.name), first[name], COPY_ROUNDS))
            found = list(self._children.gather(TRAINER_NAMES, "plain copy", self._left()).values())
        seconds = max(copy["ended"] for copy in found) - min(copy["began"] for copy in found)
        self.outcome.host_copy_gb_per_s = sum(copy["bytes"] for copy in found) / seconds / 1e9
        return f"{self.outcome.host_copy_gb_per_s:.1f} GB/s: four processes copying into shared memory, nothing else"

    def _join(self) -> str:
        self._children.tell([*TRAINER_NAMES, *SERVER_NAMES], ("join",))
        joined = self._children.gather([*TRAINER_NAMES, *SERVER_NAMES], "join", self._left())
        files = []
        for name, answer in joined.items():
            files.append(self._folder / f"{name.replace(' ', '-')}.json")
            files[-1].write_text(json.dumps(answer["catalog"]))
        self._routes = run_command("explain", "--no-relay", "--host-gbs", f"{self.outcome.host_copy_gb_per_s:.3f}", *files)
        return "connected, planned and proved"

    def _update(self, version: int) -> str:
        if version > 1:
            self._tell(TRAINER_NAMES, "step", version)
        pushed = self._tell(TRAINER_NAMES, "push", version)
        report = pushed[TRAINER_NAMES[0]]["report"]
        checked = self._tell(SERVER_NAMES, "verify", version)
        for name, found in checked.items():
            self.outcome.problems += [f"version {version} on {name}: {text}" for text in found["differing"]]
        landed = sum(found["bytes"] for found in checked.values())
        stall_ms = max(found["stall_ms"] for found in checked.values())
        self.outcome.updates.append(report | {"verified_bytes": landed, "stall_ms": stall_ms})
        if report["bytes"] != landed:
            self.outcome.problems.append(f"version {version}: {report['bytes']} bytes sent, {landed} bytes checked")
        return f"{landed} bytes compared on {len(checked)} servers"

    def _leave(self) -> str:
        seen = self._tell(SERVER_NAMES, "leave")
        outcome, updates = self.outcome, self.outcome.updates
        for name, reader in seen.items():
            outcome.passes += reader["passes"]
            outcome.seen[name] = reader["versions"]
            outcome.mixed_versions += len(reader["mixed"])
            outcome.problems += [f"reader of {name}: {line}" for line in reader["mixed"][:3]]
        outcome.bytes = updates[-1]["bytes"]
        outcome.control_bytes = max(update["control_bytes"] for update in updates)
        outcome.first_contact_s = updates[0]["first_contact_s"]
        outcome.transfer_s = statistics.median(update["transfer_s"] for update in updates)
        outcome.gb_per_s = outcome.bytes / outcome.transfer_s / 1e9
        outcome.stall_ms = max(update["stall_ms"] for update in updates)
        outcome.bound_s = outcome.bytes / outcome.host_copy_gb_per_s / 1e9
        outcome.verified = not outcome.problems
        return f"{outcome.passes} forward passes, {outcome.mixed_versions} saw more than one version"

    def show(self) -> None:
        """The routing table and the figures."""
        outcome = self.outcome
        print(self._routes)
        table = Table(title="updates")
        for column in ("version", "MB", "transfer s", "GB/s", "of the bound", "cast s", "verify s", "stall ms", "control bytes"):
            table.add_column(column, justify="right")
        for update in outcome.updates:
            seconds = update["transfer_s"]
            table.add_row(str(update["version"]), f"{update['bytes'] / 1e6:.1f}", f"{seconds:.3f}", f"{update['bytes'] / seconds / 1e9:.2f}",
                          f"{seconds / outcome.bound_s:.1f} x", f"{update['cast_s']:.3f}", f"{update['verify_s']:.3f}",
                          f"{update['stall_ms']:.1f}", str(update["control_bytes"]))  # fmt: skip
        self._console.print(table)
        print(f"first contact {outcome.first_contact_s:.3f} s, paid once")
        print(f"bound {outcome.bound_s:.3f} s: {outcome.bytes} bytes at the host's plain copy rate of "
              f"{outcome.host_copy_gb_per_s:.1f} GB/s; transfer takes {outcome.transfer_s / outcome.bound_s:.1f} times that")  # fmt: skip
        pairs = layouts.TRAINERS * len(SERVER_NAMES)
        print(f"control plane {outcome.control_bytes} bytes per update for {pairs} rank pairs")
        print(f"readers made {outcome.passes} forward passes; {outcome.mixed_versions} saw more than one version")
        print("the weights are trained ones that went through 4 bits (see weightcast/demo/model.py)")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m weightcast.demo", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the measured figures there")
    parser.add_argument("--versions", type=int, default=3, help="updates in a row (default: 3)")
    parser.add_argument("--timeout", type=float, default=180.0, metavar="S", help="bound of the whole run (default: 180)")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="for the converted model (default: ~/.cache/weightcast)")
    parsed = parser.parse_args(arguments)
    if parsed.versions < 1:
        parser.error("--versions must be at least 1")
    return parsed


def measure(options: argparse.Namespace) -> Outcome:
    """Runs the demo and shows it; what goes wrong is among the outcome's problems."""
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 110)
    with tempfile.TemporaryDirectory(prefix="weightcast-demo-") as folder, Children() as children:
        demo = Demo(options, console, Path(folder), children)
        try:
            demo.run()
            demo.show()
        except (DemoFailed, ChildFailed, WeightcastError, model.ModelUnavailable, OSError) as error:
            demo.outcome.verified = False
            demo.outcome.problems.append(str(error))
    return demo.outcome


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    problems: list[str] = []
    try:
        with standard_output():
            with contextlib.ExitStack() as files:  # opened first: a path that cannot be written costs no run
                report = files.enter_context(whole_file(options.json)) if options.json else None
                outcome = measure(options)
                problems += outcome.problems
                if report:
                    json.dump(vars(outcome), report, indent=2)
                    report.write("\n")
            if outcome.verified:
                print(f"all {outcome.bytes} bytes on {outcome.servers} servers equal an independent cast of the checkpoint")
    except OSError as error:
        problems.append(str(error))
    for problem in problems[:20]:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
