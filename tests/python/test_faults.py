"""Processes that die, stop, lie or are too late, with the built library over UCX on this host."""

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
