"""TRL, verl and vLLM's own trainer factory push to a vLLM server through their own interfaces, each by its real package."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from load import complete
from vllm_server import engine_python, environment
from weightcast.demo import model as demo_model
from world import World

PROMPT = list(range(40, 110))


@pytest.mark.parametrize("adapter", ["trl", "verl", "factory"])
def test_frameworks_push_to_the_server_through_their_own_interfaces(world: World, adapter: str) -> None:
    letter, before = world.other, world.version
    with world.without_trainer():
        command_line = [engine_python(), Path(__file__).with_name("adapter_sender.py"), adapter, world.server.url, world.config,
                        world.folders[letter] / demo_model.CHECKPOINT]  # fmt: skip
        done = subprocess.run(command_line, capture_output=True, text=True, timeout=300, check=False, env=environment(world.config.parent))
        assert done.returncode == 0, done.stderr[-3000:]
        version = done.stdout.split()[-1]
        world.letters[version] = letter
    assert int(version) > before and world.version >= int(version)
    assert world.client.versions() == [version]
    assert world.wrong_tokens([(complete(world.server.url, PROMPT, 16), [(letter, 0)], "keep")]) == [[]]
