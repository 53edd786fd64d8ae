"""compare.py: the same tensors, from four processes to four, by weightcast and by other movers, in one run.

Each mover has processes of its own, which live as long as the comparison. Movers deliver in turns, so that what the
machine does besides slows all of them; every delivery is checked byte by byte.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ends
from movers import MODULES, MOVERS
from weightcast import WeightcastError
from weightcast.demo import model
from weightcast.demo.__main__ import DemoFailed, free_port, run_command
from weightcast.demo.processes import ChildFailed, Children
from weightcast.demo.ranks import manifest_of
from weightcast.output import whole_file

SENDERS, RECEIVERS = 4, 4
WAIT_S = 120.0
UCX_TLS = {"tcp": "tcp,self", "shm": "posix,cma,tcp,self"}  # for the movers that read it


class Cluster:
    """One mover's processes, connected and idle between deliveries."""

    def __init__(self, kind: str, checkpoint: Path, stack: contextlib.ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if kind.startswith("weightcast"):
            run_command("keygen", folder / "secret")
        every_end = ends.ends_of(dict(manifest_of(checkpoint)), SENDERS, RECEIVERS, str(folder), free_port())
        names = {f"{'sender' if end.sends else 'receiver'} {end.rank}": end for end in every_end}
        self._names = list(names)
        self._receivers = [name for name, end in names.items() if not end.sends]
        self._senders = [name for name, end in names.items() if end.sends]
        self._children = stack.enter_context(Children())
        for name, end in names.items():
            self._children.start(name, ends.run, kind, end, checkpoint / model.CHECKPOINT)
        cards = self._answers(self._names, "start")
        cards = {(names[name].sends, names[name].rank): card for name, card in cards.items()}
        self.setup_s = max(self._answers(self._names, "connect", cards).values())

    def _answers(self, names: list[str], order: str, argument: Any = None) -> dict[str, Any]:
        if order != "start":
            self._children.tell(names, (order, argument))
        return self._children.gather(names, order, WAIT_S)

    def deliver(self, round_: int) -> tuple[float, float]:
        """One delivery, checked: its seconds, and the CPU time of all processes meanwhile."""
        self._answers(self._senders, "fill", round_)
        began = time.monotonic()
        ended = self._answers(self._names, "move", round_).values()
        if wrong := sum(self._answers(self._receivers, "check", round_).values()):
            raise ChildFailed(f"{wrong} bytes differ after round {round_}")
        return max(end for end, _ in ended) - began, sum(cpu_s for _, cpu_s in ended)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--movers", nargs="*", default=list(MOVERS), choices=list(MOVERS))
    parser.add_argument("--path", choices=list(UCX_TLS), default="tcp")
    parser.add_argument("--rounds", type=int, default=10, help="measured deliveries of each mover, after one that is not")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    os.environ |= {"PEERS_PATH": options.path, "UCX_TLS": UCX_TLS[options.path], "NIXL_LOG_LEVEL": "ERROR", "MC_LOG_LEVEL": "ERROR"}
    checkpoint = model.prepare()
    every_end = ends.ends_of(dict(manifest_of(checkpoint)), SENDERS, RECEIVERS, "", 0)
    delivered = sum(extent.bytes for extent in every_end[0].extents)
    results: dict[str, dict] = {kind: {"seconds": [], "cpu_seconds": []} for kind in options.movers}
    with contextlib.ExitStack() as stack:
        clusters: dict[str, Cluster] = {}
        for round_ in range(-1, options.rounds):  # the first, of each, is not measured
            for kind in [kind for kind in options.movers if "seconds" in results[kind]]:
                try:
                    if round_ < 0:
                        if (module := MODULES.get(kind)) and importlib.util.find_spec(module) is None:
                            results[kind] = {"skipped": f"{module} is not installed"}
                            continue
                        clusters[kind] = Cluster(kind, checkpoint, stack)
                    seconds, cpu_seconds = clusters[kind].deliver(round_ + 1)
                except (ChildFailed, DemoFailed, WeightcastError) as error:
                    results[kind] = {"failed": str(error)}
                    continue
                if round_ >= 0:
                    results[kind]["seconds"].append(seconds)
                    results[kind]["cpu_seconds"].append(cpu_seconds)
        for kind, cluster in clusters.items():
            results[kind]["setup_s"] = cluster.setup_s
    print(f"{delivered} bytes BF16 from {SENDERS} to {RECEIVERS} processes over {options.path}, load {os.getloadavg()[0]:.1f}")
    for kind, result in results.items():
        if seconds := result.get("seconds"):
            low, middle = min(seconds), statistics.median(seconds)
            print(f"{kind:>21}  least {low:.3f} s  median {middle:.3f} s  {delivered / middle / 1e9:.2f} GB/s  "
                  f"CPU {statistics.median(result['cpu_seconds']):.3f} s  set-up {result['setup_s']:.2f} s  {len(seconds)} deliveries")  # fmt: skip
        else:
            print(f"{kind:>21}  {result}")
    if options.json:
        with whole_file(options.json) as file:
            json.dump({"bytes": delivered, "path": options.path, "movers": results}, file, indent=2)
    return 1 if any("failed" in result for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
