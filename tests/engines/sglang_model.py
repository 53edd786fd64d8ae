"""sglang_model.py RANK RANKS STORE CONFIG FOLDER: one tensor parallel rank of SGLang's own model, without a scheduler around it.

Real: discovery of the plug-in, the hook registry, loader, model, weight updater and its session. Loads FOLDER/a, joins, and
switches when the line "commit N" comes on stdin, by the message that a client sends; then compares every parameter with a
model loaded from FOLDER/b. No forward pass: it needs a GPU. Prints one JSON object a line.
"""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
import torch

torch.set_num_threads(1)
from sglang.srt import runtime_context
from sglang.srt.configs.device_config import DeviceConfig
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import parallel_state
from sglang.srt.distributed.device_communicators.pynccl import PyNcclCommunicator
from sglang.srt.managers.io_struct import BeginWeightUpdateReqInput, EndWeightUpdateReqInput, UpdateWeightsFromTensorReqInput
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager
from sglang.srt.model_executor.model_runner_components.remote_instance_weight_transporter import RemoteInstanceWeightTransporter
from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater
from sglang.srt.model_loader.loader import DefaultModelLoader
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils import MultiprocessingSerializer
from weightcast.sglang import PREFIX, loading

LOADER = "weightcast.sglang.control"


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def load(folder: str) -> torch.nn.Module:
    config = ModelConfig(model_path=folder, dtype="bfloat16")
    return DefaultModelLoader(LoadConfig()).load_model(model_config=config, device_config=DeviceConfig("cpu"))


def updater_of(model: torch.nn.Module, rank: int) -> SchedulerWeightUpdaterManager:
    runner = SimpleNamespace()
    runner.weight_updater = WeightUpdater(tp_rank=rank, device="cpu", gpu_id=0, model_config=None, custom_weight_loaders=[LOADER],
                                          get_model=lambda: model, update_model_fields=None, recapture_cuda_graph=None,
                                          get_model_runner=lambda: runner)  # fmt: skip
    worker = SimpleNamespace(weight_update_runners=lambda: [("target", runner)],
                             deserialize_own_rank=lambda payload: MultiprocessingSerializer.deserialize(payload[rank]))
    said = SimpleNamespace(record_weight_version_change=lambda new_version: say(version=new_version))
    return SchedulerWeightUpdaterManager(tp_worker=worker, draft_worker=None, memory_saver_adapter=None, flush_cache=lambda **_: True,
                                         is_fully_idle=lambda **_: True, scheduler=said)  # fmt: skip


def commit(manager: SchedulerWeightUpdaterManager, version: int, ranks: int) -> list[bool]:
    """As a client does: a session, and in it one message for every rank."""
    message = MultiprocessingSerializer.serialize([(PREFIX + json.dumps({"commit": version}), torch.empty(0))])
    request = UpdateWeightsFromTensorReqInput(serialized_named_tensors=[message] * ranks, load_format=LOADER, weight_version=str(version))
    answers = [manager.update_weights_from_tensor(request), manager.begin_weight_update(BeginWeightUpdateReqInput()),
               manager.update_weights_from_tensor(request), manager.end_weight_update(EndWeightUpdateReqInput())]  # fmt: skip
    return [answer.success for answer in answers]


def differing(model: torch.nn.Module, other: torch.nn.Module) -> list[str]:
    theirs = dict(other.named_parameters())
    return [name for name, tensor in model.named_parameters() if not torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8))]


def without_gpu(communicator: PyNcclCommunicator, *_: object, **__: object) -> None:
    """NCCL has no device to bind to; gloo carries what loading needs."""
    communicator.available, communicator.disabled = False, True


def main() -> None:
    rank, ranks, store, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    PyNcclCommunicator.__init__ = without_gpu
    load_plugins()
    arguments = ServerArgs(model_path=f"{folder}/a", device="cpu", tp_size=ranks, dtype="bfloat16", skip_tokenizer_init=True,
                           custom_weight_loader=[LOADER], attention_backend="torch_native")  # fmt: skip
    runtime_context.publish(arguments, role="scheduler", ranks=runtime_context.SpawnRanks(world_rank=rank))
    parallel_state.init_distributed_environment(world_size=ranks, rank=rank, local_rank=rank, backend="gloo",
                                                distributed_init_method=f"file://{store}")  # fmt: skip
    parallel_state.initialize_model_parallel(backend="gloo")
    model, other = load(f"{folder}/a"), load(f"{folder}/b")
    layout = loading.layout_of_model(model)
    say(slices=len(layout.entries), landings=sorted(set(layout.landings.values())), parameters=len(layout.landings),
        differing=len(differing(model, other)), fingerprint=layout.fingerprint)  # fmt: skip
    RemoteInstanceWeightTransporter(get_model=lambda: model, gpu_id=0).maybe_register_and_publish_weight_info()
    manager = updater_of(model, rank)
    for line in sys.stdin:
        say(answers=commit(manager, int(line.split()[1]), ranks), differing=differing(model, other))


main()
