"""Output that cannot be written: a full disk, a folder that is not there, a read-only one."""

import json
import os
import subprocess
import sys

import pytest
from command_line import path

PLAN = {"trainers": 1, "servers": 1, "bound": {"seconds": 1, "set_by": "server 0 in"},
        "pairs": [{"trainer": 0, "server": 0, "replica": 0, "bytes": 1_000_000}]}  # fmt: skip
DEMO = """
import sys
from weightcast.demo import __main__ as demo
demo.measure = lambda options: demo.Outcome(versions=1, verified=True)  # its run is another test's affair
sys.exit(demo.main(sys.argv[1:]))
"""
# In a mount namespace of its own: `full` has no byte left, `readonly` takes none. What lies there afterwards is listed.
NARROW = """
cd "$1" && mkdir -p full readonly && mount -t tmpfs -o size=4k none full && mount -t tmpfs -o ro none readonly || exit 99
echo full >full/filler || exit 99
shift
"$@"
code=$?
ls -A full readonly >left
exit $code
"""
PLACES = {"/dev/full": "", "missing/x.png": "No such file or directory", "readonly/x.png": "Read-only file system",
          "full/x.png": "No space left on device"}  # fmt: skip


def commands(folder):
    """Every command that writes a file, without the file's name."""
    plan = folder / "plan.json"
    plan.write_text(json.dumps(PLAN))
    return {
        "keygen": [path(), "keygen"],
        "bench quant": [path(), "bench", "quant", "--total-mib", "2", "--chunk-mib", "1", "--rounds", "1", "--json"],
        "bench fabric": [path(), "bench", "fabric", "--total-mib", "4", "--rounds", "1", "--json"],
        "demo": [sys.executable, "-c", DEMO, "--json"],
        "weightcast-view": [sys.executable, "-m", "weightcast.view", "plan", plan, "-o"],
    }


def run(command, **options):
    options = {"capture_output": True, "text": True, "timeout": 60} | options
    return subprocess.run([str(word) for word in command], **options)


def error_of(result):
    """Its only line that is no log line."""
    assert result.returncode == 1, result
    lines = [line for line in result.stderr.splitlines() if " weightcast info: " not in line]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize("name", ["keygen", "bench quant", "bench fabric", "demo", "weightcast-view"])
def test_a_file_that_cannot_be_written_is_one_error_with_its_name_and_cause_and_leaves_nothing_behind(tmp_path, name):
    narrow = ["unshare", "--map-root-user", "--mount", "sh", "-c", NARROW, "sh", tmp_path]
    if run([*narrow, "true"]).returncode != 0:
        pytest.skip("this system gives a test no mount namespace of its own")
    command = commands(tmp_path)[name]
    for place, cause in PLACES.items():
        refused = name == "keygen" and place == "/dev/full"  # there is something already, and a secret replaces nothing
        error = error_of(run([*narrow, *command, place]))
        assert place in error and ("already exists" if refused else cause or "No space left on device") in error
        assert (tmp_path / "left").read_text() == "full:\nfiller\n\nreadonly:\n", place


@pytest.mark.parametrize("name", ["bench quant", "demo", "weightcast-view"])
def test_standard_output_that_cannot_be_written_is_one_error(tmp_path, name):
    command = [*commands(tmp_path)[name], tmp_path / "x.png"]
    for unbuffered in ("", "1"):
        with open("/dev/full", "w") as full:
            streams = {"stdout": full, "stderr": subprocess.PIPE, "capture_output": False}
            result = run(command, **streams, env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
        assert "cannot write standard output: No space left on device" in error_of(result)


def test_a_report_replaces_an_older_one_as_a_whole_or_not_at_all(tmp_path):
    report = tmp_path / "report.json"
    report.write_text("old")
    command = commands(tmp_path)["bench quant"]
    assert run([*command, report]).returncode == 0
    assert json.loads(report.read_text())
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]
