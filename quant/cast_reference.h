// The specification of the cast: one value at a time, any type, any strides. Contracts as in quant/cast.h.
// Internal to quant/.
#pragma once

#include "quant/cast.h"

namespace weightcast::reference {

[[nodiscard]] BadValue block_amax(const SourceMatrix& source, Recipe recipe, BlockOrigin origin,
                                  std::span<float> amax) noexcept;

[[nodiscard]] CastResult cast(const SourceMatrix& source, Recipe recipe, BlockOrigin origin,
                              std::span<const float> amax, std::byte* output, std::int64_t output_row_bytes,
                              const DigestFrame& frame) noexcept;

[[nodiscard]] CastResult inspect(const SourceMatrix& source, const DigestFrame& frame) noexcept;

}  // namespace weightcast::reference
