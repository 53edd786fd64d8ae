"""What an engine is refused with when it starts: the name of what is wrong, and what to do."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from vllm_server import engine_python, environment
from world import HERE

SAID = {
    "the checkpoint lacks a tensor": r"parameter 'w': no tensor of the checkpoint fills 16 of its 16 elements; check that the checkpoint belongs to",
    "two tensors in one place": r"parameter 'w': 'a' and 'b' are both loaded into the same elements",
    "a computed parameter": r"parameter 'w': its loader computes what it copies.*load it with the engine's own reload instead",
    "INT8 weights": r"parameter 'w' is torch.int8; weightcast has no recipe that makes it from BF16",
    "FP8 without scales": r"parameter 'w' is FP8, but the checkpoint has no 'w_scale_inv'; weightcast makes FP8 with one FP32 scale per 128x128 block",
    "FP8 with a scale for each channel": r"parameter 'w': scales 'w_scale_inv' at \[0, 0\] of \[256, 1\] are not those of the weights.*serve such",
    "FP8 with BF16 scales": r"parameter 'w_scale_inv': scales are torch.bfloat16; weightcast makes FP8 with one FP32 scale per 128x128 block",
    "LoRA": r"does not update an engine with LoRA \(--enable-lora\).*switch it off",
    "expert load balancing": r"expert load balancing \(--enable-eplb\).*switch it off",
    "a draft model": r"a draft model \(--speculative-config\).*switch it off",
    "CPU offload": r"offloading weights to the CPU \(--cpu-offload-gb\).*switch it off",
    "sleep mode": r"sleep mode \(--enable-sleep-mode\).*switch it off",
    "expandable segments": r"expandable segments \(PYTORCH_CUDA_ALLOC_CONF\).*switch it off",
    "no configuration": r"weightcast has no configuration: start vLLM with --additional-config .* or set WEIGHTCAST_CONFIG",
    "an unknown option": r"weightcast does not know the option 'replicas' in --additional-config; there are config, replica, manifest",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("refused")
    (folder / "weightcast.json").write_text("{}")
    done = subprocess.run([engine_python(), HERE / "refused.py", folder / "weightcast.json"], capture_output=True, text=True, timeout=300,
                          check=False, cwd=folder, env=environment(folder))  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", SAID)
def test_what_cannot_be_updated_is_refused_by_name(case: str, answers: dict[str, str]) -> None:
    assert re.match("NotServable: .*" + SAID[case], answers[case]), answers[case]
