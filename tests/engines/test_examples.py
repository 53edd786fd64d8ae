"""The example that users copy runs as it is, in a short form."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from vllm_server import ROOT, engine_python, environment

STEPS = 3


def test_the_rl_loop_trains_and_says_reward_stall_and_transfer_of_every_step(tmp_path: Path) -> None:
    command_line = [engine_python(), ROOT / "integrations/examples/rl_loop.py", "--steps", str(STEPS)]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path, env=environment(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    print(done.stdout)
    rows = re.findall(r"^ +(\d+) +([\d.]+) +([\d.]+) ms +(\d+) ms +[\d.]+ s$", done.stdout, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(1, STEPS + 1))
    assert all(float(stall) > 0 for _, _, stall, _ in rows)
