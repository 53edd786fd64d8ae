#include "plugin/landing.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <tuple>

#include "plugin/extent.h"
#include "plugin/gpu_landing.h"
#include "plugin/packing.h"
#include "plugin/team.h"
#include "transport/base/stream_copy.h"

namespace weightcast {
namespace {

constexpr std::uint64_t kAlignment = 4096;
constexpr std::uint64_t kCopyBytes = 2 * MiB;  // enough to share evenly, and to copy in long runs

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
  Staged(const Catalog& catalog, std::size_t threads) : team_(threads) {
    for (const Region& region : catalog.regions) {
      offsets_.push_back(bytes_);
      bytes_ += (region.bytes + kAlignment - 1) / kAlignment * kAlignment;
    }
    for (const StagedRun& run : staged_runs(catalog)) {
      append({live_start(catalog, run.region) + run.byte_offset, offsets_[run.region] + run.byte_offset, run.bytes});
    }
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
    std::atomic<std::size_t> next{0};
    const auto work = [&](std::size_t) {
      for (std::size_t index = next++; index < copies_.size(); index = next++) {
        const Copy& copy = copies_[index];
        stream_copy(copy.live, start_ + copy.shadow_offset, copy.bytes);
      }
    };
    team_.run(std::cref(work));  // by reference: nothing is allocated
  }

 private:
  // Joins what is adjacent on both sides (regions may touch in the shadow and be far apart in the engine), and cuts
  // what is long.
  void append(Copy copy) {
    if (!copies_.empty() && copies_.back().shadow_offset + copies_.back().bytes == copy.shadow_offset &&
        copies_.back().live + copies_.back().bytes == copy.live) {
      copy = {copies_.back().live, copies_.back().shadow_offset, copies_.back().bytes + copy.bytes};
      copies_.pop_back();
    }
    for (; copy.bytes > kCopyBytes; copy.bytes -= kCopyBytes) {
      copies_.push_back({copy.live, copy.shadow_offset, kCopyBytes});
      copy.live += kCopyBytes;
      copy.shadow_offset += kCopyBytes;
    }
    copies_.push_back(copy);
  }

  std::uint64_t bytes_ = 0;
  std::vector<std::uint64_t> offsets_;  // of each catalog region in the shadow
  std::vector<Copy> copies_;
  RegionId shadow_ = 0;
  std::byte* start_ = nullptr;
  Team team_;
};

}  // namespace

std::vector<StagedRun> staged_runs(const Catalog& catalog) {
  std::vector<StagedRun> runs;
  for (const Entry& entry : catalog.entries) {
    if (entry.landing == Landing::staged_repair) continue;
    const std::uint64_t element = stored_bytes(entry);
    const std::int64_t pitch = row_stride(entry.strides_bytes, entry.box.axes);
    const Box box = stored_box(entry, entry.box);
    for_each_matrix(box, box, [&](const MatrixView& view) {
      for (std::int64_t row = 0; row < view.rows; ++row) {
        runs.push_back({entry.region, byte_at(entry, view.origin) + static_cast<std::uint64_t>(row * pitch),
                        static_cast<std::uint64_t>(view.cols) * element});
      }
    });
  }
  std::sort(runs.begin(), runs.end(), [](const StagedRun& a, const StagedRun& b) {
    return std::tie(a.region, a.byte_offset) < std::tie(b.region, b.byte_offset);
  });
  std::vector<StagedRun> joined;
  for (const StagedRun& run : runs) {
    if (!joined.empty() && joined.back().region == run.region &&
        joined.back().byte_offset + joined.back().bytes == run.byte_offset) {
      joined.back().bytes += run.bytes;
    } else {
      joined.push_back(run);
    }
  }
  return joined;
}

std::unique_ptr<LandingMemory> make_landing(const std::string& kind, const Catalog& catalog, std::size_t threads) {
  if (kind == "in_place") return with_packed_scales(std::make_unique<InPlace>(catalog), catalog);
  const auto is_cuda = [](const Region& region) { return region.kind == MemoryKind::cuda; };
  const bool on_gpu = std::any_of(catalog.regions.begin(), catalog.regions.end(), is_cuda);
  return with_packed_scales(
      on_gpu ? stage_on_gpu(catalog) : std::unique_ptr<LandingMemory>(std::make_unique<Staged>(catalog, threads)),
      catalog);
}

}  // namespace weightcast
