// The sender: reads a trainer's shards, casts them chunk by chunk into scratch slots, and puts the slots to every
// server that needs them. Stages overlap: while one slot is being cast, others are on the wire.
//
//   amax of blocks that span an axis -> amax of straddling blocks -> cast (own amax and peers') -> put ... -> scales
//                                                               +-> flush and signal, whenever a run of steps is out
//
// Back-pressure: a slot is cast into again only when all its puts are complete, so scratch stays within
// performance.scratch_bytes whatever the network does. What is put from where it stands takes turns at a few slots
// too, so that it is still in the cache when its turn comes.
//
// Threads: move() runs on one thread at a time and uses performance.threads in all; stop(), drop() and
// on_amax() may be called from any thread meanwhile. Nothing is allocated inside move().
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "plugin/messages.h"
#include "plugin/peer_links.h"
#include "plugin/signal.h"
#include "plugin/team.h"
#include "quant/cast.h"
#include "schedule/config.h"
#include "schedule/plan.h"
#include "transport/fabric.h"

namespace weightcast {

struct MoveResult {
  Status status;
  std::uint64_t bytes = 0;
  double seconds = 0;
  double cast_seconds = 0;  // summed over the threads
  bool cut_off = false;     // peers were disconnected to end their puts
};

class GpuSender;

class Pipeline {
 public:
  // `catalog` has addresses; `regions` are its regions in `fabric`, in order. Takes the scratch memory. Throws Error.
  Pipeline(const Config& config, Fabric& fabric, const Catalog& catalog, std::vector<RegionId> regions);
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;
  ~Pipeline();

  // Prepares everything that an update needs. Not while move() runs. Throws Error.
  void adopt(TrainerTable table, const Routes& routes);
  // Sends one version; when it returns, nothing is in flight. Failures of servers that were dropped do not count.
  [[nodiscard]] MoveResult move(std::uint64_t version, std::uint64_t token);
  // Ends the attempt `token`, running or still to come.
  void stop(std::uint64_t token, const Status& why);
  // Ends whatever runs, and every later move() at once.
  void close();
  void drop(std::uint32_t server);
  void on_amax(const AmaxValues& values);
  [[nodiscard]] std::uint64_t bytes_done() const noexcept { return bytes_done_.load(std::memory_order_relaxed); }

 private:
  friend class GpuSender;                   // the part of the work that differs where shards are in the memory of a GPU
  static constexpr Milliseconds kPoll{50};  // how often a blocked stage looks whether it should stop

  // One destination of a step, resolved against the peer's card.
  struct Target {
    std::uint32_t server = 0;  // index into servers_
    std::uint32_t signal = 0;  // of that server: which covers this
    PeerId peer = 0;
    std::uint32_t region = 0;
    std::uint64_t offset = 0;  // of the first element of the step's frame
    std::array<std::int64_t, kMaxAxes> strides{};
  };
  struct StepJob {
    std::size_t step = 0;             // of table_.steps
    std::uint64_t element_bytes = 0;  // stored ones
    std::uint64_t digest_key = 0;
    bool as_it_is = false;  // BF16 to BF16 in whole rows: put from where it stands
    std::vector<Target> targets;
  };
  struct Chunk {
    std::size_t job = 0;
    Box box;
  };
  // Chunks that share a slot, so that small ones too are handed over in long runs; all as they are, or all cast.
  struct Batch {
    std::size_t first = 0;  // of chunks_
    std::size_t end = 0;
    std::uint64_t bytes = 0;  // of scratch, each chunk's rounded up
    bool as_it_is = false;
  };
  struct ScaleJob {
    std::size_t step = 0;  // of table_.scale_steps
    std::uint64_t digest_key = 0;
    std::vector<Target> targets;
  };
  // What one signal covers, as far as it is out.
  struct Covered {
    std::size_t chunks = 0;  // chunks and scale steps that it waits for
    std::atomic<std::size_t> waits_for{0};
    std::atomic<std::uint64_t> bytes{0};
    std::atomic<Digest> digest{0};
  };
  struct ServerLink {
    std::uint32_t rank = 0;
    PeerId peer = 0;
    std::vector<std::unique_ptr<Covered>> signals;
    std::atomic<bool> dropped{false};
    Tally signalled;
  };
  // Per-block values of one entry under one recipe: row-major over `blocks`, in block coordinates of the tensor.
  using GridKey = std::pair<std::uint32_t, Recipe>;  // entry, recipe
  struct BlockGrid {
    Box blocks;
    std::vector<float> own;      // amax of what is held here, and after the cast of the whole block
    std::vector<float> foreign;  // from other trainers; 0 where there is none
    bool is_exchanged = false;   // others' come
  };
  // Rows of an entry whose blocks span an axis, so that their maxima are taken before anything is cast.
  struct Spanning {
    GridKey key;
    MatrixView view;
  };
  struct Incoming {  // of one AmaxMessage
    std::uint64_t token = 0;
    std::vector<std::byte> values;
  };
  struct Outgoing {
    PeerId peer = 0;
    std::vector<std::byte> message;
    std::size_t values = 0;
  };
  struct Slot {
    std::uint64_t offset = 0;
    Tally puts;
  };
  struct Slots {
    std::vector<std::unique_ptr<Slot>> all;
    std::size_t next = 0;  // to wait for when none is free
  };
  struct Worker {
    Slots scratch;
    Slots direct;  // without memory: for what is put from where it stands
    std::vector<float> amax;
    double cast_seconds = 0;
  };

