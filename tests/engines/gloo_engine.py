"""What an engine does without weightcast: torch's gloo broadcasts every tensor and vLLM loads it, as vLLM's NCCL engine does.

In a worker (`--worker-extension-cls gloo_engine.GlooEngine`) the methods are called through vLLM's collective_rpc. As a
program, `gloo_engine.py PORT CHECKPOINT` is the trainer: it broadcasts once for every line of its stdin.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

BOUND = datetime.timedelta(seconds=120)


def group(port: int, rank: int) -> Any:
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0, timeout=BOUND)
    return dist.ProcessGroupGloo(store, rank, 2, BOUND)


class GlooEngine:
    """Mixed into vLLM's worker."""

    def receive_by_gloo(self, port: int, shapes: Mapping[str, Sequence[int]]) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        if not hasattr(self, "_gloo"):
            self._gloo = group(port, 1)
        model = self.model_runner.get_model()
        initialize_layerwise_reload(model)
        for name, shape in shapes.items():
            tensor = torch.empty(shape, dtype=torch.bfloat16)
            self._gloo.broadcast(tensor, 0).wait()
            model.load_weights([(name, tensor)])
        finalize_layerwise_reload(model, self.vllm_config.model_config)


def main() -> None:
    from safetensors.torch import load_file

    weights = load_file(sys.argv[2])
    sender = None
    for _ in sys.stdin:
        sender = sender or group(int(sys.argv[1]), 0)
        for tensor in weights.values():
            sender.broadcast(tensor, 0).wait()
        print("sent", flush=True)


if __name__ == "__main__":
    main()
