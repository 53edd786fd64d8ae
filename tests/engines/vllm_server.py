"""A real vLLM server as a child process, with the plug-in found through its entry point as an installed package has it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_S = 600  # three processes import vLLM one after the other: a minute on two idle cores


def engine_python() -> Path:
    """Of the environment that `./dev test engines` makes; skips, with the reason, where there is none."""
    path = Path(os.environ.get("WEIGHTCAST_VLLM_VENV", ROOT / ".venv-vllm")) / "bin/python"
    if not path.exists():
        pytest.skip(f"no vLLM environment at {path.parents[1]}; ./dev test engines makes it")
    return path


def installed_package(folder: Path) -> str:
    """PYTHONPATH on which `weightcast` is found together with its entry points, as after `pip install`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / "weightcast-0.1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weightcast\nVersion: 0.1.0\n")
    lines = [line for group, points in project.get("entry-points", {}).items()
             for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))]  # fmt: skip
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return f"{folder}:{ROOT / 'integrations/python'}"


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # vLLM compiles for 20 s
    return kept | {
        "PYTHONPATH": installed_package(folder / "site"),
        "WEIGHTCAST_LIBRARY": os.environ.get("WEIGHTCAST_LIBRARY", str(ROOT / "build/debug/plugin/libweightcast.so")),
        "WEIGHTCAST_VLLM_CPU_PACKING": "off",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def arguments(model: Path, port: int, config: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--served-model-name", "m", "--port", str(port), "--host", "127.0.0.1", "--enforce-eager",
            "--max-model-len", "512", "--max-num-seqs", "8", "--seed", "0", "--disable-uvicorn-access-log", "--enable-scale-out",
            "--block-size", "32", "--weight-transfer-config", '{"backend": "weightcast"}',
            "--additional-config", json.dumps({"weightcast": {"config": str(config)}}), *more]  # fmt: skip


class Serving:
    """A running server: its URL, its log, and what the log says."""

    def __init__(self, url: str, log: Path, process: subprocess.Popen | None) -> None:
        self.url, self.log, self.process = url, log, process

    def get(self, route: str) -> dict:
        with urllib.request.urlopen(f"{self.url}/{route}", timeout=120) as response:
            return json.loads(response.read() or b"null")

    def post(self, route: str, body: dict) -> dict:
        request = urllib.request.Request(f"{self.url}/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.loads(response.read() or b"null")

    def preemptions(self) -> float:
        """Requests that the engine has started again so far."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=120) as response:
            return sum(map(float, re.findall(r"^vllm:num_preemptions_total\{.*\} (\S+)$", response.read().decode(), re.MULTILINE)))

    def said(self, pattern: str) -> list[str]:
        return re.findall(pattern, self.log.read_text(errors="replace"))


@contextlib.contextmanager
def serving(folder: Path, model: Path, config: Path, *more: str) -> Iterator[Serving]:
    """Until the `with` block ends; `more` are arguments of vLLM."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / "server.log"
    program = [engine_python(), Path(__file__).with_name("forked_server.py")]
    with log.open("w") as output:
        process = subprocess.Popen([*program, *arguments(model, port, config, *more)], cwd=folder, env=environment(folder),
                                   stdout=output, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    with until_healthy(Serving(f"http://127.0.0.1:{port}", log, process)) as server:
        yield server


@contextlib.contextmanager
def until_healthy(server: Serving) -> Iterator[Serving]:
    """Waits for a server that has been started, and ends it with the block."""
    process, log = server.process, server.log
    try:
        end = time.monotonic() + START_S
        while not _healthy(server):
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"vLLM did not start:\n{log.read_text(errors='replace')[-6000:]}")
            time.sleep(0.5)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait(10)
        if keep := os.environ.get("WEIGHTCAST_TEST_KEEP"):
            shutil.copy(log, keep)


def _healthy(server: Serving) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/health", timeout=10) as response:
            return response.status == 200
    except OSError:
        return False
