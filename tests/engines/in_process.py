"""in_process.py KIND CONFIG MODEL: vLLM's `LLM`, or `AsyncLLM` over two workers, and a trainer in one program.

MODEL has a/, which the engine loads, and b/. Three updates (B, A, B); what is generated before and after, by AsyncLLM over each
of them, is compared with transformers' model in FP32. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable

import weightcast
from reference import wrong_tokens
from safetensors.torch import load_file
from vllm import LLM, AsyncEngineArgs, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from weightcast.vllm import Client

PROMPT = list(range(40, 110))
BOUND = 0.01
OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 4, "seed": 0, "block_size": 32,
           "skip_tokenizer_init": True, "weight_transfer_config": {"backend": "weightcast"}}  # fmt: skip


def sampling(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)


def offline(engine: LLM, update: Callable[[str], None]) -> list[dict]:
    """Between two calls of generate()."""

    def generated(letter: str) -> dict:
        output = engine.generate([{"prompt_token_ids": PROMPT}], sampling(16), use_tqdm=False)[0].outputs[0]
        return {"tokens": list(output.token_ids), "spans": [[letter, 0]]}

    requests = [generated("A")]
    for letter in "BAB":
        update(letter)
        requests.append(generated(letter))
    return requests


class Generating:
    """A request in flight in an AsyncLLM whose loop runs on another thread."""

    def __init__(self, engine: AsyncLLM, loop: asyncio.AbstractEventLoop, name: str, tokens: int) -> None:
        self._engine, self._name, self._tokens = engine, name, tokens
        self.begun, self.output = threading.Event(), None
        self._done = asyncio.run_coroutine_threadsafe(self._run(), loop)

    async def _run(self) -> None:
        async for output in self._engine.generate({"prompt_token_ids": PROMPT}, sampling(self._tokens), self._name):
            self.output = output.outputs[0]
            self.begun.set()

    def ended(self, letters: dict[str, str]) -> dict:
        self._done.result(300)
        return {"tokens": list(self.output.token_ids), "finish": self.output.finish_reason,
                "spans": [[letters[span.version], span.start] for span in self.output.weight_versions]}  # fmt: skip


def over_updates(engine: AsyncLLM, loop: asyncio.AbstractEventLoop, update: Callable[[str], None]) -> list[dict]:
    """A request is in flight at every update."""
    letters, requests = {"default": "A", "1": "B", "2": "A", "3": "B"}, []
    for letter in "BAB":
        request = Generating(engine, loop, letter + str(len(requests)), 150)
        assert request.begun.wait(120)
        update(letter)
        requests.append(request.ended(letters))
    return requests


def main() -> None:
    kind, config, model = sys.argv[1], sys.argv[2], sys.argv[3]
    weights = {letter: load_file(f"{model}/{letter.lower()}/model.safetensors") for letter in "AB"}
    arguments = OPTIONS | {"model": f"{model}/a", "additional_config": {"weightcast": {"config": config}}}
    if kind == "LLM":
        engine = LLM(**arguments)
        client = Client(engine, timeout_s=300)
    else:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        arguments["tensor_parallel_size"] = 2
        engine = asyncio.run_coroutine_threadsafe(started(arguments), loop).result(600)
        client = Client((engine, loop), timeout_s=300)
    held = {name: tensor.clone() for name, tensor in weights["A"].items()}
    with weightcast.Trainer(config, 0, held) as trainer:
        trainer.wait_connected(300)

        def update(letter: str) -> None:
            for name, tensor in weights[letter].items():
                held[name].copy_(tensor)
            client.update(trainer, client.next_version(trainer), in_place=True)

        requests = offline(engine, update) if kind == "LLM" else over_updates(engine, loop, update)
        folders = {letter: f"{model}/{letter.lower()}" for letter in "AB"}
        wrong = [wrong_tokens({"prompt": PROMPT, "kv": "keep"} | request, folders, BOUND) for request in requests]
        print(json.dumps({"versions": client.versions(), "requests": requests, "wrong": wrong}), flush=True)
    if kind != "LLM":
        engine.shutdown()


async def started(arguments: dict) -> AsyncLLM:
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


if __name__ == "__main__":
    main()
