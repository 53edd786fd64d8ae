"""Boxes from placements, with stand-ins for torch's classes; tests/engines/test_sharded_trainers.py has the real ones."""

from dataclasses import dataclass

import numpy as np
import pytest
from weightcast import placements
from weightcast.catalog import Rule, Shard, parameters_of, shards_of


@dataclass
class Placement:
    dim: int | None = None
    split_factor: int = 1
    partial: bool = False

    def is_replicate(self):
        return self.dim is None and not self.partial

    def is_partial(self):
        return self.partial


REPLICATE, PARTIAL = Placement(), Placement(partial=True)


def boxes(shape, mesh, kinds):
    return [placements.box_of(shape, mesh, c, kinds) for c in np.ndindex(*mesh)]


def test_rows_over_four_ranks_leave_the_last_ones_short():
    found = boxes((10, 3), (4,), [Placement(0)])
    assert found == [((0, 0), (3, 3)), ((3, 0), (3, 3)), ((6, 0), (3, 3)), ((9, 0), (1, 3))]
    assert boxes((2,), (4,), [Placement(0)])[2:] == [((2,), (0,)), ((2,), (0,))]


def test_replicas_hold_the_same_box():
    found = boxes((8, 4), (2, 2), [REPLICATE, Placement(1)])
    assert found[0] == found[2] == ((0, 0), (8, 2))
    assert found[1] == found[3] == ((0, 2), (8, 2))


def test_fsdp_over_tensor_parallel_on_one_axis_divides_the_tensor_parallel_part():
    found = boxes((8,), (2, 2), [Placement(0, split_factor=2), Placement(0)])
    assert found == [((0,), (2,)), ((4,), (2,)), ((2,), (2,)), ((6,), (2,))]


def test_placements_that_are_no_box_are_refused():
    with pytest.raises(ValueError, match="partial sums"):
        boxes((8,), (2,), [PARTIAL])
    with pytest.raises(ValueError, match="redistribute"):
        boxes((8,), (2, 2), [Placement(0, split_factor=4), Placement(0)])


@dataclass
class Mesh:
    shape: tuple
    coordinate: tuple | None

    def get_coordinate(self):
        return self.coordinate


@dataclass
class Distributed:
    shape: tuple
    device_mesh: Mesh
    placements: tuple
    local: np.ndarray

    def to_local(self):
        return self.local


def test_a_dtensor_becomes_the_shard_that_this_rank_holds():
    local = np.zeros((3, 4), np.uint16)
    shard = placements.shard_of("w", Distributed((7, 4), Mesh((3,), (1,)), (Placement(0),), local))
    assert (shard.array is local, shard.shape, shard.offset) == (True, (7, 4), (3, 0))


def test_a_local_part_of_another_size_names_the_tensor():
    wrong = Distributed((7, 4), Mesh((3,), (2,)), (Placement(0),), np.zeros((3, 4), np.uint16))
    with pytest.raises(ValueError, match=r"'w'.*\[1, 4\].*\[3, 4\]"):
        placements.shard_of("w", wrong)
    outside = Distributed((7, 4), Mesh((3,), None), (Placement(0),), np.zeros((3, 4), np.uint16))
    with pytest.raises(ValueError, match="'w'.*not in the tensor's device mesh"):
        placements.shard_of("w", outside)


def test_a_plain_array_is_the_whole_tensor():
    array = np.zeros((2, 3), np.uint16)
    assert placements.shard_of("w", array) == Shard(array, (2, 3), (0, 0))


QKV = Rule(("q.{}", "k.{}"), "qkv.{}", split=0, groups=4)  # Megatron's query groups: two rows of q, then one of k, and again


def test_query_groups_are_taken_apart_by_the_rule_that_fuses_them():
    parameters = parameters_of({"q.0": (8, 3), "k.0": (4, 3)}, [QKV], 1, 2)
    fused = np.arange(18, dtype=np.uint16).reshape(6, 3)
    shards = shards_of(parameters, {"qkv.0": fused})
    assert [(shard.offset, shard.array.tolist()) for shard in shards["k.0"]] == [((2, 0), fused[2:3].tolist()), ((3, 0), fused[5:6].tolist())]
    assert [(shard.offset, shard.array.tolist()) for shard in shards["q.0"]] == [((4, 0), fused[:2].tolist()), ((6, 0), fused[3:5].tolist())]


def test_arrays_that_no_rule_explains_are_named():
    parameters = parameters_of({"q.0": (8, 3), "k.0": (4, 3)}, [QKV], 0, 1)
    assert shards_of(parameters, {}) == {}  # another pipeline stage's
    with pytest.raises(ValueError, match="no rule makes array 'bias'"):
        shards_of(parameters, {"bias": np.zeros(3, np.uint16)})
    with pytest.raises(ValueError, match=r"'qkv.0' has shape \[6, 3\], but its parts make \[12, 3\]"):
        shards_of(parameters, {"qkv.0": np.zeros((6, 3), np.uint16)})
    with pytest.raises(ValueError, match="'qkv.0': 4 groups .* do not divide over 3 ranks"):
        parameters_of({"q.0": (8, 3), "k.0": (4, 3)}, [QKV], 0, 3)
