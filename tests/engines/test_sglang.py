"""SGLang's real classes on the CPU: the plug-in is found, its hooks run, and an update makes the model byte for byte another."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path

import pytest
import weightcast
from command_line import weightcast as command
from safetensors.numpy import load_file
from vllm_server import engine_python, environment, free_port
from world import HERE, TIMES


def rank_process(folder: Path, config: Path, *arguments: object) -> subprocess.Popen:
    command_line = [str(engine_python()), str(HERE / "sglang_model.py"), *map(str, arguments)]
    with (folder / f"rank{arguments[0]}.log").open("w") as log:
        return subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder,
                                env=environment(folder) | {"WEIGHTCAST_CONFIG": str(config)})  # fmt: skip


def answer(process: subprocess.Popen, log: Path) -> dict:
    """The next JSON line."""
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    pytest.fail(f"the rank ended:\n{log.read_text()[-4000:]}")


LONG = [pytest.param(name, ranks, marks=pytest.mark.long) for name, ranks in (("qwen3_moe", 2), ("qwen3_moe", 1), ("llama", 2))]


@pytest.mark.parametrize(("name", "ranks"), [("llama", 1), *LONG])
def test_an_update_through_sglangs_own_session_is_byte_for_byte_the_other_checkpoint(name: str, ranks: int, checkpoints: Path, tmp_path: Path) -> None:
    command("keygen", tmp_path / "secret")
    config = tmp_path / "weightcast.json"
    config.write_text(json.dumps({"controller": {"address": f"tcp://127.0.0.1:{free_port()}", "trainers": 1, "replicas": 1,
                                                 "servers_per_replica": ranks}, "secret_file": str(tmp_path / "secret"), "times": TIMES}))  # fmt: skip
    logs = [tmp_path / f"rank{rank}.log" for rank in range(ranks)]
    with contextlib.ExitStack() as stack:
        trainer = stack.enter_context(weightcast.Trainer(config, 0, load_file(checkpoints / name / "b/model.safetensors")))
        processes = [rank_process(tmp_path, config, rank, ranks, tmp_path / "store", checkpoints / name) for rank in range(ranks)]
        for process in processes:
            stack.callback(process.kill)
        for process, log in zip(processes, logs, strict=True):
            said = answer(process, log)
            assert said["landings"] == ["direct"] and said["differing"] > 0
        trainer.wait_connected(120)
        trainer.push(1)
        for process in processes:
            process.stdin.write("commit 1\n")
            process.stdin.flush()
        for process, log in zip(processes, logs, strict=True):
            assert answer(process, log) == {"version": "1"}
            # Without a session SGLang refuses the message; within one it is obeyed.
            assert answer(process, log) == {"answers": [False, True, True, True], "differing": []}
        assert trainer.wait(1, 60)["replicas_committed"] == [0]
