"""vLLM's own reload machinery, used to see the model as its loaders see it and to repeat its post-processing."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator, Mapping

import torch
from vllm.model_executor.model_loader import base_loader
from vllm.model_executor.model_loader.reload import layerwise, meta
from vllm.model_executor.model_loader.reload.utils import get_layer_params_buffers, get_layer_tensors
from vllm.platforms import current_platform

from ..engines.layout import DIRECT, STAGED, Print, Target, class_of, print_of

# What the bytes were before post-processing, by model.
_before: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, Print | None]] = weakref.WeakKeyDictionary()


def observe_post_processing() -> None:
    """vLLM has no hook between loading and post-processing, so its loader's call is wrapped, once per process."""
    original = base_loader.process_weights_after_loading
    if getattr(original, "weightcast", False):
        return

    @functools.wraps(original)
    def observed(model: torch.nn.Module, *args: object, **kwargs: object) -> object:
        _before[model] = {name: print_of(tensor) for name, tensor in tensors_of(model).items()}
        return original(model, *args, **kwargs)

    observed.weightcast = True
    base_loader.process_weights_after_loading = observed


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every module's own parameters and buffers, by dotted name; a shared one by its first."""
    found: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules():
        for name, tensor in get_layer_tensors(module).items():
            found[f"{prefix}.{name}" if prefix else name] = tensor
    return found


@contextlib.contextmanager
def as_loaded(model: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """The model with its parameters on the meta device as before post-processing, each with its own loader.

    Yields them by name; what the engine computes with is back in place at the end, whatever happened. Only while no
    forward pass runs.
    """
    layerwise.initialize_layerwise_reload(model)
    try:
        for tensor in tensors_of(model).values():
            if hasattr(tensor, "weight_loader"):
                tensor.weight_loader = layerwise._get_original_loader(tensor)
        yield tensors_of(model)
    finally:
        model._do_torchao_reload = model._original_do_torchao_reload
        for layer in model.modules():
            info = layerwise.get_layerwise_info(layer)
            if info.kernel_tensors is not None:
                layerwise._place_kernel_tensors(layer, info)
            info.reset()


def targets_of(model: torch.nn.Module, loaded: Mapping[str, torch.Tensor], live: Mapping[str, torch.Tensor]) -> dict[str, Target]:
    """What a checkpoint may fill: `loaded` as loaders see it, `live` as the engine computes with it."""
    before = _before.get(model, {})
    modules = dict(model.named_modules())
    targets: dict[str, Target] = {}
    for name in sorted(loaded, key=lambda name: isinstance(loaded[name], torch.nn.Parameter)):
        tensor, now, module = loaded[name], live.get(name), modules[name.rpartition(".")[0]]
        same = print_of(now) if now is not None else None
        landing = class_of(before.get(name), same) if name in before else STAGED
        if landing == DIRECT and _computes_from_a_copy(module):
            landing = STAGED
        targets[name] = Target(tensor, now, landing, _padding(module, tensor), not isinstance(tensor, torch.nn.Parameter))
    repaired = {name.rpartition(".")[0] for name, target in targets.items()
                if target.landing not in (DIRECT, "swapped_halves") and not target.optional}  # fmt: skip
    return {name: Target(target.loaded, target.live, STAGED, target.padding, target.optional)
            if name.rpartition(".")[0] in repaired else target for name, target in targets.items()}  # fmt: skip


def _computes_from_a_copy(module: torch.nn.Module) -> bool:
    """On a CPU a layer may keep its weight as it was and multiply by a packed copy, which its function holds."""
    return bool(getattr(getattr(module, "cpu_linear", None), "__closure__", None))


def _padding(module: torch.nn.Module, tensor: torch.Tensor) -> int:
    """Elements beyond the vocabulary: zero for ever."""
    indices = getattr(module, "shard_indices", None)
    if indices is None or tensor.dim() == 0 or tensor.shape[0] != getattr(module, "num_embeddings_per_partition", -1):
        return 0
    rows = tensor.shape[0] - indices.num_org_elements
    return rows * (tensor.numel() // tensor.shape[0])


def repeat_post_processing(model: torch.nn.Module, staged: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """For each layer of `staged` (dotted name -> {parameter: new values as loaded}): what vLLM does after loading it,
    into the tensors that it computes with. Between two forward passes."""
    for prefix, values in staged.items():
        layer = model.get_submodule(prefix)
        info = layerwise.get_layerwise_info(layer)
        info.kernel_tensors = get_layer_params_buffers(layer)
        info.kernel_non_persistent_buffers = set(layer._non_persistent_buffers_set)
        meta.restore_layer_on_meta(layer, info)
        meta.materialize_layer(layer, info)
        layer.__dict__.pop("_already_called_process_weights_after_loading", None)
        for name, value in values.items():
            getattr(layer, name).data.copy_(value)
        if (method := getattr(layer, "quant_method", None)) is not None:
            if current_platform.is_cpu() and getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None  # vLLM packs experts for the CPU only together with a new kernel
            method.process_weights_after_loading(layer)
            if hasattr(layer, "update_param_tp_status"):
                layer.update_param_tp_status()
        layerwise._copy_and_restore_kernel_tensors(layer, info)
        info.reset()


def derived_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Attention layers that keep tensors computed from their projections (MLA's absorbed matrices)."""
    return [layer for layer in model.modules() if hasattr(layer, "kv_b_proj") and hasattr(layer, "process_weights_after_loading")]


def compute_from_live_weights_on_cpu() -> None:
    """CPU linears multiply by the weights as they lie, not by a packed copy, so that updates land where they are read."""
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    _custom_ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda n, k, dtype: False
