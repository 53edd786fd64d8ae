"""Weights land in place: in `LLM`, in `AsyncLLM` over two workers with the trainer in the same program, and in an HTTP server."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
import weightcast
from command_line import weightcast as command
from load import Load, complete
from safetensors.numpy import load_file
from vllm_server import engine_python, environment, free_port, serving
from weightcast.vllm import Client
from world import HERE, TIMES


def in_place(folder: Path, ranks: int) -> Path:
    """A configuration."""
    command("keygen", folder / "secret")
    config = folder / "weightcast.json"
    config.write_text(json.dumps({"controller": {"address": f"tcp://127.0.0.1:{free_port()}", "trainers": 1, "replicas": 1,
                                                 "servers_per_replica": ranks}, "secret_file": str(folder / "secret"),
                                  "landing": "in_place", "times": TIMES}))  # fmt: skip
    return config


@pytest.mark.long
@pytest.mark.parametrize(("kind", "ranks"), [("LLM", 1), ("AsyncLLM", 2)])
def test_engines_without_a_server_are_updated_in_place(kind: str, ranks: int, checkpoints: Path, tmp_path: Path) -> None:
    command_line = [engine_python(), HERE / "in_process.py", kind, in_place(tmp_path, ranks), checkpoints / "qwen3"]
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


def test_a_server_is_updated_in_place_and_its_requests_go_on(checkpoints: Path, tmp_path: Path) -> None:
    folder, config, prompt = checkpoints / "qwen3", in_place(tmp_path, 1), list(range(40, 110))
    arrays = load_file(folder / "a/model.safetensors")
    more = ["--dtype", "bfloat16", "--skip-tokenizer-init"]
    with weightcast.Trainer(config, 0, arrays) as trainer, serving(tmp_path / "server", folder / "a", config, *more) as server:
        trainer.wait_connected(60)
        client = Client(server.url)
        seen = [complete(server.url, prompt, 12).tokens]
        for version in range(1, 5):
            for name, values in load_file(folder / ("b" if version % 2 else "a") / "model.safetensors").items():
                arrays[name][...] = values
            load = Load(server.url, clients=2, tokens=200)
            while not any(request.tokens for request in load.requests):
                time.sleep(0.02)
            update = client.update(trainer, version, in_place=True)
            assert client.versions() == [str(version)] and update.paused_ms > 0
            requests = load.stop()
            assert not [request.error for request in requests if request.error]
            assert any(len(request.spans or []) == 2 for request in requests)  # nothing was started again
            seen.append(complete(server.url, prompt, 12).tokens)
        assert server.preemptions() == 0
    assert seen[0] == seen[2] == seen[4] != seen[1] == seen[3]
