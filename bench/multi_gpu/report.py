"""Puts the parts of one multi_gpu.sh together, beside what bounds them: report.py FOLDER PROGRAM RESULT."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCENARIO = Path(__file__).with_name("relay.json")


def line(command: list[str]) -> list[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def machine() -> dict[str, Any]:
    gpus = line(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    return {"gpus": gpus, "cores": os.cpu_count(), "topology": line(["nvidia-smi", "topo", "-m"])}


def median(part: dict[str, Any], *keys: str) -> float:
    for key in keys:
        part = part[key]
    return part["median"]


def put_rate(parts: dict[str, Any], source: int, target: int, what: str) -> float | None:
    """GB/s of 64 MiB puts, or of the driver's copies."""
    part = parts.get(f"put_{source}_{target}")
    return median(part, "64_mib", f"{what}_gb_per_s") if part else None


def predicted_relay(program: str, parts: dict[str, Any]) -> dict[str, Any] | None:
    """What the plan of relay.json says, on links as fast as the puts measured."""
    source, first, second = parts["relay"]["devices"]
    rates = put_rate(parts, source, first, "put"), put_rate(parts, source, second, "put"), put_rate(parts, first, second, "put")
    if len({source, first, second}) < 3 or None in rates:
        return None  # two of them share a GPU's memory, which no link of a plan is
    out, onwards = min(rates[:2]), rates[2]
    changes = [f"trainer.nic_gbs={out}", f"server.nic_gbs={out}", f"server.nvlink_gbs={onwards}"]
    seconds = []
    for way in ([], ["--no-relay"]):
        command = [program, "simulate", "--json", *way, str(SCENARIO), *(word for change in changes for word in ("--set", change))]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
        seconds.append(found.get("with_changes", found)["makespan_s"])
    return {"out_gbs": out, "onwards_gbs": onwards, "relayed_over_direct": seconds[0] / seconds[1]}


def update_bound(parts: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """The time of each stage alone; on one GPU all of them share its memory, so they add up."""
    pipeline = parts["pipeline"]["64_mib"]
    cast_s = max(update["trainer_bytes"]) / (1e9 * parts["pipeline"]["bf16_gb"]) * 1e-3 * pipeline["cast_ms"]
    trainers, servers = update["trainers"], update["servers"]
    out_s = update["bytes"] / len(trainers) / 1e9 / min(put_rate(parts, a, b, "copy") for a in trainers for b in servers)
    in_s = max(update["server_bytes"]) / 1e9 / min(put_rate(parts, a, b, "copy") for a in trainers for b in servers)
    stages = {"cast_s": cast_s, "out_s": out_s, "in_s": in_s}
    shared = bool({*trainers} & {*servers})
    bound = cast_s + out_s if shared else max(stages.values())
    return {"stages": stages, "bound_s": bound, "shared_memory": shared, "ratio": median(update, "transfer_s") / bound}


def main() -> int:
    folder, program, result_file = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    failed = (folder / "failed").read_text().split() if (folder / "failed").exists() else []
    on_gpus = any(name.startswith("put_") for name in parts)
    for name, part in parts.items():
        if name.startswith("update") and on_gpus and "pipeline" in parts and not part["relay"]:
            part["bound"] = update_bound(parts, part)
            print(f"{name}: {1e3 * median(part, 'transfer_s'):.2f} ms, x {part['bound']['ratio']:.3f} of "
                  f"{'all stages together, which share one memory' if part['bound']['shared_memory'] else 'the slowest stage'} "
                  f"({', '.join(f'{key} {1e3 * value:.2f} ms' for key, value in part['bound']['stages'].items())})")  # fmt: skip
        if name.startswith("put_"):
            print(f"{name}: 64 MiB {put_rate(parts, part['source'], part['target'], 'put'):.1f} GB/s, "
                  f"{100 * part['64_mib']['share_of_copy']:.1f} % of the copy")
    if on_gpus and "relay" in parts:
        parts["relay"]["predicted"] = predicted = predicted_relay(program, parts)
        print(f"relay: x {parts['relay']['relayed_over_direct']:.3f} of direct, "
              + (f"predicted {predicted['relayed_over_direct']:.3f}" if predicted else "no prediction: two of the three share a GPU"))
    if "update_relay" in parts and "update_replicas" in parts:
        ratio = median(parts["update_relay"], "transfer_s") / median(parts["update_replicas"], "transfer_s")
        parts["update_relay"]["relayed_over_direct"] = ratio
        print(f"update_relay: x {ratio:.3f} of update_replicas, the same update without relay")
    verified = all(part.get("verified", True) for part in parts.values())
    whole = {"date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(), "machine": machine(), "failed": failed,
             "verified": verified and not failed, **parts}  # fmt: skip
    result_file.write_text(json.dumps(whole, indent=1) + "\n")
    return 0 if whole["verified"] else 1


if __name__ == "__main__":
    sys.exit(main())
