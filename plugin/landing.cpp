#include "plugin/landing.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "plugin/extent.h"
#include "transport/base/stream_copy.h"

namespace weightcast {
namespace {

constexpr std::uint64_t kAlignment = 4096;

std::byte* live_start(const Catalog& catalog, std::uint32_t region) {
  return reinterpret_cast<std::byte*>(catalog.regions[region].address);
}

class InPlace final : public LandingMemory {
 public:
  explicit InPlace(const Catalog& catalog) : catalog_(catalog) {}

  void prepare(Fabric& fabric) override {
    regions_.clear();
    for (const Region& region : catalog_.regions) {
      regions_.push_back(
          fabric.register_memory({reinterpret_cast<std::byte*>(region.address), region.bytes, region.kind}));
    }
  }
  [[nodiscard]] std::vector<RegionId> regions() const override { return regions_; }
  [[nodiscard]] std::vector<Placement> placements() const override {
    std::vector<Placement> placements;
    for (std::uint32_t region = 0; region < regions_.size(); ++region) placements.push_back({region, 0});
    return placements;
  }
  [[nodiscard]] std::byte* region_start(std::uint32_t region) const override { return live_start(catalog_, region); }
  void commit() noexcept override {}

 private:
  const Catalog& catalog_;
  std::vector<RegionId> regions_;
};

// A run of bytes that commit copies.
struct Copy {
  std::byte* live = nullptr;
  std::uint64_t shadow_offset = 0;
  std::uint64_t bytes = 0;
};

class Staged final : public LandingMemory {
 public:
  explicit Staged(const Catalog& catalog) : catalog_(catalog) {
    for (const Region& region : catalog.regions) {
      if (region.kind != MemoryKind::host) {
        throw Error(Code::unavailable, fmt::format("{}: region '{}' is CUDA memory; landing \"staged\" serves host "
                                                   "memory only in this version",
                                                   name_of(catalog), region.name));
      }
      offsets_.push_back(bytes_);
      bytes_ += (region.bytes + kAlignment - 1) / kAlignment * kAlignment;
    }
    plan_copies();
  }

  void prepare(Fabric& fabric) override {
    shadow_ = fabric.allocate(bytes_);
    start_ = fabric.memory(shadow_).address;
  }
  [[nodiscard]] std::vector<RegionId> regions() const override { return {shadow_}; }
  [[nodiscard]] std::vector<Placement> placements() const override {
    std::vector<Placement> placements;
    for (const std::uint64_t offset : offsets_) placements.push_back({0, offset});
    return placements;
  }
  [[nodiscard]] std::byte* region_start(std::uint32_t region) const override { return start_ + offsets_[region]; }
  void commit() noexcept override {
    for (const Copy& copy : copies_) stream_copy(copy.live, start_ + copy.shadow_offset, copy.bytes);
  }

 private:
  void plan_copies() {
    for (const Entry& entry : catalog_.entries) {
      if (entry.landing == Landing::staged_repair) continue;
      const std::uint64_t element = entry.is_scales ? sizeof(float) : element_bytes(entry.recipe);
      for_each_matrix(entry.box, entry.box, [&](const MatrixView& view) {
        const auto row_bytes = static_cast<std::uint64_t>(view.cols) * element;
        for (std::int64_t row = 0; row < view.rows; ++row) {
          const std::uint64_t offset =
              byte_at(entry, view.origin) +
              static_cast<std::uint64_t>(row * row_stride(entry.strides_bytes, entry.box.axes));
          append(copies_, {live_start(catalog_, entry.region) + offset, offsets_[entry.region] + offset, row_bytes});
        }
      });
    }
    std::sort(copies_.begin(), copies_.end(),
              [](const Copy& a, const Copy& b) { return a.shadow_offset < b.shadow_offset; });
    std::vector<Copy> merged;
    for (const Copy& copy : copies_) append(merged, copy);
    copies_ = std::move(merged);
  }
  // Joins what is adjacent on both sides: regions may touch in the shadow and be far apart in the engine.
  static void append(std::vector<Copy>& copies, const Copy& copy) {
    if (!copies.empty() && copies.back().shadow_offset + copies.back().bytes == copy.shadow_offset &&
        copies.back().live + copies.back().bytes == copy.live) {
      copies.back().bytes += copy.bytes;
    } else {
      copies.push_back(copy);
    }
  }

  const Catalog& catalog_;
  std::uint64_t bytes_ = 0;
  std::vector<std::uint64_t> offsets_;  // of each catalog region in the shadow
  std::vector<Copy> copies_;
  RegionId shadow_ = 0;
  std::byte* start_ = nullptr;
};

}  // namespace

std::unique_ptr<LandingMemory> make_landing(const std::string& kind, const Catalog& catalog) {
  if (kind == "in_place") return std::make_unique<InPlace>(catalog);
  return std::make_unique<Staged>(catalog);
}

}  // namespace weightcast
