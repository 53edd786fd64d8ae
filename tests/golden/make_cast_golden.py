"""Writes cast.json and cast.bin: matrices and what each recipe makes of them, by NumPy and ml_dtypes alone.

usage: make_cast_golden.py [FOLDER]

cast.json lists the cases; every [offset, bytes] is a range of cast.bin. Matrices are row-major; `amax` has one FP32 per
128x128 block touched, row-major; the digest is that of the output rows in the frame given.
"""

import json
import pathlib
import sys

import ml_dtypes
import numpy as np

BLOCK = 128
SOURCES = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}
PLAIN = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}
FP8 = "fp8_e4m3_128x128_fp32"


def block_numbers(first, count):
    """The number of the block, counted from the first one touched, for each of `count` positions."""
    positions = np.arange(first, first + count) // BLOCK
    return positions - positions[0]


def fp8(rounded, origin):
    """Codes and amax of BF16 values: scale = max(amax, 1e-10) * fl(1/448), code = value * (1 / scale), in FP32."""
    values = rounded.astype(np.float32)
    rows, cols = block_numbers(origin[0], values.shape[0]), block_numbers(origin[1], values.shape[1])
    amax = np.zeros((rows[-1] + 1, cols[-1] + 1), np.float32)
    np.maximum.at(amax, (rows[:, None], cols[None, :]), np.abs(values))
    scale = np.maximum(amax, np.float32(1e-10)) * (np.float32(1) / np.float32(448))
    scaled = values * (np.float32(1) / scale)[rows[:, None], cols[None, :]]
    return np.clip(scaled, -448, 448).astype(ml_dtypes.float8_e4m3fn), amax


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
        outputs = {recipe: wide.astype(kind) for recipe, kind in PLAIN.items()}
        outputs[FP8], amax = fp8(rounded, origin)
        case["amax"] = put(amax)
        for recipe, output in outputs.items():
            if source == "bf16" and recipe != FP8 and output.size > 1000:
                continue  # keeps the files small: these are plain copies and widenings
            frame = {"seed": number * 0x123456789ABCDEF, "words_per_row": 1000, "first_row": number,
                     "first_byte": 8 * number + number % 3}
            case["outputs"].append({"recipe": recipe, "bytes": put(output), "frame": frame,
                                    "digest": digest([row.tobytes() for row in output], frame)})
        cases.append(case)
    (folder / "cast.bin").write_bytes(blob)
    (folder / "cast.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
