import json

import ml_dtypes
import numpy as np
import pytest
import small_model
from weightcast.demo import oracle, perturb

BF16 = ml_dtypes.bfloat16
STEP = np.float32(1) / np.float32(448)


def test_the_largest_value_of_a_block_becomes_the_largest_code():
    weight = np.zeros((128, 256), BF16)
    weight[3, 5], weight[3, 6], weight[0, 200] = 2.0, -1.0, -0.5
    codes, scales = oracle.cast_fp8(weight)
    assert scales.tolist() == [[np.float32(2) * STEP, np.float32(0.5) * STEP]]
    assert (float(codes[3, 5]), float(codes[3, 6]), float(codes[0, 200])) == (448, -224, -448)


def test_a_block_of_zeros_has_the_floors_scale_and_zero_codes():
    codes, scales = oracle.cast_fp8(np.zeros((1, 1), BF16))
    assert scales[0, 0] == np.float32(1e-10) * STEP and float(codes[0, 0]) == 0


def test_edge_blocks_have_scales_of_their_own():
    weight = np.ones((192, 130), BF16)
    weight[128:, :128] = 3
    weight[:128, 128:] = 5
    codes, scales = oracle.cast_fp8(weight)
    assert (scales.shape, codes.shape) == ((2, 2), (192, 130))
    assert np.allclose(scales * 448, [[1, 5], [3, 1]])
    assert (codes.astype(np.float32) == 448).all()


def test_codes_round_to_nearest_even():
    weight = np.array([[448, 17, 19]], BF16)  # 17 is halfway between 16 and 18, 19 between 18 and 20
    codes, scales = oracle.cast_fp8(weight)
    assert scales[0, 0] == 1
    assert codes[0].astype(np.float32).tolist() == [448, 16, 20]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    tensors = small_model.checkpoint()
    oracle.write_expected(tensors, folder / "version-1")
    return folder, tensors


def test_the_right_bytes_compare_equal(expected):
    folder, tensors = expected
    live = small_model.expected_of(tensors, 1)
    result = oracle.compare(folder, 1, 1, live)
    assert result.equal and result.bytes == sum(array.nbytes for array in live.values())


def test_one_wrong_byte_is_found_and_named(expected):
    folder, tensors = expected
    live = {name: array.copy() for name, array in small_model.expected_of(tensors, 0).items()}
    name = "model.layers.1.mlp.down_proj.weight"
    live[name].view(np.uint8)[5, 7] ^= 1
    result = oracle.compare(folder, 1, 0, live)
    assert not result.equal and result.differing_bytes == 1
    assert result.differing == (f"{name}: 1 of {live[name].size} bytes, the first at {5 * 256 + 7}",)


def test_a_missing_and_an_extra_parameter_differ(expected):
    folder, tensors = expected
    live = small_model.expected_of(tensors, 0)
    live["spare"] = live.pop("model.norm.weight")
    assert len(oracle.compare(folder, 1, 0, live).differing) == 2


def test_fingerprints_are_those_of_the_files(expected):
    folder, tensors = expected
    known = oracle.known_fingerprints(folder, 1, 0)
    live = small_model.expected_of(tensors, 0)
    assert known == {1: {name: oracle.fingerprint(oracle.bytes_of(array)) for name, array in live.items()}}
    assert oracle.fingerprint(np.array([1, 0, 0, 0, 0, 0, 0, 0, 2], np.uint8)) == 3
    assert json.loads((folder / "version-1" / "rank-0.json").read_text()).keys() == live.keys()


def test_stepping_shards_equals_stepping_the_whole():
    whole = small_model.checkpoint()["model.layers.0.mlp.gate_proj.weight"]
    cuts = ((0, 130), (130, 131), (131, 512))
    pieces = [whole[first:last].copy() for first, last in cuts]
    perturb.step(whole, 0, "t", 2)
    for piece, (first, _) in zip(pieces, cuts, strict=True):
        perturb.step(piece, first * whole.shape[1], "t", 2)
    assert (np.concatenate(pieces).view(np.uint16) == whole.view(np.uint16)).all()


def test_steps_are_small_and_differ_by_version_and_tensor():
    for name, before in small_model.checkpoint().items():
        after, other_version, other_tensor = before.copy(), before.copy(), before.copy()
        perturb.step(after, 0, name, 2)
        perturb.step(other_version, 0, name, 3)
        perturb.step(other_tensor, 0, name + "x", 2)
        change = np.abs(after.astype(np.float32) - before.astype(np.float32))
        assert (change <= np.abs(before.astype(np.float32)) / 16).all()
        assert 0.05 < (change > 0).mean() < 0.95
        assert (after != other_version).any() and (after != other_tensor).any()


def test_a_shard_that_cannot_be_stepped_in_place_is_refused():
    with pytest.raises(ValueError, match="contiguous"):
        perturb.step(np.zeros((4, 4), BF16)[:, ::2], 0, "t", 2)