  void prepare_signals();
  void prepare_jobs();
  void prepare_batches();
  void prepare_workers();
  void prepare_amax(const Routes& routes);
  [[nodiscard]] Target resolve(const TargetExtent& extent, const Routes& routes);
  void add_grid(std::uint32_t entry, Recipe recipe);
  void prepare_spanning();
  void reset_for(std::uint64_t version, std::uint64_t token);
  [[nodiscard]] Box shared_elements(const AmaxPart& run) const;
  void send_amax();
  void receive_amax();
  void send_from_host();
  void measure_spanning(Worker& worker);
  void work(Worker& worker);
  void send_chunk(Worker& worker, const Chunk& chunk, Slot& slot, std::uint64_t filled);
  [[nodiscard]] std::span<float> chunk_amax(Worker& worker, const StepJob& job, const SourceMatrix& source,
                                            const MatrixView& view);
  [[nodiscard]] float tensor_amax(std::uint32_t entry, const std::array<std::int64_t, kMaxAxes>& origin) const;
  void send_scales(Worker& worker);
  void signal_complete(const std::vector<Target>& targets, std::size_t chunks = 1);
  void await_signals();
  void put_matrix(const std::vector<Target>& targets, const Box& frame, const MatrixView& view, std::uint64_t element,
                  RegionId region, std::uint64_t offset, std::int64_t pitch, Tally& tally);
  void count(const std::vector<Target>& targets, std::uint64_t bytes, Digest digest);
  [[nodiscard]] Slot& free_slot(Slots& slots);
  [[nodiscard]] std::uint64_t scratch_bytes_of(const Chunk& chunk) const;
  [[nodiscard]] bool await(Tally& tally, const std::string& what);
  [[nodiscard]] bool drain();
  void fail(Status why);
  void fail_bad_value(std::uint32_t entry, Recipe recipe, const MatrixView& view, const BadValue& bad);
  [[nodiscard]] SourceMatrix source_of(std::uint32_t entry, const MatrixView& view) const;
  [[nodiscard]] bool stopped() const noexcept { return stopped_.load(std::memory_order_acquire); }

  const Config config_;
  Fabric& fabric_;
  const Catalog catalog_;
  const std::vector<RegionId> source_regions_;
  struct FreeScratch {
    void operator()(std::byte* memory) const noexcept;
  };
  std::unique_ptr<std::byte[], FreeScratch> scratch_;
  RegionId scratch_region_ = 0;
  std::unique_ptr<GpuSender> gpu_;  // instead of scratch_ and workers_, where the shards are on a GPU

  // ---- set by adopt() ----
  TrainerTable table_;
  std::vector<StepJob> jobs_;
  std::vector<Chunk> chunks_;  // those that need foreign amax last
  std::size_t first_straddling_ = 0;
  std::vector<Batch> batches_;
  std::vector<ScaleJob> scale_jobs_;
  std::mutex servers_mutex_;  // held to change the list, and by drop()
  std::vector<std::unique_ptr<ServerLink>> servers_;
  std::map<GridKey, BlockGrid> grids_;
  std::vector<std::map<GridKey, BlockGrid>::value_type*> exchanged_;  // those to which others' maxima come
  std::vector<Spanning> spanning_;
  std::vector<Outgoing> outgoing_;
  std::vector<std::unique_ptr<Worker>> workers_;  // of the team's first threads
  Tally amax_sent_;

  // ---- of one move() ----
  std::uint64_t version_ = 0;
  std::uint64_t token_ = 0;
  Deadline deadline_ = Deadline::after(Milliseconds(0));
  std::atomic<std::size_t> next_batch_{0};
  std::atomic<std::size_t> next_spanning_{0};
  std::atomic<std::uint64_t> bytes_done_{0};
  std::atomic<bool> stopped_{false};
  std::mutex failure_mutex_;
  Status failure_;                     // guarded by failure_mutex_
  std::uint64_t cancelled_token_ = 0;  // guarded by failure_mutex_
  Status cancelled_why_;               // guarded by failure_mutex_
  bool closed_ = false;                // guarded by failure_mutex_

  std::mutex amax_mutex_;
  std::condition_variable amax_changed_;
  std::vector<Incoming> incoming_;  // guarded by amax_mutex_; one per table_.amax_in
  bool amax_folded_ = false;        // guarded by amax_mutex_

  Team team_;
};

}  // namespace weightcast
