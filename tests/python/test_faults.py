"""Processes that die, stop, lie or are too late, with the built library over UCX on this host."""

import signal
import time

import pytest
from fault_cluster import Failure, cluster, configuration


@pytest.mark.parametrize(
    ("path", "keys"),
    {
        "tcp": {"fabric": {"same_host_shortcuts": False}},
        "cma": {"landing": "in_place"},
        "posix": {"landing": "staged"},
    }.items(),
)
def test_bytes_are_those_of_each_version_over_every_path(tmp_path, path, keys):
    with cluster(configuration(tmp_path, **keys)) as run:
        for version in (1, 2):
            assert run.update(version)["replicas_committed"] == [0, 1]
            run.assert_hold(version)
        paths = " ".join(run.ask("trainer 0", "status")["paths"])
        assert path in paths


def test_several_threads_cast_and_verify_the_same_bytes_as_one(tmp_path):
    keys = {"performance": {"threads": 3, "chunk_bytes": 65536}}
    with cluster(configuration(tmp_path, **keys), cast=("mlp",)) as run:
        for version in (1, 2):
            assert run.update(version)["replicas_committed"] == [0, 1]
            run.assert_hold(version)


def test_versions_only_grow(tmp_path):
    with cluster(configuration(tmp_path)) as run:
        run.update(3)
        for version in (3, 2):
            run.all(run.trainers, "fill", version)
            for found in run.try_all(run.trainers, "push", version).values():
                assert isinstance(found, Failure) and found.kind == "InvalidArgument"
                assert f"version {version} is not above version 3" in found.text
        run.assert_hold(3)
        run.update(4)
        run.assert_hold(4)


def test_trainers_that_push_different_versions_are_told_who_pushes_which(tmp_path):
    with cluster(configuration(tmp_path)) as run:
        run.update(1)
        for rank, version in ((0, 2), (1, 3)):
            run.tell(f"trainer {rank}", "push", version)
        for name in run.trainers:
            found = run.take(name, "push")
            assert isinstance(found, Failure) and found.kind == "InvalidArgument"
            assert "trainer 0 pushes 2" in found.text and "trainer 1 pushes 3" in found.text
        run.assert_hold(1)
        run.update(4)
        run.assert_hold(4)


def test_a_host_that_commits_late_is_reported_and_holds_no_other_replica_back(tmp_path):
    with cluster(configuration(tmp_path)) as run:
        run.update(1)
        run.ask("server 0", "engine", False, True)
        report = run.update(2)
        assert report["replicas_committed"] == [1] and report["replicas_late"] == [0]
        run.assert_hold(2, "server 1")
        run.assert_hold(1, "server 0")
        assert run.ask("server 0", "phase") == "COMMIT_DUE"
        run.ask("server 0", "engine", True, True)
        run.until("the late commit", lambda: run.ask("server 0", "holds")["says"] == 2)
        run.update(3)
        run.assert_hold(3)


# ---- processes that end or stop in the middle of an update ----

BIG = {"embed": (8192, 1024), "mlp": (512, 1024)}  # 17 MiB, in small puts over TCP: there is a middle to hit
SLOW = {"performance": {"chunk_bytes": 4096, "window": 1}, "fabric": {"same_host_shortcuts": False}}


def is_in_mid_put(run, name):
    """Whether the trainer has put some of its bytes and not all."""
    status = run.ask("controller", "status")
    done = {f"{member['role']} {member['rank']}": member["bytes_done"] for member in status["members"]}
    return status["state"] == "moving" and 0 < done[name] < status["update"]["bytes_total"] // len(run.trainers)


def stop_in_mid_put(run, name):
    run.until(f"{name} in mid-put", lambda: is_in_mid_put(run, name))
    run.signal(name, signal.SIGSTOP)
    assert run.ask("controller", "status")["state"] == "moving"


def ended(run, name):
    """What a push that was told must end with, within the bounds of the configuration."""
    found = run.take(name, "update")
    assert isinstance(found, Failure) and found.after_s < 6, found
    return found


def test_a_trainer_killed_in_mid_put_costs_the_version_and_another_process_takes_its_place(tmp_path):
    with cluster(configuration(tmp_path, **SLOW), BIG) as run:
        run.update(1)
        for name in run.trainers:
            run.tell(name, "update", 2)
        stop_in_mid_put(run, "trainer 1")
        run.signal("trainer 1", signal.SIGKILL)
        failure = ended(run, "trainer 0")
        assert failure.kind == "Unreachable"
        assert "trainer 1 is out" in failure.text and "version 2 is given up" in failure.text
        assert "servers keep what they have committed" in failure.text
        for name in run.servers:
            run.until(f"{name} gives up", lambda name=name: run.ask(name, "status")["ended"] == 2)
            assert "trainer 1 is out" in run.ask(name, "status")["ended_because"]
        run.assert_hold(1)
        run.start("trainer 1", shapes=BIG)
        run.join("trainer 1")
        run.update(3)
        run.assert_hold(3)


