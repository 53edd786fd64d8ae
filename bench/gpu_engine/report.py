"""report.py RESULTS FILE SECONDS: compares updated engines with fresh ones, prints a table, writes FILE; fails if bytes differ."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from pathlib import Path

import torch

def compared(updated: dict, fresh: dict) -> dict:
    after, theirs = updated["b"], fresh["b"]
    tokens = [(mine, other) for ours, others in zip(after["tokens"], theirs["tokens"], strict=True)
              for mine, other in zip(ours, others, strict=True)]  # fmt: skip
    return {"parameters": len(theirs["digests"]),
            "differing": [name for name, digest in theirs["digests"].items() if after["digests"].get(name) != digest],
            "changed": sum(after["digests"][name] != digest for name, digest in updated["a"]["digests"].items()),
            "back_differing": [name for name, digest in updated["a"]["digests"].items() if updated["back"]["digests"][name] != digest],
            "tokens": len(tokens), "tokens_differing": sum(mine != other for mine, other in tokens)}  # fmt: skip


def stalls(under_way: list[dict]) -> dict:
    """Medians by what was done to requests in flight; the first round of each warms up."""
    found = {}
    for kv, pause in (("keep", False), ("keep", True), ("recompute", False)):
        rounds = [one for one in under_way if (one["kv"], one["pause"]) == (kv, pause)][1:]
        middle = {key: statistics.median(one[key] for one in rounds)
                  for key in ("usual_ms", "longest_gap_ms", "copy_ms", "commit_call_ms", "paused_ms")}  # fmt: skip
        found[kv + (" with pause" if pause else "")] = middle | {"tokens": [one["tokens"] for one in rounds]}
    return found


def main() -> None:
    folder, out, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {platform.machine()}"
    report = {"device": device, "torch": torch.__version__, "seconds": seconds, "engines": {}}
    well = True
    for name, found in results.items():
        model, e8m0, landing = name.split(".")
        fresh = results.get(f"{model}.{e8m0}.fresh")
        if landing == "fresh" or fresh is None:
            continue
        row = compared(found, fresh) | {"transfer_s": found["transfer_s"], "bytes": found["first"]["bytes"],
                                        "gap_without_update_ms": found["gap_without_update_ms"], "under_way": stalls(found["under_way"])}  # fmt: skip
        report["engines"][name] = row
        well = well and not row["differing"] and not row["back_differing"] and row["changed"] > 0
        print(f"{name}: {len(row['differing'])} of {row['parameters']} parameters differ from a fresh engine's ({row['changed']} changed by the "
              f"update), {len(row['back_differing'])} after going back; {row['tokens_differing']} of {row['tokens']} tokens differ")  # fmt: skip
        for how, middle in row["under_way"].items():
            print(f"  {how:20} longest gap {middle['longest_gap_ms']:7.1f} ms, usual {middle['usual_ms']:6.1f} ms, copy {middle['copy_ms']:6.2f} ms, "
                  f"commit call {middle['commit_call_ms']:6.1f} ms, paused {middle['paused_ms']:6.1f} ms")  # fmt: skip
        print(f"  {'no update':20} longest gap {row['gap_without_update_ms']:7.1f} ms")
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{seconds} s on {device}; {out}")
    sys.exit(0 if well and report["engines"] else 1)


main()
