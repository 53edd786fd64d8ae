"""A whole update between processes whose weights are in the memory of one GPU: cast, put, digest and commit on the GPU."""

import json
import pathlib
import socket
import subprocess
import sys

import pytest
from command_line import weightcast

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PROCESS = pathlib.Path(__file__).with_name("gpu_update.py")


def test_servers_hold_what_torch_makes_of_the_trainers_weights(tmp_path):
    weightcast("keygen", tmp_path / "weightcast.secret")
    config = {"controller": {"address": f"tcp://127.0.0.1:{free_port()}", "trainers": 2, "replicas": 1, "servers_per_replica": 1},
              "secret_file": str(tmp_path / "weightcast.secret"),
              "performance": {"chunk_bytes": 64 << 20, "scratch_bytes": 256 << 20}}
    (tmp_path / "weightcast.json").write_text(json.dumps(config))
    start = lambda role, rank: subprocess.Popen([sys.executable, PROCESS, tmp_path, role, str(rank)], text=True,  # noqa: E731
                                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    processes = [start("trainer", 0), start("trainer", 1), start("server", 0)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    assert [f"version {version} is equal" in outputs[2] for version in (1, 2, 3)] == [True] * 3, outputs
    assert "'mlp.weight' at [3, 5] is NaN" in outputs[0], outputs
