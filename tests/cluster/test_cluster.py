"""The simulator's word against the real data plane, on two layouts of the test cluster; `./dev bench cluster` has more."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

CLUSTER = pathlib.Path(__file__).parents[2] / "bench/cluster"
TOLERANCE = 0.10


def started(*arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(CLUSTER), os.environ["PYTHONPATH"]])}
    return subprocess.Popen([sys.executable, CLUSTER / "cluster.py", *map(str, arguments)], env=environment, text=True,
                            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def namespaces():
    folder = pathlib.Path("/run/netns")
    return {path.name for path in folder.iterdir() if path.name.startswith("weightcast-")} if folder.is_dir() else set()


def skip_if_it_cannot_run(returncode, said):
    if returncode == 77:
        pytest.skip(said.strip().splitlines()[-1].removeprefix("SKIPPED: "))


@pytest.mark.parametrize("layout", ["relay", "straggler"])
def test_the_measured_time_is_the_simulated_one(layout, tmp_path):
    run = started(layout, "--updates", 5, "--tolerance", TOLERANCE, "--json", tmp_path / "found.json")
    said, complained = run.communicate(timeout=150)
    skip_if_it_cannot_run(run.returncode, said)
    assert run.returncode == 0, said + complained
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert abs(found["error"]) <= TOLERANCE
    assert found["hosts"] >= 6 and len(found["measured_s"]) == 5
    assert not any(name.startswith(f"weightcast-{run.pid}-") for name in namespaces())


def test_hosts_of_a_killed_run_are_gone_after_the_next_one(tmp_path):
    killed = started("fan_in", "--updates", 1)
    end = time.monotonic() + 60
    while not any(name.startswith(f"weightcast-{killed.pid}-") for name in namespaces()):
        if killed.poll() is not None:
            skip_if_it_cannot_run(killed.returncode, killed.stdout.read())
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)  # and the `ip` that it waits for, which would make one more host
    killed.wait(10)
    sys.path.insert(0, str(CLUSTER))
    from hosts import Hosts

    with Hosts({"trainer 0": 50.0}):
        left = namespaces()
    assert not any(name.startswith(f"weightcast-{killed.pid}-") for name in left)
