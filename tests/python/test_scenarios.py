"""Scenarios on the command line, and that the demo's scenario is what the demo does."""

import json
import math
import pathlib

import pytest
from command_line import weightcast
from weightcast.catalog import FP8_BLOCK
from weightcast.demo import layouts

SCENARIOS = pathlib.Path(__file__).parents[2] / "bench/scenarios"
ELEMENT_BYTES = {"bf16": 2, "fp32": 4, FP8_BLOCK: 1}


def explained(file, *arguments):
    return json.loads(weightcast("explain", "--json", file, *arguments).stdout)


def manifest_of(model):
    """The tensors of a Llama model, by its config.json."""
    hidden, rows, layers = model["hidden_size"], model["intermediate_size"], model["num_hidden_layers"]
    keys = model["num_key_value_heads"] * hidden // model["num_attention_heads"]
    layer = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
             "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden),
             "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden),
             "mlp.gate_proj": (rows, hidden), "mlp.up_proj": (rows, hidden), "mlp.down_proj": (hidden, rows)}  # fmt: skip
    tensors = {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in layer.items()}
    return {"model.embed_tokens.weight": (model["vocab_size"], hidden), "model.norm.weight": (hidden,), **tensors}


def test_the_demos_scenario_brings_each_server_what_the_demos_layout_holds():
    file = SCENARIOS / "demo_4to4.json"
    model = json.loads(file.read_text())["model"]
    table = explained(file)
    assert (table["trainers"], table["replicas"]) == (layouts.TRAINERS, layouts.REPLICAS)
    expected = []
    for rank in range(layouts.SERVERS_PER_REPLICA):
        parameters = layouts.server_parameters(manifest_of(model), rank)
        values = sum(math.prod(parameter.shape) * ELEMENT_BYTES[parameter.recipe] for parameter in parameters)
        expected.append(values + sum(math.prod(parameter.scales.shape) * 4 for parameter in parameters if parameter.scales))
    assert table["direct"]["server_bytes"] == expected * layouts.REPLICAS


def test_explain_gives_one_number_a_rank_and_the_bound_at_the_scenarios_rates():
    table = explained(SCENARIOS / "qwen3-235b_128to32.json", "--no-relay")
    assert table["direct"]["server_bytes"] == [37_687_596_032] * 32
    assert len(table["direct"]["trainer_bytes"]) == 128
    assert table["bound_s"] == pytest.approx(37_687_596_032 / 50e9)
    assert table["binding"] == "server 0 in, 37.69 GB"
    assert explained(SCENARIOS / "qwen3-235b_128to32.json", "--no-relay", "--server-gbs", "25")["bound_s"] == pytest.approx(2 * table["bound_s"])


def test_a_large_plan_is_shown_by_classes_of_ranks():
    text = weightcast("explain", SCENARIOS / "qwen3-235b_128to32.json").stdout
    for words in ("128 trainers send 1206.003 GB, 1,206,003,073,024 bytes", "16 x   11.476 GB  trainers 0-7, 64-71\n",
                  "96 x    8.987 GB  trainers 8-55, 72-119\n", "16 x    9.978 GB  trainers 56-63, 120-127\n",
                  "32 servers take 1206.003 GB, 1,206,003,073,024 bytes", "37,687,596,032 bytes each"):  # fmt: skip
        assert words in text
    assert max(map(len, text.splitlines())) <= 100


def test_plan_proves_a_scenario():
    text = weightcast("plan", SCENARIOS / "smollm2-135m_2to2.json").stdout
    assert "each written exactly once" in text and "replicated tensors relayed), plan " in text


def test_relay_brings_each_tensor_to_a_node_once_and_the_gap_is_small():
    table = explained(SCENARIOS / "qwen3-30b_8to8.json")
    assert table["relayed_bytes"] > 0
    assert sum(table["trainer_bytes"]) + table["relayed_bytes"] == sum(table["server_bytes"])
    assert 0 <= table["gap"] < 0.02 and table["makespan_s"] == pytest.approx((1 + table["gap"]) * table["bound_s"])


def test_plan_as_json_says_what_it_took_and_the_gap():
    summary = json.loads(weightcast("plan", "--json", SCENARIOS / "demo_4to4.json").stdout)
    assert 0 < summary["plan_s"] < 60 and summary["peak_rss_bytes"] > 0 and summary["steps"] > 0
    assert 0 <= summary["gap"] < 0.02


def test_scratch_memory_below_the_largest_piece_is_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"performance": {"scratch_bytes": 65536, "chunk_bytes": 32768}}')
    result = weightcast("plan", "--config", file, SCENARIOS / "smollm2-135m_2to2.json", check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert "raise scratch_bytes to " in result.stderr and "tensor model." in result.stderr


def test_a_bad_scenario_is_one_line_with_file_and_place(tmp_path):
    file = tmp_path / "scene.json"
    document = json.loads((SCENARIOS / "smollm2-135m_2to2.json").read_text())
    document["servers"][0]["layout"]["tpp"] = 2
    file.write_text(json.dumps(document))
    result = weightcast("plan", file, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f'weightcast: {file}: /servers/0/layout: unknown key "tpp"; ')
    assert result.stderr.count("\n") == 1
    other = weightcast("plan", SCENARIOS / "smollm2-135m_2to2.json", file, check=False)
    assert other.returncode == 2 and "is a scenario: it makes all catalogs, give no other file" in other.stderr
