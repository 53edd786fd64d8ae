"""compare.py: the same tensors, from four processes to four, by weightcast and by other movers, in one run.

Each mover has processes of its own; movers take turns, every delivery is checked byte by byte.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

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


def measure(kind: str, checkpoint: Path, rounds: int, folder: Path) -> dict:
    """Starts one mover's processes, delivers 1 + `rounds` times and checks each; seconds per delivery."""
    if kind.startswith("weightcast"):
        run_command("keygen", folder / "secret")
    ends_ = ends.ends_of(dict(manifest_of(checkpoint)), SENDERS, RECEIVERS, str(folder), free_port())
    names = {f"{'sender' if end.sends else 'receiver'} {end.rank}": end for end in ends_}
    receivers = [name for name, end in names.items() if not end.sends]
    senders = [name for name, end in names.items() if end.sends]
    with Children() as children:
        for name, end in names.items():
            children.start(name, ends.run, kind, end, checkpoint / model.CHECKPOINT)
        found = children.gather(names, "start", WAIT_S)
        children.tell(names, ("connect", {(names[name].sends, names[name].rank): card for name, card in found.items()}))
        setup_s = max(children.gather(names, "connect", WAIT_S).values())
        seconds = []
        for round_ in range(1 + rounds):
            children.tell(senders, ("fill", round_))
            children.gather(senders, "fill", WAIT_S)
            began = time.monotonic()
            children.tell(names, ("move", round_))
            ended = children.gather(names, "move", WAIT_S)
            seconds.append(max(ended.values()) - began)
            children.tell(receivers, ("check", round_))
            if wrong := sum(children.gather(receivers, "check", WAIT_S).values()):
                raise ChildFailed(f"{kind}: {wrong} bytes differ after round {round_}")
    return {"setup_s": setup_s, "seconds": seconds[1:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--movers", nargs="*", default=list(MOVERS), choices=list(MOVERS))
    parser.add_argument("--path", choices=list(UCX_TLS), default="tcp")
    parser.add_argument("--rounds", type=int, default=3, help="measured deliveries per turn, after one that is not")
    parser.add_argument("--turns", type=int, default=2, help="how often every mover has its turn")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    os.environ |= {"PEERS_PATH": options.path, "UCX_TLS": UCX_TLS[options.path], "NIXL_LOG_LEVEL": "ERROR", "MC_LOG_LEVEL": "ERROR"}
    checkpoint = model.prepare()
    every_end = ends.ends_of(dict(manifest_of(checkpoint)), SENDERS, RECEIVERS, "", 0)
    delivered = sum(extent.bytes for extent in every_end[0].extents)
    results: dict[str, dict] = {}
    for kind in options.movers * options.turns:
        if (module := MODULES.get(kind)) and importlib.util.find_spec(module) is None:
            results[kind] = {"skipped": f"{module} is not installed"}
        if "seconds" not in results.setdefault(kind, {"seconds": []}):
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = measure(kind, checkpoint, options.rounds, Path(folder))
            results[kind] = {"setup_s": found["setup_s"], "seconds": results[kind]["seconds"] + found["seconds"]}
        except (ChildFailed, DemoFailed, WeightcastError) as error:
            results[kind] = {"failed": str(error)}
    print(f"{delivered} bytes BF16 from {SENDERS} to {RECEIVERS} processes over {options.path}, load {os.getloadavg()[0]:.1f}")
    for kind, result in results.items():
        if seconds := result.get("seconds"):
            low, middle = min(seconds), statistics.median(seconds)
            print(f"{kind:>21}  least {low:.3f} s  median {middle:.3f} s  {delivered / middle / 1e9:.2f} GB/s  "
                  f"set-up {result['setup_s']:.2f} s  {len(seconds)} deliveries")  # fmt: skip
        else:
            print(f"{kind:>21}  {result}")
    if options.json:
        with whole_file(options.json) as file:
            json.dump({"bytes": delivered, "path": options.path, "movers": results}, file, indent=2)
    return 1 if any("failed" in result for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
