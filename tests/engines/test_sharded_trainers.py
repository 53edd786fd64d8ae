"""FSDP2, DTensors and Megatron's layout over four gloo ranks: every byte that a server gets is that of the whole tensors."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import weightcast
from command_line import weightcast as command
from safetensors.numpy import load_file
from vllm_server import engine_python, environment, free_port
from weightcast.catalog import Parameter, Part
from world import HERE, TIMES

RANKS, VERSIONS = 4, (1, 2)


def test_shards_of_every_kind_arrive_as_the_tensors_that_they_are_parts_of(tmp_path: Path) -> None:
    command("keygen", tmp_path / "secret")
    config = tmp_path / "weightcast.json"
    config.write_text(json.dumps({"controller": {"address": f"tcp://127.0.0.1:{free_port()}", "trainers": RANKS, "replicas": 1,
                                                 "servers_per_replica": 1}, "secret_file": str(tmp_path / "secret"), "times": TIMES}))  # fmt: skip
    program, log = [engine_python(), HERE / "sharded_trainer.py"], tmp_path / "trainers.log"
    with log.open("w") as said:
        ranks = [subprocess.Popen([*program, str(rank), tmp_path / "store", config, tmp_path], env=environment(tmp_path), stderr=said)
                 for rank in range(RANKS)]  # fmt: skip
    try:
        while not (tmp_path / "shapes.json").exists():
            assert not any(rank.poll() for rank in ranks), log.read_text()[-4000:]
            time.sleep(0.1)
        shapes = {name: tuple(shape) for name, shape in json.loads((tmp_path / "shapes.json").read_text()).items()}
        arrays = {name: np.zeros(shape, ml_dtypes.bfloat16) for name, shape in shapes.items()}
        whole = [Parameter(name, shape, "bf16", (Part(name, shape, (0,) * len(shape), shape, (0,) * len(shape)),)) for name, shape in shapes.items()]
        with weightcast.Server(config, 0, 0, whole, arrays) as server:
            for version in VERSIONS:
                server.wait(weightcast.Phase.COMMIT_DUE, 180)
                server.commit(version)
                expected = load_file(tmp_path / f"{version}.safetensors")
                assert [name for name, array in arrays.items() if array.tobytes() != expected[name].tobytes()] == []
            assert [rank.wait(60) for rank in ranks] == [0] * RANKS, log.read_text()[-4000:]
    finally:
        for rank in ranks:
            rank.kill()
