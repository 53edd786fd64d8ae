// What a GPU writes in other places than it reads: packed scales, and changes of a delta.
#include <algorithm>

#include "quant/gpu.h"
#include "quant/gpu_launch.h"
#include "quant/gpu_tables.h"

namespace weightcast {

GpuPackScales::GpuPackScales(std::span<const PackedScalesJob> jobs) {
  std::vector<gpu::PackGroup> groups;
  for (const PackedScalesJob& job : jobs) {
    for (std::int64_t first = 0; first < job.block_cols && job.rows > 0; first += 4) {
      groups.push_back(
          {reinterpret_cast<const unsigned*>(job.scales) + first * job.col_stride,
           reinterpret_cast<unsigned*>(job.packed + static_cast<std::uint64_t>(first / 4) * job.group_stride_bytes),
           job.row_stride, job.col_stride, job.rows,
           static_cast<std::int32_t>(std::min<std::int64_t>(4, job.block_cols - first))});
    }
  }
  groups_ = upload(groups);
  count_ = static_cast<std::uint32_t>(groups.size());
}

void GpuPackScales::launch(const CudaStream& stream) const {
  launch_kernel("pack_scales", count_, gpu::kTileThreads, stream.get(), groups_.get());
}

void apply_delta_on_gpu(const DeltaView& delta, const std::byte* encoded, const std::byte* on_device, std::byte* live,
                        const CudaStream& stream) {
  launch_kernel("apply_delta", static_cast<unsigned>(delta.chunks), gpu::kTileThreads, stream.get(),
                on_device + (delta.first - encoded), on_device + (delta.position - encoded),
                on_device + (delta.value - encoded), live);
}

}  // namespace weightcast
