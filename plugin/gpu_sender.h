// The sender's work where the shards are in the memory of a GPU: the same chunks, casts and digests as on the host, in
// batches of many chunks, each one launch, through a ring of slots of device memory.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

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
  [[nodiscard]] std::uint64_t flying() const;

 private:
  // One matrix of a chunk.
  struct Part {
    std::size_t chunk = 0;
    MatrixView view;
    std::uint64_t offset = 0;  // of its bytes in the slot
    bool ends_chunk = false;
  };
  // One put to one server. What lies behind each other at both ends is one: a put between GPUs costs microseconds,
  // however small it is.
  struct Run {
    std::size_t server = 0;  // index into the pipeline's servers
    PeerId peer = 0;
    RegionId from_region = 0;
    std::uint64_t from = 0;
    std::uint32_t to_region = 0;
    std::uint64_t to = 0;
    std::uint64_t bytes = 0;
  };
  struct Batch {
    std::vector<Part> parts;
    std::vector<Run> runs;
    std::optional<GpuCast> cast;      // or
    std::optional<GpuDigest> digest;  // of what is put from where it stands
  };
  // One matrix of the scales of a scale job: digested and counted as one.
  struct ScalePart {
    std::size_t job = 0;  // of the pipeline's scale jobs
    std::uint64_t bytes = 0;
  };
  // Matrices whose maxima are taken before anything is cast: of blocks that straddle trainers or span an axis.
  struct Measuring {
    std::vector<Pipeline::Spanning> matrices;
    std::vector<GpuCastJob> jobs;
    std::optional<GpuCast> measure;
    std::unique_ptr<GpuFindings> findings;
  };

  [[nodiscard]] bool is_free(std::size_t slot) override;
  void enqueue(std::size_t batch, std::size_t slot, const CudaStream& stream) override;
  void deliver(std::size_t batch, std::size_t slot) override;
  [[nodiscard]] bool has_to_stop() override;

  void append(std::vector<Run>& runs, const Run& run) const;
  [[nodiscard]] static Run run_to(const Pipeline::Target& target, const Box& frame, const MatrixView& view);
  void append_runs(const Part& part, std::size_t slot, std::vector<Run>& runs) const;
  void put(const std::vector<Run>& runs, Tally& tally);

  void lay_out_grids();
  void lay_out_batches(std::size_t first_chunk, std::size_t end_chunk);
  void finish_batch(Batch batch, bool as_it_is, Recipe recipe, std::size_t slot);
  [[nodiscard]] GpuCastJob cast_job(const Part& part, std::size_t slot, std::uint32_t number) const;
  void lay_out_scales();
  void lay_out_gathering(std::vector<Run> rows);
  void lay_out_measuring();
  void require_measurable(std::uint32_t entry, Recipe recipe) const;
  void run(std::size_t first, std::size_t end);
  void measure_all();
  void send_amax();
  void send_scales();
  void upload_foreign();
  // Until everything on the stream is done; false when the update has to stop meanwhile.
  [[nodiscard]] bool await_stream();

  Pipeline& pipeline_;
  const int device_;
  GpuRing ring_;
  CudaStream stream_;  // of what does not go through the ring
  CudaEvent event_;
  DeviceBuffer scratch_;
  RegionId scratch_region_ = 0;
  std::uint64_t slot_bytes_ = 0;
  std::vector<Tally> puts_;  // by slot
  Tally scale_puts_;

  // ---- set by adopt() ----
  std::vector<Batch> batches_;
  std::size_t first_straddling_ = 0;  // batch
  std::size_t first_of_run_ = 0;
  std::vector<std::unique_ptr<GpuFindings>> findings_;  // by slot
  std::map<Pipeline::GridKey, std::uint64_t> grids_;    // where their blocks begin in scales_ and maxima_, in values
  DeviceBuffer scales_;                                 // of all grids, 4 bytes or 1 each
  DeviceBuffer maxima_;  // of all grids: other trainers', and of blocks that span an axis, everyone's
  PinnedBuffer maxima_host_;
  std::vector<ScalePart> scale_parts_;
  std::vector<Run> scale_runs_;
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
