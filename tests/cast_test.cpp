#include "quant/cast.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

using namespace weightcast;

namespace {

constexpr auto kFp8 = Recipe::fp8_e4m3_128x128_fp32;

float widen(std::uint16_t bf16) { return std::bit_cast<float>(static_cast<std::uint32_t>(bf16) << 16); }

// By its definition: of all representable values the nearest, of two nearest the one with the even code.
std::uint8_t nearest_e4m3(double value) {
  const double magnitude = std::fabs(value);
  std::uint8_t best = 0;
  double best_distance = magnitude;
  for (int code = 1; code <= 0x7E; ++code) {
    const int exponent = std::max(code >> 3, 1);
    const double candidate = std::ldexp((code >= 8 ? 8 : 0) + (code & 7), exponent - 10);
    const double distance = std::fabs(candidate - magnitude);
    if (distance < best_distance || (distance == best_distance && code % 2 == 0)) {
      best = static_cast<std::uint8_t>(code);
      best_distance = distance;
    }
  }
  return static_cast<std::uint8_t>(best | (std::signbit(value) ? 0x80 : 0));
}

SourceMatrix bf16_rows(const std::vector<std::uint16_t>& values, std::int64_t rows, std::int64_t cols) {
  return {reinterpret_cast<const std::byte*>(values.data()), SourceType::bf16, rows, cols, cols, 1};
}

}  // namespace

TEST_CASE("every finite BF16 value under many scales becomes the nearest E4M3 code") {
  std::vector<std::uint16_t> values;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    if ((bits & 0x7F80) != 0x7F80) values.push_back(static_cast<std::uint16_t>(bits));
  }
  const auto cols = static_cast<std::int64_t>(values.size());
  const auto source = bf16_rows(values, 1, cols);
  std::vector<std::byte> output(values.size());
  for (const float amax : {1.0F, 0.0371F, 448.0F, 3e-9F, 1.7e38F, 0.0F}) {
    const std::vector<float> amaxes(blocks_touched(source, {}), amax);
    const auto result = cast(source, kFp8, {}, amaxes, output.data(), cols, {});
    REQUIRE(!result.bad.found());
    const float inverse = 1.0F / scale_of_amax(amax);
    int wrong = 0;
    for (std::size_t at = 0; at < values.size(); ++at) {
      const float scaled = widen(values[at]) * inverse;
      wrong += static_cast<std::uint8_t>(output[at]) != nearest_e4m3(scaled);
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("every kernel gives the bytes, the amax and the digest of the reference") {
  std::mt19937 random(5);
  std::vector<CastKernel> kernels;
  for (const auto k : {CastKernel::avx2, CastKernel::avx512})
    if (is_available(k)) kernels.push_back(k);
  for (int round = 0; round < 200; ++round) {
    const std::int64_t rows = 1 + random() % 200, cols = 1 + random() % 700;
    std::vector<std::uint16_t> v(rows * cols);
    for (auto& x : v) {
      x = random();
      if ((x & 0x7F80) == 0x7F80) x &= 0xBFFF;
      if (random() % 2) x = (x & 0x81ff) | 0x3c00;
    }
    const auto s = bf16_rows(v, rows, cols);
    const BlockOrigin o{static_cast<std::int64_t>(random() % 300), static_cast<std::int64_t>(random() % 300)};
    const DigestFrame f{random(), 1000, random() % 100, random() % 20};
    std::vector<float> a(blocks_touched(s, o)), b(a.size());
    (void)block_amax(s, o, a, CastKernel::reference);
    for (auto k : kernels) {
      (void)block_amax(s, o, b, k);
      CHECK(a == b);
      for (auto recipe : {kFp8, Recipe::bf16}) {
        std::vector<std::byte> x(rows * cols * 2), y(rows * cols * 2);
        auto rx = cast(s, recipe, o, a, x.data(), cols * element_bytes(recipe), f, CastKernel::reference);
        auto ry = cast(s, recipe, o, a, y.data(), cols * element_bytes(recipe), f, k);
        CHECK(x == y);
        CHECK(rx.digest == ry.digest);
      }
      CHECK(inspect(s, f, k).digest == inspect(s, f, CastKernel::reference).digest);
    }
  }
}
