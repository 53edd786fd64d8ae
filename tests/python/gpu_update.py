"""One process of an update in the memory of one GPU: gpu_update.py FOLDER trainer|server RANK. See test_gpu_update.py."""

import select
import sys
from pathlib import Path

import torch
import weightcast

# A trainer's half of big.weight is a run that copy engines move; of the experts, which servers stack, it is rows between
# the other trainer's, which a kernel stores.
EXPERTS = tuple(f"experts.{expert}.weight" for expert in range(6))
SHAPES = {"mlp.weight": (576, 1024), "big.weight": (8192, 4096), **dict.fromkeys(EXPERTS, (384, 256)),
          "embed.weight": (1000, 128), "norm.weight": (1024,)}
PARAMETERS = {name: (name,) for name in SHAPES if name not in EXPERTS} | {"experts.weight": EXPERTS}
CAST = ("mlp.weight", "big.weight", "experts.weight")
VERSIONS = 3
BLOCK = 128


def weights(version):
    """What all trainers together hold, the same in every process."""
    generator = torch.Generator().manual_seed(version)
    return {name: (0.02 * torch.randn(shape, generator=generator)).to(torch.bfloat16) for name, shape in SHAPES.items()}


def cast(x):
    """The recipe fp8_e4m3_128x128_fp32 by torch on the CPU."""
    rows, cols = -(-x.shape[0] // BLOCK), -(-x.shape[1] // BLOCK)
    padded = torch.zeros(rows * BLOCK, cols * BLOCK)
    padded[: x.shape[0], : x.shape[1]] = x.float()
    blocks = padded.view(rows, BLOCK, cols, BLOCK)
    scale = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(1e-10) * (torch.ones(()) / torch.tensor(448.0))
    codes = (blocks * (torch.ones(()) / scale)).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes.view(padded.shape)[: x.shape[0], : x.shape[1]], scale.view(rows, cols)


def halves(name, rank):
    """First row and rows of a trainer's half: of mlp.weight and the experts it cuts blocks."""
    rows = SHAPES[name][0]
    return rank * (rows // 2), rows // 2


def train(config, rank):
    held = {}
    for name, shape in SHAPES.items():
        first, rows = halves(name, rank)
        tensor = torch.zeros(rows, *shape[1:], dtype=torch.bfloat16, device="cuda")
        held[name] = (tensor, weightcast.Shard(tensor, shape=shape, offset=(first, *[0] * (len(shape) - 1))))
    with weightcast.Trainer(config, rank, {name: shard for name, (_, shard) in held.items()}) as trainer:
        for version in range(1, VERSIONS + 1):
            for name, whole in weights(version).items():
                first, rows = halves(name, rank)
                held[name][0].copy_(whole[first : first + rows])
            torch.cuda.synchronize()
            trainer.push(version)
            report = trainer.wait(version)
            print(f"trainer {rank}: version {version}: {report['bytes']} bytes in {report['transfer_s']:.4f} s", flush=True)
        if rank == 0:
            held["mlp.weight"][0][3, 5] = float("nan")
            torch.cuda.synchronize()
        try:
            trainer.push(VERSIONS + 1)
            trainer.wait(VERSIONS + 1)
        except Exception as error:  # noqa: BLE001, whichever it is, its words are compared
            print(f"trainer {rank}: refused: {error}", flush=True)
        if rank == 0:
            (config.parent / "done").touch()


def serve(config, rank):
    rules = [weightcast.Rule(tensors, name, **({"recipe": weightcast.FP8_BLOCK} if name in CAST else {}))
             for name, tensors in PARAMETERS.items()]
    arrays = {}
    for name, tensors in PARAMETERS.items():
        shape = (len(tensors) * SHAPES[tensors[0]][0], *SHAPES[tensors[0]][1:])
        dtype = torch.float8_e4m3fn if name in CAST else torch.bfloat16
        arrays[name] = torch.zeros(shape, dtype=dtype, device="cuda")
        if name in CAST:
            arrays[f"{name}_scale_inv"] = torch.zeros([-(-n // BLOCK) for n in shape], device="cuda")
    with weightcast.Server.from_rules(config, rank, 0, 1, SHAPES, rules, arrays) as server:
        committed = 0
        while committed < VERSIONS:
            select.select([server], [], [], 1.0)
            server.commit_if_due()
            if server.state().committed_version == committed:
                continue
            committed = server.state().committed_version
            expected = weights(committed)
            for name, tensors in PARAMETERS.items():
                whole = torch.cat([expected[tensor] for tensor in tensors])  # experts are whole rows of blocks
                codes, scale = cast(whole) if name in CAST else (whole, None)
                assert torch.equal(arrays[name].cpu().view(torch.uint8), codes.contiguous().view(torch.uint8)), name
                assert scale is None or torch.equal(arrays[f"{name}_scale_inv"].cpu(), scale), name
            print(f"server {rank}: version {committed} is equal", flush=True)
        while not (config.parent / "done").exists():
            select.select([server], [], [], 0.1)
            server.state()


if __name__ == "__main__":
    {"trainer": train, "server": serve}[sys.argv[2]](Path(sys.argv[1]) / "weightcast.json", int(sys.argv[3]))
