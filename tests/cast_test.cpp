#include "quant/cast.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

using namespace weightcast;

namespace {

constexpr auto kFp8 = Recipe::fp8_e4m3_128x128_fp32;
constexpr std::array kRecipes = {Recipe::bf16, Recipe::fp16, Recipe::fp32, kFp8};
constexpr std::array kSources = {SourceType::bf16, SourceType::fp16, SourceType::fp32};
using Random = std::mt19937_64;

std::int64_t pick(Random& random, std::int64_t least, std::int64_t most) {
  return std::uniform_int_distribution<std::int64_t>(least, most)(random);
}

std::vector<CastKernel> kernels() {
  std::vector<CastKernel> available;
  for (const auto kernel : {CastKernel::automatic, CastKernel::reference, CastKernel::avx2, CastKernel::avx512}) {
    if (is_available(kernel)) available.push_back(kernel);
  }
  return available;
}

// A matrix that owns its memory, in any layout.
struct Matrix {
  std::vector<std::byte> memory;
  SourceMatrix view;

  void set(std::int64_t row, std::int64_t col, std::uint32_t bits) {
    const auto size = static_cast<std::int64_t>(element_bytes(view.type));
    const auto at = view.data - memory.data() + (row * view.row_stride + col * view.col_stride) * size;
    std::memcpy(memory.data() + at, &bits, static_cast<std::size_t>(size));
  }
};

enum class Layout { packed, padded, column_major, rows_upwards, columns_backwards, interleaved, odd_address };
constexpr std::array kLayouts = {
    Layout::packed,      Layout::padded,     Layout::column_major, Layout::rows_upwards, Layout::columns_backwards,
    Layout::interleaved, Layout::odd_address};

Matrix make_matrix(SourceType type, std::int64_t rows, std::int64_t cols, Layout layout = Layout::packed) {
  Matrix matrix = {{}, {nullptr, type, rows, cols, cols, 1}};
  auto& view = matrix.view;
  std::int64_t first = 0;  // the place of element (0, 0)
  switch (layout) {
    case Layout::packed:
    case Layout::odd_address: break;
    case Layout::padded: view.row_stride = cols + 5; break;
    case Layout::column_major: view.row_stride = 1, view.col_stride = rows; break;
    case Layout::rows_upwards: view.row_stride = -cols, first = (rows - 1) * cols; break;
    case Layout::columns_backwards: view.col_stride = -1, first = cols - 1; break;
    case Layout::interleaved: view.row_stride = 3 * cols, view.col_stride = 3; break;
  }
  const auto size = static_cast<std::int64_t>(element_bytes(type));
  matrix.memory.resize(static_cast<std::size_t>((3 * rows * cols + 5 * rows) * size + 1));
  view.data = matrix.memory.data() + first * size + (layout == Layout::odd_address ? 1 : 0);
  return matrix;
}

// Weight-like values of every exponent that occurs after scaling, with zeros, subnormals and a few extremes.
std::vector<std::uint32_t> random_bits(SourceType type, std::int64_t count, Random& random) {
  std::vector<std::uint32_t> bits(static_cast<std::size_t>(count));
  for (auto& value : bits) {
    const auto raw = static_cast<std::uint32_t>(random());
    const std::uint32_t exponent = pick(random, 0, 30) == 0 ? raw >> 8 & 0xFF : 110 + raw % 18;
    value = (raw & 0x807FFFFF) | (std::min(exponent, 253U) << 23);
    if (pick(random, 0, 40) == 0) value &= 0x80000000;
    if (type == SourceType::bf16) value >>= 16;
    if (type == SourceType::fp16) value = (raw >> 16) % 0x7C00 | (raw & 0x8000);
  }
  return bits;
}

Matrix random_matrix(SourceType type, std::int64_t rows, std::int64_t cols, Random& random,
                     Layout layout = Layout::packed) {
  auto matrix = make_matrix(type, rows, cols, layout);
  const auto bits = random_bits(type, rows * cols, random);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      matrix.set(row, col, bits[static_cast<std::size_t>(row * cols + col)]);
    }
  }
  return matrix;
}

