"""sharded_trainer.py RANK STORE CONFIG FOLDER: one of four gloo ranks that hold FP32 masters in every way that trainers do.

FSDP2; DTensors with other placements on a mesh of two axes; FSDP2 over tensor parallelism on the same axis; and a model
split as Megatron does it, tensor parallel 2 and pipeline parallel 2, with fused query groups, fused gate and up, and experts
that only one rank holds. Pushes two versions, with an optimiser's step between; rank 0 writes what they are, as whole tensors.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import weightcast
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
from weightcast import Rule
from weightcast.catalog import parameters_of, shards_of

RANKS, TENSOR_PARALLEL = 4, 2
HIDDEN, HEAD, HEADS, GROUPS, EXPERTS, LAYERS = 24, 4, 8, 4, 4, 2
PLACEMENTS = {"rows": (Replicate(), Shard(0)), "columns": (Shard(1), Replicate()), "both": (Shard(0), Shard(1)),
              "twice": (Shard(0), Shard(0)), "everywhere": (Replicate(), Replicate())}  # fmt: skip

Q, K, V = (f"model.layers.{{}}.self_attn.{part}_proj.weight" for part in "qkv")
GATE, UP, DOWN = (f"{{}}.{part}_proj.weight" for part in ("gate", "up", "down"))
MEGATRON = [
    Rule(("model.embed_tokens.weight",), "embedding.word_embeddings.weight", split=0),
    Rule((Q, K, V), "decoder.layers.{}.self_attention.linear_qkv.weight", split=0, groups=GROUPS),
    Rule(("model.layers.{}.self_attn.o_proj.weight",), "decoder.layers.{}.self_attention.linear_proj.weight", split=1),
    Rule((GATE, UP), "{}.linear_fc1.weight", split=0),
    Rule((DOWN,), "{}.linear_fc2.weight", split=1),
]


def megatron_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (64, HIDDEN)}
    for layer in range(LAYERS):
        shapes |= {pattern.format(layer): (heads * HEAD, HIDDEN) for pattern, heads in ((Q, HEADS), (K, GROUPS), (V, GROUPS))}
        shapes[f"model.layers.{layer}.self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD)
        for expert in range(EXPERTS):
            name = f"model.layers.{layer}.mlp.experts.{expert}"
            shapes |= {GATE.format(name): (32, HIDDEN), UP.format(name): (32, HIDDEN), DOWN.format(name): (HIDDEN, 32)}
    return shapes


def megatron_arrays(whole: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """This rank's parameters as Megatron lays them out, cut here by hand and not by the rules."""
    place, stage = rank % TENSOR_PARALLEL, rank // TENSOR_PARALLEL

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.chunk(TENSOR_PARALLEL, 0)[place]

    def columns(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.chunk(TENSOR_PARALLEL, 1)[place]

    arrays = {"embedding.word_embeddings.weight": rows(whole["model.embed_tokens.weight"])} if stage == 0 else {}
    layer = f"decoder.layers.{stage}"  # a stage has one layer
    grouped = [whole[pattern.format(stage)].view(GROUPS, -1, HIDDEN) for pattern in (Q, K, V)]
    arrays[f"{layer}.self_attention.linear_qkv.weight"] = rows(torch.cat(grouped, 1)).reshape(-1, HIDDEN)
    arrays[f"{layer}.self_attention.linear_proj.weight"] = columns(whole[f"model.layers.{stage}.self_attn.o_proj.weight"])
    for expert in range(EXPERTS):
        name = f"model.layers.{stage}.mlp.experts.{expert}"
        arrays[f"{name}.linear_fc1.weight"] = torch.cat([rows(whole[GATE.format(name)]), rows(whole[UP.format(name)])])
        arrays[f"{name}.linear_fc2.weight"] = columns(whole[DOWN.format(name)])
    return {name: array.clone() for name, array in arrays.items()}


def sharded(whole: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything but Megatron's part, as torch's own classes shard it."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    found: dict[str, torch.Tensor] = {f"placed.{name}": distribute_tensor(whole[f"placed.{name}"], mesh, kinds) for name, kinds in PLACEMENTS.items()}
    model = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.LayerNorm(3))  # ten rows and three over four ranks
    model.load_state_dict({name.removeprefix("fsdp."): tensor for name, tensor in whole.items() if name.startswith("fsdp.")})
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    found |= {f"fsdp.{name}": parameter for name, parameter in model.named_parameters()}
    both = torch.nn.Linear(6, 8, bias=False)
    both.weight = torch.nn.Parameter(distribute_tensor(whole["strided.weight"], mesh["tp"], [Shard(0)]))
    fully_shard(both, mesh=mesh["dp"])
    return found | {f"strided.{name}": parameter for name, parameter in both.named_parameters()} | {"plain": whole["plain"].clone()}


def main() -> None:
    rank, store, config, folder = int(sys.argv[1]), *sys.argv[2:5]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=datetime.timedelta(seconds=120))
    torch.manual_seed(7)
    shapes = {"fsdp.0.weight": (10, 6), "fsdp.0.bias": (10,), "fsdp.1.weight": (3,), "fsdp.1.bias": (3,), "strided.weight": (8, 6),
              "plain": (5, 7)} | {f"placed.{name}": (10, 6) for name in PLACEMENTS}  # fmt: skip
    whole = {name: torch.randn(shape) for name, shape in (shapes | megatron_shapes()).items()}
    held = sharded(whole)
    arrays = megatron_arrays(whole, rank)
    fused = shards_of(parameters_of(megatron_shapes(), MEGATRON, rank % TENSOR_PARALLEL, TENSOR_PARALLEL), arrays)
    if rank == 0:
        said = Path(folder, "shapes.json.part")
        said.write_text(json.dumps({name: tensor.shape for name, tensor in whole.items()}))
        said.rename(Path(folder, "shapes.json"))
    with weightcast.Trainer(config, rank, held | fused) as trainer:
        trainer.wait_connected(120)
        for version in (1, 2):
            if rank == 0:
                save_file({name: tensor.bfloat16() for name, tensor in whole.items()}, f"{folder}/{version}.safetensors")
            trainer.push(version)
            trainer.wait(version, 120)
            with torch.no_grad():
                for tensor in [*whole.values(), *held.values(), *arrays.values()]:
                    tensor.mul_(1.5)
    dist.destroy_process_group()


main()
