"""Beside the trainer: one call that takes a version from `push` to tokens. Needs neither vLLM nor torch."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..abi import Aborted, WeightcastError
from ..trainer import Trainer

Kv = Literal["keep", "recompute", "abort"]
POLL_S = 0.002


class UpdateFailed(WeightcastError):
    """A server did not switch; the text says which, to what it holds on and what to do."""


@dataclass(frozen=True)
class Update:
    """What one update cost. `report` is the trainer's (transfer_s, bytes, stall_ms, ...; plugin/PROTOCOL.md)."""

    version: int
    report: dict[str, Any]
    transfer_s: float  # from push to every replica decided
    commit_ms: float  # the ordered call, as the caller sees it; servers generate until it runs
    paused_ms: float  # from pause to resume; 0 without one


class Client:
    """Drives vLLM servers through updates: `update` on trainer rank 0, `Trainer.push` and `wait` on the others.

    Each engine is a URL of the HTTP server (started with VLLM_SERVER_DEV_MODE=1), an `LLM`, or an `AsyncLLM` together
    with the event loop that it runs in: `(engine, loop)`; or whatever has the methods of vLLM's VLLMWeightSyncClient, which
    knows no pause. `controller` is who knows the state of updates (anything with Controller.status), where trainer 0 does
    not run the controller itself.
    """

    def __init__(self, *engines: Any, controller: Any = None, timeout_s: float = 120.0) -> None:
        if not engines:
            raise ValueError("Client needs at least one engine")
        self._engines = [_engine(engine, timeout_s) for engine in engines]
        self._controller = controller
        self._timeout_s = timeout_s

    def update(self, trainer: Trainer, version: int, kv: Kv = "keep", pause: bool = False, in_place: bool = False) -> Update:
        """Pushes what stands in the trainer's arrays as `version` and switches every engine to it.

        `kv` says what becomes of requests in flight: `keep` goes on with the keys and values that they have; `recompute`
        makes them anew, so that all later tokens are the new weights' alone; `abort` ends them. `keep` needs no pause:
        vLLM runs the switch between two steps. With `pause`, the version that responses report is exact to the token.
        `in_place` must say so if that is how the engines land. Raises UpdateFailed if a replica did not switch: it then
        keeps its version, and no server shows the new one.
        """
        pausing = pause or in_place or kv != "keep"
        began = time.monotonic()
        pushing = _Thread(lambda: trainer.push(version))
        paused_at = 0.0
        try:
            if in_place:
                self._until_state(trainer, version, {"arming", "moving", "committing"}, pushing)
                paused_at = self._pause(kv)
                self._each(lambda engine: engine.call("start_weight_update"))
            pushing.join(self._timeout_s)
            self._until_state(trainer, version, {"committing"}, pushing)
            transfer_s = time.monotonic() - began
            if pausing and not in_place:
                paused_at = self._pause(kv)
            if not in_place:
                self._each(lambda engine: engine.call("start_weight_update"))
            self._each(lambda engine: engine.call("update_weights", {"update_info": {"version": version}}))
            committing = time.monotonic()
            self._each(lambda engine: engine.call("finish_weight_update"))
            commit_ms = (time.monotonic() - committing) * 1e3
            report = trainer.wait(version, self._timeout_s)
            if late := report.get("replicas_late"):
                raise UpdateFailed(f"version {version}: replicas {late} were ready but did not switch; read their engines' log "
                                   "(\"weightcast:\"); a replica whose ranks may differ must be restarted before it serves")  # fmt: skip
            self._each(lambda engine: engine.call("update_weight_version", {"new_version": str(version)}))
        except UpdateFailed:
            paused_at = 0.0  # a replica in doubt stays paused
            raise
        finally:
            if paused_at:
                self._each(lambda engine: engine.call("resume"))
        paused_ms = (time.monotonic() - paused_at) * 1e3 if paused_at else 0.0
        return Update(version, report, transfer_s, commit_ms, paused_ms)

    def next_version(self, trainer: Trainer) -> int:
        """One above every version that the controller knows of: trainers come and go, versions only rise."""
        status = self._controller.status() if self._controller else trainer.status().get("controller", {})
        return max([status.get("version", 0), *(member.get("committed_version", 0) for member in status.get("members", []))]) + 1

    def versions(self) -> list[str]:
        """What each engine says that it serves; "default" before the first update."""
        return [engine.version() for engine in self._engines]

    def _pause(self, kv: Kv) -> float:
        mode, clear = {"keep": ("keep", False), "recompute": ("keep", True), "abort": ("abort", True)}[kv]
        at = time.monotonic()
        self._each(lambda engine: engine.pause(mode, clear))
        return at

    def _each(self, call: Callable[[Any], object]) -> None:
        """On all engines at once: a fleet's stall is one engine's."""
        threads = [_Thread(lambda engine=engine: call(engine)) for engine in self._engines]
        for thread in threads:
            thread.join(self._timeout_s)

    def _until_state(self, trainer: Trainer, version: int, states: set[str], pushing: _Thread) -> None:
        """Until the controller, which trainer 0 runs, has come so far with `version`."""
        end = time.monotonic() + self._timeout_s
        while True:
            status = trainer.status()
            if status["ended"] >= version:
                trainer.wait(version, 1.0)  # raises the reason
                raise Aborted(f"version {version} ended before the engines were asked to switch")
            controller = self._controller.status() if self._controller else status.get("controller")
            if controller is None:
                raise WeightcastError("Client.update belongs on the trainer that runs the controller (rank 0, controller.embedded; "
                                      "the others call push and wait), or needs Client(controller=...)")  # fmt: skip
            if controller["state"] in states and controller.get("update", {}).get("version", version) == version:
                return
            pushing.raise_if_failed()
            if time.monotonic() > end:
                raise TimeoutError(f"version {version}: still {controller['state']} after {self._timeout_s:g} s")
            time.sleep(POLL_S)


