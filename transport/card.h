// A card: what a peer needs to put into this process. It travels over the control plane and may come from a
// broken or newer process, so parse_card() trusts no length in it.
//
// Format, version 1, little-endian, no padding:
//   u32 magic "WCFC" | u32 version | u64 total bytes | u32 worker address bytes | u32 regions | worker address
//   then per region: u64 bytes | u64 base address | u32 kind (MemoryKind) | u32 rkey bytes | rkey
// Region 0 is the fabric's own probe slot (see transport/ucx/README.md); a Put's target_region counts from the
// region after it. If any region is CUDA memory, the last one is another probe slot, in CUDA memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "transport/fabric.h"
#include "transport/memory.h"

namespace weightcast {

inline constexpr std::uint32_t kCardVersion = 1;
inline constexpr std::uint32_t kMaxCardRegions = 1u << 20;

struct CardRegion {
  std::uint64_t bytes = 0;
  std::uint64_t base_address = 0;  // in the process that made the card; never dereferenced here
  MemoryKind kind = MemoryKind::host;
  std::span<const std::byte> rkey;  // packed by UCX
};

struct Card {
  std::span<const std::byte> worker_address;
  std::vector<CardRegion> regions;

  [[nodiscard]] bool has_cuda() const {
    return std::any_of(regions.begin(), regions.end(), [](const auto& it) { return it.kind == MemoryKind::cuda; });
  }
  // Without the probe slots. 0 for a card without any.
  [[nodiscard]] std::size_t offered() const {
    const std::size_t slots = has_cuda() ? 2 : 1;
    return regions.size() > slots ? regions.size() - slots : 0;
  }
};

[[nodiscard]] Bytes write_card(const Card& card);

// The spans point into `bytes`. Throws Error invalid_argument naming the field and the cause.
[[nodiscard]] Card parse_card(std::span<const std::byte> bytes);

}  // namespace weightcast
