"""The modules beside these tests, and those of tests/python, are imported by their names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import vllm_server  # noqa: E402
import world as world_  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and "WEIGHTCAST_LONG" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="takes minutes; ./dev test engines --long"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every tiny model, NAME/a and NAME/b: to import what makes them takes longer than to make all."""
    folder = tmp_path_factory.mktemp("checkpoints")
    command_line = [vllm_server.engine_python(), Path(__file__).with_name("tiny_models.py"), folder]
    subprocess.run(command_line, check=True, capture_output=True, timeout=400, env=vllm_server.environment(folder))
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[world_.World]:
    vllm_server.engine_python()
    with world_.started(tmp_path_factory.mktemp("vllm")) as world:
        yield world