@pytest.mark.parametrize(
    ("landing", "continued"), [("staged", "receiving"), ("in_place", "receiving"), ("in_place", "committed")]
)
def test_a_trainer_stopped_in_mid_put_and_continued_later_puts_nothing_of_the_old_version(tmp_path, landing, continued):
    with cluster(configuration(tmp_path, landing=landing, **SLOW), BIG) as run:
        run.update(1)
        for name in run.trainers:
            run.tell(name, "update", 2)
        stop_in_mid_put(run, "trainer 1")
        assert "trainer 1 is out" in ended(run, "trainer 0").text
        if landing == "staged":
            run.assert_hold(1)
        else:
            found = run.all(run.servers, "holds")
            assert all(server["torn"] and server["says"] == 1 for server in found.values()), found
        stopped = run.process_of("trainer 1")
        run.start("trainer 1", shapes=BIG)
        run.join("trainer 1")
        for name in run.trainers:
            run.tell(name, "update", 3)
        if continued == "receiving":
            run.until_phase("server 0", "RECEIVING")
            run.signal(stopped, signal.SIGCONT)
        for name in run.trainers:
            assert run.take(name, "update")["version"] == 3
        run.assert_hold(3)
        run.signal(stopped, signal.SIGCONT)
        ended(run, stopped)
        run.assert_hold(3)


def test_posted_puts_of_a_stopped_trainer_never_reach_live_weights(tmp_path):
    shapes = {"embed": (131072, 1024)}  # some tenths of a second, and more than sockets hold: puts wait in the trainer
    keys = {"replicas": 1, "landing": "in_place", "fabric": {"same_host_shortcuts": False}}
    with cluster(configuration(tmp_path, **keys), shapes) as run:
        run.update(1)
        for name in run.trainers:
            run.tell(name, "update", 2)
        run.until("moving", lambda: run.ask("controller", "status")["state"] == "moving")
        run.signal("server 0", signal.SIGSTOP)
        time.sleep(0.1)
        run.signal("trainer 1", signal.SIGSTOP)
        run.signal("server 0", signal.SIGCONT)
        assert "trainer 1 is out" in ended(run, "trainer 0").text
        stopped = run.process_of("trainer 1")
        run.start("trainer 1", shapes=shapes)
        run.join("trainer 1")
        run.update(3)
        run.signal(stopped, signal.SIGCONT)
        ended(run, stopped)
        run.assert_hold(3)


def test_a_server_killed_in_mid_update_costs_its_replica_only_until_it_comes_back(tmp_path):
    with cluster(configuration(tmp_path, **SLOW), BIG) as run:
        run.update(1)
        for name in run.trainers:
            run.tell(name, "update", 2)
        stop_in_mid_put(run, "trainer 1")  # so that the update cannot end first
        run.signal("server 0", signal.SIGKILL)
        run.signal("trainer 1", signal.SIGCONT)
        for name in run.trainers:
            report = run.take(name, "update")
            assert report["replicas_committed"] == [1] and report["servers"] == 1
        run.assert_hold(2, "server 1")
        run.start("server 0", shapes=BIG)
        run.join("server 0")
        assert run.update(3)["replicas_committed"] == [0, 1]
        run.assert_hold(3)


@pytest.mark.parametrize("landing", ["staged", "in_place"])
@pytest.mark.parametrize("shortcuts", [False, True])
def test_a_server_that_stops_for_longer_than_the_bound_is_left_out_until_it_goes_on(tmp_path, shortcuts, landing):
    shapes = {"embed": (16384, 1024)}  # more than sockets hold, so that puts wait in the trainers
    keys = {"landing": landing, "fabric": {"same_host_shortcuts": shortcuts}}
    with cluster(configuration(tmp_path, **keys), shapes) as run:
        run.update(1)
        for name in run.trainers:
            run.tell(name, "update", 2)
        run.until_phase("server 1", "RECEIVING")
        run.signal("server 0", signal.SIGSTOP)
        for name in run.trainers:
            assert run.take(name, "update")["replicas_committed"] == [1]
        run.signal("server 0", signal.SIGCONT)
        run.until("everyone back", lambda: run.ask("controller", "status")["state"] == "idle")
        run.until_phase("server 0", "IDLE")
        assert run.update(3)["replicas_committed"] == [0, 1]
        run.assert_hold(3)


def test_a_server_that_stops_for_less_than_the_bound_only_slows_the_update(tmp_path):
    with cluster(configuration(tmp_path, **SLOW), BIG) as run:
        run.update(1)
        for name in run.trainers:
            run.tell(name, "update", 2)
        run.until_phase("server 1", "RECEIVING")
        run.signal("server 1", signal.SIGSTOP)
        time.sleep(0.3)
        run.signal("server 1", signal.SIGCONT)
        for name in run.trainers:
            assert run.take(name, "update")["replicas_committed"] == [0, 1]
        run.assert_hold(2)


def test_a_controller_killed_in_mid_update_ends_the_push_and_the_next_one_serves_the_run(tmp_path):
    with cluster(configuration(tmp_path, **SLOW), BIG) as run:
        run.update(1)
        for name in run.trainers:
            run.tell(name, "update", 2)
        stop_in_mid_put(run, "trainer 1")  # so that the update cannot end first
        run.signal("controller", signal.SIGKILL)
        run.signal("trainer 1", signal.SIGCONT)
        for name in run.trainers:
            failure = ended(run, name)
            assert run.config["controller"]["address"] in failure.text and "version 2" in failure.text
        for name, found in run.all(run.servers, "holds").items():
            assert found == {"says": 1, "torn": False, "bytes": 1}, (name, found)
        run.start("controller")
        run.join("controller")
        run.until("everyone back", lambda: run.ask("controller", "status").get("state") == "idle")
        run.update(3)
        run.assert_hold(3)
