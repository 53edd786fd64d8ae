"""A server whose engine frees the weights that it gave us, while trainers put into them."""

import signal
import time

import pytest
from fault_cluster import Failure, cluster, configuration

PATHS = {"cma": {}, "tcp": {"fabric": {"same_host_shortcuts": False}}}


def free_in_mid_update(run, version):
    """`version` is pushed; when trainer 0's rows are on server 0 and trainer 1's are not, the memory of both goes."""
    run.ask("server 0", "engine", True, False)
    for name in run.trainers:
        run.tell(name, "update", version)
    run.until_phase("server 0", "ALLOW_DUE")
    run.signal("trainer 1", signal.SIGSTOP)
    run.ask("server 0", "engine", True, True)
    run.until("the rows of trainer 0", lambda: run.ask("server 0", "has_row", "embed", 511, version))
    run.until("their digests", lambda: has_verified_what_came(run))  # which read that memory
    run.ask("server 0", "free", "embed")
    run.signal("trainer 1", signal.SIGCONT)


def has_verified_what_came(run):
    before = run.ask("server 0", "status")["verify_s"]
    time.sleep(0.1)
    return 0 < before == run.ask("server 0", "status")["verify_s"]


@pytest.mark.parametrize("path", PATHS)
def test_freed_memory_costs_its_own_replica_only_as_if_the_server_had_died(tmp_path, path):
    with cluster(configuration(tmp_path, landing="in_place", **PATHS[path])) as run:
        run.update(1)
        free_in_mid_update(run, 2)
        for name in run.trainers:
            report = run.take(name, "update")
            assert report["replicas_committed"] == [1] and report["servers"] == 1
        run.assert_hold(2, "server 1")
        assert run.update(3)["replicas_committed"] == [1]  # whether that process lives (cma) or not (tcp)
        run.assert_hold(3, "server 1")
        run.signal("server 0", signal.SIGKILL)
        run.start("server 0")
        run.join("server 0")
        assert run.update(4)["replicas_committed"] == [0, 1]
        run.assert_hold(4)


@pytest.mark.parametrize("path", PATHS)
def test_freed_memory_of_the_only_replica_ends_the_push_with_the_servers_name_and_the_cause(tmp_path, path):
    with cluster(configuration(tmp_path, replicas=1, landing="in_place", **PATHS[path])) as run:
        run.update(1)
        free_in_mid_update(run, 2)
        for name in run.trainers:
            found = run.take(name, "update")
            assert isinstance(found, Failure) and found.kind == "Unreachable" and found.after_s < 6, (name, found)
            assert "server 0 is out" in found.text and "no whole replica is left for version 2" in found.text
            assert "its process ended, or freed memory that it had registered" in found.text
        if path == "cma":  # here the process that freed its memory lives on; over tcp its own receiving crashes it
            run.until("server 0 gives up", lambda: run.ask("server 0", "status")["ended"] == 2)
            assert run.ask("server 0", "status")["torn"] and run.ask("server 0", "status")["committed_version"] == 1
        run.signal("server 0", signal.SIGKILL)
        run.start("server 0")
        run.join("server 0")
        run.update(3)
        run.assert_hold(3)


def test_a_staged_server_whose_live_weights_were_freed_dies_in_its_own_commit_and_counts_as_dead(tmp_path):
    with cluster(configuration(tmp_path)) as run:
        run.update(1)
        run.ask("server 0", "engine", False, True)
        for name in run.trainers:
            run.tell(name, "update", 2)
        run.until_phase("server 0", "COMMIT_DUE")
        run.ask("server 0", "free", "embed")
        run.tell("server 0", "engine", True, True)  # it may not live to answer
        for name in run.trainers:
            report = run.take(name, "update")
            assert report["replicas_committed"] == [1] and report["replicas_late"] == []
        run.assert_hold(2, "server 1")
        run.start("server 0")
        run.join("server 0")
        assert run.update(3)["replicas_committed"] == [0, 1]
        run.assert_hold(3)
