"""A real vLLM server over two tensor parallel workers: both switch in the same step, and a fault of one raises nowhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import weightcast
from command_line import weightcast as command
from load import Load, complete
from safetensors.numpy import load_file
from vllm_server import Serving, free_port, serving
from weightcast.vllm import Client

MODEL = "qwen3_moe"  # experts are packed for the CPU, so that this also runs the repair at the switch
PROMPT = list(range(40, 110))


@pytest.fixture(scope="module")
def cluster(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, weightcast.Trainer, dict]]:
    folder = tmp_path_factory.mktemp("two")
    command("keygen", folder / "secret")
    config = folder / "weightcast.json"
    config.write_text(json.dumps({"controller": {"address": f"tcp://127.0.0.1:{free_port()}", "trainers": 1, "replicas": 1,
                                                 "servers_per_replica": 2}, "secret_file": str(folder / "secret"),
                                  "times": {"join_ms": 600000, "death_idle_ms": 60000, "death_busy_ms": 30000}}))  # fmt: skip
    arrays = load_file(checkpoints / MODEL / "a/model.safetensors")
    with weightcast.Trainer(config, 0, arrays) as trainer, serving(folder / "server", checkpoints / MODEL / "a", config, "--tensor-parallel-size", "2",
                                                                         "--dtype", "bfloat16", "--skip-tokenizer-init") as server:
        trainer.wait_connected(60)
        yield server, trainer, arrays


def test_both_workers_serve_each_version_whole_and_no_request_fails(cluster: tuple, checkpoints: Path) -> None:
    server, trainer, arrays = cluster
    client = Client(server.url)
    seen = [complete(server.url, PROMPT, 12).tokens]
    for version in range(1, 5):
        for name, values in load_file(checkpoints / MODEL / ("b" if version % 2 else "a") / "model.safetensors").items():
            arrays[name][...] = values
        load = Load(server.url, clients=2, tokens=30)
        while not any(request.tokens for request in load.requests):
            time.sleep(0.02)
        client.update(trainer, version)
        assert client.versions() == [str(version)]
        assert not [request.error for request in load.stop() if request.error]
        seen.append(complete(server.url, PROMPT, 12).tokens)  # alone: batches of other sizes round differently
    assert seen[0] == seen[2] == seen[4] and seen[1] == seen[3] and seen[0] != seen[1]


def test_a_switch_that_is_not_due_raises_in_no_worker_and_the_server_goes_on(cluster: tuple) -> None:
    server = cluster[0]
    before = complete(server.url, PROMPT, 8).tokens
    shown = Client(server.url).versions()
    server.post("start_weight_update", {})
    server.post("update_weights", {"update_info": {"version": 999}})
    server.post("finish_weight_update", {})
    assert len(server.said("asked to commit version 999, but this rank is IDLE")) >= 2
    for route in ("update_weights", "finish_weight_update"):  # without a start: vLLM's own workers would raise
        with pytest.raises(OSError, match="500"):
            server.post(route, {"update_info": {"version": 999}})
    assert Client(server.url).versions() == shown
    assert complete(server.url, PROMPT, 8).tokens == before
