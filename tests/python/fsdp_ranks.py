"""fsdp_ranks.py RANK STORE: one of four gloo ranks; what weightcast reads from DTensors is compared with the whole."""

import ctypes
import datetime
import sys

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from weightcast.catalog import trainer_catalog
from weightcast.placements import shard_of

RANKS = 4


def bytes_at(catalog: dict, entry: dict) -> np.ndarray:
    region = catalog["regions"][entry["region"]]
    raw = (ctypes.c_uint8 * region["bytes"]).from_address(region["address"])
    return np.ndarray(entry["extent"], np.uint16, raw, entry["byte_offset"], entry["strides_bytes"])


def check(tensors: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    catalog = trainer_catalog(0, {name: shard_of(name, tensor) for name, tensor in tensors.items()})
    entries = {entry["tensor"]: entry for entry in catalog["entries"]}
    for name, tensor in tensors.items():
        if name not in entries:
            assert tensor.to_local().numel() == 0, name
            continue
        entry = entries[name]
        box = tuple(slice(o, o + n) for o, n in zip(entry["offset"], entry["extent"], strict=True))
        assert entry["dtype"] == "bf16" and tuple(entry["shape"]) == tuple(whole[name].shape)
        assert (bytes_at(catalog, entry) == whole[name].detach().view(torch.uint16).numpy()[box]).all(), name


def main() -> None:
    rank, store = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS,
                            timeout=datetime.timedelta(seconds=60))  # fmt: skip
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.LayerNorm(3)).bfloat16()
    whole = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    check(whole, whole)  # plain tensors

    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    check(dict(model.named_parameters()), whole)

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(7)
    model = torch.nn.Linear(6, 8, bias=False).bfloat16()
    whole = {"weight": model.weight.detach().clone()}
    model.weight = torch.nn.Parameter(distribute_tensor(model.weight.detach(), mesh["tp"], [Shard(0)]))
    fully_shard(model, mesh=mesh["dp"])
    check(dict(model.named_parameters()), whole)
    dist.destroy_process_group()


main()
