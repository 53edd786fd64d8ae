"""refused.py CONFIG: what no update could reach or would corrupt, given to the plug-in's own functions; prints {case: what it says}.

Stand-ins are the models (a few tensors with a loader) and vLLM's configuration, not weightcast's code.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import torch
from weightcast.engines.layout import DIRECT, Target, layout_of
from weightcast.engines.trace import TensorMeta, trace
from weightcast.vllm import engine

BF16, FP8, FP32 = torch.bfloat16, torch.float8_e4m3fn, torch.float32
Loader = Callable[[Iterable[tuple[str, torch.Tensor]]], None]


def mapped(checkpoint: dict[str, tuple], parameters: dict[str, torch.Tensor], load: Loader | None = None) -> None:
    """The layout of a model that loads each tensor into the parameter of its name, or as `load` says."""

    def by_name(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights:
            if name in parameters:
                parameters[name].copy_(tensor)

    manifest = {name: TensorMeta(shape, dtype) for name, (shape, dtype) in checkpoint.items()}
    found = trace(load or by_name, manifest, parameters)
    layout_of(found, manifest, {name: Target(tensor, tensor, DIRECT) for name, tensor in parameters.items()})


def fp8(scales: torch.Tensor, scales_of: str = "w") -> None:
    mapped({"w": ((256, 256), FP8), scales_of + "_scale_inv": (tuple(scales.shape), scales.dtype)},
           {"w": torch.zeros(256, 256, dtype=FP8), scales_of + "_scale_inv": scales})  # fmt: skip


def twice(parameters: dict[str, torch.Tensor]) -> Loader:
    def load(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        for _, tensor in weights:
            parameters["w"].copy_(tensor)

    return load


def computed(parameters: dict[str, torch.Tensor]) -> Loader:
    def load(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        for _, tensor in weights:
            parameters["w"].copy_(tensor + 1)

    return load


def started(**changes: object) -> None:
    """vLLM's configuration as it is by default, but for `changes`."""
    usual = {"lora_config": None, "parallel_config": SimpleNamespace(enable_eplb=False), "speculative_config": None,
             "model_config": SimpleNamespace(enable_sleep_mode=False),
             "offload_config": SimpleNamespace(uva=SimpleNamespace(cpu_offload_gb=0), prefetch=SimpleNamespace(offload_group_size=0))}  # fmt: skip
    engine.refuse_what_moves_weights(SimpleNamespace(**(usual | changes)))


def with_expandable_segments() -> None:
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    try:
        started()
    finally:
        del os.environ["PYTORCH_CUDA_ALLOC_CONF"]


def options(**said: object) -> None:
    engine.Options.of(SimpleNamespace(additional_config={"weightcast": said}))


def main() -> None:
    w = {"w": torch.zeros(4, 4, dtype=BF16)}
    uva = SimpleNamespace(cpu_offload_gb=4)
    cases: dict[str, Callable[[], None]] = {
        "the checkpoint lacks a tensor": lambda: mapped({"v": ((4, 4), BF16)}, w),
        "two tensors in one place": lambda: mapped({"a": ((4, 4), BF16), "b": ((4, 4), BF16)}, w, twice(w)),
        "a computed parameter": lambda: mapped({"w": ((4, 4), BF16)}, w, computed(w)),
        "INT8 weights": lambda: mapped({"w": ((4, 4), torch.int8)}, {"w": torch.zeros(4, 4, dtype=torch.int8)}),
        "FP8 without scales": lambda: fp8(torch.zeros(2, 2), scales_of="v"),
        "FP8 with a scale for each channel": lambda: fp8(torch.zeros(256, 1)),
        "FP8 with BF16 scales": lambda: fp8(torch.zeros(2, 2, dtype=BF16)),
        "LoRA": lambda: started(lora_config=object()),
        "expert load balancing": lambda: started(parallel_config=SimpleNamespace(enable_eplb=True)),
        "a draft model": lambda: started(speculative_config=SimpleNamespace(draft_model_config=object())),
        "CPU offload": lambda: started(offload_config=SimpleNamespace(uva=uva, prefetch=SimpleNamespace(offload_group_size=0))),
        "sleep mode": lambda: started(model_config=SimpleNamespace(enable_sleep_mode=True)),
        "expandable segments": with_expandable_segments,
        "no configuration": options,
        "an unknown option": lambda: options(config=sys.argv[1], replicas=2),
    }
    said = {}
    for name, case in cases.items():
        try:
            case()
            said[name] = "not refused"
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(said))


main()
