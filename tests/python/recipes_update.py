"""One process of an update under recipes beside the block one: recipes_update.py FOLDER trainer|server RANK host|cuda.

See test_recipes.py. What is expected is computed here by NumPy from the recipes' definitions, on whole tensors.
"""

import select
import sys
from pathlib import Path

import numpy as np
import weightcast

RECIPES = {"tensor": weightcast.FP8_TENSOR, "channel": weightcast.FP8_CHANNEL, "mx": weightcast.MXFP8}
VERSIONS = 2
E4M3 = np.array([mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
                 for exponent in range(16) for mantissa in range(8)][:127])  # fmt: skip


def shapes(device):
    """Tensors, whose name begins with how servers hold them, and where trainer 1's part begins, and on which axis."""
    made = {}
    for name in RECIPES:
        made[f"{name}.rows"] = ((192, 160), 0, 37)
        on_any_column = device == "host" or name != "mx"  # blocks of 1x32 are not cut on a GPU
        made[f"{name}.columns"] = ((96, 256), 1, 80 if on_any_column else 96)
        made[f"{name}.experts"] = ((3, 64, 96), 1, 30)
    return made


def weights(version, device):
    """What all trainers together hold, as BF16 in 16 bits each, the same in every process."""
    random = np.random.default_rng(version)
    whole = {}
    for name, (shape, _, _) in shapes(device).items():
        values = (random.standard_normal(shape) * 2.0 ** random.integers(-30, 8, shape[:-1] + (1,))).astype(np.float32)
        whole[name] = (values.view(np.uint32) >> 16).astype(np.uint16)
        whole[name][..., 5, :] = 0x8000  # negative zeros: what a block of zeros has as its scale
    return whole


def e4m3(values):
    """The nearest E4M3 code, of two equally near the even one, saturating."""
    magnitude = np.abs(values).astype(np.float64)
    middles = (E4M3[1:] + E4M3[:-1]) / 2
    code, above = np.searchsorted(middles, magnitude, "left"), np.searchsorted(middles, magnitude, "right")
    code = np.where((code != above) & (code % 2 == 1), above, code)
    return (code + 128 * np.signbit(values)).astype(np.uint8)


def cast(bits, recipe):
    """Codes and scales of a whole tensor."""
    x = (bits.astype(np.uint32) << 16).view(np.float32)
    if recipe == weightcast.MXFP8:
        blocks = x.reshape(*x.shape[:-1], -1, 32)
        mantissa, exponent = np.frexp(np.abs(blocks).max(axis=-1) * (np.float32(1) / np.float32(448)))
        power = np.where(mantissa == 0, -127, np.maximum(exponent - (mantissa == 0.5), -127)).astype(np.int32)
        factor = np.where(power == -127, 0, -power)
        return e4m3(np.ldexp(blocks, factor[..., None])).reshape(x.shape), (power + 127).astype(np.uint8)
    axes = (-2, -1) if recipe == weightcast.FP8_TENSOR else -1
    scale = np.maximum(np.abs(x).max(axis=axes, keepdims=True), np.float32(1e-10)) / np.float32(448)
    return e4m3(x * (np.float32(1) / scale)), scale


def on(device, array):
    if device == "host":
        return array
    import torch

    types = {np.uint16: torch.bfloat16, np.uint8: torch.uint8, np.float32: torch.float32}
    signed = array.view(np.int16) if array.dtype == np.uint16 else array
    return torch.from_numpy(signed).cuda().view(types[array.dtype.type])


def fill(device, target, values):
    target[...] = values if device == "host" else on(device, np.ascontiguousarray(values))
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def part_of(name, rank, device):
    """A trainer's part: what of each axis."""
    shape, axis, cut = shapes(device)[name]
    return tuple(slice(None) if a != axis else slice(0, cut) if rank == 0 else slice(cut, n) for a, n in enumerate(shape))


def train(config, rank, device):
    held = {}
    for name, (shape, axis, cut) in shapes(device).items():
        part = on(device, np.zeros(np.empty(shape, np.uint8)[part_of(name, rank, device)].shape, np.uint16))
        offset = tuple(cut * rank if a == axis else 0 for a in range(len(shape)))
        held[name] = weightcast.Shard(part, shape=shape, offset=offset)
    with weightcast.Trainer(config, rank, held) as trainer:
        for version in range(1, VERSIONS + 1):
            for name, whole in weights(version, device).items():
                fill(device, held[name].array, whole[part_of(name, rank, device)])
            trainer.push(version)
            trainer.wait(version)
        if rank == 0:
            fill(device, held["tensor.rows"].array[3:4, 7:8], np.full((1, 1), 0x7FC0, np.uint16))
        try:
            trainer.push(VERSIONS + 1)
            trainer.wait(VERSIONS + 1)
        except weightcast.WeightcastError as error:
            print(f"refused: {error}", flush=True)
        if rank == 0:
            (config.parent / "done").touch()


def serve(config, rank, device):
    manifest = {name: shape for name, (shape, _, _) in shapes(device).items()}
    rules = [weightcast.Rule((f"{name}.{kind}",), f"{name}.{kind}", split=split, recipe=recipe)
             for name, recipe in RECIPES.items() for kind, split in (("rows", 0), ("columns", 1), ("experts", None))]  # fmt: skip
    arrays = {}
    for parameter in weightcast.parameters_of(manifest, rules, rank, 2):
        arrays[parameter.name] = on(device, np.zeros(parameter.shape, np.uint8))
        scale_type = np.uint8 if parameter.recipe == weightcast.MXFP8 else np.float32
        arrays[parameter.scales.name] = on(device, np.zeros(parameter.scales.shape, scale_type))
    with weightcast.Server.from_rules(config, rank, 0, 2, manifest, rules, arrays) as server:
        committed = 0
        while committed < VERSIONS:
            select.select([server], [], [], 1.0)
            server.commit_if_due()
            if server.state().committed_version == committed:
                continue
            committed = server.state().committed_version
            for name, bits in weights(committed, device).items():
                compare(arrays, name, bits, rank, device)
            print(f"version {committed} is equal", flush=True)
        while not (config.parent / "done").exists():
            select.select([server], [], [], 0.1)
            server.state()


def compare(arrays, name, bits, rank, device):
    recipe = RECIPES[name.partition(".")[0]]
    codes, scales = cast(bits, recipe)
    if name.endswith(".rows"):
        codes = np.split(codes, 2, 0)[rank]
        scales = scales if recipe == weightcast.FP8_TENSOR else np.split(scales, 2, 0)[rank]
    if name.endswith(".columns"):
        codes = np.split(codes, 2, 1)[rank]
        scales = np.split(scales, 2, 1)[rank] if recipe == weightcast.MXFP8 else scales
    suffix = "_scale_inv" if recipe == weightcast.MXFP8 else "_scale"
    for key, expected in ((name, codes), (name + suffix, scales)):
        found = arrays[key] if device == "host" else arrays[key].cpu().numpy()
        assert found.shape == expected.shape, (key, found.shape, expected.shape)
        differ = np.argwhere(found.view(np.uint8) != np.ascontiguousarray(expected).view(np.uint8))
        assert len(differ) == 0, (key, len(differ), differ[:3].tolist())


if __name__ == "__main__":
    role = {"trainer": train, "server": serve}[sys.argv[2]]
    role(Path(sys.argv[1]) / "weightcast.json", int(sys.argv[3]), sys.argv[4])
