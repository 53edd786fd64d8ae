#include "quant/cast.h"

#include "quant/blocks.h"
#include "quant/cast_reference.h"
#include "quant/cast_rows.h"

namespace weightcast {
namespace {

// nullptr: the reference does it.
const RowKernels* kernels_of(CastKernel kernel) noexcept {
  if (!is_available(kernel)) return nullptr;
  switch (kernel) {
    case CastKernel::automatic: return best_row_kernels();
    case CastKernel::reference: return nullptr;
#ifdef __x86_64__
    case CastKernel::avx2: return &kAvx2Rows;
    case CastKernel::avx512: return &kAvx512Rows;
#else
    case CastKernel::avx2:
    case CastKernel::avx512: return nullptr;
#endif
  }
  return nullptr;
}

}  // namespace

float scale_of_amax(float amax) noexcept {
  constexpr float kLeastAmax = 1e-10F;
  constexpr float kInverseOfLargest = 1.0F / 448.0F;
  return (amax > kLeastAmax ? amax : kLeastAmax) * kInverseOfLargest;
}

std::uint64_t blocks_touched(const SourceMatrix& source, BlockOrigin origin) noexcept {
  return BlockGrid(source, origin).size();
}

BadValue block_amax(const SourceMatrix& source, BlockOrigin origin, std::span<float> amax, CastKernel kernel) noexcept {
  const RowKernels* const kernels = kernels_of(kernel);
  if (kernels == nullptr) return reference::block_amax(source, origin, amax);
  return rows::block_amax(source, origin, amax, *kernels);
}

CastResult cast(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, std::span<const float> amax,
                std::byte* output, std::int64_t output_row_bytes, const DigestFrame& frame,
                CastKernel kernel) noexcept {
  const bool rounds_to_bf16 = recipe == Recipe::bf16 || recipe == Recipe::fp8_e4m3_128x128_fp32;
  const RowKernels* const kernels = rounds_to_bf16 ? kernels_of(kernel) : nullptr;
  if (kernels == nullptr) return reference::cast(source, recipe, origin, amax, output, output_row_bytes, frame);
  return rows::cast(source, recipe, origin, amax, output, output_row_bytes, frame, *kernels);
}

CastResult inspect(const SourceMatrix& source, const DigestFrame& frame, CastKernel kernel) noexcept {
  const bool is_bf16 = source.type == SourceType::bf16 && rows::is_contiguous(source);
  const RowKernels* const kernels = is_bf16 ? kernels_of(kernel) : nullptr;
  return kernels == nullptr ? reference::inspect(source, frame) : rows::inspect(source, frame, *kernels);
}

}  // namespace weightcast
