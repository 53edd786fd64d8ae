// Casting, digesting and copying on a GPU, equal bit for bit to quant/cast.h and quant/digest.h. Each class lays out a
// batch once, in device memory, and runs it with one launch (a few, where sources differ in kind) as often as wanted:
// nothing is allocated or planned by a launch.
//
// All addresses are of device memory (pinned host memory works too, at the bus's speed) unless said otherwise, and are
// borrowed. Threads: an object on one thread at a time, whose current context is the device's
// (use_primary_cuda_context); two launches of one object may be in flight when they are given different findings.
//
// Builds without nvcc have no kernels: constructors throw Error unavailable, as they do without a driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "quant/cast.h"
#include "quant/delta.h"
#include "quant/packed_scales.h"
#include "transport/cuda_stream.h"

namespace weightcast {

// False in builds without nvcc.
[[nodiscard]] bool has_gpu_kernels() noexcept;

// What launches report, in device memory; fetch() brings it to the host.
class GpuFindings {
 public:
  explicit GpuFindings(std::uint32_t slots);
  // Enqueued: before the launches that report here, and after them.
  void clear(const CudaStream& stream);
  void fetch(const CudaStream& stream);

  // ---- when the stream has got past fetch() ----
  // The job, by its number in its batch, with the first value that its recipe cannot hold; and where in its matrix of
  // `cols` columns that is.
  [[nodiscard]] bool found_bad() const noexcept;
  [[nodiscard]] std::uint32_t bad_job() const noexcept;
  [[nodiscard]] BadValue bad_value(std::int64_t cols) const noexcept;
  [[nodiscard]] Digest digest(std::uint32_t slot) const noexcept;

 private:
  friend class GpuCast;
  friend class GpuDigest;
  std::uint64_t bytes_;
  DeviceBuffer device_;
  PinnedBuffer host_;
};

// One matrix of a batch, cast as weightcast::cast() does.
struct GpuCastJob {
  SourceMatrix source;
  BlockOrigin origin;
  std::byte* output = nullptr;
  std::int64_t output_row_bytes = 0;
  // Where the scale of block (0, 0) that the matrix touches goes, and the distances to the next block's, in scales: any
  // layout, transposed too. nullptr: nowhere.
  std::byte* scales = nullptr;
  std::int64_t scale_row_stride = 0;
  std::int64_t scale_col_stride = 1;
  // amax of the blocks that the matrix touches, row-major, `amax_row_stride` values from one row of blocks to the next.
  // 128x128 recipes: nullptr when every block is whole here, else the amax that others measured, which is merged.
  // fp8_e4m3_channel: one value per row. fp8_e4m3_tensor, nvfp4_e2m1_1x16: one value, of the tensor. mxfp8: unused.
  float* amax = nullptr;
  std::int64_t amax_row_stride = 1;
  DigestFrame frame;              // its seed is the entry of digest_seed(version, entry)
  std::uint32_t digest_slot = 0;  // of the findings; several jobs may add up in one
};

class GpuCast {
 public:
  // Jobs of one recipe. Each has fewer than 2^31 rows and columns, and 2^40 values.
  GpuCast(Recipe recipe, std::span<const GpuCastJob> jobs);
  // Merges the amax of every job's values into its `amax` (which is initialised: zeros, or others' maxima). What comes
  // out is for the exchange, and for launch() of recipes whose scales span more than a tile.
  void measure(const CudaStream& stream, GpuFindings& findings) const;
  // Casts. 128x128 recipes read their source once. `multiprocessors`: how many it may occupy, 0 for all; a capped
  // launch leaves the others to whoever trains. Findings may be of several launches. The digests are those of the
  // outputs.
  void launch(const CudaStream& stream, std::uint64_t version, GpuFindings& findings, int multiprocessors = 0) const;
  // The same without digests of what takes the fast path, for measurements.
  void launch_without_digest(const CudaStream& stream, GpuFindings& findings) const;
  // Whether every job takes the fast path, which a cap is for: BF16 or FP32 of a 128x128 recipe, columns and strides
  // multiples of 8 and sources aligned to 16 bytes.
  [[nodiscard]] bool is_fast() const noexcept { return any_.count == 0; }

