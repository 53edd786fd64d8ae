#include <immintrin.h>

#include <cstring>

#include "quant/row_kernels.h"

namespace weightcast {
namespace {

constexpr std::int64_t kBlockWidth = 128;  // kBlock of recipe.h
constexpr std::int64_t kStep = 32;         // values an encoding step takes, two registers of BF16
constexpr std::int64_t kHalf = 16;

__m256i load(const std::byte* memory) noexcept { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(memory)); }
void store(__m256i lanes, std::byte* memory) noexcept {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(memory), lanes);
}

__m256i magnitude(__m256i values) noexcept { return _mm256_and_si256(values, _mm256_set1_epi16(0x7FFF)); }

std::uint16_t largest_lane(__m256i lanes) noexcept {
  const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  // The instruction finds the smallest; the complement of the smallest complement is the largest.
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));
  return static_cast<std::uint16_t>(~_mm_extract_epi16(least, 0) & 0xFFFF);
}

// The low byte of each lane, plus kCodeOffset, is the E4M3 code of the magnitude. Adding 2^(e+20) to a value of
// exponent e leaves its number of steps of 2^(e-3) in the lowest bits, rounded to nearest even by the addition; below
// 2^-6 the step stays 2^-9. A code is this number plus 8 for each exponent above the first.
constexpr int kCodeOffset = 0x98;  // -8 * (121 + 20) modulo 256: exponent fields of 2^-6 and of the 2^20
__m256i round_to_steps(__m256 scaled) noexcept {
  const __m256 absolute = _mm256_and_ps(scaled, _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF)));
  const __m256 value = _mm256_min_ps(absolute, _mm256_set1_ps(448.0F));
  const __m256i normal = _mm256_castps_si256(_mm256_max_ps(value, _mm256_set1_ps(0x1p-6F)));
  const __m256i exponent = _mm256_and_si256(normal, _mm256_set1_epi32(0x7F800000));
  const __m256i magic = _mm256_add_epi32(exponent, _mm256_set1_epi32(20 << 23));
  const __m256i sum = _mm256_castps_si256(_mm256_add_ps(value, _mm256_castsi256_ps(magic)));
  return _mm256_add_epi32(sum, _mm256_srli_epi32(magic, 20));
}

// 16 BF16 values to 16 lanes of 16 bits: the code minus kCodeOffset modulo 256, without sign.
__m256i encode_half(__m256i values, __m256 inverse) noexcept {
  const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(values, 16));
  const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(values, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
  const __m256i even_codes = round_to_steps(_mm256_mul_ps(even, inverse));
  const __m256i odd_codes = round_to_steps(_mm256_mul_ps(odd, inverse));
  const __m256i merged = _mm256_blend_epi16(even_codes, _mm256_slli_epi32(odd_codes, 16), 0xAA);
  return _mm256_and_si256(merged, _mm256_set1_epi16(0xFF));
}

