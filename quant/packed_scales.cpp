#include "quant/packed_scales.h"

#include <cstring>

#include "quant/recipe.h"

namespace weightcast {

void pack_scales(const PackedScalesJob& job) noexcept {
  for (std::int64_t first = 0; first < job.block_cols; first += 4) {
    std::byte* word = job.packed + static_cast<std::uint64_t>(first / 4) * job.group_stride_bytes;
    for (std::int64_t row = 0; row < job.rows; ++row, word += 4) {
      for (std::int64_t col = first; col < first + 4; ++col) {
        std::uint32_t bits = 0;
        if (col < job.block_cols) {
          std::memcpy(&bits, job.scales + 4 * (row / kBlock * job.row_stride + col * job.col_stride), sizeof bits);
        }
        word[col - first] = static_cast<std::byte>(bits >> 23);
      }
    }
  }
}

}  // namespace weightcast
