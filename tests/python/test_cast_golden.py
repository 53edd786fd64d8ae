"""The committed golden files of the cast are what their script writes."""

import pathlib
import subprocess
import sys

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def test_the_golden_files_come_from_their_script(tmp_path):
    subprocess.run([sys.executable, GOLDEN / "make_cast_golden.py", tmp_path], check=True, timeout=60)
    for name in ("cast.json", "cast.bin"):
        assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes(), name
