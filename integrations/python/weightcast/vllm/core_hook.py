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
_SESSION = "_weightcast_session"  # between start_weight_update and finish_weight_update
_AFTER_START = ("update_weights", "finish_weight_update")


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
        if not _is_ours(self):
            return original(self, method, timeout, args, kwargs)
        _keep_order(self, method, original)
        if method == "update_weights":
            setattr(self, _VERSION, _version_in(args, kwargs))
        try:
            result = original(self, method, timeout, args, kwargs)
        except BaseException:
            if method == "update_weights":
                setattr(self, _SESSION, False)  # the worker that raised has closed it
            raise
        if method == "start_weight_update":
            setattr(self, _SESSION, True)
        if method == "finish_weight_update":
            setattr(self, _SESSION, False)
            if version := getattr(self, _VERSION, None):
                _publish(self, version, original(self, committed_version))
        return result

    collective_rpc.weightcast = True
    return collective_rpc


def _keep_order(core: Any, method: Any, original: Any) -> None:
    """Workers raise at a call that is out of order, and the replies of several would then be out of step for ever: such a
    call is refused before they see it. A session whose client is gone is ended for the next one."""
    is_open = getattr(core, _SESSION, False)
    if method in _AFTER_START and not is_open:
        raise RuntimeError(f"weightcast: {method} without start_weight_update before it; weightcast.vllm.Client.update makes "
                           "the calls in their order")  # fmt: skip
    if method == "start_draft_weight_update":
        raise RuntimeError("weightcast does not update draft models")
    if method == "start_weight_update" and is_open:
        logger.warning("weightcast: the update before was never finished; its session is ended")
        original(core, "finish_weight_update")
        setattr(core, _SESSION, False)


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
