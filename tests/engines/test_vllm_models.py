"""The traced map of many architectures, written with other weights, gives byte for byte what vLLM itself loads.

No engine runs and nothing is transferred: vLLM's own model, loader and post-processing, one process per rank.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from vllm_server import engine_python, environment

HERE = Path(__file__).parent
DENSE = ["llama", "llama_one_kv_head", "llama_tied_padded", "qwen2", "qwen3", "phi3", "gemma3", "gpt2", "gpt_neox"]
EXPERTS = ["qwen3_moe", "mixtral", "olmoe", "deepseek_v2"]
SPLIT = ["qwen3_moe", "llama", "llama_one_kv_head"]  # over two ranks; one KV head is held by both


def run(command: list, folder: Path) -> list[dict]:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=400, check=False,
                          cwd=folder, env=environment(folder))  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def alone(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("alone")
    said = run([engine_python(), HERE / "vllm_model.py", 0, 1, folder / "store", *(checkpoints / name for name in EXPERTS + DENSE)], folder)
    return {item["model"]: item for item in said}


@pytest.mark.parametrize("name", DENSE + EXPERTS)
def test_weights_written_through_the_map_are_those_that_vllm_loads(name: str, alone: dict[str, dict]) -> None:
    said = alone[name]
    assert "error" not in said, said["error"]
    assert said["differing"] == [] and said["changed"] >= said["parameters"] - 1
    assert said["seconds"] < 2


@pytest.mark.parametrize("name", DENSE)
def test_dense_models_are_written_as_they_lie(name: str, alone: dict[str, dict]) -> None:
    assert alone[name]["landings"] == ["direct"]


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_that_the_cpu_repacks_are_not_mistaken_for_direct_ones(name: str, alone: dict[str, dict]) -> None:
    assert alone[name]["staged"] and all("experts" in parameter for parameter in alone[name]["staged"])


def test_two_tensor_parallel_ranks_get_their_own_slices(checkpoints: Path, tmp_path: Path) -> None:
    ranks = [subprocess.Popen([str(engine_python()), str(HERE / "vllm_model.py"), str(rank), "2", str(tmp_path / "store"),
                               *(str(checkpoints / name) for name in SPLIT)], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env=environment(tmp_path)) for rank in range(2)]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=400) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][1][-3000:]
    said = [[json.loads(line) for line in out.splitlines() if line.startswith("{")] for out, _ in outputs]
    for first, second in zip(*said, strict=True):
        assert "error" not in first and "error" not in second, (first, second)
        assert first["differing"] == second["differing"] == []
        assert first["changed"] and first["fingerprint"] != second["fingerprint"]


def test_the_structure_of_qwen3_235b_is_mapped_whole_on_the_meta_device(tmp_path: Path) -> None:
    said = run([engine_python(), HERE / "large_structure.py", tmp_path / "store", tmp_path], tmp_path)[-1]
    print(f"{said['tensors']} tensors into {said['parameters']} parameters, {said['seconds']:.1f} s, {said['cpu_seconds']:.1f} s of CPU")
    assert said["slices"] == said["tensors"] == 36945 and said["unused"] == []


@pytest.mark.long
def test_the_map_of_qwen3_235b_by_some_layers_is_that_of_all(tmp_path: Path) -> None:
    said = run([engine_python(), HERE / "large_structure.py", tmp_path / "store", tmp_path, "all"], tmp_path)[-1]
    assert said["same"]
