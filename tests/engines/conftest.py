"""The modules beside these tests, and those of tests/python, are imported by their names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import vllm_server  # noqa: E402
import world as world_  # noqa: E402


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[world_.World]:
    vllm_server.engine_python()
    with world_.started(tmp_path_factory.mktemp("vllm")) as world:
        yield world
