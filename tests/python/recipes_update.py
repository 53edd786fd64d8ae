"""One process of an update under recipes beside the block one: recipes_update.py FOLDER trainer|server RANK host|cuda.

See test_recipes.py. What is expected is computed here by NumPy from the recipes' definitions, on whole tensors.
"""

import select
import sys
from pathlib import Path

import numpy as np
import weightcast

RECIPES = {"tensor": weightcast.FP8_TENSOR, "channel": weightcast.FP8_CHANNEL, "mx": weightcast.MXFP8, "nv": weightcast.NVFP4}
PACKED = "ue8m0.gate", "ue8m0.up"  # stacked, with packed scales
BY_COLUMN = (weightcast.MXFP8, weightcast.NVFP4)  # blocks of some columns of a row, scales of one byte
VERSIONS = 2
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E4M3 = np.array([mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
                 for exponent in range(16) for mantissa in range(8)][:127])  # fmt: skip


def shapes(device):
    """Tensors, whose name begins with how servers hold them, and where trainer 1's part begins, and on which axis."""
    made = {}
    for name in RECIPES:
        made[f"{name}.rows"] = ((192, 160), 0, 37)
        on_any_column = device == "host" or name != "mx"  # blocks of 1x32 are not cut on a GPU
        made[f"{name}.columns"] = ((96, 256), 1, 80 if on_any_column else 96)  # blocks of 1x16 are cut nowhere
        made[f"{name}.experts"] = ((3, 64, 96), 1, 30)
    made |= dict.fromkeys(PACKED, ((197, 1408), 0, 70))
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


def nearest(values, numbers):
    """The code of the nearest of `numbers`, of two equally near the even one, saturating; a sign is the bit above."""
    magnitude = np.abs(values).astype(np.float64)
    middles = (numbers[1:] + numbers[:-1]) / 2
    code, above = np.searchsorted(middles, magnitude, "left"), np.searchsorted(middles, magnitude, "right")
    code = np.where((code != above) & (code % 2 == 1), above, code)
    return (code + (1 << (len(numbers) - 1).bit_length()) * np.signbit(values)).astype(np.uint8)


def e4m3(values):
    return nearest(values, E4M3)


def nvfp4(x):
    """Codes, two to a byte, scales of blocks, and of each matrix."""
    most = np.finfo(np.float32).max
    with np.errstate(over="ignore", divide="ignore", under="ignore"):
        of_tensor = np.abs(x).max(axis=(-2, -1), keepdims=True)
        tensor = np.where(of_tensor == 0, np.float32(1), np.minimum(np.float32(2688) / of_tensor, most))
        blocks = x.reshape(*x.shape[:-1], -1, 16)
        scales = e4m3(np.abs(blocks).max(axis=-1) * (tensor * (np.float32(1) / np.float32(6))))
        stored = E4M3[scales].astype(np.float32) * (np.float32(1) / tensor)
        inverse = np.minimum(np.float32(1) / stored, most)
        codes = nearest(blocks * inverse[..., None], E2M1).reshape(x.shape)
    return codes[..., ::2] | codes[..., 1::2] << 4, scales, np.float32(1) / tensor


