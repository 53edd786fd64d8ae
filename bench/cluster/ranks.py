"""The processes of the test cluster: ordinary trainers and servers, who know their configuration and nothing of the shaper."""

from __future__ import annotations

import select
import time
from multiprocessing.connection import Connection
from typing import Any

import ml_dtypes
import numpy as np
from hosts import Host, enter
from weightcast import Part, Parameter, Phase, Server, Shard, Trainer
from weightcast.catalog import FP8_BLOCK, Scales
from weightcast.demo.processes import answer, orders

WAIT_S = 120.0
_DTYPES = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32, FP8_BLOCK: ml_dtypes.float8_e4m3fn}


def _zeros(extent: list[int], dtype: str) -> np.ndarray:
    array = np.empty(extent, _DTYPES[dtype])
    array.view(np.uint8).fill(0)  # touched before any clock starts
    return array


def shards_of(catalog: dict, rank: int) -> dict[str, Shard]:
    """Random weights in the shards of a trainer's catalog; finite ones of moderate size."""
    random = np.random.default_rng(rank)
    shards = {}
    for entry in catalog["entries"]:
        array = _zeros(entry["extent"], entry["dtype"])
        array[...] = random.standard_normal(entry["extent"], np.float32)
        shards[entry["tensor"]] = Shard(array, tuple(entry["shape"]), tuple(entry["offset"]))
    return shards


def parameters_of(catalog: dict) -> tuple[list[Parameter], dict[str, np.ndarray]]:
    """The parameters of a server's catalog, one for each of its tensors, and their arrays."""
    parameters, arrays = [], {}
    for entry in catalog["entries"]:
        if entry.get("is_scales"):
            continue
        name, shape, offset, extent = entry["tensor"], tuple(entry["shape"]), tuple(entry["offset"]), tuple(entry["extent"])
        start, scales = (0,) * len(extent), None
        arrays[name] = _zeros(entry["extent"], entry["recipe"])
        if "scales" in entry:
            scales = Scales(f"{name}_scale_inv", tuple(catalog["entries"][entry["scales"]]["extent"]))
            arrays[scales.name] = _zeros(list(scales.shape), "fp32")
        part = Part(name, shape, offset, extent, start, start if scales else None)
        parameters.append(Parameter(name, extent, entry["recipe"], (part,), scales))
    return parameters, arrays


def trainer(pipe: Connection, host: Host, config: dict[str, Any], catalog: dict) -> None:
    """Orders: ("join",), ("push", version)."""
    enter(host)
    shards = shards_of(catalog, catalog["rank"])
    answer(pipe, None)
    handle = None
    try:
        for order, *arguments in orders(pipe):
            if order == "join":
                handle = Trainer(config, catalog["rank"], shards)
                handle.wait_connected(WAIT_S)
                answer(pipe, None)
            elif order == "push":
                began = time.monotonic()
                handle.push(*arguments)
                answer(pipe, {"began": began, "sent": time.monotonic(), "report": handle.wait(*arguments, WAIT_S)})
    finally:
        if handle:
            handle.close()


def server(pipe: Connection, host: Host, config: dict[str, Any], catalog: dict) -> None:
    """Orders: ("join",), ("commit", version), the second before the trainers push."""
    enter(host)
    parameters, arrays = parameters_of(catalog)
    answer(pipe, None)
    handle = None
    try:
        for order, *arguments in orders(pipe):
            if order == "join":
                handle = Server(config, catalog["rank"], catalog["replica"], parameters, arrays)
                handle.wait_connected(WAIT_S)
                answer(pipe, None)
            elif order == "commit":
                answer(pipe, _serve(handle, *arguments))
    finally:
        if handle:
            handle.close()


def _serve(handle: Server, version: int) -> dict[str, float]:
    """Commits the version when it is due; when it was verified, and when the commit ended."""
    end, ready = time.monotonic() + WAIT_S, None
    while (state := handle.state()).committed_version < version:
        if time.monotonic() > end:
            raise TimeoutError(f"version {version} was not committed within {WAIT_S:g} s; the rank says {state}")
        if ready is None and state.phase in (Phase.READY, Phase.COMMIT_DUE):
            ready = time.monotonic()
        if state.phase == Phase.COMMIT_DUE:
            handle.commit(state.next_version)
            continue
        select.select([handle], [], [], 0.5)
    return {"ready": ready or time.monotonic(), "committed": time.monotonic()}