__m256i encode_step(__m256i low, __m256i high, __m256 inverse) noexcept {
  const __m256i steps = _mm256_packus_epi16(encode_half(low, inverse), encode_half(high, inverse));
  const __m256i codes = _mm256_add_epi8(steps, _mm256_set1_epi8(static_cast<char>(kCodeOffset)));
  const __m256i signs = _mm256_packs_epi16(low, high);  // saturation keeps the sign bit
  const __m256i flips = _mm256_and_si256(signs, _mm256_set1_epi8(static_cast<char>(0x80)));
  return _mm256_permute4x64_epi64(_mm256_xor_si256(codes, flips), 0b11'01'10'00);  // packs work in 128-bit lanes
}

// Up to kStep values, zeros behind them.
struct Rest {
  alignas(32) std::byte bytes[2 * kStep] = {};
  Rest(const std::byte* row, std::int64_t count) noexcept {
    std::memcpy(bytes, row, static_cast<std::size_t>(2 * count));
  }
  [[nodiscard]] __m256i low() const noexcept { return load(bytes); }
  [[nodiscard]] __m256i high() const noexcept { return load(bytes + 2 * kHalf); }
};

std::uint16_t largest(const std::byte* row, std::int64_t count) noexcept {
  __m256i first = _mm256_setzero_si256();
  __m256i second = first;
  for (; count >= kStep; count -= kStep, row += 2 * kStep) {
    first = _mm256_max_epu16(first, magnitude(load(row)));
    second = _mm256_max_epu16(second, magnitude(load(row + 2 * kHalf)));
  }
  if (count != 0) {
    const Rest rest(row, count);
    first = _mm256_max_epu16(first, magnitude(rest.low()));
    second = _mm256_max_epu16(second, magnitude(rest.high()));
  }
  return largest_lane(_mm256_max_epu16(first, second));
}

std::uint16_t copy(const std::byte* row, std::int64_t count, std::byte* output) noexcept {
  __m256i most = _mm256_setzero_si256();
  for (; count >= kHalf; count -= kHalf, row += 2 * kHalf, output += 2 * kHalf) {
    const __m256i values = load(row);
    most = _mm256_max_epu16(most, magnitude(values));
    store(values, output);
  }
  if (count != 0) {
    const Rest rest(row, count);
    most = _mm256_max_epu16(most, magnitude(rest.low()));
    std::memcpy(output, rest.bytes, static_cast<std::size_t>(2 * count));
  }
  return largest_lane(most);
}

std::uint16_t encode_e4m3(const std::byte* row, std::int64_t count, std::int64_t first_width, const float* inverses,
                          std::byte* output) noexcept {
  __m256i most = _mm256_setzero_si256();
  for (std::int64_t width = first_width; count > 0; count -= width, width = kBlockWidth, ++inverses) {
    if (width > count) width = count;
    const __m256 inverse = _mm256_set1_ps(*inverses);
    std::int64_t left = width;
    for (; left >= kStep; left -= kStep, row += 2 * kStep, output += kStep) {
      const __m256i low = load(row);
      const __m256i high = load(row + 2 * kHalf);
      most = _mm256_max_epu16(most, _mm256_max_epu16(magnitude(low), magnitude(high)));
      store(encode_step(low, high, inverse), output);
    }
    if (left != 0) {
      const Rest rest(row, left);
      most = _mm256_max_epu16(most, _mm256_max_epu16(magnitude(rest.low()), magnitude(rest.high())));
      alignas(32) std::byte codes[kStep];
      store(encode_step(rest.low(), rest.high(), inverse), codes);
      std::memcpy(output, codes, static_cast<std::size_t>(left));
      row += 2 * left;
      output += left;
    }
  }
  return largest_lane(most);
}

__m256i round_lanes(__m256i values) noexcept {
  const __m256i infinity = _mm256_set1_epi32(0x7F800000);
  const __m256i bits = _mm256_min_epu32(_mm256_and_si256(values, _mm256_set1_epi32(0x7FFFFFFF)), infinity);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
  const __m256i sign = _mm256_and_si256(values, _mm256_set1_epi32(INT32_MIN));
  return _mm256_srli_epi32(_mm256_or_si256(sum, sign), 16);
}

void round_fp32(const std::byte* row, std::int64_t count, std::byte* output) noexcept {
  const auto round_half = [](const std::byte* half) {
    const __m256i packed = _mm256_packus_epi32(round_lanes(load(half)), round_lanes(load(half + 32)));
    return _mm256_permute4x64_epi64(packed, 0b11'01'10'00);
  };
  for (; count >= kHalf; count -= kHalf, row += 4 * kHalf, output += 2 * kHalf) store(round_half(row), output);
  if (count != 0) {
    alignas(32) std::byte values[4 * kHalf] = {};
    std::memcpy(values, row, static_cast<std::size_t>(4 * count));
    alignas(32) std::byte rounded[2 * kHalf];
    store(round_half(values), rounded);
    std::memcpy(output, rounded, static_cast<std::size_t>(2 * count));
  }
}

// With x = word ^ key, lo its lower and hi its upper half: mix is lo * hi + (lo * 2^32 + hi) + 2^32, and the
// bracket is x with its halves swapped. The 2^32 of all words are added at the end.
__m256i mix(__m256i mixed) noexcept {
  const __m256i swapped = _mm256_shuffle_epi32(mixed, 0b10'11'00'01);
  return _mm256_add_epi64(_mm256_mul_epu32(mixed, swapped), swapped);
}

// Two sums: one would wait for itself.
std::uint64_t mix_words(const std::byte* words, std::uint64_t count, std::uint64_t key) noexcept {
  constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15;
  constexpr std::uint64_t kLanes = 4;
  const auto keys_from = [key](std::uint64_t index) {
    const auto lane = [=](std::uint64_t at) { return static_cast<long long>(key + (index + at) * kGolden); };
    return _mm256_setr_epi64x(lane(0), lane(1), lane(2), lane(3));
  };
  const __m256i step = _mm256_set1_epi64x(static_cast<long long>(2 * kLanes * kGolden));
  __m256i keys = keys_from(0);
  __m256i next_keys = keys_from(kLanes);
  __m256i sums = _mm256_setzero_si256();
  __m256i next_sums = sums;
  std::uint64_t left = count;
  for (; left >= 2 * kLanes; left -= 2 * kLanes, words += 16 * kLanes) {
    sums = _mm256_add_epi64(sums, mix(_mm256_xor_si256(load(words), keys)));
    next_sums = _mm256_add_epi64(next_sums, mix(_mm256_xor_si256(load(words + 8 * kLanes), next_keys)));
    keys = _mm256_add_epi64(keys, step);
    next_keys = _mm256_add_epi64(next_keys, step);
  }
  const auto add_rest = [&](const std::byte* rest, std::int64_t length, __m256i rest_keys) {
    const __m256i lanes = _mm256_cmpgt_epi64(_mm256_set1_epi64x(length), _mm256_setr_epi64x(0, 1, 2, 3));
    const __m256i loaded = _mm256_maskload_epi64(reinterpret_cast<const long long*>(rest), lanes);
    sums = _mm256_add_epi64(sums, mix(_mm256_and_si256(_mm256_xor_si256(loaded, rest_keys), lanes)));
  };
  const auto rest = static_cast<std::int64_t>(left);
  const auto lanes = static_cast<std::int64_t>(kLanes);
  add_rest(words, rest, keys);
  if (rest > lanes) add_rest(words + 8 * kLanes, rest - lanes, next_keys);
  alignas(32) std::uint64_t sum[kLanes];
  store(_mm256_add_epi64(sums, next_sums), reinterpret_cast<std::byte*>(sum));
  return sum[0] + sum[1] + sum[2] + sum[3] + (count << 32);
}

}  // namespace

const RowKernels kAvx2Rows = {largest, copy, encode_e4m3, round_fp32, mix_words};

}  // namespace weightcast
