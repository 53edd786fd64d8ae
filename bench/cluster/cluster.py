"""The simulator against the real data plane: hosts made of network namespaces with shaped links, real trainers and
servers in them, the same plan. Prints measured beside simulated for every layout in bench/cluster/layouts.

Exit codes: 0 within the tolerance, 1 not, or it failed; 77 it cannot run here (the text says why).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import ranks
from hosts import INTERFACE, Hosts, NoHosts
from rich.console import Console
from rich.table import Table
from weightcast import WeightcastError
from weightcast.demo.processes import ChildFailed, Children
from weightcast.output import whole_file

LAYOUTS = Path(__file__).parent / "layouts"
WAIT_S = ranks.WAIT_S
SKIPPED = 77


@dataclass
class Comparison:
    """One layout: what the simulator says and what was measured, in seconds from push until all is verified."""

    layout: str
    about: str
    hosts: int
    bytes: int = 0
    simulated_s: float = 0
    bound_s: float = 0
    measured_s: list[float] = field(default_factory=list)

    @property
    def error(self) -> float:
        """Against the fastest update: whatever else the machine does only adds time."""
        return self.simulated_s / min(self.measured_s) - 1


def command(*arguments: object) -> str:
    program = Path(os.environ["WEIGHTCAST_BUILD"]) / "plugin/weightcast"
    result = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    if result.returncode != 0:
        raise ChildFailed(result.stderr.strip())
    return result.stdout


def rates_of(scenario: dict) -> dict[str, float]:
    """MB/s of every rank's link, by name; what the scenario says of NICs and stragglers."""
    def of(hardware: dict, role: str, first: int) -> dict[str, float]:
        count = hardware["nodes"] * hardware["gpus_per_node"]
        return {f"{role} {first + i}": 1000 * hardware["nic_gbs"] * hardware.get("nics_per_gpu", 1) for i in range(count)}

    rates = of(scenario["trainers"]["hardware"], "trainer", 0)
    servers: dict[str, float] = {}
    for pool in scenario["servers"]:
        servers |= of(pool["hardware"], "server", len(servers))
    rates |= servers
    for slow in scenario.get("simulation", {}).get("stragglers", []):
        name = f"trainer {slow['trainer']}" if "trainer" in slow else f"server {slow['server']}"
        rates[name] /= slow["factor"]
    return rates


def configuration(folder: Path, scenario: dict, catalogs: dict[str, dict], address: str) -> dict:
    replicas = {catalog["replica"] for catalog in catalogs.values() if catalog["role"] == "server"}
    servers = sum(catalog["role"] == "server" for catalog in catalogs.values())
    command("keygen", folder / "secret")
    return {
        "run": "cluster",
        "secret_file": str(folder / "secret"),
        "log_level": "error",
        "controller": {"address": f"tcp://{address}:5710", "trainers": len(catalogs) - servers, "replicas": len(replicas),
                       "servers_per_replica": servers // len(replicas)},
        "fabric": {"interfaces": [INTERFACE], "same_host_shortcuts": False},
        "performance": {"threads": 1, "window": scenario["simulation"]["window"]},
        # Many processes share few cores: silence is no sign of death here.
        "times": {"join_ms": 60_000, "update_ms": 60_000, "commit_ms": 30_000, "death_busy_ms": 20_000, "death_idle_ms": 30_000,
                  "lease_ms": 15_000},
    }  # fmt: skip


def catalogs_of(layout: Path, folder: Path) -> dict[str, dict]:
    """The scenario's catalogs by rank, as its real ranks would have them."""
    command("catalogs", layout, folder)
    catalogs = [json.loads(file.read_text()) for file in sorted(folder.glob("*.catalog.json"))]
    return {f"{catalog['role']} {catalog['rank']}": catalog for catalog in catalogs}


def compare(layout: Path, updates: int, trace: Path | None) -> Comparison:
    scenario = json.loads(layout.read_text())
    relays = layout.stem.startswith("relay")
    simulated = json.loads(command("simulate", "--json", *([] if relays else ["--no-relay"]), layout))
    rates = rates_of(scenario)
    found = Comparison(layout.stem, scenario["about"], len(rates), simulated["bytes"], simulated["makespan_s"],
                       simulated["bound_s"])  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="weightcast-cluster-") as folder, Hosts(rates) as hosts, Children() as children:
        catalogs = catalogs_of(layout, Path(folder))
        config = configuration(Path(folder), scenario, catalogs, hosts["trainer 0"].address)
        trainers = [name for name in catalogs if name.startswith("trainer")]
        servers = [name for name in catalogs if name.startswith("server")]
        for name, catalog in catalogs.items():
            links = {"links": {"node": name, "nic_mbs": round(rates[name])}} if relays else {}
            children.start(name, ranks.trainer if name in trainers else ranks.server, hosts[name], config | links, catalog)
        children.gather(catalogs, "start", WAIT_S)
        children.tell(catalogs, ("join",))
        children.gather(catalogs, "join", WAIT_S)
        for version in range(1, 2 + updates):  # the first one warms up
            children.tell(servers, ("commit", version))
            children.tell(trainers, ("push", version))
            pushed = children.gather(trainers, f"push of version {version}", WAIT_S)
            committed = children.gather(servers, f"commit of version {version}", WAIT_S)
            if version > 1:
                found.measured_s.append(pushed["trainer 0"]["report"]["transfer_s"])
        if trace:
            with whole_file(trace) as file:
                json.dump(trace_of(pushed, committed), file)
    return found


