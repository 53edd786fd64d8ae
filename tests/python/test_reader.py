import threading
import time

import numpy as np
import pytest
from weightcast.demo.oracle import bytes_of, fingerprint
from weightcast.demo.reader import Reader


def parameters(value: int, size: int = 24) -> dict[str, np.ndarray]:
    return {f"p{i}": np.full(size, value * 10 + i, np.uint8) for i in range(4)}


def known(*values: int, size: int = 24) -> dict[int, dict[str, int]]:
    return {v: {name: fingerprint(bytes_of(a)) for name, a in parameters(v, size).items()} for v in values}


def show(live: dict[str, np.ndarray], value: int, names: int = 4) -> None:
    for name, array in list(parameters(value, live["p0"].size).items())[:names]:
        live[name][...] = array


def test_passes_count_by_the_version_they_saw():
    live = parameters(0)
    reader = Reader(live, known(1, 2))
    reader.read_once()
    show(live, 1)
    reader.read_once()
    reader.read_once()
    show(live, 2)
    reader.read_once()
    assert (reader.seen.versions, reader.seen.mixed) == ({0: 1, 1: 2, 2: 1}, [])


def test_two_versions_within_one_pass_are_a_mix():
    live = parameters(0)
    reader = Reader(live, known(1, 2))
    show(live, 1)
    show(live, 2, names=3)
    reader.read_once()
    assert reader.seen.mixed == ["pass 1: 3 of version 2 (p0), 1 of version 1 (p3)"]
    assert reader.seen.versions == {}


def test_a_parameter_in_the_middle_of_being_written_is_a_mix():
    live = parameters(0)
    reader = Reader(live, known(1))
    show(live, 1)
    live["p2"][:5] = 0
    reader.read_once()
    assert "1 of version unknown (p2)" in reader.seen.mixed[0]


def test_a_parameter_that_is_equal_in_two_versions_fits_both():
    live = parameters(0)
    prints = known(1, 2)
    prints[2]["p3"] = prints[1]["p3"]
    reader = Reader(live, prints)
    show(live, 1)
    show(live, 2, names=3)
    reader.read_once()
    assert (reader.seen.versions, reader.seen.mixed) == ({2: 1}, [])


def test_switches_at_the_boundary_are_never_seen_as_a_mix():
    live = parameters(0, size=1 << 14)
    done, version = threading.Event(), 0

    def boundary():
        nonlocal version
        version += 1
        if version < 5:
            show(live, version)
        else:
            done.set()

    reader = Reader(live, known(1, 2, 3, 4, size=1 << 14), boundary)
    reader.start()
    assert done.wait(5)
    seen = reader.stop()
    assert set(seen.versions) == {0, 1, 2, 3, 4} and seen.mixed == []


def test_what_fails_at_the_boundary_is_raised_by_stop():
    def boundary():
        raise RuntimeError("commit refused")

    reader = Reader(parameters(0), known(1), boundary)
    reader.start()
    with pytest.raises(RuntimeError, match="commit refused"):
        reader.stop()


def test_stop_is_bounded():
    reader = Reader(parameters(0), known(1), lambda: time.sleep(0.5))
    reader.start()
    time.sleep(0.05)
    with pytest.raises(TimeoutError):
        reader.stop(wait_s=0.05)


def test_a_copy_cannot_be_watched():
    with pytest.raises(ValueError, match="'p' is not contiguous"):
        Reader({"p": np.zeros((4, 4), np.uint8)[:, ::2]}, {})
