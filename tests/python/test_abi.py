"""The Python binding against a C library that is compiled from the header plugin/weightcast.h."""

import ctypes
import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import weightcast
from weightcast import abi

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    path = tmp_path_factory.mktemp("abi") / "libweightcast.so"
    source = Path(__file__).parent / "stand_in.c"
    command = ["gcc", "-std=c11", "-Wall", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden", f"-I{ROOT}"]
    subprocess.run([*command, "-o", path, source], check=True)
    return path


@pytest.fixture(autouse=True)
def library(stand_in, monkeypatch):
    monkeypatch.setenv("WEIGHTCAST_LIBRARY", str(stand_in))
    abi.api.cache_clear()
    yield
    abi.api.cache_clear()


def trainer(**config):
    return weightcast.Trainer(config, 3, {"t": np.zeros((2, 2), np.uint16)})


def server():
    parameter = weightcast.Parameter("p", (2,), "bf16", (weightcast.Part("t", (2,), (0,), (2,), (0,)),))
    return weightcast.Server({}, 1, 0, [parameter], {"p": np.zeros(2, np.uint16)})


def test_structures_lie_as_the_header_says(stand_in):
    offsets = ctypes.CDLL(str(stand_in)).offsets
    offsets.restype = ctypes.c_char_p
    *lines, sizes = offsets().decode().splitlines()
    ours = [f"{name} {getattr(s, name).offset}" for s in (abi.ServerState, abi.Api) for name, _ in s._fields_]
    assert lines == ours
    assert sizes == f"sizes {ctypes.sizeof(abi.ServerState)} {ctypes.sizeof(abi.Api)}"


def test_every_field_of_the_header_is_bound():
    header = (ROOT / "plugin/weightcast.h").read_text()
    table = header[header.index("typedef struct weightcast_api") : header.index("} weightcast_api;")]
    assert table.count("(*") == len([name for name, kind in abi.Api._fields_ if issubclass(kind, ctypes._CFuncPtr)])


def test_results_are_exceptions_by_code():
    kinds = [weightcast.InvalidArgument, weightcast.Refused, weightcast.Unavailable, weightcast.Unreachable,
             weightcast.TimedOut, weightcast.Corrupted, weightcast.Aborted, weightcast.Internal]  # fmt: skip
    with trainer() as handle:
        for code, kind in enumerate(kinds, start=1):
            with pytest.raises(kind, match=f"version {code}") as raised:
                handle.push(code)
            assert type(raised.value) is kind
        handle.push(9)
    assert issubclass(weightcast.TimedOut, TimeoutError)


def test_configuration_and_catalog_arrive_as_json():
    with pytest.raises(weightcast.Refused) as raised:
        trainer(run="refuse me")
    config, catalog = str(raised.value).split("|")
    assert json.loads(config) == {"run": "refuse me", "rank": 3}
    assert catalog.startswith('{"format": "weightcast.catalog/1", "role": "trainer", "rank": 3')


def test_configuration_may_be_a_file(tmp_path):
    (tmp_path / "weightcast.json").write_text('{"run": "refuse"}')
    with pytest.raises(weightcast.Refused, match='"run": "refuse", "rank": 0'):
        weightcast.Trainer(tmp_path / "weightcast.json", 0, {})


def test_long_waits_are_cut_and_bounded():
    with trainer() as handle:
        handle.wait_connected(timeout_s=5)  # the third slice succeeds
        assert handle.wait(12) == {"version": 12}


def test_a_wait_that_runs_out_says_what_it_waited_for():
    with trainer() as handle, pytest.raises(weightcast.TimedOut, match="server 1 has not joined within 10 ms"):
        handle.wait_connected(timeout_s=0.01)


def test_states_are_read_whole():
    with server() as handle:
        state = handle.state()
        assert state == weightcast.State(weightcast.Phase.COMMIT_DUE, 2**40, 2**40 + 1, torn=True)
        assert handle.commit_if_due() == 1.5
        with pytest.raises(weightcast.InvalidArgument):
            handle.commit(7)


def test_other_threads_run_while_a_call_waits():
    with server() as handle:
        waiter = threading.Thread(target=handle.wait_connected)
        waiter.start()
        turns, end = 0, time.monotonic() + 0.1
        while time.monotonic() < end:
            turns += 1
        waiter.join()
    assert turns > 1000


def test_a_closed_handle_says_so():
    handle = trainer()
    handle.close()
    handle.close()
    with pytest.raises(weightcast.InvalidArgument, match="this Trainer is closed"):
        handle.push(9)


def test_logging_and_version_reach_the_library():
    assert weightcast.library_version() == "9.8.7"
    weightcast.set_log(2, "debug")
    with pytest.raises(weightcast.InvalidArgument):
        weightcast.set_log(2, "loud")


def test_without_a_library_the_error_says_where_it_was_sought(monkeypatch):
    monkeypatch.delenv("WEIGHTCAST_LIBRARY")
    with pytest.raises(weightcast.Unavailable, match="neither beside the package"):
        weightcast.library_version()
    monkeypatch.setenv("WEIGHTCAST_LIBRARY", "/nowhere/libweightcast.so")
    with pytest.raises(weightcast.Unavailable, match="WEIGHTCAST_LIBRARY names /nowhere"):
        weightcast.library_version()


def test_a_file_that_is_no_library_is_refused(monkeypatch):
    monkeypatch.setenv("WEIGHTCAST_LIBRARY", __file__)
    with pytest.raises(weightcast.Unavailable, match=r"test_abi\.py cannot be used"):
        weightcast.library_version()
