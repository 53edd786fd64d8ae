"""The demo's catalogs, checked by a transfer in plain NumPy that knows the catalogs alone."""

import ctypes

import ml_dtypes
import numpy as np
import pytest
import small_model
from weightcast import catalog, memory
from weightcast.catalog import FP8_BLOCK, Rule
from weightcast.demo import layouts, oracle

NUMPY_TYPES = {"bf16": ml_dtypes.bfloat16, "fp32": np.float32, FP8_BLOCK: ml_dtypes.float8_e4m3fn}


def array_at(cat: dict, place: dict, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    region = cat["regions"][place["region"]]
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * region["bytes"]).from_address(region["address"]))
    return np.ndarray(shape, NUMPY_TYPES[dtype], raw.data, place["byte_offset"], place["strides_bytes"])


def put(target: np.ndarray, at: tuple[int, ...], values: np.ndarray) -> None:
    target[tuple(slice(a, a + n) for a, n in zip(at, values.shape, strict=True))] = values


def box(entry: dict) -> tuple[slice, ...]:
    return tuple(slice(o, o + n) for o, n in zip(entry["offset"], entry["extent"], strict=True))


def gather(trainers: list[dict]) -> dict[str, np.ndarray]:
    whole, owned = {}, {}
    for cat in trainers:
        for entry in cat["entries"]:
            tensor = whole.setdefault(entry["tensor"], np.zeros(entry["shape"], ml_dtypes.bfloat16))
            count = owned.setdefault(entry["tensor"], np.zeros(entry["shape"], int))
            tensor[box(entry)] = array_at(cat, entry, entry["dtype"], entry["extent"])
            count[box(entry)] += 1
    assert all((count == 1).all() for count in owned.values())
    return whole


@pytest.fixture(scope="module")
def tensors():
    return small_model.checkpoint()


def trainer(tensors, rank):
    shards = layouts.trainer_shards(small_model.SHAPES, rank)
    for name, shard in shards.items():
        shard.array[...] = tensors[name][shard.offset[0] :][: shard.array.shape[0]]
    return catalog.trainer_catalog(rank, shards), shards


def test_four_trainers_own_every_element_once(tensors):
    cats, shards = zip(*(trainer(tensors, rank) for rank in range(4)), strict=True)
    whole = gather(cats)
    assert all((whole[name] == tensors[name]).all() for name in tensors)
    assert all(len(cat["regions"]) == 1 for cat in cats)
    assert len(shards) == 4


def test_shards_straddle_blocks():
    assert layouts.straddling_blocks(small_model.SHAPES) > 0
    assert [layouts.fsdp_rows(576, rank, 4) for rank in range(4)] == [(0, 144), (144, 144), (288, 144), (432, 144)]
    assert [layouts.fsdp_rows(5, rank, 4) for rank in range(4)] == [(0, 2), (2, 2), (4, 1), (5, 0)]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_catalog_says_is_what_the_oracle_expects(tensors, rank):
    trainers, shards = zip(*(trainer(tensors, r) for r in range(4)), strict=True)
    source = gather(trainers)
    del shards
    parameters = layouts.server_parameters(small_model.SHAPES, rank)
    arrays = layouts.server_arrays(parameters)
    cat = catalog.server_catalog(rank, 1, parameters, arrays)
    for entry in cat["entries"]:
        live = array_at(cat, entry, entry["recipe"], entry["shape"])
        for part in entry["parts"]:
            values = source[part["tensor"]]
            if entry["recipe"] != FP8_BLOCK:
                put(live, part["at"], values[box(part)])
                continue
            codes, scales = oracle.cast_fp8(values)
            put(live, part["at"], codes[box(part)])
            blocks = tuple(slice(cut.start // 128, -(-cut.stop // 128)) for cut in box(part))
            put(array_at(cat, entry["scales"], "fp32", entry["scales"]["shape"]), part["scales_at"], scales[blocks])
    expected = small_model.expected_of(tensors, rank)
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        assert arrays[name].shape == value.shape, name
        assert (oracle.bytes_of(arrays[name]) == oracle.bytes_of(value)).all(), name


def test_fused_projections_stack_and_each_keeps_its_own_scale_rows():
    parameters = {p.name: p for p in layouts.server_parameters(small_model.SHAPES, 0)}
    qkv = parameters["model.layers.0.self_attn.qkv_proj.weight"]
    assert qkv.shape == (320, 192)
    assert [part.at for part in qkv.parts] == [(0, 0), (192, 0), (256, 0)]
    assert [part.scales_at for part in qkv.parts] == [(0, 0), (2, 0), (3, 0)]  # 1.5 blocks take two rows
    down = parameters["model.layers.1.mlp.down_proj.weight"]
    assert (down.shape, down.parts[0].extent) == ((192, 256), (192, 256))


def test_an_expert_stack_is_a_parameter_with_one_more_axis():
    part = catalog.Part("experts.3.up_proj.weight", (8, 4), (0, 0), (8, 4), at=(3, 8, 0))
    stack = np.zeros((5, 16, 4), ml_dtypes.bfloat16)
    w13 = catalog.Parameter("w13", stack.shape, "bf16", (part,))
    (entry,) = catalog.server_catalog(0, 0, [w13], {"w13": stack})["entries"]
    assert entry["strides_bytes"] == (128, 8, 2)
    assert entry["parts"] == [{"tensor": "experts.3.up_proj.weight", "shape": (8, 4), "offset": (0, 0),
                               "extent": (8, 4), "at": (3, 8, 0)}]  # fmt: skip


def test_rules_that_do_not_fit_say_so():
    with pytest.raises(ValueError, match=r"no rule places tensor 'lm_head\.weight'"):
        catalog.parameters_of({"lm_head.weight": (4, 4)}, layouts.SERVER_RULES, 0, 2)
    with pytest.raises(ValueError, match=r"needs 'a\.k_proj\.weight'"):
        catalog.parameters_of({"a.q_proj.weight": (4, 4)}, layouts.SERVER_RULES, 0, 2)
    with pytest.raises(ValueError, match=r"'t'.*does not divide over 3 ranks"):
        catalog.parameters_of({"t": (4, 4)}, [Rule(("{}",), "{}", split=0)], 0, 3)


def test_arrays_that_do_not_fit_say_so():
    parameters = catalog.parameters_of({"t": (4, 4)}, [Rule(("{}",), "{}")], 0, 1)
    with pytest.raises(ValueError, match="'t' has no array"):
        catalog.server_catalog(0, 0, parameters, {})
    with pytest.raises(ValueError, match=r"shape \[4, 5\].*\[4, 4\]"):
        catalog.server_catalog(0, 0, parameters, {"t": np.zeros((4, 5), np.uint16)})
    with pytest.raises(ValueError, match="is fp32, but its recipe is bf16"):
        catalog.server_catalog(0, 0, parameters, {"t": np.zeros((4, 4), np.float32)})
    with pytest.raises(TypeError, match="int64"):
        memory.view_of(np.zeros(3, np.int64))


def test_views_of_one_allocation_are_one_region():
    base = np.zeros((8, 4), np.uint16)
    shards = {"a": catalog.Shard(base[:2], (2, 4), (0, 0)), "b": catalog.Shard(base[4:, ::2], (4, 2), (0, 0))}
    cat = catalog.trainer_catalog(0, shards)
    assert [region["bytes"] for region in cat["regions"]] == [64]
    assert [(e["byte_offset"], e["strides_bytes"]) for e in cat["entries"]] == [(0, (8, 2)), (32, (8, 4))]
