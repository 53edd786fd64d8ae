// The kernels by name, as quant/gpu*.cpp launches them. Compiled to one image for several architectures; no host code.
#include "quant/kernels/cast.cuh"
#include "quant/kernels/digest.cuh"
#include "quant/kernels/scatter.cuh"

using namespace weightcast;
using namespace weightcast::gpu;

namespace {

constexpr int kTilesOfBlock = 4;  // of the capped kernels: as many as a multiprocessor holds, so one block takes it all

// A table streams through: a line of it is in the L2 before the block whose turn it is asks for it.
template <class Row>
__device__ void prefetch_ahead(const Row* table, std::uint32_t at, std::uint32_t count) {
  constexpr std::uint32_t kAhead = 2048;  // a few times what runs at once
  if (threadIdx.x == 0 && at + kAhead < count) asm volatile("prefetch.global.L2 [%0];" ::"l"(table + at + kAhead));
}

template <class Source, bool kDigest>
__device__ void cast_all(const CastMatrix* matrices, const FastTile* tiles, std::uint32_t count, Recipe recipe,
                         std::uint64_t version, Findings findings) {
  __shared__ Exchange exchange;
  const FastTile tile = tiles[blockIdx.x];
  prefetch_ahead(tiles, blockIdx.x, count);
  const Group group{static_cast<int>(threadIdx.x), 1, &exchange, 0};
  cast_tile<Source, kDigest>(matrices, tile, recipe, group, version, findings);
}

template <class Source, bool kDigest>
__device__ void cast_capped(const CastMatrix* matrices, const FastTile* tiles, std::uint32_t count, Recipe recipe,
                            std::uint64_t version, Findings findings) {
  __shared__ Exchange exchange[kTilesOfBlock];
  const int quarter = static_cast<int>(threadIdx.x) / kTileThreads;
  Group group{static_cast<int>(threadIdx.x) % kTileThreads, quarter + 1, exchange + quarter, 0};
  for (std::uint32_t at = blockIdx.x * kTilesOfBlock + quarter; at < count; at += gridDim.x * kTilesOfBlock) {
    cast_tile<Source, kDigest>(matrices, tiles[at], recipe, group, version, findings);
    ++group.turn;
  }
}

template <class Word>
__device__ void copy_as(const CopyTile& tile) {
  const auto* from = reinterpret_cast<const Word*>(tile.from);
  auto* to = reinterpret_cast<Word*>(tile.to);
  const std::uint32_t words = tile.bytes / sizeof(Word);
  for (std::uint32_t at = threadIdx.x; at < words; at += kTileThreads) to[at] = from[at];
  const std::uint32_t rest = words * sizeof(Word) + threadIdx.x;
  if (rest < tile.bytes) tile.to[rest] = tile.from[rest];
}

__device__ void copy_tile(const CopyTile& tile) {
  constexpr int kLoads = kCopyTileBytes / (16 * kTileThreads);
  const auto place = reinterpret_cast<std::uintptr_t>(tile.from) | reinterpret_cast<std::uintptr_t>(tile.to);
  if (place % 16 == 0 && tile.bytes == kCopyTileBytes) {
    uint4 v[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) v[i] = load_now(tile.from + (threadIdx.x + i * kTileThreads) * 16);
    __syncthreads();  // the memory likes long reads and long writes better than both mixed
#pragma unroll
    for (int i = 0; i < kLoads; ++i) reinterpret_cast<uint4*>(tile.to)[threadIdx.x + i * kTileThreads] = v[i];
  } else if (place % 16 == 0) {
    copy_as<uint4>(tile);
  } else if (place % 4 == 0) {
    copy_as<unsigned>(tile);
  } else {
    copy_as<unsigned char>(tile);
  }
}

}  // namespace

