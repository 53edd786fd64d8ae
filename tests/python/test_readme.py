"""The README's snippets run as they stand there."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import command_line

ROOT = Path(__file__).resolve().parents[2]


def snippets() -> dict[str, str]:
    return dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_snippets_of_the_readme_run_as_written(tmp_path):
    files = snippets()
    assert set(files) == {"weightcast.json", "trainer.py", "server.py"}
    port = free_port()
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace(":5710", f":{port}"))
    command_line.weightcast("keygen", tmp_path / "weightcast.secret")
    ranks = [subprocess.Popen([sys.executable, *command], cwd=tmp_path, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
             for command in (["trainer.py", "0"], ["trainer.py", "1"], ["server.py"])]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0, 0], outputs
    assert "version 3: 131104 bytes" in outputs[0]
    assert "version 3 scale" in outputs[2]
