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


@pytest.mark.parametrize("name", ["deepseek-v3_256to128", "kimi-k2_256to128"])
def test_the_largest_scenarios_are_planned_and_proved_within_2_percent_of_their_bound(name):
    assert 0 <= json.loads(weightcast("plan", "--json", SCENARIOS / f"{name}.json").stdout)["gap"] < 0.02


def test_plan_as_json_says_what_it_took_and_the_gap():
    summary = json.loads(weightcast("plan", "--json", "--tables", SCENARIOS / "demo_4to4.json").stdout)
    assert 0 < summary["plan_s"] < 60 and summary["peak_rss_bytes"] > 0 and summary["steps"] > 0
    assert 0 < summary["server_table_bytes_max"] <= summary["table_bytes_max"] < 16384
    assert 0 <= summary["gap"] < 0.02


def test_scratch_memory_below_the_largest_piece_is_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"performance": {"scratch_bytes": 65536, "chunk_bytes": 32768}}')
    result = weightcast("plan", "--config", file, SCENARIOS / "smollm2-135m_2to2.json", check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"weightcast: {SCENARIOS / 'smollm2-135m_2to2.json'}: tensor model.")
    assert "raise scratch_bytes to " in result.stderr and "lower chunk_bytes" not in result.stderr


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


SMALL = SCENARIOS / "smollm2-135m_2to2.json"


def test_simulate_says_how_long_and_what_binds():
    text = weightcast("simulate", SMALL).stdout
    for words in ("2 trainers to 2 servers", "until every server has verified it", "bound: ", "binding: ", "stall of an engine: staged"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 110
    found = json.loads(weightcast("simulate", "--json", SMALL).stdout)
    assert found["makespan_s"] >= found["bound_s"] > 0 and found["gap"] == pytest.approx(found["makespan_s"] / found["bound_s"] - 1)
    assert len(found["server_ready_s"]) == 2 and max(found["server_ready_s"]) == found["makespan_s"]


def test_what_if_is_one_screen_with_both_bindings():
    text = weightcast("simulate", SMALL, "--set", "server.nic_gbs=25", "--add-replica", "1").stdout
    assert "as it is" in text and "with the changes" in text and "binding was " in text
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 110


def test_a_trace_opens_as_chrome_trace_events_and_is_whole_or_not_there(tmp_path):
    trace = tmp_path / "trace.json"
    weightcast("simulate", SMALL, "--trace", trace)
    events = json.loads(trace.read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"trainer 0, simulated", "trainer 1, simulated", "server 0, simulated", "server 1, simulated"}
    result = weightcast("simulate", SMALL, "--trace", tmp_path / "no/such/trace.json", check=False)
    assert result.returncode == 1 and "cannot write" in result.stderr
    both = tmp_path / "both.json"
    weightcast("simulate", SMALL, "--trace", both, "--measured", trace)
    assert "trainer 0, simulated, measured" in both.read_text()


def test_diff_of_a_scenario_with_itself_and_with_a_replica_more():
    assert json.loads(weightcast("diff", "--json", SMALL, SMALL).stdout)["bytes_moved"] == 0
    found = json.loads(weightcast("diff", "--json", "--no-relay", SMALL, "--add-replica", "1").stdout)
    assert found["pairs"]["gone"] == 0 and found["pairs"]["new"] > 0
    assert found["bytes_after"] == 2 * found["bytes_before"]
    assert len(weightcast("diff", SMALL, "--add-replica", "1").stdout.splitlines()) <= 24


def test_a_saved_plan_is_compared_like_the_scenario_that_it_is_of(tmp_path):
    saved = tmp_path / "plan.json"
    saved.write_text(weightcast("plan", "--steps", SMALL).stdout)
    assert json.loads(weightcast("diff", "--json", saved, SMALL).stdout)["pairs"]["changed"] == 0
    slow = tmp_path / "slow.json"
    slow.write_text(SMALL.read_text().replace('"nic_gbs": 50', '"nic_gbs": 25'))
    text = weightcast("diff", saved, slow).stdout
    assert "bound before: " in text and "gap " in text and len(text.splitlines()) <= 24
    assert "is a saved plan" in weightcast("diff", saved, "--drop", "server:0", check=False).stderr
    document = json.loads(saved.read_text())
    document["pairs"][0]["content"] = "x"
    saved.write_text(json.dumps(document))
    result = weightcast("diff", saved, SMALL, check=False)
    assert (result.returncode, result.stdout) == (2, "") and "/pairs/0/content: must be 16 hex digits" in result.stderr


def test_a_rank_that_leaves_or_joins_changes_only_what_it_concerns():
    file = SCENARIOS / "demo_4to4.json"
    found = json.loads(weightcast("diff", "--json", file, "--drop", "server:3", "--no-relay").stdout)
    assert found["pairs"] == {"kept": 8, "changed": 0, "new": 0, "gone": 8}  # its replica of two goes as a whole
    relayed = json.loads(weightcast("diff", "--json", file, "--drop", "server:3").stdout)
    assert relayed["pairs"]["kept"] == 8 and relayed["pairs"]["new"] == 0  # what it passed on is put instead: changed
    text = weightcast("diff", file, "--add-replica", "1").stdout
    assert "0 changed" in text and "0 gone" in text and "planned again in " in text
    refused = weightcast("diff", file, "--drop", "trainer:1", check=False)
    assert refused.returncode == 2 and "is lost, and nobody else holds" in refused.stderr


def test_the_bound_is_given_with_relay_and_without():
    file = SCENARIOS / "qwen3-235b_128to32.json"
    found = json.loads(weightcast("bound", "--json", file).stdout)
    assert found["without_relay"]["bound_s"] == pytest.approx(37_687_596_032 / 50e9)
    assert found["bound_s"] == found["with_relay"]["bound_s"] == pytest.approx(0.591, abs=0.001)
    assert json.loads(weightcast("bound", "--json", "--no-relay", file).stdout)["binding"] == "server 0 in, 37.69 GB"
    text = weightcast("bound", file).stdout
    assert "with relay " in text and "replicated tensors relayed" in text and "without relay " in text
    half = json.loads(weightcast("bound", "--json", "--no-relay", "--server-gbs", "25", file).stdout)
    assert half["bound_s"] == pytest.approx(2 * found["without_relay"]["bound_s"])


def test_catalogs_of_a_scenario_make_its_plan(tmp_path):
    weightcast("catalogs", SMALL, tmp_path)
    files = sorted(tmp_path.glob("*.catalog.json"))
    assert len(files) == 4
    assert explained(*files)["direct"] == explained(SMALL)["direct"]


@pytest.mark.parametrize("arguments, words", [
    (("--set", "server.nic_gb=25"), 'unknown key "nic_gb"; the nearest known one is "nic_gbs"'),
    (("--set", "trainer.attention=split"), 'unknown key "attention"; the nearest known one is'),
    (("--set", "nonsense"), "--set nonsense: must be KEY=VALUE"),
    (("--set", "simulation.windw=3"), 'unknown key "windw"; the nearest known one is "window"'),
    (("--set", "simulation.stragglers=[{\"trainer\": 9, \"factor\": 2}]"), "there is no trainer 9"),
    (("--drop", "trainer:9"), "--drop trainer:9: there are 2 trainers"),
    (("--drop", "trainer:0"), "trainer"),
])  # fmt: skip
def test_a_change_that_makes_no_sense_is_one_line_and_exit_code_2(arguments, words):
    result = weightcast("simulate", SMALL, *arguments, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr and result.stderr.count("\n") == 1
