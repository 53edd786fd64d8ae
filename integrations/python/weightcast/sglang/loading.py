"""What happens to a model between its weights' arrival and the sizing of the KV cache."""

from __future__ import annotations

import json
import logging
import os
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..engines import layers
from ..engines.layout import STAGED, Layout, NotServable, Print, Target, class_of, layout_of, print_of
from ..engines.trace import TensorMeta, Trace
from ..server import Server

logger = logging.getLogger("weightcast.sglang")
CONFIG_VARIABLE, REPLICA_VARIABLE = "WEIGHTCAST_CONFIG", "WEIGHTCAST_REPLICA"


@dataclass(frozen=True)
class Loaded:
    """A model as it was after loading and before post-processing."""

    trace: Trace
    manifest: dict[str, TensorMeta]
    prints: dict[str, Print | None]
    shapes: dict[str, torch.Tensor]  # on the meta device


loaded: weakref.WeakKeyDictionary[torch.nn.Module, Loaded] = weakref.WeakKeyDictionary()
servers: weakref.WeakKeyDictionary[torch.nn.Module, Server] = weakref.WeakKeyDictionary()


def around_load(original: Any, model: torch.nn.Module, weights: Iterable[tuple[str, torch.Tensor]], target_device: Any) -> None:
    """Does what the original does, in its two halves, and looks at the model between them."""
    from sglang.srt.model_loader.loader import DefaultModelLoader

    manifest: dict[str, TensorMeta] = {}
    DefaultModelLoader.load_weights_only(model, _noting(weights, manifest), target_device)
    tensors = tensors_of(model)
    try:
        found = layers.trace_model(model, manifest, tensors)
    except Exception as error:  # not every model that SGLang serves is to be updated
        logger.warning("weightcast: %s cannot be traced: %s", type(model).__name__, error)
    else:
        shapes = {name: torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}
        loaded[model] = Loaded(found, manifest, {name: print_of(tensor) for name, tensor in tensors.items()}, shapes)
    DefaultModelLoader.postprocess_weights(model, target_device)


def after_load(result: Any, transporter: Any, *_: Any, **__: Any) -> None:
    """In every model runner, before its KV cache is sized: the rank joins."""
    path = os.environ.get(CONFIG_VARIABLE)
    if path is None:
        logger.info("weightcast: %s is not set; this server is not updated", CONFIG_VARIABLE)
        return
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    open_server(transporter.model, json.loads(Path(path).read_text()), int(os.environ.get(REPLICA_VARIABLE, "0")),
                parallel.tp_size * parallel.pp_size, parallel.tp_size * parallel.pp_rank + parallel.tp_rank)  # fmt: skip


def open_server(model: torch.nn.Module, config: dict[str, Any], replica: int, ranks: int, rank: int) -> Server:
    """Joins as `rank` of `replica`; NotServable names the first parameter that cannot be updated where it lies."""
    began = time.monotonic()
    layout = layout_of_model(model)
    catalog = {"format": "weightcast.catalog/1", "role": "server", "rank": replica * ranks + rank, "replica": replica,
               "regions": layout.regions, "entries": layout.entries}  # fmt: skip
    servers[model] = Server.from_catalog(config, catalog, layout.kept)
    logger.info("weightcast: %d slices into %d parameters in %.2f s, layout %s, shadow of %.1f MiB", len(layout.entries),
                len(layout.landings), time.monotonic() - began, layout.fingerprint,
                sum(region["bytes"] for region in layout.regions) / 2**20)  # fmt: skip
    return servers[model]


def layout_of_model(model: torch.nn.Module) -> Layout:
    seen = loaded.get(model)
    if seen is None:
        raise NotServable("weightcast did not see this model being loaded; it serves models of SGLang's DefaultModelLoader, "
                          "not those of --load-format dummy, sharded_state or remote")  # fmt: skip
    live = tensors_of(model)
    targets = {}
    for name, shape in seen.shapes.items():
        now = live.get(name)
        landing = class_of(seen.prints[name], print_of(now)) if now is not None else STAGED
        parameter = isinstance(now, torch.nn.Parameter) or now is None
        targets[name] = Target(shape, now, landing, _padding(model, name, shape), not parameter)
    layout = layout_of(seen.trace, seen.manifest, targets)
    if layout.staged:
        raise NotServable(f"parameter {sorted(layout.staged)[0]!r} is rearranged by SGLang after loading; weightcast cannot repeat that "
                          "for SGLang yet: choose a backend that leaves it as it is (--moe-runner-backend triton)")  # fmt: skip
    return layout


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters after buffers, so that a shared memory belongs to the parameter."""
    return dict(model.named_buffers()) | dict(model.named_parameters())


def _noting(weights: Iterable[tuple[str, torch.Tensor]], manifest: dict[str, TensorMeta]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        manifest[name] = TensorMeta(tuple(tensor.shape), tensor.dtype)
        yield name, tensor


def _padding(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> int:
    """Elements beyond the vocabulary: zero for ever."""
    module = model.get_submodule(name.rpartition(".")[0])
    indices = getattr(module, "shard_indices", None)
    if indices is None or tensor.dim() == 0 or tensor.shape[0] != getattr(module, "num_embeddings_per_partition", -1):
        return 0
    return (tensor.shape[0] - indices.num_org_elements) * (tensor.numel() // tensor.shape[0])
