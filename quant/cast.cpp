#include "quant/cast.h"

#include "quant/blocks.h"
#include "quant/cast_reference.h"

namespace weightcast {

bool is_available(CastKernel kernel) noexcept {
  return kernel == CastKernel::automatic || kernel == CastKernel::reference;
}

float scale_of_amax(float amax) noexcept {
  constexpr float kLeastAmax = 1e-10F;
  constexpr float kInverseOfLargest = 1.0F / 448.0F;
  return (amax > kLeastAmax ? amax : kLeastAmax) * kInverseOfLargest;
}

std::uint64_t blocks_touched(const SourceMatrix& source, BlockOrigin origin) noexcept {
  return BlockGrid(source, origin).size();
}

BadValue block_amax(const SourceMatrix& source, BlockOrigin origin, std::span<float> amax,
                    CastKernel /*kernel*/) noexcept {
  return reference::block_amax(source, origin, amax);
}

CastResult cast(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, std::span<const float> amax,
                std::byte* output, std::int64_t output_row_bytes, const DigestFrame& frame,
                CastKernel /*kernel*/) noexcept {
  return reference::cast(source, recipe, origin, amax, output, output_row_bytes, frame);
}

CastResult inspect(const SourceMatrix& source, const DigestFrame& frame, CastKernel /*kernel*/) noexcept {
  return reference::inspect(source, frame);
}

}  // namespace weightcast
