"""engine.py CHECKPOINTS MODEL RESULT --landing staged|in_place: a vLLM engine and a trainer; updates B, A and under way.
engine.py CHECKPOINTS MODEL RESULT --fresh: a vLLM engine that loads B; what its bytes and tokens are.

The trainer lives in the process of AsyncLLM; the engine's worker is a process of its own. With a GPU both hold their
weights there. Writes one JSON object to RESULT: digests of all weights, tokens of requests one at a time, gaps between tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import weightcast
import weightcast.abi
from safetensors.torch import load_file
from vllm import SamplingParams
from vllm.config import WeightTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from weightcast.vllm import Client

PROMPTS = [[(7 * number + 3 * place) % 4000 + 3 for place in range(40)] for number in range(6)]
GPU = torch.cuda.is_available()
LONG, BEFORE = (600, 100) if GPU else (60, 10)  # tokens of a request in flight, and of those before the update


def arguments_of(folder: Path, config: Path | None) -> AsyncEngineArgs:
    weightcast_ = {"weight_transfer_config": WeightTransferConfig(backend="weightcast"),
                   "additional_config": {"weightcast": {"config": str(config)}}} if config else {}  # fmt: skip
    return AsyncEngineArgs(model=str(folder), skip_tokenizer_init=True, max_model_len=1024, max_num_seqs=4, seed=0, dtype="bfloat16",
                           kv_cache_memory_bytes=1 << 28, worker_extension_cls="engine_digests.EngineDigests", enforce_eager=not GPU,
                           disable_log_stats=True, **weightcast_)  # fmt: skip


class Running:
    """An AsyncLLM and what is asked of it."""

    def __init__(self, arguments: AsyncEngineArgs) -> None:
        self.engine = AsyncLLM.from_engine_args(arguments)
        self._number = 0

    async def generate(self, prompt: list[int], tokens: int, when: int = -1, then: Any = None) -> tuple[list[int], list[float]]:
        """Tokens and their arrival times; once `when` of them have come, `then()` is started beside it."""
        self._number += 1
        sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        made, at, beside = [], [], None
        async for output in self.engine.generate({"prompt_token_ids": prompt}, sampling, request_id=str(self._number)):
            made = list(output.outputs[0].token_ids)
            at += [time.monotonic()] * (len(made) - len(at))
            if then is not None and beside is None and len(made) >= when:
                beside = asyncio.ensure_future(then())
        if beside is not None:
            await beside
        return made, at

    async def state(self) -> dict[str, Any]:
        digests = (await self.engine.collective_rpc("weight_digests"))[0]
        return {"digests": digests, "tokens": [(await self.generate(prompt, 24))[0] for prompt in PROMPTS]}


def configuration(folder: Path, landing: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(weightcast.abi.library_path()).with_name("weightcast")
    subprocess.run([program, "keygen", folder / "secret"], check=True)
    path = folder / "weightcast.json"
    path.write_text(json.dumps({"controller": {"address": f"tcp://127.0.0.1:{port}", "trainers": 1, "replicas": 1, "servers_per_replica": 1},
                                "secret_file": str(folder / "secret"), "landing": landing,
                                "times": {"join_ms": 600000, "death_idle_ms": 60000, "death_busy_ms": 30000}}))  # fmt: skip
    return path


async def updated(checkpoints: Path, result: Path, landing: str) -> dict[str, Any]:
    config = configuration(result.with_suffix(""), landing)
    weights = {letter: load_file(f"{checkpoints}/{letter}.safetensors", device="cuda" if GPU else "cpu") for letter in "ab"}
    held = {name: values.clone() for name, values in weights["a"].items()}
    with weightcast.Trainer(config, 0, held) as trainer:
        running = Running(arguments_of(checkpoints / "a", config))
        trainer.wait_connected(120)
        client = Client((running.engine, asyncio.get_running_loop()), timeout_s=120)
        version = 0

        async def update(letter: str, **options: Any) -> Any:
            nonlocal version
            for name, values in weights[letter].items():
                held[name].copy_(values)
            if GPU:
                torch.cuda.synchronize()
            version += 1
            return await asyncio.to_thread(client.update, trainer, version, in_place=landing == "in_place", **options)

        found = {"landing": landing, "a": await running.state()}
        first = await update("b")
        found |= {"b": await running.state(), "transfer_s": first.transfer_s, "first": first.report}
        await update("a")
        found |= {"back": await running.state(), "under_way": []}
        letters = "ba"
        for number, (kv, pause) in enumerate([("keep", False), ("keep", True), ("recompute", False)] * 3):
            found["under_way"].append(await under_way(running, update, letters[number % 2], kv, pause))
        alone, at = await running.generate(PROMPTS[0], LONG)
        found["gap_without_update_ms"] = max(gaps(at)[BEFORE:]) * 1e3
        running.engine.shutdown()
    return found


async def under_way(running: Running, update: Any, letter: str, kv: str, pause: bool) -> dict[str, Any]:
    """One request in flight over an update: how long its client waited for a token, and whether it got all of them."""
    seen = {}

    async def then() -> None:
        seen["update"] = await update(letter, kv=kv, pause=pause)

    made, at = await running.generate(PROMPTS[0], LONG, BEFORE, then)
    waits, done = gaps(at), seen["update"]
    usual = sorted(waits)[len(waits) // 2]
    return {"kv": kv, "pause": pause, "tokens": len(made), "usual_ms": usual * 1e3, "longest_gap_ms": max(waits[BEFORE - 1 :]) * 1e3,
            "copy_ms": done.report.get("stall_ms"), "commit_call_ms": done.commit_ms, "paused_ms": done.paused_ms, "transfer_s": done.transfer_s}  # fmt: skip


def gaps(at: list[float]) -> list[float]:
    return [b - a for a, b in zip(at, at[1:], strict=False)]


async def fresh(checkpoints: Path) -> dict[str, Any]:
    running = Running(arguments_of(checkpoints / "b", None))
    found = {"b": await running.state()}
    running.engine.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("model")
    parser.add_argument("result", type=Path)
    parser.add_argument("--landing", default="staged", choices=["staged", "in_place"])
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    folder = options.checkpoints / options.model
    found = asyncio.run(fresh(folder) if options.fresh else updated(folder, options.result, options.landing))
    options.result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
