// The sender's work where the shards are in the memory of a GPU: the same chunks, casts and digests as on the host, in
// batches of many chunks, each one launch, through a ring of slots of device memory. Where a server's memory is mapped
// into this process, what is short is stored there by a kernel and what is long by copy engines, behind the casts of
// its batch; the rest is put.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "plugin/byte_runs.h"
#include "plugin/gpu_ring.h"
#include "plugin/pipeline.h"
#include "quant/gpu.h"

namespace weightcast {

// A part of Pipeline, which owns it. Nothing is allocated by send().
class GpuSender final : private GpuRing::Work {
 public:
  // Whether the catalog's regions are CUDA memory. Throws Error: invalid_argument when they are not all of one device.
  [[nodiscard]] static bool serves(const Catalog& catalog);

  // Takes performance.scratch_bytes of device memory. Throws Error.
  explicit GpuSender(Pipeline& pipeline);
  GpuSender(const GpuSender&) = delete;
  GpuSender& operator=(const GpuSender&) = delete;
  ~GpuSender() override;

  // Lays out the batches of the pipeline's chunks. Throws Error.
  void adopt();
  // Casts and puts everything of one move(), and submits the signals that become complete.
  void send();
  // Puts, and launches of stores and copies, that have not ended.
  [[nodiscard]] std::uint64_t flying() const;

 private:
  // One matrix of a chunk.
  struct Part {
    std::size_t chunk = 0;
    MatrixView view;
    std::uint64_t offset = 0;  // of its bytes in the slot
    bool ends_chunk = false;
  };
  struct Batch {
    std::vector<Part> parts;
    std::optional<GpuCopy> stores;
    std::vector<CudaCopies> copies;  // by server of stored_to_
    std::vector<ByteRun> puts;
    std::optional<GpuCast> cast;      // or
    std::optional<GpuDigest> digest;  // of what is put from where it stands
  };
  // Scale jobs that the same signals cover: digested and counted as one.
  struct ScaleLot {
    std::size_t first_job = 0;  // of the pipeline's scale jobs
    std::size_t jobs = 0;
    std::uint64_t bytes = 0;
  };
  // The scales of an entry's whole matrices.
  struct TensorScales {
    const Pipeline::BlockGrid* grid = nullptr;  // their maxima
    std::uint64_t to = 0;                       // byte in scales_
    std::uint64_t from = 0;                     // byte in tensor_scales_host_
  };
  // Matrices whose maxima are taken before anything is cast: of blocks that straddle trainers or span an axis.
  struct Measuring {
    std::vector<Pipeline::Spanning> matrices;
    std::vector<GpuCastJob> jobs;
    std::optional<GpuCast> measure;
    std::unique_ptr<GpuFindings> findings;
  };

  [[nodiscard]] bool is_free(std::size_t slot) override;
  const CudaStream& enqueue(std::size_t batch, std::size_t slot, const CudaStream& stream) override;
  void deliver(std::size_t batch, std::size_t slot) override;
  [[nodiscard]] bool has_to_stop() override;

  void append(std::vector<ByteRun>& runs, const ByteRun& run) const;
  [[nodiscard]] static ByteRun run_to(const Pipeline::Target& target, const Box& frame, const MatrixView& view);
  void append_runs(const Part& part, std::size_t slot, std::vector<ByteRun>& runs) const;
  void put(const std::vector<ByteRun>& runs, Tally& tally);
  // The run's target in this process's view of the server's GPU; nullptr: there is none.
  [[nodiscard]] std::byte* mapped_target(const ByteRun& run) const;
  [[nodiscard]] std::size_t group_of(const ByteRun& run) const;  // index in stored_to_; its size: in none
  [[nodiscard]] std::optional<GpuCopy> stores_of(const std::vector<ByteRun>& runs,
                                                 const std::function<const std::byte*(const ByteRun&)>& source) const;
  [[nodiscard]] std::vector<CudaCopies> copies_of(const std::vector<ByteRun>& runs) const;
  [[nodiscard]] bool may_store();
  [[nodiscard]] bool is_dropped(std::size_t group) const;
  void store(const GpuCopy& stores, const CudaStream& stream);
  void move_out(std::size_t number);

  void find_stored_to();
  void lay_out_grids();
  void lay_out_batches();
  void lay_out_batches(std::size_t first_chunk, std::size_t end_chunk);
  void finish_batch(Batch batch, bool as_it_is, Recipe recipe, std::size_t slot);
  [[nodiscard]] GpuCastJob cast_job(const Part& part, std::size_t slot, std::uint32_t number) const;
  void lay_out_scales();
  void lay_out_tensor_scales();
  void lay_out_gathering(std::vector<ByteRun> rows);
  void lay_out_measuring();
  void require_measurable(std::uint32_t entry, Recipe recipe) const;
  void begin_measuring();
  void end_measuring();
  void send_amax();
  void make_tensor_scales();
  void begin_scales();
  void send_scales();
  void upload_foreign();
  // Until everything on the stream is done; false when the update has to stop meanwhile.
  [[nodiscard]] bool await_stream();

  Pipeline& pipeline_;
  const int device_;
  GpuRing ring_;
  CudaStream stream_;  // of what does not go through the ring
  CudaStream
      storing_;  // of the batches' stores and copies, one after the other: a link is as fast with one as with more
  std::vector<CudaEvent> cast_ended_;  // by slot
  bool is_measuring_ = false;          // from begin_measuring() to end_measuring()
  CudaEvent stored_;                   // behind the last batch's stores and copies
  CudaEvent scales_stored_;
  CudaEvent event_;
  DeviceBuffer scratch_;
  RegionId scratch_region_ = 0;
  std::uint64_t slot_bytes_ = 0;
  std::vector<Tally> puts_;  // by slot
  Tally scale_puts_;

  // ---- set by adopt() ----
  std::vector<Batch> batches_;
  std::size_t first_straddling_ = 0;                    // batch; SIZE_MAX: none
  std::vector<std::size_t> stored_to_;                  // servers, in the order in which this trainer serves them
  std::vector<std::unique_ptr<GpuFindings>> findings_;  // by slot
  std::map<Pipeline::GridKey, std::uint64_t> grids_;    // where their blocks begin in scales_ and maxima_, in values
  DeviceBuffer scales_;                                 // of all grids, 4 bytes or 1 each
  DeviceBuffer maxima_;  // of the first grids: other trainers', and of blocks that span an axis, everyone's
  PinnedBuffer maxima_host_;
  std::vector<ScaleLot> scale_lots_;
  std::vector<TensorScales> tensor_scales_;
  PinnedBuffer tensor_scales_host_;
  std::optional<GpuCopy> tensor_scales_copy_;
  std::optional<GpuCopy> scale_stores_;
  std::vector<ByteRun> scale_runs_;
  DeviceBuffer gathered_;  // scales, run by run
  std::optional<RegionId> gathered_region_;
  std::optional<GpuCopy> gathering_;
  std::optional<GpuDigest> scale_digest_;
  std::unique_ptr<GpuFindings> scale_findings_;
  std::map<Recipe, Measuring> measuring_;
  DeviceBuffer outgoing_;  // maxima of straddling blocks, as their messages hold them
  PinnedBuffer outgoing_host_;
};

}  // namespace weightcast
