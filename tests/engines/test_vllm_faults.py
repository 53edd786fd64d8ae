"""A real vLLM server goes on with the version that it has whatever comes from outside, and its log says what to do."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
import weightcast
from load import complete
from test_vllm_server import PROMPT, check_unharmed, under_load
from weightcast.catalog import Parameter, Part
from weightcast.demo import model as demo_model
from world import HERE, World

GONE_S = 60 if os.environ.get("WEIGHTCAST_LONG") else 0  # beyond the bound after which a controller is called silent


@contextlib.contextmanager
def unchanged(world: World) -> Iterator[None]:
    """The version that is shown, and what is generated, are the same before and after the block."""
    shown, before = world.client.versions(), complete(world.server.url, PROMPT, 8)
    yield
    after = complete(world.server.url, PROMPT, 8)
    assert world.client.versions() == shown
    assert after.tokens == before.tokens and after.error is None


@pytest.mark.long
def test_an_update_that_no_controller_decided_changes_nothing_and_says_so(world: World) -> None:
    with unchanged(world):
        world.server.post("start_weight_update", {})
        with pytest.raises(OSError, match="500"):
            world.server.post("update_weights", {"update_info": {"version": 99999}})
    assert world.server.said("asked to commit version 99999, but this rank is IDLE for version 0 and serves .*; ask after the trainer's")


def test_calls_out_of_order_are_refused_before_a_worker_sees_them(world: World) -> None:
    with unchanged(world):
        for route, body in (("update_weights", {"update_info": {"version": 1}}), ("finish_weight_update", {})):
            with pytest.raises(OSError, match="500"):
                world.server.post(route, body)
            assert world.server.said(f"weightcast: {route} without start_weight_update before it; weightcast.vllm.Client.update makes")
        world.server.post("start_weight_update", {})  # by a client that is gone
    world.update()
    assert world.server.said("the update before was never finished; its session is ended")


def of_another_model(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same names; half as wide."""
    return {name: values[..., : values.shape[-1] // 2].copy() for name, values in arrays.items()}


def lacking_a_tensor(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values for name, values in arrays.items() if name != "model.layers.3.mlp.up_proj.weight"}


@pytest.mark.parametrize(("change", "said"), [
    (lacking_a_tensor, r"missing tensor model\.layers\.3\.mlp\.up_proj\.weight: server 0 .* takes it, no trainer holds it; the nearest name"),
    (of_another_model, r"tensor model\.\S+: trainer 0 has the shape \[.*288\], server 0 .* has \[.*576\]"),
], ids=["lacking", "another model"])  # fmt: skip
def test_a_trainer_whose_checkpoint_does_not_fit_is_refused_by_name(world: World, change, said: str) -> None:
    with unchanged(world), world.without_trainer():
        with pytest.raises(weightcast.WeightcastError, match=said):
            with weightcast.Trainer(world.config, 0, change(world.arrays)) as other:
                other.wait_connected(60)
    assert world.server.said(f"server 0 .* serves version \\d+ on, the run is refused: {said}")
    world.update()


def test_a_second_engine_of_the_same_identity_is_turned_away_and_the_first_is_updated(world: World) -> None:
    part = Part("model.norm.weight", (576,), (0,), (576,), (0,))
    rank = Parameter("model.norm.weight", (576,), "fp32", (part,))
    with weightcast.Server(world.config, 0, 0, [rank], {"model.norm.weight": np.zeros(576, np.float32)}) as second:
        with pytest.raises(weightcast.WeightcastError, match="server 0 is held by another live process: give this one another rank"):
            second.wait_connected(60)
        world.update()
        assert second.status()["committed_version"] == 0


def test_a_trainer_killed_in_mid_update_takes_no_request_with_it(world: World) -> None:
    shown, letter = world.client.versions(), world.letter
    command_line = [sys.executable, HERE / "killed_trainer.py", world.config, world.folders[world.other] / demo_model.CHECKPOINT]
    with under_load(world, clients=2, tokens=40) as load:
        with world.without_trainer():
            assert subprocess.run(command_line, check=False, timeout=300).returncode == -9
            killed = time.monotonic()
            while not world.server.said(r"server 0 \(replica 0\) serves version \d+ on and waits for the controller at .* start trainer 0, which runs"):
                assert time.monotonic() < killed + 120, world.server.log.read_text()[-2000:]
                time.sleep(0.5)
            time.sleep(GONE_S)
            assert world.client.versions() == shown
        assert world.server.said(r"server 0 \(replica 0\) serves version \d+ on: ")
        world.update()
    check_unharmed(load.requests)
    assert world.letter != letter
    whole = [(request, world.spans(request), "keep") for request in load.requests[-8:]]
    assert world.wrong_tokens(whole) == [[]] * len(whole)
