"""Servers that pass on what they have verified: real processes, whose links the configuration states."""

import signal

import pytest
from fault_cluster import Failure, cluster, configuration

BIG = {"embed": (8192, 1024), "mlp": (512, 1024)}  # 17 MiB, in small puts over TCP: there is a middle to hit
SLOW = {"performance": {"chunk_bytes": 4096, "window": 1}, "fabric": {"same_host_shortcuts": False}}
# Both replicas are of one node, so each byte comes to the node once.
ONE_NODE = {"links": {"node": "a", "nic_mbs": 100, "nvlink_mbs": 1000}}


def members(run):
    return {f"{member['role']} {member['rank']}": member for member in run.ask("controller", "status")["members"]}


def starved_of(run, version):
    """Starts `version`; returns in its middle, with trainer 1 stopped, so that it cannot end."""
    for name in run.trainers:
        run.tell(name, "update", version)
    run.until("moving", lambda: run.ask("controller", "status").get("update", {}).get("bytes_done", 0) > 0)
    run.signal("trainer 1", signal.SIGSTOP)
    assert run.ask("controller", "status")["state"] == "moving"


@pytest.mark.parametrize("landing", ["staged", "in_place"])
def test_each_byte_comes_to_the_node_once_and_every_server_holds_it(tmp_path, landing):
    with cluster(configuration(tmp_path, landing=landing, **ONE_NODE), BIG, cast=("embed",)) as run:
        for version in (1, 2, 3):
            report = run.update(version)
            run.assert_hold(version)
        taken = members(run)
        put = sum(taken[name]["bytes_done"] for name in run.trainers)
        passed_on = [taken[name]["bytes_done"] for name in run.servers]
        assert put == report["bytes"] // 2 == sum(passed_on)
        assert min(passed_on) > 0
        assert [path.split(" over ")[0] for path in taken["server 0"]["paths"]] == ["server 1"]
        assert [path.split(" over ")[0] for path in taken["server 1"]["paths"]] == ["server 0"]


def test_without_relay_trainers_put_to_every_server(tmp_path):
    with cluster(configuration(tmp_path, performance={"relay": False}, **ONE_NODE), BIG) as run:
        report = run.update(1)
        run.assert_hold(1)
        assert sum(members(run)[name]["bytes_done"] for name in run.trainers) == report["bytes"]


def test_when_a_server_that_passes_on_dies_the_others_get_the_same_version_from_the_trainers(tmp_path):
    with cluster(configuration(tmp_path, **ONE_NODE, **SLOW), BIG) as run:
        run.update(1)
        starved_of(run, 2)
        run.signal("server 1", signal.SIGKILL)
        run.signal("trainer 1", signal.SIGCONT)
        for name in run.trainers:
            report = run.take(name, "update")
            assert not isinstance(report, Failure) and report["replicas_committed"] == [0], report
        run.assert_hold(2, "server 0")
        run.start("server 1", shapes=BIG)
        run.join("server 1")
        assert run.update(3)["replicas_committed"] == [0, 1]
        run.assert_hold(3)


def test_what_a_stopped_server_had_begun_to_pass_on_never_lands_in_a_later_version(tmp_path):
    with cluster(configuration(tmp_path, **ONE_NODE, **SLOW), BIG) as run:
        run.update(1)
        starved_of(run, 2)
        run.signal("server 1", signal.SIGSTOP)
        run.signal("trainer 1", signal.SIGCONT)
        for name in run.trainers:  # sent again to server 0 alone, unless closing what leads to server 1 takes too long
            report = run.take(name, "update")
            assert isinstance(report, Failure) or report["replicas_committed"] == [0], report
        run.until("the others are connected", lambda: run.ask("controller", "status")["state"] == "idle")
        run.update(3)
        run.assert_hold(3, "server 0")
        run.signal("server 1", signal.SIGCONT)
        run.until("server 1 is back", lambda: members(run).get("server 1", {}).get("connected"))
        run.assert_hold(3, "server 0")
        assert run.update(4)["replicas_committed"] == [0, 1]
        run.assert_hold(4)