std::vector<float> amax_of(const SourceMatrix& source, BlockOrigin origin, CastKernel kernel = CastKernel::reference) {
  std::vector<float> amax(blocks_touched(source, origin), -1);
  REQUIRE(!block_amax(source, origin, amax, kernel).found());
  return amax;
}

struct Output {
  std::vector<std::byte> bytes;
  CastResult result;
};

Output cast_of(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, const std::vector<float>& amax,
               const DigestFrame& frame = {}, CastKernel kernel = CastKernel::automatic) {
  const auto row_bytes = source.cols * static_cast<std::int64_t>(element_bytes(recipe));
  Output output = {std::vector<std::byte>(static_cast<std::size_t>(source.rows * row_bytes)), {}};
  output.result = cast(source, recipe, origin, amax, output.bytes.data(), row_bytes, frame, kernel);
  return output;
}

// By their definition: of all representable magnitudes the nearest, of two nearest the even one.
double nearest_step(double value, int mantissa_bits, int least_exponent) {
  const int exponent = value == 0 ? least_exponent : std::max(std::ilogb(value), least_exponent);
  return std::ldexp(std::nearbyint(std::ldexp(value, mantissa_bits - exponent)), exponent - mantissa_bits);
}

double value_of_e4m3(std::byte code) {
  const int magnitude = static_cast<int>(code) & 0x7F;
  const double value = std::ldexp((magnitude >= 8 ? 8 : 0) + (magnitude & 7), std::max(magnitude >> 3, 1) - 10);
  return (static_cast<int>(code) & 0x80) != 0 ? -value : value;
}

bool same_number(double left, double right) { return left == right && std::signbit(left) == std::signbit(right); }

float float_at(const std::vector<std::byte>& bytes, std::size_t index) {
  float value = 0;
  std::memcpy(&value, bytes.data() + index * sizeof value, sizeof value);
  return value;
}

float bf16_at(const std::vector<std::byte>& bytes, std::size_t index) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, bytes.data() + index * sizeof bits, sizeof bits);
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace

