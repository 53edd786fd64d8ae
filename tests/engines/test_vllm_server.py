"""A real vLLM server under load while a trainer pushes versions: no request fails, and every token is some version's own.

One server, started once, serves SmolLM2-135M for all tests of this file. Odd versions are weights B, even ones A.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import weightcast
from command_line import weightcast as command
from load import Load, Request, complete
from safetensors.numpy import load_file, save_file
from vllm_server import Serving, engine_python, environment, free_port, serving
from weightcast.demo import model as demo_model
from weightcast.vllm import Client, Update

BOUND = 0.75  # logits in BF16 by two implementations differ by less; the weights A and B differ by far more
UPDATES = 20
PROMPT = list(range(40, 110))  # more than two blocks of the cache


@dataclass
class World:
    server: Serving
    trainer: weightcast.Trainer
    client: Client
    arrays: dict[str, np.ndarray]
    versions: dict[str, dict[str, np.ndarray]]  # "A", "B"
    folders: dict[str, Path]
    config: Path
    version: int  # the last one pushed

    def update(self, **options: object) -> Update:
        """The next version: B when its number is odd, A when even."""
        self.version += 1
        for name, values in self.versions[letter_of(str(self.version))].items():
            self.arrays[name][...] = values
        return self.client.update(self.trainer, self.version, **options)


def letter_of(version: str) -> str:
    return "A" if version == "default" or int(version) % 2 == 0 else "B"


def perturbed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    return {name: (values.astype(np.float32) * (1 + 0.2 * random.standard_normal(values.shape, np.float32))
                   ).astype(ml_dtypes.bfloat16) if "proj" in name else values for name, values in tensors.items()}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    engine_python()
    folder = tmp_path_factory.mktemp("vllm")
    versions = {"A": load_file(demo_model.prepare() / demo_model.CHECKPOINT)}
    versions["B"] = perturbed(versions["A"])
    folders = {"A": demo_model.prepare(), "B": folder / "b"}
    folders["B"].mkdir()
    save_file(versions["B"], folders["B"] / demo_model.CHECKPOINT, metadata={"format": "pt"})
    (folders["B"] / "config.json").write_text((folders["A"] / "config.json").read_text())
    config = folder / "weightcast.json"
    config.write_text(json.dumps({"controller": {"address": f"tcp://127.0.0.1:{free_port()}", "trainers": 1, "replicas": 1,
                                                 "servers_per_replica": 1}, "secret_file": str(folder / "secret"),
                                  "times": {"join_ms": 600000, "death_idle_ms": 60000, "death_busy_ms": 30000}}))  # fmt: skip
    command("keygen", folder / "secret")
    arrays = {name: values.copy() for name, values in versions["A"].items()}
    with weightcast.Trainer(config, 0, arrays) as trainer, serving(folder / "server", folders["A"], config) as server:
        trainer.wait_connected(60)
        client = Client(server.url)
        yield World(server, trainer, client, arrays, versions, folders, config, client.next_version(trainer) - 1)


def wrong_tokens(world: World, requests: list[tuple[Request, list[tuple[str, int]], str]]) -> list[list]:
    """Of each (request, spans as (letter, first token), kv): tokens that the reference says cannot be."""
    lines = [json.dumps({"prompt": request.prompt, "tokens": request.tokens, "spans": spans, "kv": kv}) for request, spans, kv in requests]
    command = [engine_python(), Path(__file__).with_name("reference.py"), world.folders["A"], world.folders["B"], str(BOUND)]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=400,
                          env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def spans_of(request: Request) -> list[tuple[str, int]]:
    return [(letter_of(span["version"]), span["start"]) for span in request.spans or []]


def check_unharmed(requests: list[Request]) -> None:
    assert not [request.error for request in requests if request.error]
    assert {request.finish for request in requests} <= {"length"}


def test_twenty_updates_under_load_lose_no_request_and_mix_no_token(world: World) -> None:
    load = Load(world.server.url, clients=3, tokens=40)
    rows = []
    with contextlib.ExitStack() as stack:
        stack.callback(load.stop)
        while len([r for r in load.requests if r.finish]) < 3:
            time.sleep(0.1)
        for _ in range(UPDATES):
            began = time.monotonic()
            update = world.update()
            ended = time.monotonic()
            time.sleep(0.3)
            rows.append((update, load.longest_gap_s(began, ended), load.usual_gap_s(began)))
            assert world.client.versions() == [str(world.version)]
    requests = load.requests
    check_unharmed(requests)
    print("\nversion  transfer  commit call  longest gap  usual gap")
    for update, longest, usual in rows:
        print(f"{update.version:7} {update.transfer_s * 1e3:7.0f} ms {update.commit_ms:9.1f} ms {longest * 1e3:9.1f} ms {usual * 1e3:8.1f} ms")
    straddlers = [request for request in requests if len(request.spans or []) > 1]
    whole = [request for request in requests if len(request.spans or []) == 1]
    print(f"{len(requests)} requests, {len(straddlers)} of them over a commit")
    assert len(straddlers) >= UPDATES / 2 and whole
    assert max(int(span["version"]) for request in requests for span in request.spans or [] if span["version"] != "default") == world.version
    checked = [(request, spans_of(request), "keep") for request in straddlers[:24] + whole[:12]]
    assert wrong_tokens(world, checked) == [[]] * len(checked)
    other = [(request, [("A" if letter == "B" else "B", 0) for letter, _ in spans_of(request)], "keep") for request in whole[:6]]
    assert all(wrong_tokens(world, other)), "the reference cannot tell A from B, so it proves nothing"


def test_requests_before_and_after_a_commit_are_the_old_and_the_new_weights(world: World) -> None:
    before = complete(world.server.url, PROMPT, 24)
    old = letter_of(str(world.version))
    world.update()
    after = complete(world.server.url, PROMPT, 24)  # the same prompt: the prefix cache must not answer it
    new = letter_of(str(world.version))
    assert before.tokens != after.tokens
    assert wrong_tokens(world, [(before, [(old, 0)], "keep"), (after, [(new, 0)], "keep")]) == [[], []]
    world.update()
    assert complete(world.server.url, PROMPT, 24).tokens == before.tokens


def test_recompute_gives_every_later_token_the_new_weights_alone(world: World) -> None:
    load = Load(world.server.url, clients=2, tokens=60)
    with contextlib.ExitStack() as stack:
        stack.callback(load.stop)
        while sum(len(request.tokens) for request in load.requests) < 20:
            time.sleep(0.05)
        update = world.update(kv="recompute")
        time.sleep(0.5)
    check_unharmed(load.requests)
    straddlers = [request for request in load.requests if len(request.spans or []) == 2]
    assert straddlers and update.paused_ms > 0
    assert wrong_tokens(world, [(request, spans_of(request), "recompute") for request in straddlers]) == [[]] * len(straddlers)


def test_an_update_that_no_controller_decided_changes_nothing_and_says_so(world: World) -> None:
    before = complete(world.server.url, PROMPT, 8).tokens
    shown = world.client.versions()
    world.server.post("start_weight_update", {})
    with pytest.raises(OSError, match="500"):
        world.server.post("update_weights", {"update_info": {"version": 999}})
    assert "asked to commit version 999, but this rank is IDLE" in world.server.log.read_text()
    assert complete(world.server.url, PROMPT, 8).tokens == before
    assert world.client.versions() == shown


def test_the_stall_is_a_fifth_of_what_vllm_takes_to_load_the_same_weights_again_from_a_warm_cache(world: World) -> None:
    if letter_of(str(world.version)) == "B":
        world.update()  # what the server would load again are weights A
    stalls: dict[str, list[float]] = {"weightcast": [], "reload_weights": []}
    load = Load(world.server.url, clients=2, tokens=200)
    with contextlib.ExitStack() as stack:
        stack.callback(load.stop)
        while sum(len(request.tokens) for request in load.requests) < 20:
            time.sleep(0.05)
        for _ in range(3):
            for how, act in (("reload_weights", lambda: world.server.post("collective_rpc", {"method": "reload_weights"})),
                             ("weightcast", world.update), ("weightcast", world.update)):  # fmt: skip
                began = time.monotonic()
                act()
                ended = time.monotonic()
                time.sleep(0.5)
                stalls[how].append(load.longest_gap_s(began, ended))
    check_unharmed(load.requests)
    print({how: [f"{gap * 1e3:.0f} ms" for gap in gaps] for how, gaps in stalls.items()})
    assert 5 * sorted(stalls["weightcast"])[3] < sorted(stalls["reload_weights"])[1]


@pytest.mark.parametrize("adapter", ["trl", "verl", "factory"])
def test_frameworks_push_to_the_server_through_their_own_interfaces(world: World, adapter: str) -> None:
    world.trainer.close()  # its place is taken by a process that knows TRL, verl or vLLM's trainer factory alone
    letter = {"trl": "B", "verl": "A", "factory": "B"}[adapter]
    command_line = [engine_python(), Path(__file__).with_name("adapter_sender.py"), adapter, world.server.url, world.config,
                    world.folders[letter] / demo_model.CHECKPOINT]  # fmt: skip
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=300, check=False, env=environment(world.config.parent))
    assert done.returncode == 0, done.stderr[-3000:]
    version = done.stdout.split()[-1]
    assert int(version) > world.version
    assert world.client.versions() == [version]
    assert wrong_tokens(world, [(complete(world.server.url, PROMPT, 16), [(letter, 0)], "keep")]) == [[]]
