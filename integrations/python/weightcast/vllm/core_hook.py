"""In vLLM's scheduler process: an update changes the version and the prefix cache in the same step as the weights.

vLLM sets the version by a second call, some tokens later, and asks for a pause around it, which costs 20 ms of sleep; its
prefix cache would serve keys and values of old weights to new requests. Here both follow the ordered call itself:
`finish_weight_update` runs between two steps on all workers, then the version counts, and from then on blocks are hashed
from another root, so that requests which began before keep their cache and nobody else finds it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from typing import Any

logger = logging.getLogger("vllm.weightcast")
_VERSION = "_weightcast_version"


def install() -> None:
    """Once per process. Only engines whose backend is weightcast behave differently."""
    from vllm.v1.engine.core import EngineCore

    if getattr(EngineCore.collective_rpc, "weightcast", False):
        return
    EngineCore.collective_rpc = _after_commit(EngineCore.collective_rpc)
    EngineCore.add_request = _rehashed(EngineCore.add_request)


def _after_commit(original: Any) -> Any:
    @functools.wraps(original)
    def collective_rpc(self: Any, method: Any, timeout: Any = None, args: tuple = (), kwargs: Any = None) -> Any:
        if _is_ours(self) and method == "update_weights":
            setattr(self, _VERSION, _version_in(args, kwargs))
        result = original(self, method, timeout, args, kwargs)
        if _is_ours(self) and method == "finish_weight_update" and (version := getattr(self, _VERSION, None)):
            _publish(self, version, original(self, committed_version))
        return result

    collective_rpc.weightcast = True
    return collective_rpc


def committed_version(worker: Any) -> str:
    """Runs in every worker."""
    return worker.weight_transfer_engine.committed_version()


def _publish(core: Any, version: str, committed: list[str]) -> None:
    """The version that all workers hold now counts; if they differ, no forward pass may run."""
    if set(committed) == {version}:
        core._weight_version = version
        _start_new_cache_root(core, version)
    elif version in committed:
        from vllm.v1.core.sched.interface import PauseState

        core.scheduler.set_pause_state(PauseState.PAUSED_ALL)
        logger.error("weightcast: workers hold versions %s after the switch to %s; this engine generates nothing until an update "
                     "makes them equal and it is resumed, or it is restarted", committed, version)  # fmt: skip


def _rehashed(original: Any) -> Any:
    """A request that arrived before a commit and is admitted after it was hashed from the old root."""

    @functools.wraps(original)
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, _VERSION, None) is not None:
            _hash_again(request)
        return original(self, request, *args, **kwargs)

    return add_request


def _is_ours(core: Any) -> bool:
    config = core.vllm_config.weight_transfer_config
    return config is not None and config.backend == "weightcast"


def _version_in(args: tuple, kwargs: Any) -> str | None:
    info = (kwargs or {}).get("update_info", args[0] if args else None)
    info = info[0] if isinstance(info, list) and info else info
    return str(info["version"]) if isinstance(info, dict) and "version" in info else None


def _start_new_cache_root(core: Any, version: str) -> None:
    from vllm.v1.core import kv_cache_utils

    if not core.vllm_config.cache_config.enable_prefix_caching:
        return
    old = kv_cache_utils.NONE_HASH
    kv_cache_utils.NONE_HASH = type(old)(hashlib.sha256(b"weightcast" + version.encode() + old).digest()[: len(old)])
    for request in list(core.scheduler.waiting):
        if request.num_computed_tokens == 0:
            _hash_again(request)


def _hash_again(request: Any) -> None:
    request.block_hashes.clear()
    request.update_block_hashes()
