// The digest of quant/digest.h on the device.
#pragma once

#include <cstdint>

namespace weightcast::gpu {

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15;

__device__ inline std::uint64_t seed_of(std::uint64_t version, std::uint64_t entry) {  // digest_seed()
  std::uint64_t x = version * kGolden + entry;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// (lo + 1) * (hi + 2^32) of word ^ key, modulo 2^64: lo * hi + hi, and lo + 1 in the upper half.
__device__ inline std::uint64_t mix(unsigned low, unsigned high, std::uint64_t key) {
  const unsigned lo = low ^ static_cast<unsigned>(key);
  const unsigned hi = high ^ static_cast<unsigned>(key >> 32);
  const std::uint64_t product = static_cast<std::uint64_t>(lo) * hi + hi;
  return product + (static_cast<std::uint64_t>(lo + 1) << 32);
}

__device__ inline std::uint64_t sum_of_warp(std::uint64_t sum) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0U, sum, lanes);
  return sum;
}

}  // namespace weightcast::gpu
