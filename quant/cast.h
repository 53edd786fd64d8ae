// Casting on the CPU. cast_reference.cpp is the specification; the AVX2 and AVX-512 versions equal it bit for bit
// and are chosen at run time. Pure functions: no allocation, no threads, no state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "quant/digest.h"
#include "quant/recipe.h"

namespace weightcast {

// A matrix in memory; strides in elements, any sign, so row-major, column-major and interleaved all fit.
struct SourceMatrix {
  const std::byte* data = nullptr;
  SourceType type = SourceType::bf16;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 1;
};

// Where the matrix lies in its checkpoint tensor: fixes which 128x128 block an element belongs to.
struct BlockOrigin {
  std::int64_t row = 0;
  std::int64_t col = 0;
};

enum class CastKernel { automatic, reference, avx2, avx512 };  // automatic: the best this CPU has
[[nodiscard]] bool is_available(CastKernel kernel) noexcept;

// The first value that no recipe can represent: NaN, Inf, or an overflow of fp16.
struct BadValue {
  std::int64_t row = -1;  // within the matrix; -1: none
  std::int64_t col = -1;
  [[nodiscard]] bool found() const noexcept { return row >= 0; }
};

// amax of the part of each of the recipe's blocks that `source` covers, row-major over the blocks it touches:
// amax[(block_row - first_block_row) * block_cols_touched + (block_col - first_block_col)], plain max |x| (no floor).
// Where the recipe has a tensor scale, the amax of the whole source follows. `amax` has amax_values() values; they are
// overwritten. A maximum is exact, so values of shards merge into those of the whole in any order.
[[nodiscard]] BadValue block_amax(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, std::span<float> amax,
                                  CastKernel kernel = CastKernel::automatic) noexcept;
[[nodiscard]] std::uint64_t blocks_touched(const SourceMatrix& source, Recipe recipe, BlockOrigin origin) noexcept;
// blocks_touched(), and one more where the recipe has a tensor scale.
[[nodiscard]] std::uint64_t amax_values(const SourceMatrix& source, Recipe recipe, BlockOrigin origin) noexcept;

// The FP32 scale of a block (of the tensor, for recipes with a tensor scale) whose amax this is.
[[nodiscard]] float scale_of_amax(Recipe recipe, float amax) noexcept;
// The scales of blocks as they are stored, scale_bytes(recipe) each, in order; the tensor's amax counts where the
// recipe has a tensor scale.
void encode_scales(Recipe recipe, std::span<const float> block_amax, float tensor_amax, std::byte* scales) noexcept;

struct CastResult {
  BadValue bad;       // the output is unspecified when found
  Digest digest = 0;  // of the output, by `frame`
};

// Writes `source` under `recipe` to `output`: rows of row_bytes(recipe, cols), `output_row_bytes` apart. For recipes
// with scales, `amax` holds the amax of each whole block touched, laid out as block_amax() does (after the exchange for
// blocks that straddle shards, and of the whole tensor). Source and output do not overlap. The columns of nvfp4 begin
// at an even one.
[[nodiscard]] CastResult cast(const SourceMatrix& source, Recipe recipe, BlockOrigin origin,
                              std::span<const float> amax, std::byte* output, std::int64_t output_row_bytes,
                              const DigestFrame& frame, CastKernel kernel = CastKernel::automatic) noexcept;

// Digest and NaN/Inf check of a contiguous-row BF16 source that is put as it is, in one pass over memory.
[[nodiscard]] CastResult inspect(const SourceMatrix& source, const DigestFrame& frame,
                                 CastKernel kernel = CastKernel::automatic) noexcept;

}  // namespace weightcast
