"""Writes cast.json and cast.bin: matrices and what each recipe makes of them, by NumPy and ml_dtypes alone.

usage: make_cast_golden.py [FOLDER]

cast.json lists the cases; every [offset, bytes] is a range of cast.bin. Matrices are row-major. A recipe with scales has
one FP32 `amax` for each block touched, row-major, and behind them the whole matrix's if the recipe scales the tensor
too; `scales` are the blocks' as stored. The digest is that of the output rows in the frame given.
"""

import json
import pathlib
import sys

import ml_dtypes
import numpy as np

BLOCK = 128
SOURCES = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}
PLAIN = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}
f32 = np.float32
WHOLE = 1 << 40
SHAPES = {"fp8_e4m3_128x128_fp32": (128, 128), "fp8_e4m3_128x128_ue8m0": (128, 128), "fp8_e4m3_tensor": (WHOLE, WHOLE),
          "fp8_e4m3_channel": (1, WHOLE), "mxfp8_e4m3_1x32": (1, 32), "nvfp4_e2m1_1x16": (1, 16)}


def block_numbers(first, count, edge=BLOCK):
    """The number of the block, counted from the first one touched, for each of `count` positions."""
    positions = np.arange(first, first + count) // edge
    return positions - positions[0]


def power_of_two_above(values):
    """The exponent of the least power of two that is not below each value (above 0, FP32)."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.where(mantissa == 0.5, exponent - 1, exponent)


def scales_of(recipe, amax):
    """What the values of each block are multiplied with, the scales as stored, and the tensor's scale or None."""
    inverse_448 = f32(1) / f32(448)
    if recipe == "fp8_e4m3_128x128_fp32":
        scale = np.maximum(amax, f32(1e-10)) * inverse_448
        return f32(1) / scale, scale, None
    if recipe == "fp8_e4m3_128x128_ue8m0":
        scale = np.exp2(power_of_two_above(np.maximum(amax, f32(1e-4)) * inverse_448)).astype("f4")
        return f32(1) / scale, scale, None
    if recipe in ("fp8_e4m3_tensor", "fp8_e4m3_channel"):
        scale = np.maximum(amax, f32(1e-10)) / f32(448)
        return f32(1) / scale, scale, None
    if recipe == "mxfp8_e4m3_1x32":
        least = f32(2.0**-127)
        exponent = power_of_two_above(np.maximum(amax * inverse_448, least))
        inverse = np.where(exponent == -127, f32(1), np.exp2(-exponent.astype(np.float64)).astype("f4"))
        return inverse, (exponent + 127).astype(np.uint8), None
    most, largest = np.finfo("f4").max, amax.max()
    with np.errstate(over="ignore", divide="ignore"):
        tensor = f32(1) if largest == 0 else min(f32(448 * 6) / largest, most)
        stored = np.minimum(amax * (tensor * (f32(1) / f32(6))), f32(448)).astype(ml_dtypes.float8_e4m3fn)
        inverse = np.minimum(f32(1) / (stored.astype("f4") * (f32(1) / tensor)), most)
    return inverse, stored, f32(1) / tensor


