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

#include "tests/support/matrices.h"

using namespace weightcast;

namespace {

constexpr auto kFp8Blocks = Recipe::fp8_e4m3_128x128_fp32;

std::vector<float> amax_of(const SourceMatrix& source, BlockOrigin origin, CastKernel kernel = CastKernel::reference,
                           Recipe recipe = kFp8Blocks) {
  if (!has_scales(recipe)) return {};
  std::vector<float> amax(amax_values(source, recipe, origin), -1);
  REQUIRE(!block_amax(source, recipe, origin, amax, kernel).found());
  return amax;
}

struct Output {
  std::vector<std::byte> bytes;
  CastResult result;
};

Output cast_of(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, const std::vector<float>& amax,
               const DigestFrame& frame = {}, CastKernel kernel = CastKernel::automatic) {
  const auto bytes = static_cast<std::int64_t>(row_bytes(recipe, source.cols));
  Output output = {std::vector<std::byte>(static_cast<std::size_t>(source.rows * bytes)), {}};
  output.result = cast(source, recipe, origin, amax, output.bytes.data(), bytes, frame, kernel);
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
    const float scale = scale_of_amax(kFp8Blocks, amax);
    CHECK(scale == std::max(amax, 1e-10F) * (1.0F / 448.0F));
    const std::vector<float> amaxes(blocks_touched(source.view, kFp8Blocks, {}), amax);
    for (const auto kernel : kernels()) {
      const auto output = cast_of(source.view, kFp8Blocks, {}, amaxes, {}, kernel);
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
      const auto layout = kLayouts[static_cast<std::size_t>(round) % kLayouts.size()];
      Random same_values_again(seed);
      const auto other = random_matrix(type, rows, cols, same_values_again, layout);
      for (const auto kernel : kernels()) {
        for (const auto recipe : kRecipes) {
          const auto amax = amax_of(packed.view, origin, CastKernel::reference, recipe);
          CHECK(amax_of(other.view, origin, kernel, recipe) == amax);
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
      for (const auto recipe : {Recipe::bf16, kFp8Blocks}) {
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

TEST_CASE("inspection of whole rows finds the digest of the reference, and a bad value in its row and column") {
  Random random(5);
  for (int round = 0; round < 50; ++round) {
    const auto rows = pick(random, 1, 150);
    const auto cols = 4 * pick(random, 1, 80);
    auto matrix = make_matrix(SourceType::bf16, rows, cols, Layout::packed);
    for (std::int64_t at = 0; at < rows * cols; ++at) matrix.set(at / cols, at % cols, random() % 0x7F80);
    const DigestFrame frame = {random(), static_cast<std::uint64_t>(cols) / 4, random() % 9, 0};
    const Digest digest = inspect(matrix.view, frame, CastKernel::reference).digest;
    for (const auto kernel : kernels()) CHECK(inspect(matrix.view, frame, kernel).digest == digest);
    const auto bad = pick(random, 0, rows * cols - 1);
    matrix.set(bad / cols, bad % cols, 0xFF80);
    for (const auto kernel : kernels()) {
      const BadValue found = inspect(matrix.view, frame, kernel).bad;
      CHECK(found.row == bad / cols);
      CHECK(found.col == bad % cols);
    }
  }
}

TEST_CASE("shards cut anywhere, with the amax of shared blocks exchanged, cast to the bytes of the whole") {
  Random random(4);
  for (int round = 0; round < 80; ++round) {
    const auto recipe = kRecipes[3 + static_cast<std::size_t>(round) % (kRecipes.size() - 3)];
    const auto rows = pick(random, 1, 400);
    const auto cols = pick(random, 1, 300);
    const auto type = kSources[random() % 2 * 2];
    const auto whole = random_matrix(type, rows, cols, random);
    const auto amax = amax_of(whole.view, {}, CastKernel::reference, recipe);
    const auto expected = cast_of(whole.view, recipe, {}, amax);
    std::vector<std::int64_t> cuts = {0, rows};
    for (int cut = 0; cut < 5; ++cut) cuts.push_back(pick(random, 0, rows));
    std::ranges::sort(cuts);

    const auto shard_of = [&](std::size_t at) {
      auto shard = whole.view;
      shard.data += cuts[at] * cols * static_cast<std::int64_t>(element_bytes(type));
      shard.rows = cuts[at + 1] - cuts[at];
      return shard;
    };
    const auto row_of_blocks = whole.view.cols == 0 ? 0 : blocks_touched({nullptr, type, 1, cols, cols, 1}, recipe, {});
    const auto first_block = [&](std::size_t at) {
      return static_cast<std::size_t>(cuts[at] / block_shape(recipe).rows) * row_of_blocks;
    };
    std::vector<float> exchanged(amax.size(), 0);
    const auto merge = [&](std::size_t at, float value) { exchanged[at] = std::max(exchanged[at], value); };
    for (std::size_t at = 0; at + 1 < cuts.size(); ++at) {
      const auto part = amax_of(shard_of(at), {cuts[at], 0}, CastKernel::automatic, recipe);
      const auto blocks = blocks_touched(shard_of(at), recipe, {cuts[at], 0});
      for (std::size_t block = 0; block < blocks; ++block) merge(first_block(at) + block, part[block]);
      if (has_tensor_scale(recipe)) merge(amax.size() - 1, part.back());
    }
    CHECK(exchanged == amax);

    std::vector<std::byte> bytes;
    for (std::size_t at = 0; at + 1 < cuts.size(); ++at) {
      const auto shard = shard_of(at);
      const auto from = exchanged.begin() + static_cast<std::ptrdiff_t>(first_block(at));
      const auto count = static_cast<std::ptrdiff_t>(blocks_touched(shard, recipe, {cuts[at], 0}));
      std::vector<float> own(from, from + count);
      if (has_tensor_scale(recipe)) own.push_back(exchanged.back());
      const auto output = cast_of(shard, recipe, {cuts[at], 0}, own);
      bytes.insert(bytes.end(), output.bytes.begin(), output.bytes.end());
    }
    CHECK((bytes == expected.bytes));
  }
}

TEST_CASE("zeros have the least scale of their recipe and codes that keep the signs") {
  auto zeros = make_matrix(SourceType::bf16, 3, 5);
  zeros.set(1, 2, 0x8000);
  const auto scale = [](Recipe recipe) {
    std::uint32_t bits = 0;
    encode_scales(recipe, std::array{0.0F}, 0, reinterpret_cast<std::byte*>(&bits));
    return scale_bytes(recipe) == 4 ? std::bit_cast<float>(bits) : static_cast<float>(bits);
  };
  CHECK(scale(kFp8Blocks) == 1e-10F * (1.0F / 448.0F));
  CHECK(scale(Recipe::fp8_e4m3_128x128_ue8m0) == 0x1p-22F);  // 1e-4 / 448 lies between 2^-23 and 2^-22
  CHECK(scale(Recipe::fp8_e4m3_tensor) == 1e-10F / 448.0F);
  CHECK(scale(Recipe::fp8_e4m3_channel) == 1e-10F / 448.0F);
  CHECK(scale(Recipe::mxfp8_e4m3_1x32) == 0);
  CHECK(scale(Recipe::nvfp4_e2m1_1x16) == 0);
  CHECK(scale_of_amax(Recipe::nvfp4_e2m1_1x16, 0) == 1);
  for (const auto recipe : kRecipes) {
    if (!has_scales(recipe) || recipe == Recipe::nvfp4_e2m1_1x16) continue;
    for (const auto kernel : kernels()) {
      const auto amax = amax_of(zeros.view, {}, kernel, recipe);
      CHECK(std::ranges::count(amax, 0.0F) == std::ssize(amax));
      const auto output = cast_of(zeros.view, recipe, {}, amax, {}, kernel);
      for (std::size_t at = 0; at < 15; ++at) CHECK(output.bytes[at] == std::byte(at == 7 ? 0x80 : 0));
    }
  }
  const auto fp4 = cast_of(zeros.view, Recipe::nvfp4_e2m1_1x16, {},
                           amax_of(zeros.view, {}, CastKernel::reference, Recipe::nvfp4_e2m1_1x16));
  for (std::size_t at = 0; at < 9; ++at) CHECK(fp4.bytes[at] == std::byte(at == 4 ? 0x08 : 0));
}

TEST_CASE("rows are written where they belong and nothing beside them") {
  Random random(5);
  const auto matrix = random_matrix(SourceType::bf16, 5, 77, random);
  for (const auto kernel : kernels()) {
    for (const auto recipe : kRecipes) {
      const auto amax = amax_of(matrix.view, {3, 100}, kernel, recipe);
      const auto bytes = row_bytes(recipe, 77);
      const auto packed = cast_of(matrix.view, recipe, {3, 100}, amax, {}, kernel);
      if (packed.result.bad.found()) continue;
      std::vector<std::byte> spread(5 * 1000, std::byte{0xA5});
      (void)cast(matrix.view, recipe, {3, 100}, amax, spread.data() + 1, 1000, {}, kernel);
      for (std::size_t at = 0; at < spread.size(); ++at) {
        const std::size_t row = at == 0 ? 0 : (at - 1) / 1000;
        const std::size_t col = at == 0 ? bytes : (at - 1) % 1000;
        REQUIRE(spread[at] == (col < bytes ? packed.bytes[row * bytes + col] : std::byte{0xA5}));
      }
    }
  }
}

TEST_CASE("an empty matrix touches no block and has the digest zero") {
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{0, 10}, {10, 0}, {0, 0}}) {
    const auto empty = make_matrix(SourceType::bf16, rows, cols);
    CHECK(blocks_touched(empty.view, kFp8Blocks, {130, 130}) == 0);
    for (const auto kernel : kernels()) {
      CHECK(!block_amax(empty.view, kFp8Blocks, {130, 130}, {}, kernel).found());
      const auto output = cast_of(empty.view, kFp8Blocks, {130, 130}, {}, {}, kernel);
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
      for (const auto kernel : kernels()) {
        for (const auto recipe : kRecipes) {
          std::vector<float> amax(amax_values(matrix.view, recipe, {5, 9}), 1);
          CHECK(is_first(cast_of(matrix.view, recipe, {5, 9}, amax, {}, kernel).result.bad));
          if (has_scales(recipe)) CHECK(is_first(block_amax(matrix.view, recipe, {5, 9}, amax, kernel)));
        }
        if (layout == Layout::packed) CHECK(is_first(inspect(matrix.view, {}, kernel).bad));
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
  for (const auto recipe : {Recipe::bf16, kFp8Blocks}) {
    CHECK(found(-beyond_bf16, recipe));
    CHECK(!found(-std::nextafter(beyond_bf16, 0.0F), recipe));
  }
  CHECK(!found(std::numeric_limits<float>::max(), Recipe::fp32));
  matrix.set(1, 2, 0x7F7F8000);
  std::vector<float> amax(1);
  CHECK(block_amax(matrix.view, kFp8Blocks, {}, amax).row == 1);
}
