"""Mixed into vLLM's worker by `worker_extension_cls`: what its weights are, byte for byte."""

from __future__ import annotations

import hashlib

import torch


class EngineDigests:
    def weight_digests(self) -> dict[str, str]:
        """SHA-256 of every parameter and buffer that the model computes with."""
        from weightcast.vllm.reload import tensors_of

        tensors = tensors_of(self.model_runner.get_model())
        return {name: digest(tensor) for name, tensor in tensors.items() if not tensor.is_meta and tensor.numel()}


def digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()
