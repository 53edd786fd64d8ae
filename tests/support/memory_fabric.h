// A fabric that is only memory: regions are kept, nothing moves.
#pragma once

#include <doctest/doctest.h>

#include <map>
#include <string>
#include <vector>

#include "transport/fabric.h"

namespace weightcast {

class MemoryFabric final : public Fabric {
 public:
  const FabricFacts& facts() const override { return facts_; }
  RegionId register_memory(MemorySpan memory) override {
    spans_[next_] = memory;
    return next_++;
  }
  RegionId allocate(std::uint64_t bytes) override {
    auto& memory = owned_[next_];
    memory.resize(bytes);
    return register_memory({memory.data(), bytes, MemoryKind::host});
  }
  MemorySpan memory(RegionId region) const override { return spans_.at(region); }
  void release(RegionId region) override {
    REQUIRE(spans_.erase(region) == 1);
    owned_.erase(region);
  }
  Bytes card(std::span<const RegionId>) const override { return {}; }
  PeerId connect(const std::string&, std::span<const std::byte>, Deadline) override { return 0; }
  PeerFacts peer_facts(PeerId) const override { return {}; }
  void disconnect(PeerId) override {}
  MemorySpan mapped(PeerId, std::uint32_t) const override { return {}; }
  Status put(const Put&, Deadline) override { return {}; }
  Status signal(PeerId, std::span<const std::byte>, Tally*, Deadline) override { return {}; }
  Status send(PeerId, std::span<const std::byte>, Tally*, Deadline) override { return {}; }
  void set_lease(Clock::time_point) noexcept override {}
  bool lease_holds() const noexcept override { return true; }
  void set_active(bool) noexcept override {}

 private:
  FabricFacts facts_;
  RegionId next_ = 0;
  std::map<RegionId, MemorySpan> spans_;
  std::map<RegionId, std::vector<std::byte>> owned_;
};

}  // namespace weightcast