#define WEIGHTCAST_CAST(name, Source, kDigest)                                                             \
  extern "C" __global__ void __launch_bounds__(kTileThreads, 4)                                            \
      name(const CastMatrix* matrices, const FastTile* tiles, std::uint32_t count, Recipe recipe,          \
           std::uint64_t version, Findings findings) {                                                     \
    cast_all<Source, kDigest>(matrices, tiles, count, recipe, version, findings);                          \
  }                                                                                                        \
  extern "C" __global__ void __launch_bounds__(kTilesOfBlock* kTileThreads, 1)                             \
      name##_capped(const CastMatrix* matrices, const FastTile* tiles, std::uint32_t count, Recipe recipe, \
                    std::uint64_t version, Findings findings) {                                            \
    cast_capped<Source, kDigest>(matrices, tiles, count, recipe, version, findings);                       \
  }
WEIGHTCAST_CAST(cast_bf16, Bf16, false)
WEIGHTCAST_CAST(cast_bf16_digest, Bf16, true)
WEIGHTCAST_CAST(cast_fp32_digest, Fp32, true)
#undef WEIGHTCAST_CAST

extern "C" __global__ void __launch_bounds__(kTileThreads)
    cast_any(const CastMatrix* matrices, const Tile* tiles, Findings findings) {
  __shared__ Exchange exchange;
  const Tile tile = tiles[blockIdx.x];
  const CastMatrix& m = matrices[tile.matrix];
  if (m.recipe == Recipe::bf16 || m.recipe == Recipe::fp16 || m.recipe == Recipe::fp32) {
    convert_tile(m, tile, static_cast<int>(threadIdx.x), findings);
  } else {
    cast_tile_any(matrices, tile, {static_cast<int>(threadIdx.x), 1, &exchange, 0}, findings);
  }
}

extern "C" __global__ void __launch_bounds__(kTileThreads)
    measure(const CastMatrix* matrices, const Tile* tiles, Findings findings) {
  __shared__ Exchange exchange;
  const Tile tile = tiles[blockIdx.x];
  measure_tile(matrices[tile.matrix], tile, {static_cast<int>(threadIdx.x), 1, &exchange, 0}, findings);
}

extern "C" __global__ void __launch_bounds__(kDigestThreads)
    digest(const DigestPart* parts, std::uint64_t version, Findings findings) {
  digest_part(parts[blockIdx.x], version, findings);
}

extern "C" __global__ void __launch_bounds__(kTileThreads)
    copy(const CopyTile* tiles, std::uint32_t count, std::uint64_t left_out) {
  for (std::uint32_t at = blockIdx.x; at < count; at += gridDim.x) {
    const CopyTile tile = tiles[at];
    prefetch_ahead(tiles, at, count);
    if ((left_out >> tile.group & 1) == 0) copy_tile(tile);
  }
}

extern "C" __global__ void __launch_bounds__(kTileThreads) pack_scales(const PackGroup* groups) {
  pack_group(groups[blockIdx.x]);
}

extern "C" __global__ void __launch_bounds__(kTileThreads)
    apply_delta(const std::uint32_t* first, const std::uint16_t* position, const unsigned char* value,
                unsigned char* live) {
  apply_changes(first + blockIdx.x, position, value, live + blockIdx.x * kDeltaChunk);
}

extern "C" __global__ void __launch_bounds__(kTileThreads) read_only(const unsigned char* memory, std::uint64_t bytes) {
  constexpr int kLoads = 8;
  const std::uint64_t first = blockIdx.x * kDigestPartBytes;
  const std::uint64_t end = min(bytes, first + kDigestPartBytes);
  unsigned all = 0;
  for (std::uint64_t at = first + threadIdx.x * 16; at < end; at += kLoads * kTileThreads * 16) {
    uint4 v[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const std::uint64_t place = at + i * kTileThreads * 16;
      v[i] = place < end ? load_wide(memory + place) : uint4{};
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) all |= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  if (all == 0x12345678) __nanosleep(1);  // so that the loads are made
}

extern "C" __global__ void spin(std::uint64_t nanoseconds) {
  const auto now = [] {
    std::uint64_t time;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
    return time;
  };
  for (const std::uint64_t start = now(); now() - start < nanoseconds;) __nanosleep(100);
}
