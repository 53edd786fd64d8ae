// Any bits in any matrix: every kernel says and writes what the reference does, and writes nothing beside it.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "quant/cast.h"

namespace {

using namespace weightcast;

constexpr Recipe kFp8 = Recipe::fp8_e4m3_128x128_fp32;
constexpr std::size_t kHeaderBytes = 12;
constexpr std::size_t kFringe = 64;  // bytes around an output that no kernel may touch

void require(bool holds) {
  if (!holds) std::abort();
}

struct Written {
  std::vector<std::byte> memory;
  CastResult result;
};

Written write(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, const std::vector<float>& amax,
              const DigestFrame& frame, CastKernel kernel) {
  const auto row_bytes = source.cols * static_cast<std::int64_t>(element_bytes(recipe));
  Written written = {std::vector<std::byte>(static_cast<std::size_t>(source.rows * row_bytes) + 2 * kFringe), {}};
  written.result = cast(source, recipe, origin, amax, written.memory.data() + kFringe, row_bytes, frame, kernel);
  return written;
}

bool same(const CastResult& left, const CastResult& right) {
  return left.bad.row == right.bad.row && left.bad.col == right.bad.col && left.digest == right.digest;
}

bool is_zero(const std::byte* begin) {
  return std::all_of(begin, begin + kFringe, [](std::byte byte) { return byte == std::byte{0}; });
}

void compare(const SourceMatrix& source, BlockOrigin origin, const DigestFrame& frame, float stranger) {
  std::vector<float> expected_amax(blocks_touched(source, kFp8, origin));
  const auto bad = block_amax(source, kFp8, origin, expected_amax, CastKernel::reference);
  for (const auto kernel : {CastKernel::automatic, CastKernel::avx2, CastKernel::avx512}) {
    if (!is_available(kernel)) continue;
    std::vector<float> amax(expected_amax.size());
    const auto found = block_amax(source, kFp8, origin, amax, kernel);
    require(found.row == bad.row && found.col == bad.col);
    if (!bad.found()) require(amax == expected_amax);
    // A peer's amax may be any bits: the codes are then wrong, but the same everywhere.
    if (source.rows % 2 == 0) std::fill(amax.begin(), amax.end(), stranger);
    for (const auto recipe : {Recipe::bf16, kFp8}) {
      const auto expected = write(source, recipe, origin, amax, frame, CastKernel::reference);
      const auto written = write(source, recipe, origin, amax, frame, kernel);
      require(same(written.result, expected.result));
      require(is_zero(written.memory.data()) && is_zero(written.memory.data() + written.memory.size() - kFringe));
      if (!expected.result.bad.found()) require(written.memory == expected.memory);
    }
    if (source.col_stride == 1) {
      require(same(inspect(source, frame, kernel), inspect(source, frame, CastKernel::reference)));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes) {
  if (input_bytes <= kHeaderBytes) return 0;
  const auto type = static_cast<SourceType>(input[0] % 3);
  const std::int64_t rows = 1 + input[1] % 5;
  const std::int64_t cols = 1 + input[2];
  const std::int64_t col_stride = std::array{1, 1, -1, 2}[input[3] % 4];
  const BlockOrigin origin = {input[4], input[5]};
  const DigestFrame frame = {input[6] * 0x0123456789ABCDEFU, 512, input[6], input[7]};
  float stranger = 0;
  std::memcpy(&stranger, input + 8, sizeof stranger);

  // The values repeat to fill the matrix.
  const auto element = static_cast<std::int64_t>(element_bytes(type));
  const std::int64_t row_stride = cols * std::abs(col_stride);
  std::vector<std::byte> memory(static_cast<std::size_t>(rows * row_stride * element));
  for (std::size_t at = 0; at < memory.size(); ++at) {
    memory[at] = static_cast<std::byte>(input[kHeaderBytes + at % (input_bytes - kHeaderBytes)]);
  }
  const auto* const first = memory.data() + (col_stride < 0 ? (cols - 1) * element : 0);
  compare({first, type, rows, cols, row_stride, col_stride}, origin, frame, stranger);
  return 0;
}
