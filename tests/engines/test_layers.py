"""Layers that are alike are mapped by three of them; the map is that of all, whatever the loader does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from vllm_server import engine_python, environment
from world import HERE

SEEN = {  # of 8 layers of two tensors each, and one tensor more
    "alike": 7,
    "with tensors that go nowhere": 10,
    "one loads otherwise": 9,
    "one has another list of places": 9,
    "two go to each other": 17,
    "the loader wants all": 17,
    "what cannot be compared": 17,
    "one loads by another default": 9,
}


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("layers")
    done = subprocess.run([engine_python(), HERE / "repeated_layers.py"], capture_output=True, text=True, timeout=300, check=False,
                          cwd=folder, env=environment(folder))  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", SEEN)
def test_a_map_by_some_layers_is_the_map_of_all(name: str, maps: dict[str, dict]) -> None:
    assert maps[name]["same"]


@pytest.mark.parametrize("name", SEEN)
def test_only_layers_that_differ_are_loaded_beside_the_samples(name: str, maps: dict[str, dict]) -> None:
    assert maps[name]["loaded"] == SEEN[name]
