#include "quant/cast.h"

#include <cstring>

#include "quant/blocks.h"
#include "quant/cast_reference.h"
#include "quant/cast_rows.h"
#include "quant/scales.h"

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

std::uint64_t blocks_touched(const SourceMatrix& source, Recipe recipe, BlockOrigin origin) noexcept {
  return BlockGrid(source, origin, block_shape(recipe)).size();
}

std::uint64_t amax_values(const SourceMatrix& source, Recipe recipe, BlockOrigin origin) noexcept {
  return blocks_touched(source, recipe, origin) + (has_tensor_scale(recipe) ? 1 : 0);
}

float scale_of_amax(Recipe recipe, float amax) noexcept {
  return has_tensor_scale(recipe) ? 1.0F / tensor_multiplier(amax) : block_scale(recipe, amax, 0).scale;
}

void encode_scales(Recipe recipe, std::span<const float> block_amax, float tensor_amax, std::byte* scales) noexcept {
  const float tensor = has_tensor_scale(recipe) ? tensor_multiplier(tensor_amax) : 0;
  for (const float amax : block_amax) {
    const BlockScale scale = block_scale(recipe, amax, tensor);
    std::memcpy(scales, &scale.stored, scale_bytes(recipe));  // little-endian
    scales += scale_bytes(recipe);
  }
}

BadValue block_amax(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, std::span<float> amax,
                    CastKernel kernel) noexcept {
  const BlockShape shape = block_shape(recipe);
  const bool is_square = shape.rows == kBlock && shape.cols == kBlock;
  const RowKernels* const kernels = is_square ? kernels_of(kernel) : nullptr;
  if (kernels == nullptr) return reference::block_amax(source, recipe, origin, amax);
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
