#include "plugin/packing.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "quant/gpu.h"
#include "quant/packed_scales.h"
#include "transport/base/log.h"
#include "transport/cuda.h"

namespace weightcast {
namespace {

std::byte* live_byte(const Catalog& catalog, std::uint32_t region, std::uint64_t byte_offset) {
  return reinterpret_cast<std::byte*>(catalog.regions[region].address) + byte_offset;
}

PackedScalesJob packing_of(const Catalog& catalog, const Entry& entry) {
  const Entry& scales = catalog.entries[entry.scales.value()];
  const PackedScales& packed = entry.packed_scales.value();
  PackedScalesJob job;
  job.scales = live_byte(catalog, scales.region, scales.byte_offset);
  job.row_stride = scales.strides_bytes[0] / static_cast<std::int64_t>(sizeof(float));
  job.col_stride = scales.strides_bytes[1] / static_cast<std::int64_t>(sizeof(float));
  job.rows = entry.box.extent[0];
  job.block_cols = scales.box.extent[1];
  job.packed = live_byte(catalog, packed.region, packed.byte_offset);
  job.group_stride_bytes = packed.group_stride_bytes;
  return job;
}

// The device that holds a region; nothing: the host does.
std::optional<int> device_of(const Region& region) {
  if (region.kind == MemoryKind::host) return std::nullopt;
  return check_cuda_memory({reinterpret_cast<std::byte*>(region.address), region.bytes, region.kind});
}

class Packing final : public LandingMemory {
 public:
  Packing(std::unique_ptr<LandingMemory> inner, const Catalog& catalog) : inner_(std::move(inner)), catalog_(catalog) {
    std::optional<std::optional<int>> device;
    for (const Entry& entry : catalog.entries) {
      if (!entry.packed_scales || entry.landing == Landing::staged_repair) continue;
      const auto holder = device_of(catalog.regions[entry.packed_scales->region]);
      const Entry& scales = catalog.entries[entry.scales.value()];
      if (device_of(catalog.regions[scales.region]) != holder || device.value_or(holder) != holder) {
        throw Error(Code::invalid_argument,
                    fmt::format("{}: tensor '{}': its scales and all packed scales must be in the memory of one device",
                                name_of(catalog), entry.tensor));
      }
      device = holder;
      jobs_.push_back(packing_of(catalog, entry));
    }
    if (device) device_ = *device;
    if (device_ && !has_gpu_kernels()) {
      throw Error(Code::unavailable,
                  fmt::format("{}: packed scales in CUDA memory need a build with nvcc", name_of(catalog)));
    }
  }
  Packing(const Packing&) = delete;
  Packing& operator=(const Packing&) = delete;
  ~Packing() override {
    if (!device_) return;
    const CudaContextScope current(*device_);
    on_gpu_.reset();
  }

  void prepare(Fabric& fabric) override {
    inner_->prepare(fabric);
    if (!device_) return;
    const CudaContextScope current(*device_);
    on_gpu_.emplace(jobs_);
  }
  [[nodiscard]] std::vector<RegionId> regions() const override { return inner_->regions(); }
  [[nodiscard]] std::vector<Placement> placements() const override { return inner_->placements(); }
  [[nodiscard]] std::byte* region_start(std::uint32_t region) const override { return inner_->region_start(region); }
  void commit() noexcept override {
    inner_->commit();
    if (!device_) {
      std::for_each(jobs_.begin(), jobs_.end(), pack_scales);
      return;
    }
    try {
      const CudaContextScope current(*device_);
      wait_for_cuda_device();  // a forward pass may still be reading the old scales
      on_gpu_->packing.launch(on_gpu_->stream);
      on_gpu_->stream.synchronize();
    } catch (const Error& error) {  // the device is lost, and with it the engine
      log_error("{}: packing scales failed on the GPU: {}", name_of(catalog_), error.what());
    }
  }

 private:
  struct OnGpu {
    explicit OnGpu(const std::vector<PackedScalesJob>& jobs) : packing(jobs) {}
    CudaStream stream;
    GpuPackScales packing;
  };

  std::unique_ptr<LandingMemory> inner_;
  const Catalog& catalog_;
  std::vector<PackedScalesJob> jobs_;
  std::optional<int> device_;
  std::optional<OnGpu> on_gpu_;
};

}  // namespace

std::unique_ptr<LandingMemory> with_packed_scales(std::unique_ptr<LandingMemory> inner, const Catalog& catalog) {
  const bool packs = std::any_of(catalog.entries.begin(), catalog.entries.end(),
                                 [](const Entry& entry) { return entry.packed_scales.has_value(); });
  if (!packs) return inner;
  return std::make_unique<Packing>(std::move(inner), catalog);
}

}  // namespace weightcast
