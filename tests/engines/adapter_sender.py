"""adapter_sender.py ADAPTER URL CONFIG CHECKPOINT: pushes a checkpoint to a running vLLM server as a framework would.

ADAPTER is trl, verl or factory: the framework's own registry or protocol leads to weightcast. Prints the version.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys

import torch
from safetensors.torch import load_file


def trl(url: str, config: str, weights: dict[str, torch.Tensor]) -> int:
    from trl.experimental.async_grpo.async_grpo_trainer import WeightTransferProtocol
    from weightcast.trl import WeightTransfer

    for name, method in inspect.getmembers(WeightTransferProtocol, inspect.isfunction):
        if not name.startswith("_"):
            ours = inspect.signature(getattr(WeightTransfer, name))
            assert list(ours.parameters) == list(inspect.signature(method).parameters), name
    transfer = WeightTransfer(config, url)  # what AsyncGRPOTrainer calls, in its order
    transfer.init_weight_transfer()
    transfer.pause()
    transfer.send_weights(iter(weights.items()))
    transfer.resume()
    transfer.destroy()
    return transfer.last.version


def verl(url: str, config: str, weights: dict[str, torch.Tensor]) -> int:
    from verl.checkpoint_engine.base import CheckpointEngineRegistry

    importlib.import_module("weightcast.verl")  # as verl does with custom_backend_module
    engine = CheckpointEngineRegistry.new("weightcast", bucket_size=1 << 20, is_master=True, config=config, servers=[url])
    engine.prepare()
    actors, rollouts = type(engine).build_topology(1, 1, [{}, {}])
    assert rollouts == {"rank": [-1]}
    engine.init_process_group(rank=actors["rank"][0])
    asyncio.run(engine.send_weights(iter(weights.items()), global_steps=1))
    engine.finalize()
    return engine.last.version


def factory(url: str, config: str, weights: dict[str, torch.Tensor]) -> int:
    from vllm.distributed.weight_transfer.base import ModuleSource
    from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.plugins import load_general_plugins
    from weightcast.vllm.trainer_engine import WeightcastTrainerInitInfo

    load_general_plugins()
    module = torch.nn.Module()
    for name, tensor in weights.items():  # a module whose parameters have the checkpoint's names
        *path, last = name.split(".")
        owner = module
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, torch.nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    engine = WeightTransferTrainerFactory.trainer_init(WeightcastTrainerInitInfo(config=config, rank=0),
                                                       client=HTTPVLLMWeightSyncClient(url), source=ModuleSource(module))  # fmt: skip
    engine.send_weights()
    engine.shutdown()
    return engine.last.version


def main() -> None:
    adapter, url, config, checkpoint = sys.argv[1:]
    print("version", {"trl": trl, "verl": verl, "factory": factory}[adapter](url, config, load_file(checkpoint)))


main()
