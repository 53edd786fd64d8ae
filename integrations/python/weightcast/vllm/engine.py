"""The worker's side of vLLM's weight transfer interface: one server rank of weightcast per worker."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.logger import init_logger

from ..abi import Phase, WeightcastError
from ..engines import layers
from ..engines.layout import DIRECT, STAGED, SWAPPED_HALVES, Layout, NotServable, layout_of, region_starts
from ..engines.manifest import manifest_of
from ..server import Server
from . import reload

logger = init_logger("vllm.weightcast")
CONFIG_VARIABLE = "WEIGHTCAST_CONFIG"
WAIT_S = 30.0  # for what a call must wait for; generation stands still meanwhile


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing has to be said: a worker joins the controller of its own configuration when the engine starts."""

    fingerprint: str | None = None  # of the layout, if the caller knows what it must be


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    version: int


@dataclass(frozen=True)
class Options:
    """`additional_config["weightcast"]` of the engine, completed by $WEIGHTCAST_CONFIG."""

    config: dict[str, Any]
    replica: int = 0
    manifest: str | None = None  # default: the folder that the engine loads its checkpoint from

    @classmethod
    def of(cls, vllm_config: Any) -> Options:
        found = dict((vllm_config.additional_config or {}).get("weightcast") or {})
        config = found.pop("config", None) or os.environ.get(CONFIG_VARIABLE)
        if config is None:
            raise NotServable("weightcast has no configuration: start vLLM with --additional-config "
                              "'{\"weightcast\": {\"config\": \"/path/weightcast.json\"}}', or set " + CONFIG_VARIABLE)  # fmt: skip
        if unknown := set(found) - {"replica", "manifest"}:
            raise NotServable(f"weightcast does not know the option {sorted(unknown)[0]!r} in --additional-config; "
                              "there are config, replica, manifest")  # fmt: skip
        document = config if isinstance(config, Mapping) else json.loads(Path(config).read_text())
        return cls(dict(document), **found)


class WeightcastEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Traces the model, takes the landing memory and joins, all in the constructor: before the KV cache is sized.

    Once it stands, no call raises where the engine has several workers, since vLLM's replies would then be out of step for
    ever: the reason is logged and the rank does not commit, which the trainer's report shows.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module, *rest: Any) -> None:
        super().__init__(config, vllm_config, device, model, *rest)
        refuse_what_moves_weights(vllm_config)
        options = Options.of(vllm_config)
        parallel = vllm_config.parallel_config
        self._alone = parallel.world_size == 1
        self._version: int | None = None
        self._fault = ""
        self._starts: dict[int, int] = {}
        self._derived = reload.derived_layers(model)
        self.layout, took_s = trace_model(model, options.manifest or vllm_config.model_config.model)
        self._addresses = self._live_addresses()
        replica, ranks, rank = place_of(options.replica, parallel)
        catalog = {"format": "weightcast.catalog/1", "role": "server", "rank": replica * ranks + rank, "replica": replica,
                   "regions": self.layout.regions, "entries": self.layout.entries}  # fmt: skip
        self._in_place = options.config.get("landing") == "in_place"
        self._server = Server.from_catalog(options.config, catalog, self.layout.kept)
        self._say_what_it_is(took_s, vllm_config)

    # ---- vLLM's calls, in their order ----

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        self._guarded("init", lambda: self._check_fingerprint(init_info.fingerprint))

    def start_weight_update(self) -> None:
        self._version = None
        self._fault = ""
        self._guarded("start", self._start)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._guarded("update", lambda: self.receive_weights(self.parse_update_info(update_info)))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        self._version = update_info.version
        if not self._in_place:
            self._check_due()
        else:  # the engine is paused, so it may wait; staged lands while it generates
            self._server.wait(Phase.COMMIT_DUE, WAIT_S)
        if self.layout.staged:
            self._starts = region_starts(self._server.staged(update_info.version), self.layout.entries)

    def finish_weight_update(self) -> None:
        """Never raises: vLLM would keep the session open for ever."""
        self._guarded("finish", self._commit, quiet=True)

    def committed_version(self) -> str:
        """For core_hook, which publishes a version when all workers hold it."""
        return str(self._serving())

    def shutdown(self) -> None:
        """vLLM also calls this to let a trainer go; the rank stays joined until the worker ends."""

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        """Abstract in vLLM up to 0.26, whose trainers send by it; ours push."""
        raise NotImplementedError("a trainer pushes with weightcast.Trainer, see integrations/VLLM.md")

    # ---- what they do ----

    def _start(self) -> None:
        if moved := [name for name, address in self._live_addresses().items() if self._addresses[name] != address]:
            raise NotServable(f"parameter {moved[0]!r} is not where it was traced; restart the engine")
        if self._in_place:
            state = self._server.wait(Phase.ALLOW_DUE, WAIT_S)
            self._server.allow(state.next_version)

    def _commit(self) -> None:
        if self._fault:
            raise WeightcastError(f"the update failed before: {self._fault}")
        self._check_due()
        version = self._version
        began = time.monotonic()
        torch.accelerator.synchronize()  # of the steps already enqueued
        reload.repeat_post_processing(self.model, self._staged_values())
        copy_ms = self._server.commit(version)
        for layer in self._derived:
            layer.process_weights_after_loading(self.model_config.dtype)
        logger.info("weightcast: version %d is live; %.1f ms between two steps, of which copying %.1f ms", version,
                    (time.monotonic() - began) * 1e3, copy_ms)  # fmt: skip

    def _check_due(self) -> None:
        """The decision reaches the ranks a moment apart, so a rank that is ready waits for its own."""
        state = self._server.state()
        if state.phase == Phase.READY and self._version == state.next_version:
            state = self._server.wait(Phase.COMMIT_DUE, WAIT_S)
        if state.phase != Phase.COMMIT_DUE or self._version != state.next_version:
            raise WeightcastError(f"asked to commit version {self._version}, but this rank is {state.phase.name} for version "
                                  f"{state.next_version} and serves {state.committed_version}; ask after the trainer's "
                                  "controller decided it")  # fmt: skip

    def _staged_values(self) -> dict[str, dict[str, torch.Tensor]]:
        """By layer, what landed for parameters that vLLM post-processes itself."""
        found: dict[str, dict[str, torch.Tensor]] = {}
        for name, place in self.layout.staged.items():
            layer, _, parameter = name.rpartition(".")
            address = self._starts[place.region] + place.byte_offset
            found.setdefault(layer, {})[parameter] = tensor_at(address, place.shape, place.dtype, self.device)
        return found

    def _guarded(self, what: str, call: Callable[[], object], quiet: bool = False) -> None:
        try:
            call()
        except Exception as error:
            self._fault = self._fault or f"{what}: {error}"
            logger.error("weightcast: %s: %s; the weights of version %d go on serving", what, error, self._serving())
            if self._alone and not quiet:
                raise

    def _serving(self) -> int:
        try:
            return self._server.state().committed_version
        except WeightcastError:
            return -1

    def _check_fingerprint(self, expected: str | None) -> None:
        if expected is not None and expected != self.layout.fingerprint:
            raise NotServable(f"this rank's layout is {self.layout.fingerprint}, not {expected}")

    def _live_addresses(self) -> dict[str, int]:
        live = reload.tensors_of(self.model)
        return {name: live[name].data_ptr() for name, landing in self.layout.landings.items() if landing != STAGED}

    def _say_what_it_is(self, took_s: float, vllm_config: Any) -> None:
        layout = self.layout
        logger.info("weightcast: traced %d slices into %d parameters in %.2f s: %d direct, %d with halves swapped, %d repaired "
                    "at commit; layout %s", len(layout.entries), len(layout.landings), took_s, layout.count(DIRECT),
                    layout.count(SWAPPED_HALVES), layout.count(STAGED), layout.fingerprint)  # fmt: skip
        if not self._in_place:
            bytes_ = sum(region["bytes"] for region in layout.regions)
            per_block = kv_block_bytes(vllm_config)
            cost = f", as much as {bytes_ / per_block:.0f} KV blocks" if per_block else ""
            logger.info("weightcast: shadow of %.1f MiB%s", bytes_ / 2**20, cost)


