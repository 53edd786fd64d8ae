// Weights for measurements on one GPU: matrices of real shapes, in device memory.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <random>
#include <vector>

#include "quant/gpu.h"

namespace weightcast {

inline constexpr std::uint64_t kSampleBytes = 256 << 20;

struct Shape {
  std::int64_t rows;
  std::int64_t cols;
  [[nodiscard]] std::int64_t values() const { return rows * cols; }
  [[nodiscard]] std::int64_t blocks() const { return blocks_of(rows) * blocks_of(cols); }
};
inline const std::vector<Shape> kMix = {{7168, 2048}, {4096, 1536}, {4096, 4096}, {7168, 576}};

// Matrices side by side in one allocation each of source, codes and scales.
struct Weights {
  std::vector<Shape> shapes;
  DeviceBuffer source;
  DeviceBuffer codes;
  DeviceBuffer scales;
  std::vector<GpuCastJob> jobs;
  std::uint64_t values = 0;
  std::uint64_t blocks = 0;

  Weights(const std::vector<Shape>& mix, std::uint64_t bf16_bytes) {
    for (std::size_t at = 0; values * 2 < bf16_bytes; at = (at + 1) % mix.size()) {
      shapes.push_back(mix[at]);
      values += static_cast<std::uint64_t>(mix[at].values());
      blocks += static_cast<std::uint64_t>(mix[at].blocks());
    }
    source = DeviceBuffer(2 * values);
    codes = DeviceBuffer(values);
    scales = DeviceBuffer(4 * blocks);
    std::int64_t value = 0, block = 0;
    for (const Shape& shape : shapes) {
      GpuCastJob job;
      job.source = {source.get() + 2 * value, SourceType::bf16, shape.rows, shape.cols, shape.cols, 1};
      job.output = codes.get() + value;
      job.output_row_bytes = shape.cols;
      job.scales = scales.get() + 4 * block;
      job.scale_row_stride = blocks_of(shape.cols);
      job.frame = {jobs.size(), static_cast<std::uint64_t>(shape.cols / 8), 0, 0};
      job.digest_slot = static_cast<std::uint32_t>(jobs.size());
      jobs.push_back(job);
      value += shape.values();
      block += shape.blocks();
    }
  }
  // 2 bytes read and 1 written per value, 4 written per block.
  [[nodiscard]] double cast_bytes() const { return static_cast<double>(3 * values + 4 * blocks); }
  [[nodiscard]] std::uint32_t slots() const { return static_cast<std::uint32_t>(jobs.size()); }
};

// Normal weights of 0.02; some zeros and subnormals.
inline void fill(const Weights& weights, const CudaStream& stream) {
  PinnedBuffer sample(kSampleBytes);
  auto* const values = reinterpret_cast<std::uint16_t*>(sample.get());
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, 0.02F);
  std::vector<std::uint16_t> pool(1 << 20);
  for (auto& value : pool) value = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(normal(random)) >> 16);
  for (std::size_t at = 0; at < pool.size(); at += 997) pool[at] = static_cast<std::uint16_t>((at % 3) << (at % 16));
  for (std::uint64_t at = 0; at < kSampleBytes / 2; ++at) values[at] = pool[random() % pool.size()];
  for (std::uint64_t at = 0; at < weights.source.bytes(); at += kSampleBytes) {
    copy_async(weights.source.get() + at, sample.get(), std::min(kSampleBytes, weights.source.bytes() - at), stream);
  }
  stream.synchronize();
}

}  // namespace weightcast
