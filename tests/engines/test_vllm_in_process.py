"""`LLM`, and `AsyncLLM` over two workers, with the trainer in the same program; weights land in place."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from command_line import weightcast as command
from vllm_server import engine_python, environment, free_port
from world import HERE, TIMES


@pytest.mark.parametrize(("kind", "ranks"), [("LLM", 1), ("AsyncLLM", 2)])
def test_engines_without_a_server_are_updated_in_place(kind: str, ranks: int, checkpoints: Path, tmp_path: Path) -> None:
    command("keygen", tmp_path / "secret")
    config = tmp_path / "weightcast.json"
    config.write_text(json.dumps({"controller": {"address": f"tcp://127.0.0.1:{free_port()}", "trainers": 1, "replicas": 1,
                                                 "servers_per_replica": ranks}, "secret_file": str(tmp_path / "secret"),
                                  "landing": "in_place", "times": TIMES}))  # fmt: skip
    command_line = [engine_python(), HERE / "in_process.py", kind, config, checkpoints / "qwen3"]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path, env=environment(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"versions"')))
    assert said["versions"] == ["3"]
    assert said["wrong"] == [[]] * len(said["requests"])
    if kind == "LLM":
        tokens = [request["tokens"] for request in said["requests"]]
        assert tokens[0] == tokens[2] != tokens[1] == tokens[3]
    else:
        assert all(len(request["spans"]) == 2 and request["finish"] == "length" for request in said["requests"])