def cast(bits, recipe):
    """Codes and scales of a whole tensor; of NVFP4 also the scale of each matrix."""
    x = (bits.astype(np.uint32) << 16).view(np.float32)
    if recipe == weightcast.NVFP4:
        return nvfp4(x)
    if recipe == weightcast.MXFP8:
        blocks = x.reshape(*x.shape[:-1], -1, 32)
        mantissa, exponent = np.frexp(np.abs(blocks).max(axis=-1) * (np.float32(1) / np.float32(448)))
        power = np.where(mantissa == 0, -127, np.maximum(exponent - (mantissa == 0.5), -127)).astype(np.int32)
        factor = np.where(power == -127, 0, -power)
        return e4m3(np.ldexp(blocks, factor[..., None])).reshape(x.shape), (power + 127).astype(np.uint8)
    if recipe == weightcast.FP8_BLOCK_UE8M0:
        padded = np.zeros([-(-n // 128) * 128 for n in x.shape], np.float32)
        padded[: x.shape[0], : x.shape[1]] = x
        amax = np.abs(padded.reshape(padded.shape[0] // 128, 128, -1, 128)).max(axis=(1, 3))
        mantissa, exponent = np.frexp(np.maximum(amax, np.float32(1e-4)) * (np.float32(1) / np.float32(448)))
        scale = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
        whole = np.repeat(np.repeat(scale, 128, 0), 128, 1)[: x.shape[0], : x.shape[1]]
        return e4m3(x / whole), scale
    axes = (-2, -1) if recipe == weightcast.FP8_TENSOR else -1
    scale = np.maximum(np.abs(x).max(axis=axes, keepdims=True), np.float32(1e-10)) / np.float32(448)
    return e4m3(x * (np.float32(1) / scale)), scale


def deep_gemm_packed(scales, rows):
    """DeepGEMM's get_mn_major_tma_aligned_packed_ue8m0_tensor in NumPy, of scales repeated for each row of values."""
    exponents = (np.repeat(scales, 128, 0)[:rows].view(np.int32) >> 23).astype(np.uint8)
    padded = np.zeros((-(-rows // 4) * 4, -(-scales.shape[1] // 4) * 4), np.uint8)
    padded[:rows, : scales.shape[1]] = exponents
    return np.ascontiguousarray(padded.view(np.int32).T)


def on(device, array):
    if device == "host":
        return array
    import torch

    types = {np.uint16: torch.bfloat16, np.uint8: torch.uint8, np.float32: torch.float32, np.int32: torch.int32}
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
    rules.append(weightcast.Rule(PACKED, "ue8m0", recipe=weightcast.FP8_BLOCK_UE8M0, packed_scales=True))
    arrays = {}
    for parameter in weightcast.parameters_of(manifest, rules, rank, 2):
        is_packed = parameter.recipe == weightcast.NVFP4
        shape = (*parameter.shape[:-1], parameter.shape[-1] // (2 if is_packed else 1))
        arrays[parameter.name] = on(device, np.zeros(shape, np.uint8))
        scale_type = np.uint8 if parameter.recipe in BY_COLUMN else np.float32
        arrays[parameter.scales.name] = on(device, np.zeros(parameter.scales.shape, scale_type))
        if is_packed:
            arrays[parameter.tensor_scale.name] = on(device, np.zeros(parameter.tensor_scale.shape, np.float32))
        if parameter.packed_scales:
            arrays[parameter.packed_scales.name] = on(device, np.zeros(parameter.packed_scales.shape, np.int32))
    with weightcast.Server.from_rules(config, rank, 0, 2, manifest, rules, arrays) as server:
        committed = 0
        while committed < VERSIONS:
            select.select([server], [], [], 1.0)
            server.commit_if_due()
            if server.state().committed_version == committed:
                continue
            committed = server.state().committed_version
            whole = weights(committed, device)
            for name, bits in whole.items():
                if name not in PACKED:
                    compare(arrays, name, bits, rank, device)
            compare_packed(arrays, [cast(whole[name], weightcast.FP8_BLOCK_UE8M0) for name in PACKED], device)
            print(f"version {committed} is equal", flush=True)
        while not (config.parent / "done").exists():
            select.select([server], [], [], 0.1)
            server.state()


def compare(arrays, name, bits, rank, device):
    recipe = RECIPES[name.partition(".")[0]]
    codes, scales, *of_tensor = cast(bits, recipe)
    if name.endswith(".rows"):
        codes = np.split(codes, 2, 0)[rank]
        scales = scales if recipe == weightcast.FP8_TENSOR else np.split(scales, 2, 0)[rank]
    if name.endswith(".columns"):
        codes = np.split(codes, 2, 1)[rank]
        scales = np.split(scales, 2, 1)[rank] if recipe in BY_COLUMN else scales
    suffix = "_scale_inv" if recipe == weightcast.MXFP8 else "_scale"
    for key, expected in ((name, codes), (name + suffix, scales), *((f"{name}_scale_2", scale) for scale in of_tensor)):
        require_equal(key, arrays[key], expected, device)


def compare_packed(arrays, parts, device):
    """Codes and scales of parts that are stacked; of the packed scales, each part's rows."""
    for key, stacked in (("ue8m0", [codes for codes, _ in parts]), ("ue8m0_scale_inv", [scales for _, scales in parts])):
        require_equal(key, arrays[key], np.concatenate(stacked), device)
    rows = [codes.shape[0] for codes, _ in parts]
    packed = [deep_gemm_packed(scales, n)[:, :n] for (_, scales), n in zip(parts, rows, strict=True)]
    padding = np.zeros((packed[0].shape[0], -sum(rows) % 4), np.int32)
    require_equal("ue8m0_scale_packed", arrays["ue8m0_scale_packed"], np.concatenate([*packed, padding], axis=1), device)


def require_equal(key, array, expected, device):
    found = array if device == "host" else array.cpu().numpy()
    assert found.shape == expected.shape, (key, found.shape, expected.shape)
    differ = np.argwhere(found.view(np.uint8) != np.ascontiguousarray(expected).view(np.uint8))
    assert len(differ) == 0, (key, len(differ), differ[:3].tolist())


if __name__ == "__main__":
    role = {"trainer": train, "server": serve}[sys.argv[2]]
    role(Path(sys.argv[1]) / "weightcast.json", int(sys.argv[3]), sys.argv[4])