class _Thread(threading.Thread):
    """A call on a thread of its own, whose exception comes out at join()."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call, self._error = call, None
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error

    def raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self.is_alive():
            raise TimeoutError(f"no answer within {timeout:g} s")
        self.raise_if_failed()


def _engine(engine: Any, timeout_s: float) -> Any:
    if isinstance(engine, str):
        return _HttpEngine(engine, timeout_s)
    if isinstance(engine, tuple):
        return _AsyncEngine(*engine, timeout_s)
    if hasattr(engine, "llm_engine"):
        return _OfflineEngine(engine)
    if hasattr(engine, "finish_weight_update"):
        return _SyncClientEngine(engine)
    raise TypeError(f"an engine is a URL, an LLM, or (AsyncLLM, its event loop), not {type(engine).__name__}")


class _HttpEngine:
    def __init__(self, url: str, timeout_s: float) -> None:
        self._url, self._timeout_s = url.rstrip("/"), timeout_s

    def call(self, route: str, body: dict[str, Any] | None = None) -> Any:
        return self._request("POST", route, body or {})

    def pause(self, mode: str, clear_cache: bool) -> None:
        self.call("pause?" + urllib.parse.urlencode({"mode": mode, "clear_cache": str(clear_cache).lower()}))

    def version(self) -> str:
        return self._request("GET", "weight_info")["weight_version"]

    def _request(self, method: str, route: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(f"{self._url}/{route}", method=method, headers={"Content-Type": "application/json"},
                                         data=None if body is None else json.dumps(body).encode())  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            advice = "; start the server with VLLM_SERVER_DEV_MODE=1" if error.code == 404 else ""
            raise UpdateFailed(f"{self._url}/{route} answered {error.code}: {error.read().decode(errors='replace')[:500]}"
                               f"{advice}") from None  # fmt: skip
        except OSError as error:
            raise UpdateFailed(f"{self._url}/{route} cannot be reached: {error}") from None


class _OfflineEngine:
    """An `LLM`, between two of its generate() calls: nothing is in flight then, so there is nothing to pause."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def call(self, route: str, body: dict[str, Any] | None = None) -> Any:
        if route == "resume":
            return None
        method = getattr(self._engine, route)
        return method(body) if route == "update_weights" else method(**(body or {}))

    def pause(self, mode: str, clear_cache: bool) -> None:
        if clear_cache:
            self._engine.reset_prefix_cache()

    def version(self) -> str:
        return self._engine.get_weight_version()


class _SyncClientEngine:
    """vLLM's own client protocol: four calls, and the version that the plug-in publishes by itself."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def call(self, route: str, body: dict[str, Any] | None = None) -> Any:
        if route == "update_weights":
            return self._client.update_weights((body or {})["update_info"])
        return getattr(self._client, route)() if route != "update_weight_version" else None

    def pause(self, mode: str, clear_cache: bool) -> None:
        raise WeightcastError(f"pause {mode!r} is no part of vLLM's client protocol; give Client the engine itself")


class _AsyncEngine:
    def __init__(self, engine: Any, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._engine, self._loop, self._timeout_s = engine, loop, timeout_s

    def call(self, route: str, body: dict[str, Any] | None = None) -> Any:
        if route == "update_weight_version" and not hasattr(self._engine, route):  # before 0.29 vLLM had no such version
            return None
        method = getattr(self._engine, "resume_generation" if route == "resume" else route)
        if route == "update_weights":
            from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

            return self._run(method(WeightTransferUpdateRequest(**(body or {}))))
        return self._run(method(**(body or {})))

    def pause(self, mode: str, clear_cache: bool) -> None:
        self._run(self._engine.pause_generation(mode=mode, clear_cache=clear_cache))

    def version(self) -> str:
        return self._run(self._engine.get_weight_version())

    def _run(self, coroutine: Any) -> Any:
        assert inspect.isawaitable(coroutine)
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(self._timeout_s)


