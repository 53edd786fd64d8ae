// The cast through row kernels: equal to quant/cast_reference.h bit for bit, faster. Contracts as in quant/cast.h.
// Sources other than contiguous BF16 are gathered and rounded to BF16 piece by piece in the cache. Internal to quant/.
#pragma once

#include "quant/cast.h"
#include "quant/row_kernels.h"

namespace weightcast::rows {

[[nodiscard]] BadValue block_amax(const SourceMatrix& source, BlockOrigin origin, std::span<float> amax,
                                  const RowKernels& kernels) noexcept;

// For recipes that round to BF16 first: bf16 and fp8_e4m3_128x128_fp32.
[[nodiscard]] CastResult cast(const SourceMatrix& source, Recipe recipe, BlockOrigin origin,
                              std::span<const float> amax, std::byte* output, std::int64_t output_row_bytes,
                              const DigestFrame& frame, const RowKernels& kernels) noexcept;

// For contiguous rows of BF16.
[[nodiscard]] CastResult inspect(const SourceMatrix& source, const DigestFrame& frame,
                                 const RowKernels& kernels) noexcept;

// True when rows are values side by side.
[[nodiscard]] inline bool is_contiguous(const SourceMatrix& source) noexcept {
  return source.col_stride == 1 || source.cols == 1;
}

}  // namespace weightcast::rows