 private:
  struct Table {
    DeviceBuffer memory;
    std::uint32_t count = 0;
  };
  void cast_fast(const char* kernel, const Table& tiles, const CudaStream& stream, std::uint64_t version,
                 GpuFindings& findings, int multiprocessors) const;
  void cast_any(const CudaStream& stream, GpuFindings& findings) const;

  Recipe recipe_;
  DeviceBuffer matrices_;
  Table bf16_, fp32_;  // FastTiles
  Table any_, all_;    // Tiles; all_: for measure()
  Table unfused_;      // DigestParts of the outputs of any_
};

// Rows of bytes to be digested as weightcast::digest_rows() does.
struct GpuDigestJob {
  const std::byte* memory = nullptr;
  std::uint64_t rows = 0;
  std::uint64_t row_bytes = 0;
  std::int64_t row_stride = 0;  // bytes
  DigestFrame frame;            // its seed is the entry of digest_seed(version, entry)
  std::uint32_t digest_slot = 0;
  bool is_bf16 = false;  // NaN and Inf are found too, as weightcast::inspect() does
};

class GpuDigest {
 public:
  explicit GpuDigest(std::span<const GpuDigestJob> jobs);
  void launch(const CudaStream& stream, std::uint64_t version, GpuFindings& findings) const;

 private:
  DeviceBuffer parts_;
  std::uint32_t count_ = 0;
};

struct GpuCopyJob {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  std::uint64_t bytes = 0;
  std::uint32_t group = 0;  // below GpuCopy::kGroups: one target's, which a launch may leave out
};

// Many copies as one launch, e.g. the commit of a staged version, or what goes into another device's memory, where that
// is mapped. Sources and targets do not overlap. 16 bytes at a time where both ends are aligned to it, else 4, else 1.
// Groups are copied side by side, so that the links of all targets are busy from the first to the last.
class GpuCopy {
 public:
  static constexpr std::uint32_t kGroups = 64;

  explicit GpuCopy(std::span<const GpuCopyJob> jobs);
  // `blocks`: of 256 threads, how many share the work; 0: as many as there is work for, which take the whole device.
  // Jobs of group g are left out where bit g of `left_out` is set.
  void launch(const CudaStream& stream, unsigned blocks = 0, std::uint64_t left_out = 0) const;

 private:
  DeviceBuffer tiles_;
  std::uint32_t count_ = 0;
};

// pack_scales() of many matrices as one launch.
class GpuPackScales {
 public:
  explicit GpuPackScales(std::span<const PackedScalesJob> jobs);
  void launch(const CudaStream& stream) const;

 private:
  DeviceBuffer groups_;
  std::uint32_t count_ = 0;
};

// apply_delta() on a GPU. `delta` was read from the bytes at `encoded`, of which `on_device`, aligned to 8, is a copy;
// `live` is the run. Enqueued.
void apply_delta_on_gpu(const DeltaView& delta, const std::byte* encoded, const std::byte* on_device, std::byte* live,
                        const CudaStream& stream);

// Keeps the stream busy for so long: for tests of what happens behind a slow kernel.
void spin_on_gpu(const CudaStream& stream, std::uint64_t microseconds);

// Reads memory (a multiple of 16 bytes, aligned to 16) and does nothing with it: the limit that digests are held
// against.
class GpuRead {
 public:
  GpuRead(const std::byte* memory, std::uint64_t bytes) : memory_(memory), bytes_(bytes) {}
  void launch(const CudaStream& stream) const;

 private:
  const std::byte* memory_;
  std::uint64_t bytes_;
};

}  // namespace weightcast
