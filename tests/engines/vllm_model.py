"""vllm_model.py RANK RANKS STORE FOLDER...: one rank of vLLM models, without an engine around them. FOLDER has a/ and b/.

The first has experts if any has: vLLM makes the process group that they need, or not, by the first configuration.
Loads A, traces it, writes B's bytes through the map (NumPy-like, with no code of the transfer), and compares every
parameter with those of a model that vLLM itself loaded from B. Prints one JSON object per folder.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="WARNING",
                  TRITON_CACHE_DIR=os.environ.get("TRITON_CACHE_DIR", "/tmp/triton"))  # fmt: skip
import torch
from safetensors.torch import load_file
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model
from vllm.model_executor.models import registry
from weightcast.vllm import engine, register, reload


def config_of(folder: str, ranks: int, rank: int):
    arguments = EngineArgs(model=folder, dtype="bfloat16", enforce_eager=True, tensor_parallel_size=ranks, skip_tokenizer_init=True,
                           max_model_len=128, distributed_executor_backend="mp" if ranks > 1 else None)  # fmt: skip
    config = arguments.create_engine_config()
    config.parallel_config.rank = rank
    return config


def main() -> None:
    rank, ranks, store, folders = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    torch.set_num_threads(1)
    registry._run_in_subprocess = lambda look: look()  # vLLM looks at every new class in a process of its own: 20 s each
    register()
    config = config_of(f"{folders[0]}/a", ranks, rank)
    with set_current_vllm_config(config):
        init_distributed_environment(ranks, rank, f"file://{store}", rank, "gloo")
        initialize_model_parallel(ranks)
    for folder in folders:
        try:
            said = compare(f"{folder}/a", f"{folder}/b", rank, ranks)
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"model": os.path.basename(folder)} | said), flush=True)


def compare(folder_a: str, folder_b: str, rank: int, ranks: int) -> dict:
    model = load(config_of(folder_a, ranks, rank))
    before = {name: tensor.data_ptr() for name, tensor in reload.tensors_of(model).items()}
    layout, seconds = engine.trace_model(model, folder_a)
    assert before == {name: tensor.data_ptr() for name, tensor in reload.tensors_of(model).items()}, "tracing moved weights"
    tensors = {k: v for f in sorted(os.listdir(folder_b)) if f.endswith(".safetensors") for k, v in load_file(f"{folder_b}/{f}").items()}
    was = {name: tensor.clone() for name, tensor in reload.tensors_of(model).items()}
    write(model, layout, tensors)
    updated, fresh = reload.tensors_of(model), reload.tensors_of(load(config_of(folder_b, ranks, rank)))
    return {"slices": len(layout.entries), "landings": sorted(set(layout.landings.values())), "parameters": len(layout.landings),
            "differing": [name for name, tensor in fresh.items() if not same(tensor, updated[name])],
            "changed": sum(not same(was[name], tensor) for name, tensor in fresh.items()), "unused": layout.unused,
            "staged": sorted(layout.staged), "seconds": seconds, "fingerprint": layout.fingerprint}  # fmt: skip


def load(config):
    config.compilation_config.static_forward_context.clear()
    with set_current_vllm_config(config):
        return get_model(vllm_config=config)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool((a.reshape(-1).view(torch.uint8) == b.reshape(-1).view(torch.uint8)).all())


def write(model, layout, tensors) -> None:
    """What arrives if every entry gets its box of the checkpoint, in its region."""
    buffers = {}
    for region, kept in zip(layout.regions, unique(layout.kept), strict=True):
        assert kept.untyped_storage().data_ptr() == region["address"]
        buffers[region["name"]] = kept
    for entry in layout.entries:
        flat = buffers[layout.regions[entry["region"]]["name"]]
        size = flat.element_size()
        base = torch.empty(0, dtype=flat.dtype).set_(flat.untyped_storage(), 0, (flat.untyped_storage().nbytes() // size,))
        box = tuple(slice(o, o + n) for o, n in zip(entry["offset"], entry["extent"], strict=True))
        view = base.as_strided(entry["extent"], [s // size for s in entry["strides_bytes"]], entry["byte_offset"] // size)
        source = tensors[entry["tensor"]]
        view.copy_((source if source.dim() else source.view(1))[box])
    staged = {}
    for name, place in layout.staged.items():
        layer, _, parameter = name.rpartition(".")
        flat = buffers[layout.regions[place.region]["name"]]
        staged.setdefault(layer, {})[parameter] = flat.view(place.shape)
    reload.repeat_post_processing(model, staged)


def unique(tensors):
    seen = {}
    for tensor in tensors:
        seen.setdefault((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()), tensor)
    return list(seen.values())


main()
