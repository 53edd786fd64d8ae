"""The same cast by others on one GPU: torch's eager operations, a Triton kernel and, where it is installed, Transformer
Engine's block quantiser (whose scales may differ in the last bit), beside a copy, in one process.

usage: cast_peers.py [--gb 16] [--rounds 20] [--json FILE]

BF16 to FP8 E4M3 with a scale per 128x128 block, on the mix of shapes of cast_bench. Every output is compared with the
recipe's definition, computed by torch on the CPU. Shares count 3 bytes per value against the copy of this run.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
import triton
import triton.language as tl

MIX = [(7168, 2048), (4096, 1536), (4096, 4096), (7168, 576)]
BLOCK = 128


@triton.jit
def cast_kernel(x_pointer, y_pointer, s_pointer, rows, cols, largest, BLOCK: tl.constexpr):
    """One program to a block: as slime, Miles and verl write it."""
    row, col = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    r = row * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    c = col * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    inside = (r[:, None] < rows) & (c[None, :] < cols)
    at = r[:, None] * cols + c[None, :]
    x = tl.load(x_pointer + at, mask=inside, other=0.0).to(tl.float32)
    amax = tl.maximum(tl.max(tl.abs(x)), 1e-10)
    scale = amax / largest
    y = tl.minimum(tl.maximum(x * (1.0 / scale), -448.0), 448.0).to(y_pointer.dtype.element_ty)
    tl.store(y_pointer + at, y, mask=inside)
    tl.store(s_pointer + row * tl.cdiv(cols, BLOCK) + col, scale)


def by_triton(x, y, s):
    grid = (triton.cdiv(x.shape[0], BLOCK), triton.cdiv(x.shape[1], BLOCK))
    cast_kernel[grid](x, y, s, x.shape[0], x.shape[1], 448.0, BLOCK=BLOCK, num_warps=8)


def by_torch(x, y, s):
    """DeepGEMM's per_block_cast_to_fp8 with this recipe's floor."""
    rows, cols = x.shape
    block_rows, block_cols = -(-rows // BLOCK), -(-cols // BLOCK)
    padded = x
    if (block_rows * BLOCK, block_cols * BLOCK) != (rows, cols):
        padded = x.new_zeros(block_rows * BLOCK, block_cols * BLOCK)
        padded[:rows, :cols] = x
    blocks = padded.view(block_rows, BLOCK, block_cols, BLOCK)
    scale = blocks.abs().float().amax(dim=(1, 3), keepdim=True).clamp(1e-10) / 448.0
    codes = (blocks * (1.0 / scale)).to(torch.float8_e4m3fn).view(block_rows * BLOCK, block_cols * BLOCK)
    y.copy_(codes[:rows, :cols])
    s.copy_(scale.view(block_rows, block_cols))


def transformer_engine_casts(matrices):
    """A run over all matrices and what it wrote: (run, codes and scales by matrix). None and the reason without it."""
    try:
        import transformer_engine_torch as tex
        from transformer_engine.pytorch.tensor.float8_blockwise_tensor import Float8BlockQuantizer
    except (ImportError, OSError) as error:
        return None, f"not installed ({type(error).__name__}: {error})"
    try:
        quantizer = Float8BlockQuantizer(fp8_dtype=tex.DType.kFloat8E4M3, rowwise=True, columnwise=False, amax_epsilon=0.0,
                                         force_pow_2_scales=False, block_scaling_dim=2)
        outputs = [quantizer.make_empty(x.shape, dtype=x.dtype, device=x.device) for x, _, _ in matrices]

        def run():
            for (x, _, _), output in zip(matrices, outputs, strict=True):
                quantizer.update_quantized(x, output)

        run()
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001, a version with another interface, or a GPU that it does not serve
        return None, f"installed, but does not run here ({type(error).__name__}: {error})"
    written = [(output._rowwise_data, output._rowwise_scale_inv[:, : -(-x.shape[1] // BLOCK)])
               for (x, _, _), output in zip(matrices, outputs, strict=True)]  # fmt: skip
    return run, written


def definition(x):
    """Codes and scales by torch on the CPU, one operation of the recipe at a time."""
    x = x.cpu().float()
    block_rows, block_cols = -(-x.shape[0] // BLOCK), -(-x.shape[1] // BLOCK)
    padded = torch.zeros(block_rows * BLOCK, block_cols * BLOCK)
    padded[: x.shape[0], : x.shape[1]] = x
    blocks = padded.view(block_rows, BLOCK, block_cols, BLOCK)
    inverse_448 = torch.ones(()) / torch.tensor(448.0)
    scale = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(1e-10) * inverse_448
    codes = (blocks * (torch.ones(()) / scale)).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes.view(padded.shape)[: x.shape[0], : x.shape[1]].contiguous(), scale.view(block_rows, block_cols)


def seconds_of(run, rounds):
    times = []
    for turn in range(rounds + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        if turn >= 2:
            times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json")
    arguments = parser.parse_args()

    shapes, values = [], 0
    while values * 2 < arguments.gb * 1e9:
        shapes.append(MIX[len(shapes) % len(MIX)])
        values += shapes[-1][0] * shapes[-1][1]
    torch.manual_seed(1)
    source = torch.empty(values, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
    codes = torch.empty(values, dtype=torch.float8_e4m3fn, device="cuda")
    matrices, at = [], 0
    for rows, cols in shapes:
        scales = torch.empty(-(-rows // BLOCK), -(-cols // BLOCK), device="cuda")
        matrices.append((source[at : at + rows * cols].view(rows, cols), codes[at : at + rows * cols].view(rows, cols), scales))
        at += rows * cols
    half = source[: values // 2].view(torch.uint8)

    def all_by(cast):
        return lambda: [cast(*matrix) for matrix in matrices]

    graph = torch.cuda.CUDAGraph()
    all_by(by_triton)()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        all_by(by_triton)()
    cases = {"copy": lambda: codes.view(torch.uint8).copy_(half), "triton, a launch per matrix": all_by(by_triton),
             "triton, in a CUDA graph": graph.replay, "torch eager": all_by(by_torch)}
    written = dict.fromkeys(cases, [(y, s) for _, y, s in matrices])
    run, found = transformer_engine_casts(matrices)
    if run is not None:
        cases["transformer engine"], written["transformer engine"] = run, found
    result = {"bench": "cast_peers", "device": torch.cuda.get_device_name(), "torch": torch.__version__,
              "triton": triton.__version__, "bf16_gb": 2e-9 * values, "rounds": arguments.rounds}
    if run is None:
        result["transformer engine"] = found
        print(f"transformer engine: {found}")
    copy = None
    for name, run in cases.items():
        times = seconds_of(run, arguments.rounds)
        moved = 2 * values if name == "copy" else 3 * values
        rate = [moved / t / 1e9 for t in times]
        copy = copy or statistics.median(rate)
        wrong = wrong_scales = 0
        if name != "copy":
            for (x, _, _), (y, s) in list(zip(matrices, written[name], strict=True))[: len(MIX)]:
                wanted, wanted_scales = definition(x)
                wrong += int((y.cpu().view(torch.uint8) != wanted.view(torch.uint8)).sum())
                wrong_scales += int((s.cpu() != wanted_scales).sum())
        result[name] = {"ms": [1e3 * times[0], 1e3 * statistics.median(times), 1e3 * times[-1]],
                        "share_of_copy": [rate[-1] / copy, statistics.median(rate) / copy, rate[0] / copy],
                        "codes_that_differ": wrong, "scales_that_differ": wrong_scales}
        print(f"{name:30} {1e3 * statistics.median(times):9.3f} ms  {statistics.median(rate):7.1f} GB/s "
              f"{100 * statistics.median(rate) / copy:6.1f} % of copy  {'' if name == 'copy' else f'{wrong} codes, {wrong_scales} scales differ'}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
