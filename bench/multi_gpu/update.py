"""A whole update between processes, one GPU each: trainers hold BF16 in FSDP rows, servers take FP8, staged.

    update.py --trainers 0 1 --servers 2 3 --gb 16 --layout ep --json FILE
    update.py --trainers 0 --servers 2 3 --gb 8 --layout replicas --relay
    update.py --gb 0.2                                                      without GPUs: NumPy arrays, two and two

The model is a slice of Qwen3-235B (its embedding and some layers), with one projection of 576 rows, as DeepSeek-V3 has
them, whose blocks straddle trainers. Weights are random, new in every version, and made anew by whoever compares: every
byte of every server is compared with a cast by torch (or NumPy), which shares no code with ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import weightcast
from weightcast import abi
from weightcast.catalog import BLOCK, FP8_BLOCK, Manifest, Parameter, Part, Scales, parameters_of
from weightcast.demo import oracle
from weightcast.demo.layouts import fsdp_rows
from weightcast.demo.processes import Children, answer, orders

ALIGNMENT_BYTES = 256
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Model:
    """Shapes of the slice."""

    hidden: int = 4096
    intermediate: int = 1536
    experts: int = 128
    heads: int = 64 * 128  # query columns
    kv: int = 4 * 128
    vocabulary: int = 151936
    layers: int = 3

    @classmethod
    def of_bytes(cls, bf16_bytes: float) -> Model:
        """The slice that comes nearest; below 4 GB a narrower one."""
        model = cls() if bf16_bytes > 4e9 else cls(1024, 512, 16, 2048, 512, 8192)
        sizes = {layers: 2 * sum(map(math.prod, dataclasses.replace(model, layers=layers).manifest().values())) for layers in (1, 2)}
        step = sizes[2] - sizes[1]
        return dataclasses.replace(model, layers=max(1, 1 + round((bf16_bytes - sizes[1]) / step)))

    def manifest(self) -> Manifest:
        shapes = {"embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in (f"layers.{i}" for i in range(self.layers)):
            attention = f"{layer}.self_attn"
            shapes |= {f"{layer}.input_layernorm.weight": (self.hidden,), f"{layer}.mlp.gate.weight": (self.experts, self.hidden),
                       f"{attention}.q_proj.weight": (self.heads, self.hidden), f"{attention}.k_proj.weight": (self.kv, self.hidden),
                       f"{attention}.v_proj.weight": (self.kv, self.hidden), f"{attention}.o_proj.weight": (self.hidden, self.heads),
                       f"{attention}.kv_a_proj.weight": (576, self.hidden)}  # fmt: skip
            for expert in (f"{layer}.mlp.experts.{e}" for e in range(self.experts)):
                shapes |= {f"{expert}.gate_proj.weight": (self.intermediate, self.hidden),
                           f"{expert}.up_proj.weight": (self.intermediate, self.hidden),
                           f"{expert}.down_proj.weight": (self.hidden, self.intermediate)}  # fmt: skip
        return shapes

    def parameters(self, layout: str, rank: int, ranks: int) -> list[Parameter]:
        """What server `rank` holds: `ep` its experts whole and all else, `tp` its slice of everything that divides, `replicas` all."""
        tp = layout == "tp"
        if layout == "replicas":
            rank, ranks = 0, 1
        rules = (weightcast.Rule(("embed_tokens.weight",), "embed_tokens.weight", split=0 if tp else None),
                 weightcast.Rule(("{}.q_proj.weight", "{}.k_proj.weight", "{}.v_proj.weight"), "{}.qkv_proj.weight",
                                 split=0 if tp else None, recipe=FP8_BLOCK),
                 weightcast.Rule(("{}.o_proj.weight",), "{}.o_proj.weight", split=1 if tp else None, recipe=FP8_BLOCK),
                 weightcast.Rule(("{}.kv_a_proj.weight",), "{}.kv_a_proj.weight", recipe=FP8_BLOCK),
                 weightcast.Rule(("{}.input_layernorm.weight",), "{}.input_layernorm.weight"),
                 weightcast.Rule(("{}.mlp.gate.weight",), "{}.mlp.gate.weight"))  # fmt: skip
        others = {name: shape for name, shape in self.manifest().items() if ".experts." not in name}
        parameters = parameters_of(others, rules, rank, ranks)
        for layer in range(self.layers):
            parameters += self._stacks(f"layers.{layer}.mlp.experts", tp, rank, ranks)
        return parameters

    def _stacks(self, prefix: str, tp: bool, rank: int, ranks: int) -> list[Parameter]:
        """The stacks of experts, gate above up, as vLLM and SGLang hold them."""
        held = range(self.experts) if tp else range(rank * self.experts // ranks, (rank + 1) * self.experts // ranks)
        rows, whole = self.intermediate // (ranks if tp else 1), (self.intermediate, self.hidden)
        first = rank * rows if tp else 0
        w13, w2 = [], []
        for at, expert in enumerate(held):
            for place, name in enumerate(("gate_proj", "up_proj")):
                w13.append(Part(f"{prefix}.{expert}.{name}.weight", whole, (first, 0), (rows, self.hidden),
                                (at, place * rows, 0), (at, place * rows // BLOCK, 0)))  # fmt: skip
            w2.append(Part(f"{prefix}.{expert}.down_proj.weight", whole[::-1], (0, first), (self.hidden, rows), (at, 0, 0), (at, 0, 0)))
        shapes = {"w13_weight": (len(held), 2 * rows, self.hidden), "w2_weight": (len(held), self.hidden, rows)}
        scales = {name: (n, a // BLOCK, b // BLOCK) for name, (n, a, b) in shapes.items()}
        return [Parameter(f"{prefix}.{name}", shapes[name], FP8_BLOCK, tuple(parts), Scales(f"{prefix}.{name}_scale_inv", scales[name]))
                for name, parts in (("w13_weight", w13), ("w2_weight", w2))]  # fmt: skip


class Host:
    """Arrays in host memory: NumPy."""

    TYPES = {"bf16": ml_dtypes.bfloat16, "fp32": np.float32, FP8_BLOCK: ml_dtypes.float8_e4m3fn}

    def flat(self, bytes_: int) -> np.ndarray:
        return np.zeros(bytes_, np.uint8)

    def view(self, flat: np.ndarray, first: int, shape: tuple[int, ...], kind: str) -> np.ndarray:
        dtype = np.dtype(self.TYPES[kind])
        return flat[first : first + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def weights(self, name: str, shape: tuple[int, ...], version: int) -> np.ndarray:
        random = np.random.default_rng([version, zlib.crc32(name.encode())])
        return (0.02 * random.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16)

    def assign(self, to: np.ndarray, values: np.ndarray) -> None:
        to[...] = values

    def equal(self, a: np.ndarray, b: np.ndarray) -> bool:
        return np.array_equal(oracle.bytes_of(a), oracle.bytes_of(b))

    cast = staticmethod(oracle.cast_fp8)

    def settle(self) -> None:
        pass


class Gpu:
    """Arrays on one GPU: torch."""

    def __init__(self, device: int) -> None:
        import torch

        self.torch, self.device = torch, torch.device("cuda", device)
        torch.cuda.set_device(device)
        self.types = {"bf16": torch.bfloat16, "fp32": torch.float32, FP8_BLOCK: torch.float8_e4m3fn}

    def flat(self, bytes_: int) -> Any:
        return self.torch.zeros(bytes_, dtype=self.torch.uint8, device=self.device)

    def view(self, flat: Any, first: int, shape: tuple[int, ...], kind: str) -> Any:
        dtype = self.types[kind]
        return flat[first : first + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def weights(self, name: str, shape: tuple[int, ...], version: int) -> Any:
        random = self.torch.Generator(self.device).manual_seed(version << 32 | zlib.crc32(name.encode()))
        return (0.02 * self.torch.randn(shape, generator=random, device=self.device)).to(self.torch.bfloat16)

    def assign(self, to: Any, values: Any) -> None:
        to.copy_(values)

    def equal(self, a: Any, b: Any) -> bool:
        raw = self.torch.uint8
        return self.torch.equal(a.contiguous().view(raw), b.contiguous().view(raw))

    def cast(self, x: Any) -> tuple[Any, Any]:
        torch, (rows, cols) = self.torch, x.shape
        down, across = -(-rows // BLOCK), -(-cols // BLOCK)
        padded = torch.nn.functional.pad(x.float(), (0, across * BLOCK - cols, 0, down * BLOCK - rows))
        blocks, one = padded.view(down, BLOCK, across, BLOCK), torch.ones((), device=self.device)
        scale = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(1e-10) * (one / torch.full((), 448.0, device=self.device))
        codes = (blocks * (one / scale)).clamp(-448, 448).to(torch.float8_e4m3fn)
        return codes.view(padded.shape)[:rows, :cols], scale.view(down, across)

    def settle(self) -> None:
        self.torch.cuda.synchronize()


@dataclasses.dataclass(frozen=True)
class Setting:
    """What every process is told at its start."""

    config: dict[str, Any]
    model: Model
    layout: str
    trainers: tuple[int | None, ...]  # devices, None: host memory
    servers: tuple[int | None, ...]
    isolated: bool  # each process sees its own GPU alone

    def arrays(self, device: int | None) -> Host | Gpu:
        if device is None:
            return Host()
        if self.isolated:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
            device = 0
        return Gpu(device)


def laid_out(arrays: Host | Gpu, shapes: dict[str, tuple[tuple[int, ...], str]], bytes_of: dict[str, int]) -> dict[str, Any]:
    """Arrays by name, side by side in one allocation."""
    first, end = {}, 0
    for name, (shape, kind) in shapes.items():
        first[name], end = end, end + -(-math.prod(shape) * bytes_of[kind] // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    flat = arrays.flat(end)
    return {name: arrays.view(flat, first[name], shape, kind) for name, (shape, kind) in shapes.items()}


BYTES = {"bf16": 2, "fp32": 4, FP8_BLOCK: 1}


def trainer(pipe: Connection, setting: Setting, rank: int) -> None:
    """Orders: ("fill", version), ("push", version)."""
    arrays, manifest = setting.arrays(setting.trainers[rank]), setting.model.manifest()
    rows = {name: fsdp_rows(shape[0], rank, len(setting.trainers)) for name, shape in manifest.items()}
    held = laid_out(arrays, {name: ((rows[name][1], *shape[1:]), "bf16") for name, shape in manifest.items()}, BYTES)
    shards = {name: weightcast.Shard(held[name], shape, (rows[name][0], *[0] * (len(shape) - 1))) for name, shape in manifest.items()}
    with weightcast.Trainer(setting.config, rank, shards) as handle:
        handle.wait_connected(120)
        answer(pipe, sum(math.prod(shard.array.shape) * 2 for shard in shards.values()))
        for order, version in orders(pipe):
            if order == "push":
                handle.push(version)
                answer(pipe, handle.wait(version))
                continue
            for name, shape in manifest.items():
                first, count = rows[name]
                arrays.assign(held[name], arrays.weights(name, shape, version)[first : first + count])
            arrays.settle()
            answer(pipe, None)


def server(pipe: Connection, setting: Setting, rank: int) -> None:
    """Orders: ("take", version), ("compare", version)."""
    arrays, manifest = setting.arrays(setting.servers[rank]), setting.model.manifest()
    parameters = setting.model.parameters(setting.layout, rank, len(setting.servers))
    shapes = {p.name: (p.shape, p.recipe) for p in parameters} | {p.scales.name: (p.scales.shape, "fp32") for p in parameters if p.scales}
    held = laid_out(arrays, shapes, BYTES)
    replica = rank if setting.layout == "replicas" else 0
    with weightcast.Server(setting.config, rank, replica, parameters, held) as handle:
        handle.wait_connected(120)
        answer(pipe, sum(math.prod(shape) * BYTES[kind] for shape, kind in shapes.values()))
        for order, version in orders(pipe):
            if order == "take":
                end = time.monotonic() + 60
                while handle.state().committed_version != version:
                    if time.monotonic() > end:
                        raise TimeoutError(f"version {version} did not come: {handle.state()}")
                    select.select([handle], [], [], 1.0)
                    handle.commit_if_due()
                answer(pipe, None)
            else:
                answer(pipe, differing(arrays, manifest, parameters, held, version))


def differing(arrays: Host | Gpu, manifest: Manifest, parameters: list[Parameter], held: dict[str, Any], version: int) -> list[str]:
    """Tensors of which a byte is not what an independent cast makes of the version's weights."""
    wrong = []
    for parameter in parameters:
        for part in parameter.parts:
            whole = arrays.weights(part.tensor, manifest[part.tensor], version)
            codes, scales = arrays.cast(whole) if parameter.scales else (whole, None)
            if not arrays.equal(box(held[parameter.name], part.at, part.extent), box(codes, part.offset, part.extent)):
                wrong.append(part.tensor)
            if scales is None:
                continue
            blocks = tuple(-(-n // BLOCK) for n in part.extent)
            offset = tuple(n // BLOCK for n in part.offset)
            if not arrays.equal(box(held[parameter.scales.name], part.scales_at, blocks), box(scales, offset, blocks)):
                wrong.append(f"scales of {part.tensor}")
    return wrong


def box(array: Any, offset: tuple[int, ...], extent: tuple[int, ...]) -> Any:
    """A box of the last axes; one index of each axis before them."""
    before = len(offset) - len(extent)
    return array[(*offset[:before], *(slice(o, o + n) for o, n in zip(offset[before:], extent, strict=True)))]


def configuration(folder: Path, trainers: int, servers: int, replicas: int, relay: bool) -> dict[str, Any]:
    program = abi.library_path().parent / "weightcast"
    subprocess.run([program, "keygen", folder / "secret"], check=True, capture_output=True, timeout=30)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"run": "multi_gpu", "secret_file": str(folder / "secret"), "log_level": "warning",
            "controller": {"address": f"tcp://127.0.0.1:{port}", "trainers": trainers, "replicas": replicas,
                           "servers_per_replica": servers // replicas},
            "links": {"node": "host", "nic_mbs": 380_000, "nvlink_mbs": 380_000},  # alike: only their ratio counts
            "performance": {"chunk_bytes": 64 * MIB, "scratch_bytes": 768 * MIB, "window": 2, "relay": relay}}  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    devices = (tuple(arguments.trainers), tuple(arguments.servers)) if arguments.trainers else ((None, None), (None, None))
    scratch = {} if arguments.trainers else {"chunk_bytes": 4 * MIB, "scratch_bytes": 16 * MIB}
    replicas = len(devices[1]) if arguments.layout == "replicas" else 1
    config = configuration(folder, len(devices[0]), len(devices[1]), replicas, arguments.relay)
    setting = Setting(config | {"performance": config["performance"] | scratch}, Model.of_bytes(1e9 * arguments.gb), arguments.layout,
                      *devices, arguments.isolated)  # fmt: skip
    trainers, servers = [f"trainer {i}" for i in range(len(devices[0]))], [f"server {i}" for i in range(len(devices[1]))]
    reports, problems = [], []
    with Children() as children:
        for rank, name in enumerate(trainers):
            children.start(name, trainer, setting, rank)
        for rank, name in enumerate(servers):
            children.start(name, server, setting, rank)
        held = children.gather([*trainers, *servers], "start and first contact", 180)
        for version in range(1, arguments.versions + 1):
            children.tell(trainers, ("fill", version))
            children.gather(trainers, f"weights of version {version}", 120)
            children.tell(servers, ("take", version))
            children.tell(trainers, ("push", version))
            reports.append(children.gather([*trainers, *servers], f"version {version}", 120)[trainers[0]])
            if version not in (1, arguments.versions):
                continue
            children.tell(servers, ("compare", version))
            for name, wrong in children.gather(servers, f"comparing version {version}", 300).items():
                problems += [f"version {version}, {name}: {tensor}" for tensor in wrong]
    later = reports[1:]
    return {"bench": "update", "trainers": devices[0], "servers": devices[1], "layout": arguments.layout, "isolated": arguments.isolated,
            "relay": arguments.relay,
            "tensors": len(setting.model.manifest()), "layers": setting.model.layers, "versions": arguments.versions,
            "trainer_bytes": [held[name] for name in trainers], "server_bytes": [held[name] for name in servers],
            "bytes": reports[0]["bytes"], "first_contact_s": reports[0]["first_contact_s"], "first_transfer_s": reports[0]["transfer_s"],
            **{key: spread([report[key] for report in later]) for key in ("transfer_s", "verify_s", "stall_ms")},
            "verified": not problems, "problems": problems[:20]}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", type=int, nargs="+", metavar="GPU", help="one process on each; none: host memory")
    parser.add_argument("--servers", type=int, nargs="+", metavar="GPU")
    parser.add_argument("--gb", type=float, default=16, help="GB (1e9 bytes) of BF16, about (default %(default)s)")
    parser.add_argument("--layout", choices=("ep", "tp", "replicas"), default="ep", help="of the servers (default %(default)s)")
    parser.add_argument("--relay", action="store_true", help="servers pass on to one another what several of them hold")
    parser.add_argument("--versions", type=int, default=6, help="updates; the first is reported apart (default %(default)s)")
    parser.add_argument("--isolated", action="store_true", help="each process sees its own GPU alone (CUDA_VISIBLE_DEVICES)")
    parser.add_argument("--json", type=Path, help="also write the result there")
    arguments = parser.parse_args()
    if bool(arguments.trainers) != bool(arguments.servers) or arguments.versions < 2:
        parser.error("--trainers and --servers go together, and --versions are 2 or more")
    with tempfile.TemporaryDirectory(prefix="weightcast-update-") as folder:
        result = run(arguments, Path(folder))
    transfer, stall = result["transfer_s"], result["stall_ms"]
    print(f"{sum(result['trainer_bytes']) / 1e9:.2f} GB of BF16 on {result['trainers']} to {result['bytes'] / 1e9:.2f} GB on "
          f"{result['servers']} ({result['layout']}): {1e3 * transfer['median']:.2f} ms until verified "
          f"[{1e3 * transfer['min']:.2f} {1e3 * transfer['max']:.2f}], stall {stall['median']:.2f} ms; the first "
          f"{1e3 * result['first_transfer_s']:.1f} ms after {result['first_contact_s']:.2f} s of first contact; bytes "
          f"{'verified' if result['verified'] else 'WRONG'}")  # fmt: skip
    for problem in result["problems"]:
        print(f"differs: {problem}", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["verified"] else 1


if __name__ == "__main__":
    sys.exit(main())
