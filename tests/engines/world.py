"""One vLLM server of SmolLM2-135M and a trainer that pushes to it, started once for all tests that take `world`.

The checkpoint is BF16 and the engine computes in FP32: on a CPU without BF16 instructions vLLM's own prefill is seven times
faster so, and the reference need not allow for rounding.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import weightcast
from command_line import weightcast as command
from load import Request
from safetensors.numpy import load_file, save_file
from vllm_server import Serving, engine_python, environment, free_port, serving
from weightcast.demo import model as demo_model
from weightcast.vllm import Client, Update

BOUND = 0.01  # FP32 logits of two implementations differ by less; those of A and B differ by whole units
HERE = Path(__file__).parent
TIMES = {"join_ms": 600000, "update_ms": 300000, "death_idle_ms": 20000, "death_busy_ms": 15000}  # two cores run all of it


class Reference:
    """reference.py, kept running: to import transformers takes longer than to ask it."""

    def __init__(self, folders: dict[str, Path]) -> None:
        command_line = [engine_python(), HERE / "reference.py", folders["A"], folders["B"], BOUND]
        self._process = subprocess.Popen([*map(str, command_line)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=plain_environment())

    def ask(self, request: dict) -> list:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)


@dataclass
class World:
    """`letters` says which weights a version is: A, the checkpoint that the server loaded, or B."""

    server: Serving
    config: Path
    folders: dict[str, Path]
    weights: dict[str, dict[str, np.ndarray]]
    arrays: dict[str, np.ndarray]
    reference: Reference
    letters: dict[str, str] = field(default_factory=lambda: {"default": "A"})
    version: int = 0
    trainer: weightcast.Trainer | None = None
    client: Client | None = None

    def open_trainer(self) -> None:
        self.trainer = weightcast.Trainer(self.config, 0, self.arrays)
        self.trainer.wait_connected(120)
        self.client = Client(self.server.url, timeout_s=300)
        self.version = self.client.next_version(self.trainer) - 1

    @contextlib.contextmanager
    def without_trainer(self) -> Iterator[None]:
        """Another process may take its place meanwhile."""
        self.trainer.close()
        try:
            yield
        finally:
            self.open_trainer()

    @property
    def letter(self) -> str:
        return self.letters[self.client.versions()[0]]

    @property
    def other(self) -> str:
        return "B" if self.letter == "A" else "A"

    def load(self, letter: str) -> int:
        """An optimiser's step: the trainer now holds these weights, as the version that is returned."""
        for name, values in self.weights[letter].items():
            self.arrays[name][...] = values
        self.version += 1
        self.letters[str(self.version)] = letter
        return self.version

    def update(self, **options: object) -> Update:
        """The next version, with the weights that are not being served."""
        return self.client.update(self.trainer, self.load(self.other), **options)

    def spans(self, request: Request) -> list[tuple[str, int]]:
        return [(self.letters[span["version"]], span["start"]) for span in request.spans or []]

    def wrong_tokens(self, requests: list[tuple[Request, list[tuple[str, int]], str]]) -> list[list]:
        """Of each (request, spans as (letter, first token), kv): tokens that the reference says cannot be."""
        return [self.reference.ask({"prompt": r.prompt, "tokens": r.tokens, "spans": spans, "kv": kv}) for r, spans, kv in requests]


def run(program: str, *arguments: object, stdin: str = "", timeout_s: float = 400) -> list[str]:
    """A program of this folder in the engine's environment; its lines."""
    command_line = [engine_python(), HERE / program, *map(str, arguments)]
    done = subprocess.run(command_line, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False, env=plain_environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def plain_environment() -> dict[str, str]:
    """Of a program that knows nothing of weightcast."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def perturbed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    return {name: (values.astype(np.float32) * (1 + 0.2 * random.standard_normal(values.shape, np.float32))
                   ).astype(ml_dtypes.bfloat16) if "proj" in name else values for name, values in tensors.items()}  # fmt: skip


@contextlib.contextmanager
def started(folder: Path) -> Iterator[World]:
    model = demo_model.prepare()
    weights = {"A": load_file(model / demo_model.CHECKPOINT)}
    weights["B"] = perturbed(weights["A"])
    folders = {letter: folder / letter for letter in weights}
    for letter, tensors in weights.items():
        folders[letter].mkdir()
        save_file(tensors, folders[letter] / demo_model.CHECKPOINT, metadata={"format": "pt"})
        (folders[letter] / "config.json").write_text((model / "config.json").read_text())
    run("tokenizer.py", demo_model.installed_gguf() or demo_model.fetched_gguf(model), folders["A"])
    config = folder / "weightcast.json"
    config.write_text(json.dumps({"controller": {"address": f"tcp://127.0.0.1:{free_port()}", "trainers": 1, "replicas": 1,
                                                 "servers_per_replica": 1}, "secret_file": str(folder / "secret"), "times": TIMES}))  # fmt: skip
    command("keygen", folder / "secret")
    (folder / "server/site").mkdir(parents=True)
    (folder / "server/site/gloo_engine.py").write_text((HERE / "gloo_engine.py").read_text())
    arrays = {name: values.copy() for name, values in weights["A"].items()}
    more = ["--dtype", "float32", "--worker-extension-cls", "gloo_engine.GlooEngine"]
    with serving(folder / "server", folders["A"], config, *more) as server, contextlib.closing(Reference(folders)) as reference:
        world = World(server, config, folders, weights, arrays, reference)
        world.open_trainer()
        yield world
        world.trainer.close()
