"""Replicas of several ranks: they commit together or not at all, whoever dies at whatever stage."""

import contextlib
import signal

from fault_cluster import Failure, cluster, configuration

BIG = {"embed": (8192, 1024), "mlp": (512, 1024)}  # 17 MiB, in small puts over TCP: there is a middle to hit
SLOW = {"performance": {"chunk_bytes": 4096, "window": 1}, "fabric": {"same_host_shortcuts": False}}
TWO_BY_TWO = {"controller": {"servers_per_replica": 2}}  # replica 0: servers 0 and 1; replica 1: servers 2 and 3


def is_receiving(run, version):
    status = run.ask("controller", "status")
    return status["state"] == "moving" and status["update"]["version"] == version and status["update"]["bytes_done"] > 0


@contextlib.contextmanager
def stopped_while_it_receives(run, name, version):
    """While the trainers push `version`; nobody is stopped for as long as would count as a death."""
    run.signal(name, signal.SIGSTOP)  # so that the update cannot begin to move
    for trainer in run.trainers:
        run.tell(trainer, "update", version)
    run.until("arming", lambda: run.ask("controller", "status")["state"] == "arming")
    run.signal("trainer 1", signal.SIGSTOP)  # so that it cannot end
    run.signal(name, signal.SIGCONT)
    run.until("moving", lambda: run.ask("controller", "status")["state"] == "moving")
    run.signal(name, signal.SIGSTOP)
    run.signal("trainer 1", signal.SIGCONT)
    yield
    run.signal(name, signal.SIGCONT)


def replace(run, name, shapes=None):
    run.start(name, shapes=shapes)
    run.join(name)


def test_a_rank_killed_in_mid_update_costs_its_whole_replica_the_version_and_no_other(tmp_path):
    with cluster(configuration(tmp_path, **TWO_BY_TWO, **SLOW), BIG) as run:
        run.update(1)
        run.assert_hold(1)
        for name in run.trainers:
            run.tell(name, "update", 2)
        run.until("moving", lambda: is_receiving(run, 2))
        run.signal("trainer 1", signal.SIGSTOP)  # so that the update cannot end first
        assert run.ask("controller", "status")["state"] == "moving"
        run.signal("server 1", signal.SIGKILL)
        run.signal("trainer 1", signal.SIGCONT)
        for name in run.trainers:
            report = run.take(name, "update")
            assert report["replicas_committed"] == [1] and report["servers"] == 2
        run.assert_hold(2, "server 2", "server 3")
        run.assert_hold(1, "server 0")
        status = run.ask("server 0", "status")
        assert status["ended"] == 2 and "server 1 is out" in status["ended_because"]
        replace(run, "server 1", BIG)
        assert run.update(3)["replicas_committed"] == [0, 1]
        run.assert_hold(3)


def test_a_rank_killed_between_ready_and_commit_leaves_its_peer_at_one_whole_version_until_the_next(tmp_path):
    with cluster(configuration(tmp_path, **TWO_BY_TWO)) as run:
        run.update(1)
        with stopped_while_it_receives(run, "server 1", 2):
            run.until_phase("server 0", "READY")
            run.signal("server 0", signal.SIGKILL)
        for name in run.trainers:
            assert run.take(name, "update")["replicas_committed"] == [1]
        run.assert_hold(2, "server 2", "server 3")
        held = run.ask("server 1", "holds")["says"]
        assert held in (1, 2)  # 2 if it was ready before the death was noticed: server 0 had promised to commit
        run.assert_hold(held, "server 1")
        replace(run, "server 0")
        assert run.ask("server 0", "holds")["says"] == 0  # its host must compare this with server 1's before it serves
        assert run.update(3)["replicas_committed"] == [0, 1]
        run.assert_hold(3)

        run.ask("server 1", "engine", False, True)
        for name in run.trainers:
            run.tell(name, "update", 4)
        run.until("the peer's commit", lambda: run.ask("server 0", "holds")["says"] == 4)
        run.until_phase("server 1", "COMMIT_DUE")
        run.signal("server 1", signal.SIGKILL)
        for name in run.trainers:
            assert run.take(name, "update")["replicas_committed"] == [1]
        run.assert_hold(4, "server 0", "server 2", "server 3")  # a commit is final
        replace(run, "server 1")
        assert run.update(5)["replicas_committed"] == [0, 1]
        run.assert_hold(5)


# ---- and the controller dies ----


def replace_controller(run):
    run.start("controller")
    run.join("controller")
    run.until("everyone back", lambda: run.ask("controller", "status").get("state") == "idle")


def test_a_new_controller_rolls_forward_what_was_decided_when_the_old_one_was_killed_before_all_had_committed(tmp_path):
    with cluster(configuration(tmp_path, **TWO_BY_TWO)) as run:
        run.update(1)
        for name in ("server 1", "server 2", "server 3"):
            run.ask(name, "engine", False, True)
        for name in run.trainers:
            run.tell(name, "update", 2)
        run.until("the first commit", lambda: run.ask("server 0", "holds")["says"] == 2)
        for name in ("server 1", "server 2", "server 3"):
            run.until_phase(name, "COMMIT_DUE")
        run.signal("controller", signal.SIGKILL)
        for name in run.trainers:
            found = run.take(name, "update")
            assert isinstance(found, Failure) and found.after_s < 6 and "version 2" in found.text, found
        run.assert_hold(1, "server 1", "server 2", "server 3")
        replace_controller(run)
        assert run.ask("controller", "status")["version"] == 2
        for name in ("server 1", "server 2", "server 3"):
            assert run.ask(name, "phase") == "COMMIT_DUE"
            run.ask(name, "engine", True, True)
        for name in run.servers:
            run.until(f"{name} rolls forward", lambda name=name: run.ask(name, "holds")["says"] == 2)
        run.assert_hold(2)
        run.update(3)
        run.assert_hold(3)


def test_a_new_controller_settles_a_replica_that_was_ready_in_part_as_a_whole(tmp_path):
    with cluster(configuration(tmp_path, **TWO_BY_TWO)) as run:
        run.update(1)
        with stopped_while_it_receives(run, "server 1", 2):
            run.until("the other replica's commit", lambda: run.ask("server 3", "phase") == "IDLE")
            run.until_phase("server 0", "READY")
            run.signal("controller", signal.SIGKILL)
        for name in run.trainers:
            found = run.take(name, "update")
            assert isinstance(found, Failure) and found.after_s < 6 and "version 2" in found.text, found
        replace_controller(run)
        run.until("replica 0 at rest", lambda: all(run.ask(n, "phase") == "IDLE" for n in ("server 0", "server 1")))
        held = run.ask("server 0", "holds")["says"]
        run.assert_hold(held, "server 0", "server 1")
        run.assert_hold(2, "server 2", "server 3")
        run.update(3)
        run.assert_hold(3)
