"""What is refused because it is wrong, before or in an update, by the built library; the run goes on where it can."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import threading

import numpy as np
import pytest
from fault_cluster import SHAPES, Failure, cluster, configuration, opened
from weightcast import InvalidArgument, Shard, abi, trainer_catalog

EMBED, MLP = SHAPES["embed"], SHAPES["mlp"]


def test_a_wrong_secret_is_refused_and_the_run_goes_on(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with cluster(configuration(tmp_path)) as run:
        member = run.process_of("server 1")
        wrong = run.config | {"secret_file": configuration(other)["secret_file"]}
        run.start("server 1", config=wrong)
        run.await_start("server 1")
        run.ask("server 1", "open")
        found = run.ask("server 1", "connect", 6.0)
        assert isinstance(found, Failure) and found.kind == "Refused" and found.after_s < 6
        assert run.config["controller"]["address"] in found.text and wrong["secret_file"] in found.text
        run.update(1)
        run.assert_hold(1, "server 0", member)


def test_garbage_at_the_control_port_disturbs_nobody(tmp_path):
    with cluster(configuration(tmp_path)) as run:
        host, port = run.config["controller"]["address"].removeprefix("tcp://").split(":")
        done = threading.Event()

        def babble():
            greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE"
            while not done.wait(0.005):
                for said in (os.urandom(4096), greeting[:7], greeting + bytes(47) + os.urandom(512), b""):
                    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1) as peer:
                        peer.sendall(said)

        babbler = threading.Thread(target=babble)
        babbler.start()
        try:
            for version in (1, 2, 3):
                run.update(version)
                run.assert_hold(version)
        finally:
            done.set()
            babbler.join(5)


def test_a_second_controller_on_the_port_is_refused(tmp_path):
    with cluster(configuration(tmp_path)) as run:
        first = run.process_of("controller")
        run.start("controller")
        run.await_start("controller")
        found = run.ask("controller", "open")
        assert isinstance(found, Failure) and run.config["controller"]["address"] in found.text
        run.update(1)
        run.assert_hold(1)
        assert run.ask(first, "status")["version"] == 1


@pytest.mark.parametrize(
    ("trainers", "servers", "named"),
    [
        (SHAPES, SHAPES | {"head": (256, 1024)}, ("head", "server 0", "no trainer")),
        (SHAPES | {"head": (256, 1024)}, SHAPES, ("head", "unused_tensors")),
        (SHAPES | {"mlp": (512, 512)}, SHAPES, ("mlp", "trainer 0", "[0:512, 0:512]", "server 0", "[0:512, 0:1024]")),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_a_tensor_that_does_not_fit_is_named_to_everyone(tmp_path, trainers, servers, named):
    with opened(configuration(tmp_path), trainers, servers) as run:
        for name, found in run.try_all([*run.trainers, *run.servers], "connect", 6.0).items():
            assert isinstance(found, Failure) and found.after_s < 6, (name, found)
            assert all(part in found.text for part in named), (name, found)


def test_shards_that_overlap_are_named_with_both_owners(tmp_path):
    config = configuration(tmp_path, replicas=1)
    with opened(config, SHAPES, SHAPES, {"trainer 1": {"embed": range(500, 1024)}}) as run:
        for name, found in run.try_all([*run.trainers, *run.servers], "connect", 6.0).items():
            assert isinstance(found, Failure) and found.after_s < 6, (name, found)
            assert "overlaps" in found.text and "embed" in found.text, (name, found)
            assert "trainer 0" in found.text and "trainer 1" in found.text, (name, found)


def test_two_entries_of_one_tensor_and_box_are_refused_at_once(tmp_path):
    array = np.zeros((8, 4), np.uint16)
    catalog = trainer_catalog(0, {"a": Shard(array, (8, 4), (0, 0))})
    catalog["entries"] *= 2
    handle = ctypes.c_void_p()
    text = abi.config_text(configuration(tmp_path, trainers=1, replicas=1), rank=0)
    with pytest.raises(InvalidArgument, match="(?s)trainer 0.*a"):
        abi.check(abi.api().trainer_open(text, json.dumps(catalog).encode(), ctypes.byref(handle)))


def test_nan_names_trainer_version_tensor_and_index_and_nothing_is_committed(tmp_path):
    with cluster(configuration(tmp_path)) as run:
        run.update(1)
        run.all(run.trainers, "fill", 2)
        run.ask("trainer 1", "spoil", "mlp", 3, 5, 0x7FC0)
        for name in run.trainers:
            run.tell(name, "push_and_wait", 2)
        for name in run.trainers:
            found = run.take(name, "push_and_wait")
            assert isinstance(found, Failure) and found.kind == "Corrupted", (name, found)
            assert "trainer 1, version 2: tensor 'mlp' at [259, 5]" in found.text
        run.assert_hold(1)
        run.update(3)
        run.assert_hold(3)


def test_a_byte_changed_in_flight_is_refused_and_the_torn_server_repaired_by_the_next_version(tmp_path):
    slow = {"performance": {"chunk_bytes": 4096, "window": 1}, "fabric": {"same_host_shortcuts": False}}
    keys = {"replicas": 1, "landing": "in_place", **slow}
    with cluster(configuration(tmp_path, **keys), {"embed": (8192, 1024), "mlp": (512, 1024)}) as run:
        run.update(1)
        for name in run.trainers:
            run.tell(name, "update", 2)
        run.until("a row of trainer 1", lambda: run.ask("server 0", "has_row", "embed", 4100, 2))
        run.signal("trainer 1", signal.SIGSTOP)  # before it says with a signal what it has put
        run.ask("server 0", "flip", "embed", 4100, 9)
        run.signal("trainer 1", signal.SIGCONT)
        for name in run.trainers:
            found = run.take(name, "update")
            assert isinstance(found, Failure) and found.kind == "Corrupted", (name, found)
            assert "server 0" in found.text and "version 2" in found.text and "trainer 1" in found.text
            assert "digest" in found.text
        assert run.ask("server 0", "holds") == {"says": 1, "torn": True, "bytes": "mixed"}
        run.update(3)
        run.assert_hold(3)


def test_nan_and_inf_in_what_is_cast_to_fp8_name_tensor_and_index_and_a_repaired_push_lands(tmp_path):
    shapes = {"embed": (64, 1024), "mlp": (512, 1024)}
    odd = {"trainer 0": {"mlp": range(0, 200)}, "trainer 1": {"mlp": range(200, 512)}}  # both have rows of block 1
    with cluster(configuration(tmp_path), shapes, odd, cast=("mlp",)) as run:
        run.update(1)
        for version, name, row, index, bits in (
            (2, "trainer 0", 150, 150, 0x7FC1),  # NaN in the shared block
            (3, "trainer 1", 3, 203, 0xFF80),  # minus infinity there, by the other owner
            (4, "trainer 1", 200, 400, 0x7F80),  # infinity in a block of one trainer
        ):
            run.all(run.trainers, "fill", version)
            run.ask(name, "spoil", "mlp", row, 700, bits)
            for trainer, found in run.try_all(run.trainers, "push_and_wait", version).items():
                assert isinstance(found, Failure) and found.kind == "Corrupted" and found.after_s < 6, (trainer, found)
                assert f"{name}, version {version}: tensor 'mlp' at [{index}, 700]" in found.text, (trainer, found)
            run.assert_hold(version - 1)
            run.update(version)
            run.assert_hold(version)
