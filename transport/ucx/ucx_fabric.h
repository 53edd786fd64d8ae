// Fabric over UCX. One thread, started by the constructor, opens the context, makes every call into UCX, and closes
// all of it. Other threads submit transfers through each peer's queue and everything else as a task.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "transport/base/handle.h"
#include "transport/fabric.h"
#include "transport/ucx/context.h"
#include "transport/ucx/peer.h"

namespace weightcast {

inline constexpr std::uint64_t kProbeSlotBytes = 64;  // so that two probes never share a cache line

class UcxFabric final : public Fabric {
 public:
  // After bind_ucx(). Throws Error unavailable.
  UcxFabric(const FabricOptions& options, FabricListener& listener);
  UcxFabric(const UcxFabric&) = delete;
  UcxFabric& operator=(const UcxFabric&) = delete;
  ~UcxFabric() override;

  [[nodiscard]] const FabricFacts& facts() const override { return facts_; }
  [[nodiscard]] RegionId register_memory(MemorySpan memory) override;
  [[nodiscard]] RegionId allocate(std::uint64_t bytes) override;
  [[nodiscard]] MemorySpan memory(RegionId region) const override;
  void release(RegionId region) override;
  [[nodiscard]] Bytes card(std::span<const RegionId> regions) const override;
  [[nodiscard]] PeerId connect(const std::string& name, std::span<const std::byte> card, Deadline deadline) override;
  [[nodiscard]] PeerFacts peer_facts(PeerId peer) const override;
  void disconnect(PeerId peer) override;
  [[nodiscard]] MemorySpan mapped(PeerId peer, std::uint32_t target_region) const override;
  [[nodiscard]] Status put(const Put& put, Deadline deadline) override;
  [[nodiscard]] Status signal(PeerId peer, std::span<const std::byte> message, Tally* tally,
                              Deadline deadline) override;
  [[nodiscard]] Status send(PeerId peer, std::span<const std::byte> message, Tally* tally, Deadline deadline) override;
  void set_lease(Clock::time_point until) noexcept override { lease_ = until.time_since_epoch().count(); }
  [[nodiscard]] bool lease_holds() const noexcept override {
    return Clock::now().time_since_epoch().count() < lease_.load(std::memory_order_acquire);
  }
  void set_active(bool active) noexcept override { active_ = active; }

 private:
  using Mapping = std::shared_ptr<const MemoryMapping>;
  struct Known {
    std::shared_ptr<Peer> peer;
    PeerFacts facts;
  };

  // ---- any thread ----
  // Runs `task` on the progress thread, waits for it and passes on what it returns or throws.
  template <class Task>
  auto on_progress_thread(Task task) const -> decltype(task());
  void wake() const noexcept;
  [[nodiscard]] RegionId keep(Mapping mapping);
  [[nodiscard]] Mapping mapping(RegionId region) const;
  [[nodiscard]] std::shared_ptr<Peer> find(PeerId peer) const;
  [[nodiscard]] Status submit_message(Submission::Kind kind, PeerId peer, std::span<const std::byte> message,
                                      Tally* tally, Deadline deadline);
  void probe(const std::shared_ptr<Peer>& peer, Deadline deadline);

  // ---- progress thread ----
  void run(std::promise<void> opened);
  void open();
  void loop();
  void close() noexcept;
  bool run_tasks();
  void close_peers();
  void sleep();
  [[nodiscard]] bool has_work() const;
  static ucs_status_t on_message(void* fabric, const void*, std::size_t header_bytes, void* data, std::size_t bytes,
                                 const ucp_am_recv_param_t* param);

  const FabricOptions options_;
  FabricListener& listener_;
  FabricFacts facts_;
  std::atomic<Clock::rep> lease_{Clock::time_point::max().time_since_epoch().count()};
  std::atomic<bool> active_{false};
  std::atomic<bool> stopping_{false};
  mutable std::atomic<bool> asleep_{false};
  FileDescriptor wake_event_;

  mutable std::mutex mutex_;
  mutable std::vector<std::function<void()>> tasks_;  // guarded by mutex_, as are the tables
  mutable std::atomic<bool> tasks_waiting_{false};
  std::map<RegionId, Mapping> regions_;
  std::map<PeerId, Known> known_;
  std::atomic<std::uint32_t> next_id_{1};

  // Progress thread only, in the order in which they go away, last first.
  UcxContext context_;
  UcxWorker worker_;
  Bytes address_;
  Mapping probe_slot_;
  Mapping cuda_probe_slot_;  // once a region of ours is CUDA memory
  int ucx_event_ = -1;
  std::vector<std::shared_ptr<Peer>> peers_;
  std::vector<std::shared_ptr<Peer>> closing_;
  std::vector<std::shared_ptr<Peer>> abandoned_;  // UCX may still call back into them

  std::thread thread_;
};

template <class Task>
auto UcxFabric::on_progress_thread(Task task) const -> decltype(task()) {
  using Result = decltype(task());
  std::conditional_t<std::is_void_v<Result>, std::monostate, std::optional<Result>> result;
  // Shared: this may return while the thread still stands in the last line of the task.
  const auto done = std::make_shared<std::promise<Status>>();
  auto outcome = done->get_future();
  {
    const std::scoped_lock lock(mutex_);
    tasks_.emplace_back([&, done] {
      Status status;
      try {
        if constexpr (std::is_void_v<Result>) {
          task();
        } else {
          result = task();
        }
      } catch (const Error& error) {
        status = error.status();
      } catch (const std::exception& error) {
        status = {Code::internal, error.what()};
      }
      done->set_value(std::move(status));
    });
    tasks_waiting_ = true;
  }
  wake();
  throw_if_failed(outcome.get());
  if constexpr (!std::is_void_v<Result>) return std::move(*result);
}

}  // namespace weightcast