def trace_model(model: torch.nn.Module, checkpoint: str) -> tuple[Layout, float]:
    """The layout of a loaded model, and how long tracing took."""
    began = time.monotonic()
    with _without_collecting():
        manifest = manifest_of(checkpoint)
        live = reload.tensors_of(model)
        with reload.as_loaded(model) as loaded:
            targets = reload.targets_of(model, loaded, live)
            found = layers.trace_model(model, manifest, loaded)
        return layout_of(found, manifest, targets), time.monotonic() - began


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """A map is made of many objects, and the collector would walk through all of the engine's for them, again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def refuse_what_moves_weights(vllm_config: Any) -> None:
    """What would make the traced map wrong later, by name."""
    offload = getattr(vllm_config, "offload_config", None)
    refused = {
        "LoRA (--enable-lora)": vllm_config.lora_config is not None,
        "expert load balancing (--enable-eplb)": getattr(vllm_config.parallel_config, "enable_eplb", False),
        "a draft model (--speculative-config)": getattr(vllm_config.speculative_config, "draft_model_config", None) is not None,
        "offloading weights to the CPU (--cpu-offload-gb)": bool(offload and (offload.uva.cpu_offload_gb or offload.prefetch.offload_group_size)),
        "sleep mode (--enable-sleep-mode)": getattr(vllm_config.model_config, "enable_sleep_mode", False),
        "expandable segments (PYTORCH_CUDA_ALLOC_CONF)": "expandable_segments:True" in os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
    }  # fmt: skip
    for what, is_on in refused.items():
        if is_on:
            raise NotServable(f"weightcast does not update an engine with {what}: it moves or hides weights that are written "
                              "in place; switch it off")  # fmt: skip


def place_of(replica: int, parallel: Any) -> tuple[int, int, int]:
    """Replica, its number of ranks, and this worker's rank in it. Data parallel ranks are replicas of their own, unless
    they share experts."""
    ranks, rank, groups = parallel.world_size, parallel.rank, parallel.data_parallel_size
    group = getattr(parallel, "data_parallel_index", parallel.data_parallel_rank)
    if groups > 1 and parallel.enable_expert_parallel:
        return replica, ranks * groups, group * ranks + rank
    return replica * groups + group, ranks, rank


def kv_block_bytes(vllm_config: Any) -> int:
    """Bytes of one KV block over all layers of this rank; 0 when the engine does not say."""
    try:
        from vllm.config import get_layers_from_vllm_config
        from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

        layers = get_layers_from_vllm_config(vllm_config, AttentionLayerBase)
        specs = [layer.get_kv_cache_spec(vllm_config) for layer in layers.values()]
        return sum(spec.page_size_bytes for spec in specs if spec is not None)
    except Exception as error:
        logging.getLogger(__name__).debug("KV block size unknown: %s", error)
        return 0


def tensor_at(address: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A view of memory that somebody else keeps."""
    bytes_ = math.prod(shape) * dtype.itemsize
    if device.type == "cpu":
        return torch.frombuffer((ctypes.c_uint8 * bytes_).from_address(address), dtype=dtype).view(shape)
    said = {"shape": (bytes_,), "typestr": "|u1", "data": (address, False), "version": 3}
    memory = type("Memory", (), {"__cuda_array_interface__": said})()
    return torch.as_tensor(memory, device=device).view(dtype).view(shape)
