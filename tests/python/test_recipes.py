"""Updates under recipes whose blocks are rows, matrices or 32 values, of trainers that cut blocks."""

import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import weightcast

PROCESS = Path(__file__).with_name("recipes_update.py")


def devices():
    yield "host"
    if importlib.util.find_spec("torch") is None:
        yield pytest.param("cuda", marks=pytest.mark.skip("no torch"))
        return
    import torch

    yield "cuda" if torch.cuda.is_available() else pytest.param("cuda", marks=pytest.mark.skip("no GPU"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("device", list(devices()))
def test_servers_hold_what_a_cast_of_the_whole_tensors_gives(tmp_path, device):
    weightcast("keygen", tmp_path / "weightcast.secret")
    config = {"controller": {"address": f"tcp://127.0.0.1:{free_port()}", "trainers": 2, "replicas": 1, "servers_per_replica": 2},
              "performance": {"chunk_bytes": 4096}, "secret_file": str(tmp_path / "weightcast.secret")}
    (tmp_path / "weightcast.json").write_text(json.dumps(config))
    start = lambda role, rank: subprocess.Popen([sys.executable, PROCESS, tmp_path, role, str(rank), device], text=True,  # noqa: E731
                                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    processes = [start("trainer", 0), start("trainer", 1), start("server", 0), start("server", 1)]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * 4, outputs
    for server in (2, 3):
        assert [f"version {version} is equal" in outputs[server] for version in (1, 2)] == [True, True], outputs
    assert "'tensor.rows' at [3, 7] is NaN" in outputs[0], outputs