def trace_of(pushed: dict[str, dict], committed: dict[str, dict]) -> dict:
    """The last update for Perfetto, and for `weightcast simulate --measured`."""
    start = max(one["began"] for one in pushed.values())
    events = []
    spans = [(name, "send", max(one["began"], start), one["sent"]) for name, one in pushed.items()]
    spans += [(name, "take", start, one["ready"]) for name, one in committed.items()]
    spans += [(name, "commit", one["ready"], one["committed"]) for name, one in committed.items()]
    numbers = {name: number for number, name in enumerate([*pushed, *committed])}
    for name, number in numbers.items():
        events.append({"ph": "M", "pid": number, "tid": 0, "name": "process_name", "args": {"name": name}})
    for name, lane, begin, end in spans:
        events.append({"ph": "X", "pid": numbers[name], "tid": 0, "name": lane, "ts": 1e6 * (begin - start), "dur": 1e6 * (end - begin)})
    return {"displayTimeUnit": "ms", "traceEvents": events}


def show(console: Console, comparisons: list[Comparison], tolerance: float) -> None:
    table = Table(title=f"measured against simulated, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for column in ("layout", "hosts", "MB", "bound s", "simulated s", "least s", "median s", "most s", "simulated is", ""):
        table.add_column(column, justify="left" if column == "layout" else "right")
    for one in comparisons:
        off = f"{100 * abs(one.error):.1f} % {'more' if one.error > 0 else 'less'}"
        table.add_row(one.layout, str(one.hosts), f"{one.bytes / 1e6:.1f}", f"{one.bound_s:.3f}", f"{one.simulated_s:.3f}",
                      f"{min(one.measured_s):.3f}", f"{statistics.median(one.measured_s):.3f}", f"{max(one.measured_s):.3f}", off,
                      "ok" if abs(one.error) <= tolerance else "OFF")  # fmt: skip
    console.print(table)
    for one in comparisons:
        console.print(f"{one.layout}: {one.about}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    names = sorted(path.stem for path in LAYOUTS.glob("*.json"))
    parser = argparse.ArgumentParser(prog="./dev bench cluster", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("layouts", nargs="*", metavar="LAYOUT", help=f"some of {', '.join(names)} (default: all)")
    parser.add_argument("--updates", type=int, default=5, help="measured updates of each layout (default: 5)")
    parser.add_argument("--tolerance", type=float, default=0.10, help="of the fastest update, as a share (default: 0.10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="writes the last update measured, for Perfetto")
    parsed = parser.parse_args(arguments)
    parsed.layouts = parsed.layouts or names
    if unknown := [name for name in parsed.layouts if name not in names]:
        parser.error(f"there is no layout {unknown[0]}; there are {', '.join(names)}")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the hosts go first
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 130)
    comparisons = []
    try:
        with contextlib.ExitStack() as files:
            report = files.enter_context(whole_file(options.json)) if options.json else None
            for name in options.layouts:
                began = time.monotonic()
                comparisons.append(compare(LAYOUTS / f"{name}.json", options.updates, options.trace))
                print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
            show(console, comparisons, options.tolerance)
            if report:
                json.dump([vars(one) | {"error": one.error} for one in comparisons], report, indent=2)
    except NoHosts as reason:
        print(f"SKIPPED: {reason}")
        return SKIPPED
    except (ChildFailed, WeightcastError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if all(abs(one.error) <= options.tolerance for one in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
