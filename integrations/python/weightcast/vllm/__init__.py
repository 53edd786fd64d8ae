"""weightcast in vLLM: `--weight-transfer-config '{"backend": "weightcast"}'` on the server, `Client` beside the trainer.

    client = weightcast.vllm.Client("http://127.0.0.1:8000")
    client.update(trainer, version)             # the server generates with the new weights; no request fails

vLLM finds the server's side by itself (entry point `vllm.general_plugins`). It reads `--additional-config
'{"weightcast": {"config": "weightcast.json"}}'`; integrations/VLLM.md lists the options.
"""

from __future__ import annotations

import os

from .client import Client, Update, UpdateFailed

BACKEND = "weightcast"
CPU_PACKING = "WEIGHTCAST_VLLM_CPU_PACKING"  # "off": CPU linears compute from the weights as they lie

__all__ = ["BACKEND", "Client", "Update", "UpdateFailed", "register"]


def register() -> None:
    """Called by vLLM in every process, more than once. Registers the backend for servers and for trainers."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "weightcast.vllm.engine", "WeightcastEngine")
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    except ImportError:  # before 0.25: the trainer's side had no factory
        pass
    else:
        if BACKEND not in WeightTransferTrainerFactory._registry:
            WeightTransferTrainerFactory.register_engine(BACKEND, "weightcast.vllm.trainer_engine", "WeightcastTrainerEngine")
    from . import core_hook, reload

    reload.observe_post_processing()
    core_hook.install()
    if os.environ.get(CPU_PACKING) == "off":
        reload.compute_from_live_weights_on_cpu()