TEST_CASE("every finite BF16 value under many scales becomes the nearest E4M3 code, in every kernel") {
  auto source = make_matrix(SourceType::bf16, 1, 2 * 0x7F80);
  for (std::uint32_t bits = 0; bits < 0x7F80; ++bits) {
    source.set(0, bits, bits);
    source.set(0, 0x7F80 + bits, 0x8000 | bits);
  }
  for (const float amax : {1.0F, 0.0371F, 448.0F, 3e-9F, 1.7e38F, 1e-10F, 0.0F}) {
    CAPTURE(amax);
    const float scale = scale_of_amax(amax);
    CHECK(scale == std::max(amax, 1e-10F) * (1.0F / 448.0F));
    const std::vector<float> amaxes(blocks_touched(source.view, {}), amax);
    for (const auto kernel : kernels()) {
      const auto output = cast_of(source.view, kFp8, {}, amaxes, {}, kernel);
      REQUIRE(!output.result.bad.found());
      int wrong = 0;
      for (std::size_t at = 0; at < output.bytes.size(); ++at) {
        const float scaled = bf16_at(source.memory, at) * (1.0F / scale);
        const double expected = std::clamp(nearest_step(scaled, 3, -6), -448.0, 448.0);
        wrong += same_number(value_of_e4m3(output.bytes[at]), expected) ? 0 : 1;
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("every finite FP16 value is widened exactly, and rounded to the nearest BF16") {
  auto source = make_matrix(SourceType::fp16, 1, 2 * 0x7C00);
  for (std::uint32_t bits = 0; bits < 0x7C00; ++bits) {
    source.set(0, bits, bits);
    source.set(0, 0x7C00 + bits, 0x8000 | bits);
  }
  const auto wide = cast_of(source.view, Recipe::fp32, {}, {});
  const auto rounded = cast_of(source.view, Recipe::bf16, {}, {});
  const auto same = cast_of(source.view, Recipe::fp16, {}, {});
  int wrong = 0;
  for (std::uint32_t at = 0; at < 2 * 0x7C00; ++at) {
    const auto bits = static_cast<int>(at % 0x7C00);
    const double magnitude = std::ldexp((bits >= 1024 ? 1024 : 0) + bits % 1024, std::max(bits / 1024, 1) - 25);
    const double value = at >= 0x7C00 ? -magnitude : magnitude;
    wrong += same_number(float_at(wide.bytes, at), value) ? 0 : 1;
    wrong += same_number(bf16_at(rounded.bytes, at), nearest_step(value, 7, -126)) ? 0 : 1;
  }
  CHECK(wrong == 0);
  CHECK(std::equal(same.bytes.begin(), same.bytes.end(), source.memory.begin()));
}

TEST_CASE("FP32 values are rounded once to the nearest BF16 or FP16") {
  Random random(1);
  auto source = make_matrix(SourceType::fp32, 1, 20000);
  for (std::int64_t at = 0; at < source.view.cols; ++at) {
    const auto raw = static_cast<std::uint32_t>(random());
    const auto tie = (raw & 0xFFFF0000) | (at % 2 == 0 ? 0x8000 : 0x1000);           // halfway for BF16, for FP16
    source.set(0, at, (at % 3 == 0 ? tie : raw) % 0x477FE000 | (raw & 0x80000000));  // below 65504
  }
  const auto bf16 = cast_of(source.view, Recipe::bf16, {}, {});
  const auto fp16 = cast_of(source.view, Recipe::fp16, {}, {});
  REQUIRE(!fp16.result.bad.found());
  const auto fp16_values = make_matrix(SourceType::fp16, 1, source.view.cols);
  SourceMatrix again = fp16_values.view;
  again.data = fp16.bytes.data();
  const auto fp16_widened = cast_of(again, Recipe::fp32, {}, {});
  int wrong = 0;
  for (std::size_t at = 0; at < 20000; ++at) {
    const float value = float_at(source.memory, at);
    wrong += same_number(bf16_at(bf16.bytes, at), nearest_step(value, 7, -126)) ? 0 : 1;
    wrong += same_number(float_at(fp16_widened.bytes, at), nearest_step(value, 10, -14)) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("a layout changes neither bytes nor amax nor digest, and every kernel gives those of the reference") {
  Random random(2);
  for (int round = 0; round < 28; ++round) {
    const auto rows = pick(random, 1, 150);
    const auto cols = pick(random, 1, round % 10 == 0 ? 900 : 300);
    const BlockOrigin origin = {pick(random, 0, 300), pick(random, 0, 300)};
    const DigestFrame frame = {random(), 4000, random() % 100, random() % 40};
    for (const auto type : kSources) {
      const auto seed = random();
      Random same_values(seed);
      const auto packed = random_matrix(type, rows, cols, same_values);
      const auto amax = amax_of(packed.view, origin);
      const auto layout = kLayouts[static_cast<std::size_t>(round) % kLayouts.size()];
      Random same_values_again(seed);
      const auto other = random_matrix(type, rows, cols, same_values_again, layout);
      for (const auto kernel : kernels()) {
        CHECK(amax_of(other.view, origin, kernel) == amax);
        for (const auto recipe : kRecipes) {
          const auto expected = cast_of(packed.view, recipe, origin, amax, frame, CastKernel::reference);
          const auto output = cast_of(other.view, recipe, origin, amax, frame, kernel);
          CHECK(output.result.bad.row == expected.result.bad.row);
          CHECK(output.result.bad.col == expected.result.bad.col);
          if (expected.result.bad.found()) continue;  // FP32 beyond FP16
          CHECK((output.bytes == expected.bytes));
          CHECK(output.result.digest == expected.result.digest);
        }
      }
    }
  }
}

TEST_CASE("the digest of a cast is that of its output, at any place and width") {
  Random random(3);
  for (int round = 0; round < 300; ++round) {
    const auto matrix = random_matrix(SourceType::bf16, pick(random, 1, 3), pick(random, 1, 90), random);
    const auto& view = matrix.view;
    const auto rows = static_cast<std::uint64_t>(view.rows);
    const auto cols = static_cast<std::uint64_t>(view.cols);
    const DigestFrame frame = {random(), 64, random() % 9, random() % 17};
    for (const auto kernel : kernels()) {
      for (const auto recipe : {Recipe::bf16, kFp8}) {
        const auto output = cast_of(view, recipe, {}, amax_of(view, {}), frame, kernel);
        const auto row_bytes = cols * element_bytes(recipe);
        const auto digest =
            digest_rows(output.bytes.data(), rows, row_bytes, static_cast<std::int64_t>(row_bytes), frame);
        CHECK(output.result.digest == digest);
      }
      const auto digest = digest_rows(view.data, rows, 2 * cols, 2 * view.row_stride, frame);
      CHECK(inspect(view, frame, kernel).digest == digest);
    }
  }
}

TEST_CASE("shards cut anywhere, with the amax of shared blocks exchanged, cast to the bytes of the whole") {
  Random random(4);
  for (int round = 0; round < 40; ++round) {
    const auto rows = pick(random, 1, 400);
    const auto cols = pick(random, 1, 300);
    const auto type = kSources[random() % 2 * 2];
    const auto whole = random_matrix(type, rows, cols, random);
    const auto amax = amax_of(whole.view, {});
    const auto expected = cast_of(whole.view, kFp8, {}, amax);
    const auto block_cols = static_cast<std::size_t>(blocks_of(cols));
    std::vector<std::int64_t> cuts = {0, rows};
    for (int cut = 0; cut < 5; ++cut) cuts.push_back(pick(random, 0, rows));
    std::ranges::sort(cuts);

    std::vector<float> exchanged(amax.size(), 0);
    const auto shard_of = [&](std::size_t at) {
      auto shard = whole.view;
      shard.data += cuts[at] * cols * static_cast<std::int64_t>(element_bytes(type));
      shard.rows = cuts[at + 1] - cuts[at];
      return shard;
    };
    const auto first_block = [&](std::size_t at) { return static_cast<std::size_t>(cuts[at] / kBlock) * block_cols; };
    for (std::size_t at = 0; at + 1 < cuts.size(); ++at) {
      const auto part = amax_of(shard_of(at), {cuts[at], 0}, CastKernel::automatic);
      for (std::size_t block = 0; block < part.size(); ++block) {
        auto& joint = exchanged[first_block(at) + block];
        joint = std::max(joint, part[block]);
      }
    }
    CHECK(exchanged == amax);

    std::vector<std::byte> bytes;
    for (std::size_t at = 0; at + 1 < cuts.size(); ++at) {
      const auto shard = shard_of(at);
      const auto from = exchanged.begin() + static_cast<std::ptrdiff_t>(first_block(at));
      const auto count = static_cast<std::ptrdiff_t>(blocks_touched(shard, {cuts[at], 0}));
      const auto output = cast_of(shard, kFp8, {cuts[at], 0}, {from, from + count});
      bytes.insert(bytes.end(), output.bytes.begin(), output.bytes.end());
    }
    CHECK((bytes == expected.bytes));
  }
}

TEST_CASE("a block of zeros has the least scale and codes that keep the signs") {
  auto zeros = make_matrix(SourceType::bf16, 3, 5);
  zeros.set(1, 2, 0x8000);
  const auto amax = amax_of(zeros.view, {});
  CHECK(amax == std::vector<float>{0});
  CHECK(scale_of_amax(amax[0]) == 1e-10F * (1.0F / 448.0F));
  for (const auto kernel : kernels()) {
    const auto output = cast_of(zeros.view, kFp8, {}, amax, {}, kernel);
    for (std::size_t at = 0; at < 15; ++at) CHECK(output.bytes[at] == std::byte(at == 7 ? 0x80 : 0));
  }
}

TEST_CASE("rows are written where they belong and nothing beside them") {
  Random random(5);
  const auto matrix = random_matrix(SourceType::bf16, 5, 77, random);
  for (const auto kernel : kernels()) {
    for (const auto recipe : kRecipes) {
      const auto amax = amax_of(matrix.view, {3, 100});
      const auto row_bytes = 77 * element_bytes(recipe);
      const auto packed = cast_of(matrix.view, recipe, {3, 100}, amax, {}, kernel);
      if (packed.result.bad.found()) continue;
      std::vector<std::byte> spread(5 * 1000, std::byte{0xA5});
      (void)cast(matrix.view, recipe, {3, 100}, amax, spread.data() + 1, 1000, {}, kernel);
      for (std::size_t at = 0; at < spread.size(); ++at) {
        const std::size_t row = at == 0 ? 0 : (at - 1) / 1000;
        const std::size_t col = at == 0 ? row_bytes : (at - 1) % 1000;
        REQUIRE(spread[at] == (col < row_bytes ? packed.bytes[row * row_bytes + col] : std::byte{0xA5}));
      }
    }
  }
}

TEST_CASE("an empty matrix touches no block and has the digest zero") {
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{0, 10}, {10, 0}, {0, 0}}) {
    const auto empty = make_matrix(SourceType::bf16, rows, cols);
    CHECK(blocks_touched(empty.view, {130, 130}) == 0);
    for (const auto kernel : kernels()) {
      CHECK(!block_amax(empty.view, {130, 130}, {}, kernel).found());
      const auto output = cast_of(empty.view, kFp8, {130, 130}, {}, {}, kernel);
      CHECK(!output.result.bad.found());
      CHECK(output.result.digest == 0);
      CHECK(inspect(empty.view, {}, kernel).digest == 0);
    }
  }
}

TEST_CASE("the first NaN or Inf in the order of rows is reported by cast, amax and inspection") {
  Random random(6);
  constexpr std::array<std::array<std::uint32_t, 4>, 3> kBad = {{{0x7F80, 0xFF80, 0x7F81, 0xFFFF},
                                                                 {0x7C00, 0xFC00, 0x7C01, 0xFFFF},
                                                                 {0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF}}};
  for (int round = 0; round < 100; ++round) {
    const auto rows = pick(random, 1, 20);
    const auto cols = pick(random, 1, 300);
    for (const auto type : kSources) {
      const auto layout = round % 2 == 0 ? Layout::packed : Layout::column_major;
      auto matrix = make_matrix(type, rows, cols, layout);
      const auto first = pick(random, 0, rows * cols - 1);
      const auto later = pick(random, first, rows * cols - 1);
      for (const auto at : {first, later}) {
        matrix.set(at / cols, at % cols, kBad[static_cast<std::size_t>(type)][random() % 4]);
      }
      const auto is_first = [&](const BadValue& bad) { return bad.row == first / cols && bad.col == first % cols; };
      std::vector<float> amax(blocks_touched(matrix.view, {5, 9}), 1);
      for (const auto kernel : kernels()) {
        for (const auto recipe : kRecipes) {
          CHECK(is_first(cast_of(matrix.view, recipe, {5, 9}, amax, {}, kernel).result.bad));
        }
        if (layout == Layout::packed) CHECK(is_first(inspect(matrix.view, {}, kernel).bad));
        CHECK(is_first(block_amax(matrix.view, {5, 9}, amax, kernel)));
      }
    }
  }
}

TEST_CASE("a value that a recipe cannot hold is reported, its largest neighbour is not") {
  auto matrix = make_matrix(SourceType::fp32, 2, 3);
  const auto found = [&](float value, Recipe recipe) {
    matrix.set(1, 2, std::bit_cast<std::uint32_t>(value));
    const auto bad = cast_of(matrix.view, recipe, {}, std::vector<float>{1.0F}).result.bad;
    return bad.row == 1 && bad.col == 2;
  };
  CHECK(found(65520.0F, Recipe::fp16));  // halfway between 65504 and the next step
  CHECK(!found(std::nextafter(65520.0F, 0.0F), Recipe::fp16));
  const float beyond_bf16 = std::bit_cast<float>(0x7F7F8000U);
  for (const auto recipe : {Recipe::bf16, kFp8}) {
    CHECK(found(-beyond_bf16, recipe));
    CHECK(!found(-std::nextafter(beyond_bf16, 0.0F), recipe));
  }
  CHECK(!found(std::numeric_limits<float>::max(), Recipe::fp32));
  matrix.set(1, 2, 0x7F7F8000);
  std::vector<float> amax(1);
  CHECK(block_amax(matrix.view, {}, amax).row == 1);
}
