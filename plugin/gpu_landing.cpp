#include "plugin/gpu_landing.h"

#include <fmt/format.h>

#include <optional>

#include "quant/gpu.h"
#include "transport/base/log.h"
#include "transport/cuda.h"

namespace weightcast {
namespace {

std::byte* start_of(const Region& region) { return reinterpret_cast<std::byte*>(region.address); }

// The device that holds every region.
int device_of(const Catalog& catalog) {
  std::optional<int> device;
  for (const Region& region : catalog.regions) {
    if (region.kind != MemoryKind::cuda) {
      throw Error(Code::invalid_argument,
                  fmt::format("{}: region '{}' is host memory and others are CUDA memory: landing \"staged\" needs one "
                              "kind; give them to two ranks",
                              name_of(catalog), region.name));
    }
    const int holder = check_cuda_memory({start_of(region), region.bytes, MemoryKind::cuda});
    if (device.value_or(holder) != holder) {
      throw Error(Code::invalid_argument, fmt::format("{}: region '{}' is on CUDA device {}, others are on device {}",
                                                      name_of(catalog), region.name, holder, *device));
    }
    device = holder;
  }
  return device.value();
}

class StagedOnGpu final : public LandingMemory {
 public:
  explicit StagedOnGpu(const Catalog& catalog) : catalog_(catalog), device_(device_of(catalog)) {
    if (!has_gpu_kernels()) {
      throw Error(Code::unavailable,
                  fmt::format("{}: landing \"staged\" in CUDA memory needs a build with nvcc", name_of(catalog)));
    }
  }
  StagedOnGpu(const StagedOnGpu&) = delete;
  StagedOnGpu& operator=(const StagedOnGpu&) = delete;
  ~StagedOnGpu() override {
    const CudaContextScope current(device_);
    shadows_.clear();
    copy_.reset();
    stream_.reset();
  }

  void prepare(Fabric& fabric) override {
    const CudaContextScope current(device_);
    regions_.clear();
    copy_.reset();
    shadows_.clear();
    stream_.emplace();
    for (const Region& region : catalog_.regions) {
      try {
        shadows_.emplace_back(region.bytes);
      } catch (const Error& error) {
        throw Error(
            Code::unavailable,
            fmt::format("{}: no room for the shadow of region '{}', {} bytes ({}); let the engine leave room for "
                        "it, or land \"in_place\"",
                        name_of(catalog_), region.name, region.bytes, error.what()));
      }
      regions_.push_back(fabric.register_memory({shadows_.back().get(), region.bytes, MemoryKind::cuda}));
    }
    std::vector<GpuCopyJob> jobs;
    for (const StagedRun& run : staged_runs(catalog_)) {
      jobs.push_back({shadows_[run.region].get() + run.byte_offset,
                      start_of(catalog_.regions[run.region]) + run.byte_offset, run.bytes});
    }
    copy_.emplace(jobs);
  }
  [[nodiscard]] std::vector<RegionId> regions() const override { return regions_; }
  [[nodiscard]] std::vector<Placement> placements() const override {
    std::vector<Placement> placements;
    for (std::uint32_t region = 0; region < regions_.size(); ++region) placements.push_back({region, 0});
    return placements;
  }
  [[nodiscard]] std::byte* region_start(std::uint32_t region) const override { return shadows_[region].get(); }
  void commit() noexcept override {
    try {
      const CudaContextScope current(device_);
      wait_for_cuda_device();  // a forward pass may still be reading the old weights
      copy_->launch(*stream_);
      stream_->synchronize();
    } catch (const Error& error) {  // the device is lost, and with it the engine
      log_error("{}: the commit failed on the GPU: {}", name_of(catalog_), error.what());
    }
  }

 private:
  const Catalog& catalog_;
  const int device_;
  std::vector<DeviceBuffer> shadows_;  // by region of the catalog
  std::vector<RegionId> regions_;
  std::optional<CudaStream> stream_;
  std::optional<GpuCopy> copy_;
};

}  // namespace

std::unique_ptr<LandingMemory> stage_on_gpu(const Catalog& catalog) { return std::make_unique<StagedOnGpu>(catalog); }

}  // namespace weightcast
