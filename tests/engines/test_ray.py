"""weightcast.ray on a real local Ray cluster."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from command_line import weightcast as command
from vllm_server import engine_python, environment


def test_trainers_and_servers_find_a_controller_actor_that_survives_its_own_death(tmp_path: Path) -> None:
    command("keygen", tmp_path / "secret")
    config = tmp_path / "weightcast.json"
    config.write_text(json.dumps({"controller": {"trainers": 2, "replicas": 2, "servers_per_replica": 1, "address": "tcp://127.0.0.1:0"},
                                  "secret_file": str(tmp_path / "secret"), "times": {"death_idle_ms": 30000, "death_busy_ms": 10000}}))  # fmt: skip
    command_line = [engine_python(), Path(__file__).with_name("ray_cluster.py"), config]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=600, check=False, env=environment(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["live"] == {"1": [[0x3F81], [0x3F81]], "2": [[0x3F82], [0x3F82]]}
    assert said["replicas"] == [0, 1]
    assert said["address"][0] == said["address"][1]
