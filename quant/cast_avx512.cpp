#include <immintrin.h>

#include "quant/row_kernels.h"

namespace weightcast {
namespace {

constexpr std::int64_t kBlockWidth = 128;  // kBlock of recipe.h
constexpr std::int64_t kStep = 64;         // values an encoding step takes, two registers of BF16
constexpr std::int64_t kHalf = 32;

__mmask32 first_lanes(std::int64_t count) noexcept {
  if (count <= 0) return 0;
  return count >= kHalf ? ~0U : (1U << count) - 1;
}

__m512i magnitude(__m512i values) noexcept { return _mm512_and_si512(values, _mm512_set1_epi16(0x7FFF)); }

std::uint16_t largest_lane(__m512i lanes) noexcept {
  const __m512i odd = _mm512_srli_epi32(lanes, 16);
  const __m512i even = _mm512_and_si512(lanes, _mm512_set1_epi32(0xFFFF));
  return static_cast<std::uint16_t>(_mm512_reduce_max_epu32(_mm512_max_epu32(odd, even)));
}

// The low byte of each lane, plus kCodeOffset, is the E4M3 code of the magnitude. Adding 2^(e+20) to a value of
// exponent e leaves its number of steps of 2^(e-3) in the lowest bits, rounded to nearest even by the addition; below
// 2^-6 the step stays 2^-9. A code is this number plus 8 for each exponent above the first.
constexpr int kCodeOffset = 0x98;  // -8 * (121 + 20) modulo 256: exponent fields of 2^-6 and of the 2^20
__m512i round_to_steps(__m512 scaled) noexcept {
  constexpr int kSmallerMagnitude = 0b1010;  // vrangeps: of the two magnitudes the smaller, sign cleared
  const __m512 value = _mm512_range_ps(scaled, _mm512_set1_ps(448.0F), kSmallerMagnitude);
  const __m512i normal = _mm512_castps_si512(_mm512_max_ps(value, _mm512_set1_ps(0x1p-6F)));
  const __m512i exponent = _mm512_and_si512(normal, _mm512_set1_epi32(0x7F800000));
  const __m512i magic = _mm512_add_epi32(exponent, _mm512_set1_epi32(20 << 23));
  const __m512i sum = _mm512_castps_si512(_mm512_add_ps(value, _mm512_castsi512_ps(magic)));
  return _mm512_add_epi32(sum, _mm512_srli_epi32(magic, 20));
}

// 32 BF16 values to 32 lanes of 16 bits: the code minus kCodeOffset modulo 256, without sign.
__m512i encode_half(__m512i values, __m512 inverse) noexcept {
  const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(values, 16));
  const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(values, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
  const __m512i even_codes = round_to_steps(_mm512_mul_ps(even, inverse));
  const __m512i odd_codes = round_to_steps(_mm512_mul_ps(odd, inverse));
  const __m512i merged = _mm512_mask_blend_epi16(0xAAAAAAAA, even_codes, _mm512_slli_epi32(odd_codes, 16));
  return _mm512_and_si512(merged, _mm512_set1_epi16(0xFF));
}

__m512i encode_step(__m512i low, __m512i high, __m512 inverse) noexcept {
  constexpr int kFlipBySign = 0x78;  // a ^ (b & c)
  const __m512i steps = _mm512_packus_epi16(encode_half(low, inverse), encode_half(high, inverse));
  const __m512i codes = _mm512_add_epi8(steps, _mm512_set1_epi8(static_cast<char>(kCodeOffset)));
  const __m512i signs = _mm512_packs_epi16(low, high);  // saturation keeps the sign bit
  const __m512i packed =
      _mm512_ternarylogic_epi32(codes, signs, _mm512_set1_epi8(static_cast<char>(0x80)), kFlipBySign);
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), packed);  // packs work in 128-bit lanes
}

std::uint16_t largest(const std::byte* row, std::int64_t count) noexcept {
  __m512i first = _mm512_setzero_si512();
  __m512i second = first;
  for (; count >= kStep; count -= kStep, row += 2 * kStep) {
    first = _mm512_max_epu16(first, magnitude(_mm512_loadu_si512(row)));
    second = _mm512_max_epu16(second, magnitude(_mm512_loadu_si512(row + 2 * kHalf)));
  }
  for (; count > 0; count -= kHalf, row += 2 * kHalf) {
    first = _mm512_max_epu16(first, magnitude(_mm512_maskz_loadu_epi16(first_lanes(count), row)));
  }
  return largest_lane(_mm512_max_epu16(first, second));
}

