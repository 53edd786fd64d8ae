// Digest of bytes that stand in device memory, read once; and NaN and Inf of BF16 on the way.
#pragma once

#include "quant/kernels/mix.cuh"
#include "quant/kernels/values.cuh"

namespace weightcast::gpu {

constexpr int kDigestThreads = 256;
constexpr int kDigestUnroll = 8;

struct Digested {
  std::uint64_t sum = 0;
  unsigned largest_pair = 0;
};

__device__ inline void take(Digested& into, uint4 v, std::uint64_t key, bool is_bf16) {
  into.sum += mix(v.x, v.y, key) + mix(v.z, v.w, key + kGolden);
  if (is_bf16) into.largest_pair = __vmaxu2(into.largest_pair, largest_pair(v));
}

// 16 bytes at a time: `words` is even, memory a multiple of 16. `stride` threads share the words.
__device__ inline void take_words(Digested& into, const unsigned char* memory, std::uint64_t words, std::uint64_t key,
                                  bool is_bf16, unsigned thread, unsigned stride) {
  const std::uint64_t loads = words / 2;
  std::uint64_t at = thread;
  key += 2 * thread * kGolden;
  const std::uint64_t step = 2 * stride * kGolden;
  for (; at + (kDigestUnroll - 1) * stride < loads; at += kDigestUnroll * stride) {
    uint4 v[kDigestUnroll];
#pragma unroll
    for (int i = 0; i < kDigestUnroll; ++i) v[i] = load_once(memory + (at + i * stride) * 16);
#pragma unroll
    for (int i = 0; i < kDigestUnroll; ++i, key += step) take(into, v[i], key, is_bf16);
  }
  for (; at < loads; at += stride, key += step) take(into, load_once(memory + at * 16), key, is_bf16);
}

// Any alignment, any length; `bytes_before` of the first word belong to somebody else.
__device__ inline void take_bytes(Digested& into, const unsigned char* memory, std::uint64_t bytes,
                                  unsigned bytes_before, std::uint64_t key, bool is_bf16, unsigned thread,
                                  unsigned stride) {
  const std::uint64_t words = (bytes_before + bytes + 7) / 8;
  for (std::uint64_t word = thread; word < words; word += stride) {
    unsigned half[2] = {0, 0};
    for (int byte = 0; byte < 8; ++byte) {
      const std::int64_t at = static_cast<std::int64_t>(word * 8 + byte) - bytes_before;
      if (at >= 0 && at < static_cast<std::int64_t>(bytes)) half[byte / 4] |= memory[at] << (8 * (byte % 4));
    }
    into.sum += mix(half[0], half[1], key + word * kGolden);
    if (is_bf16) into.largest_pair = __vmaxu2(into.largest_pair, largest_pair({half[0], half[1], 0, 0}));
  }
}

// Only when there is one: BF16 rows begin at even bytes of the frame, so pairs of bytes are values.
__device__ __noinline__ void report_bad(const DigestPart& part, const Findings& findings) {
  for (std::uint64_t row = 0; row < part.rows; ++row) {
    const unsigned char* memory = part.memory + static_cast<std::int64_t>(row) * part.row_stride;
    for (std::uint64_t at = threadIdx.x; at < part.row_bytes / 2; at += kDigestThreads) {
      const unsigned bits = memory[2 * at] | memory[2 * at + 1] << 8;
      if ((bits & 0x7FFF) < kBf16Infinity) continue;
      report(findings, part.matrix, part.first_value + row * part.values_per_row + at);
      break;
    }
  }
}

__device__ inline void digest_part(const DigestPart& part, std::uint64_t version, const Findings& findings) {
  Digested found;
  const std::uint64_t first = part.first_row * part.words_per_row + part.first_byte / 8;
  const std::uint64_t key = seed_of(version, part.key) + first * kGolden;
  if (part.is_flat) {
    take_words(found, part.memory, part.rows * part.row_bytes / 8, key, part.is_bf16, threadIdx.x, kDigestThreads);
  } else {
    const unsigned before = part.first_byte % 8;
    const bool is_wide = before == 0 && part.row_bytes % 16 == 0 && part.row_stride % 16 == 0 &&
                         reinterpret_cast<std::uintptr_t>(part.memory) % 16 == 0;
    for (std::uint64_t row = threadIdx.x / 32; row < part.rows; row += kDigestThreads / 32) {  // a warp to a row
      const unsigned char* memory = part.memory + static_cast<std::int64_t>(row) * part.row_stride;
      const std::uint64_t row_key = key + row * part.words_per_row * kGolden;
      if (is_wide) {
        take_words(found, memory, part.row_bytes / 8, row_key, part.is_bf16, threadIdx.x % 32, 32);
      } else {
        take_bytes(found, memory, part.row_bytes, before, row_key, part.is_bf16, threadIdx.x % 32, 32);
      }
    }
  }
  const std::uint64_t sum = sum_of_warp(found.sum);
  if (threadIdx.x % 32 == 0) atomicAdd(findings.digests + part.slot, static_cast<unsigned long long>(sum));
  if (part.is_bf16 && __syncthreads_or(larger_of_pair(found.largest_pair) >= kBf16Infinity)) report_bad(part, findings);
}

}  // namespace weightcast::gpu