def quantised(recipe, rounded, origin):
    """The bytes of each row of BF16 values, the amax values, the scales of blocks as stored and of the tensor."""
    values = rounded.astype("f4")
    edge = SHAPES[recipe]
    rows = block_numbers(origin[0], values.shape[0], edge[0])
    cols = block_numbers(origin[1], values.shape[1], edge[1])
    amax = np.zeros((rows[-1] + 1, cols[-1] + 1), "f4")
    np.maximum.at(amax, (rows[:, None], cols[None, :]), np.abs(values))
    inverse, stored, tensor = scales_of(recipe, amax)
    with np.errstate(over="ignore"):
        scaled = values * inverse[rows[:, None], cols[None, :]]
    if recipe != "nvfp4_e2m1_1x16":
        return np.clip(scaled, -448, 448).astype(ml_dtypes.float8_e4m3fn), amax, stored, tensor
    codes = np.clip(scaled, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return codes[:, ::2] | codes[:, 1::2] << 4, np.append(amax, amax.max()), stored, tensor


def digest(output, frame):
    """Sum of mix(word) over the 8-byte words of the rows, in Python's integers."""
    total = 0
    for row, line in enumerate(output):
        line = bytes(frame["first_byte"] % 8) + line
        line += bytes(-len(line) % 8)
        first = (frame["first_row"] + row) * frame["words_per_row"] + frame["first_byte"] // 8
        for number, word in enumerate(np.frombuffer(line, "<u8").tolist()):
            x = word ^ ((frame["seed"] + (first + number) * 0x9E3779B97F4A7C15) % 2**64)
            total += (x % 2**32 + 1) * ((x >> 32) + 2**32)
    return total % 2**64


def matrices():
    """Name, source type, origin, values as FP32."""
    random = np.random.RandomState(20250)  # its streams are frozen by NumPy's policy
    sizes = 2.0 ** random.randint(-12, 3, (3, 3))  # one magnitude for each block

    def weights(rows, cols, origin=(0, 0)):
        block_rows, block_cols = block_numbers(origin[0], rows), block_numbers(origin[1], cols)
        return (random.standard_normal((rows, cols)) * sizes[block_rows[:, None], block_cols[None, :]]).astype("f4")

    yield "ragged blocks", "bf16", (0, 0), weights(130, 136)
    yield "one row, cut from within a block", "bf16", (77, 100), weights(1, 259, (77, 100))
    yield "a corner where four blocks meet", "fp32", (100, 120), weights(56, 23, (100, 120))
    yield "half precision", "fp16", (0, 64), weights(24, 130, (0, 64))
    corners = np.array([0, -0.0, 1, -1, 2.0**-126, 2.0**-130, -(2.0**-133), 448, 464, 2**15, -65504, 2.0**-14, 2.0**-24,
                        2.0**-25, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11], "f4")
    yield "corners", "fp32", (0, 0), np.repeat(corners, 8).reshape(-1, 8)
    yield "zeros of both signs", "bf16", (0, 0), np.tile(np.array([0, -0.0], "f4"), (3, 5))
    yield "a block of tiny values", "bf16", (0, 0), random.standard_normal((9, 33)).astype("f4") * np.float32(1e-11)
    steps = (np.arange(0, 120 * 128).reshape(120, 128) % 4096).astype("f4")  # many halfway between two codes
    yield "every kind of magnitude", "fp32", (3, 48), (np.exp2(random.randint(-149, 127, (5, 320)).astype("f8")) *
                                                      random.choice([1, 1.25, 1.5, 1.75, -1], (5, 320))).astype("f4")
    yield "steps", "bf16", (0, 0), steps * np.float32(448 / 4080)


def main(folder):
    cases, blob = [], bytearray()

    def put(array):
        start = len(blob)
        blob.extend(np.ascontiguousarray(array).tobytes())
        return [start, len(blob) - start]

    for number, (name, source, origin, values) in enumerate(matrices()):
        values = values.astype(SOURCES[source])
        case = {"name": name, "source": source, "origin": list(origin), "rows": values.shape[0],
                "cols": values.shape[1], "input": put(values), "outputs": []}
        wide = values.astype(np.float32)
        rounded = wide.astype(ml_dtypes.bfloat16)
        for place, recipe in enumerate([*PLAIN, *SHAPES]):
            one = {"recipe": recipe}
            if recipe in PLAIN:
                with np.errstate(over="ignore"):
                    output = wide.astype(PLAIN[recipe])
                if not np.isfinite(output.astype("f4")).all():
                    continue  # an error, which other tests are about
                if source == "bf16" and output.size > 1000:
                    continue  # keeps the files small: these are plain copies and widenings
            else:
                if place > 5 and values.size > 10000 and name != "ragged blocks":
                    continue  # small files again
                output, amax, stored, tensor = quantised(recipe, rounded, origin)
                one |= {"amax": put(amax), "scales": put(stored)}
                if tensor is not None:
                    one["tensor_scale"] = put(tensor)
            frame = {"seed": number * 0x123456789ABCDEF, "words_per_row": 1000, "first_row": number,
                     "first_byte": 8 * number + number % 3}
            one |= {"bytes": put(output), "frame": frame, "digest": digest([row.tobytes() for row in output], frame)}
            case["outputs"].append(one)
        cases.append(case)
    (folder / "cast.bin").write_bytes(blob)
    (folder / "cast.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