std::uint16_t copy(const std::byte* row, std::int64_t count, std::byte* output) noexcept {
  __m512i most = _mm512_setzero_si512();
  for (; count >= kHalf; count -= kHalf, row += 2 * kHalf, output += 2 * kHalf) {
    const __m512i values = _mm512_loadu_si512(row);
    most = _mm512_max_epu16(most, magnitude(values));
    _mm512_storeu_si512(output, values);
  }
  const __mmask32 rest = first_lanes(count);
  const __m512i values = _mm512_maskz_loadu_epi16(rest, row);
  _mm512_mask_storeu_epi16(output, rest, values);
  return largest_lane(_mm512_max_epu16(most, magnitude(values)));
}

std::uint16_t encode_e4m3(const std::byte* row, std::int64_t count, std::int64_t first_width, const float* inverses,
                          std::byte* output) noexcept {
  __m512i most = _mm512_setzero_si512();
  for (std::int64_t width = first_width; count > 0; count -= width, width = kBlockWidth, ++inverses) {
    if (width > count) width = count;
    const __m512 inverse = _mm512_set1_ps(*inverses);
    std::int64_t left = width;
    for (; left >= kStep; left -= kStep, row += 2 * kStep, output += kStep) {
      const __m512i low = _mm512_loadu_si512(row);
      const __m512i high = _mm512_loadu_si512(row + 2 * kHalf);
      most = _mm512_max_epu16(most, _mm512_max_epu16(magnitude(low), magnitude(high)));
      _mm512_storeu_si512(output, encode_step(low, high, inverse));
    }
    if (left != 0) {
      const __m512i low = _mm512_maskz_loadu_epi16(first_lanes(left), row);
      const __m512i high = _mm512_maskz_loadu_epi16(first_lanes(left - kHalf), row + 2 * kHalf);
      most = _mm512_max_epu16(most, _mm512_max_epu16(magnitude(low), magnitude(high)));
      _mm512_mask_storeu_epi8(output, (1ULL << left) - 1, encode_step(low, high, inverse));
      row += 2 * left;
      output += left;
    }
  }
  return largest_lane(most);
}

__m512i round_lanes(__m512i values) noexcept {
  const __m512i infinity = _mm512_set1_epi32(0x7F800000);
  const __m512i bits = _mm512_min_epu32(_mm512_and_si512(values, _mm512_set1_epi32(0x7FFFFFFF)), infinity);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  constexpr int kSignOfSecond = 0xD8;  // c ? b : a
  return _mm512_srli_epi32(_mm512_ternarylogic_epi32(sum, values, _mm512_set1_epi32(INT32_MIN), kSignOfSecond), 16);
}

void round_fp32(const std::byte* row, std::int64_t count, std::byte* output) noexcept {
  constexpr std::int64_t kLanes = 16;
  for (; count > 0; count -= kLanes, row += 4 * kLanes, output += 2 * kLanes) {
    const auto lanes = static_cast<__mmask16>(first_lanes(count));
    _mm512_mask_cvtepi32_storeu_epi16(output, lanes, round_lanes(_mm512_maskz_loadu_epi32(lanes, row)));
  }
}

// With x = word ^ key, lo its lower and hi its upper half: mix is lo * hi + (lo * 2^32 + hi) + 2^32, and the
// bracket is x with its halves swapped.
std::uint64_t mix_words(const std::byte* words, std::uint64_t count, std::uint64_t key) noexcept {
  constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15;
  constexpr std::uint64_t kLanes = 8;
  const auto lane = [key](std::uint64_t index) { return static_cast<long long>(key + index * kGolden); };
  __m512i keys = _mm512_setr_epi64(lane(0), lane(1), lane(2), lane(3), lane(4), lane(5), lane(6), lane(7));
  const __m512i step = _mm512_set1_epi64(static_cast<long long>(kLanes * kGolden));
  __m512i products = _mm512_setzero_si512();
  __m512i swaps = products;
  const auto add = [&](__m512i word, __mmask8 lanes) {
    const __m512i mixed = _mm512_maskz_xor_epi64(lanes, word, keys);
    const __m512i swapped = _mm512_shuffle_epi32(mixed, _MM_PERM_CDAB);
    products = _mm512_add_epi64(products, _mm512_mul_epu32(mixed, swapped));
    swaps = _mm512_add_epi64(swaps, swapped);
    keys = _mm512_add_epi64(keys, step);
  };
  std::uint64_t left = count;
  for (; left >= kLanes; left -= kLanes, words += 8 * kLanes) add(_mm512_loadu_si512(words), 0xFF);
  const auto rest = static_cast<__mmask8>((1U << left) - 1);
  add(_mm512_maskz_loadu_epi64(rest, words), rest);
  alignas(64) std::uint64_t lane_sums[kLanes];
  _mm512_store_si512(lane_sums, _mm512_add_epi64(products, swaps));
  std::uint64_t sum = count << 32;
  for (const std::uint64_t lane_sum : lane_sums) sum += lane_sum;
  return sum;
}

}  // namespace

const RowKernels kAvx512Rows = {largest, copy, encode_e4m3, round_fp32, mix_words};

}  // namespace weightcast
