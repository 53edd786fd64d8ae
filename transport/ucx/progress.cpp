// The progress thread of UcxFabric, and first contact.
#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>

#include <algorithm>
#include <array>

#include "transport/base/log.h"
#include "transport/ucx/ucx_fabric.h"

namespace weightcast {
namespace {

constexpr std::uint64_t kProbeBytes = 8;
constexpr int kClosingSleep_ms = 10;    // closing makes progress without events
constexpr int kLongestSleep_ms = 1000;  // a lost wake-up costs this much, never more

// Until the process ends UCX may call back into these.
void keep_for_ever(std::vector<std::shared_ptr<Peer>> peers) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<std::shared_ptr<Peer>>();
  const std::scoped_lock lock(mutex);
  kept->insert(kept->end(), peers.begin(), peers.end());
}

}  // namespace

void UcxFabric::run(std::promise<void> opened) {
  ::pthread_setname_np(::pthread_self(), "wc-fabric");
  try {
    open();
  } catch (...) {
    close();
    opened.set_exception(std::current_exception());
    return;
  }
  opened.set_value();
  loop();
  close();
}

void UcxFabric::open() {
  context_ = open_context(options_);
  worker_ = open_worker(context_.get());
  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                       UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.flags = UCP_AM_FLAG_WHOLE_MSG;
  handler.cb = &on_message;
  handler.arg = this;
  if (ucx().ucp_worker_set_am_recv_handler(worker_.get(), &handler) != UCS_OK ||
      ucx().ucp_worker_get_efd(worker_.get(), &ucx_event_) != UCS_OK) {
    throw Error(Code::unavailable, "UCX cannot deliver messages or has no event descriptor: " + ucx_path());
  }
  address_ = worker_address(worker_.get());
  const MemorySpan slot{nullptr, kProbeSlotBytes, MemoryKind::host};
  probe_slot_ = std::make_shared<const MemoryMapping>(context_.get(), slot);
  facts_.library_path = ucx_path();
  facts_.library_version = ucx().ucp_get_version_string();
  facts_.transports = transports_of(context_.get());
  for (const auto& name : facts_.transports) {
    facts_.has_cuda |= name.starts_with("cuda");
    facts_.has_rdma |= name.starts_with("rc") || name.starts_with("dc") || name.starts_with("ud") || name == "srd";
  }
}

void UcxFabric::loop() {
  while (!stopping_) {
    bool worked = run_tasks();
    for (const auto& peer : peers_) worked |= peer->pump();
    worked |= ucx().ucp_worker_progress(worker_.get()) != 0;
    close_peers();
    if (worked || (options_.spin && active_)) continue;
    sleep();
  }
}

bool UcxFabric::run_tasks() {
  if (!tasks_waiting_) return false;
  std::vector<std::function<void()>> tasks;
  {
    const std::scoped_lock lock(mutex_);
    tasks.swap(tasks_);
    tasks_waiting_ = false;
  }
  for (const auto& task : tasks) task();
  return true;
}

void UcxFabric::close_peers() {
  std::erase_if(closing_, [this](const auto& peer) {
    if (peer->is_closed()) return true;
    if ((peer->lingers() && !stopping_) || !peer->close_is_overdue()) return false;
    log_error("the connection to {} did not close; what it uses is kept until this process ends", peer->name());
    abandoned_.push_back(peer);
    return true;
  });
}

bool UcxFabric::has_work() const {
  return stopping_ || tasks_waiting_ ||
         std::any_of(peers_.begin(), peers_.end(), [](const auto& peer) { return peer->can_pump(); });
}

void UcxFabric::sleep() {
  asleep_.exchange(true);  // pairs with wake()
  if (!has_work() && ucx().ucp_worker_arm(worker_.get()) == UCS_OK) {
    std::array<pollfd, 2> waiting{{{ucx_event_, POLLIN, 0}, {wake_event_.get(), POLLIN, 0}}};
    ::poll(waiting.data(), waiting.size(), closing_.empty() ? kLongestSleep_ms : kClosingSleep_ms);
    std::uint64_t drained = 0;
    if (waiting[1].revents != 0) [[maybe_unused]]
      const auto count = ::read(wake_event_.get(), &drained, sizeof drained);
  }
  asleep_.store(false);
}

void UcxFabric::close() noexcept {
  run_tasks();
  for (const auto& peer : peers_) peer->start_close();
  closing_.insert(closing_.end(), peers_.begin(), peers_.end());
  peers_.clear();
  while (!closing_.empty()) {
    ucx().ucp_worker_progress(worker_.get());
    close_peers();
  }
  if (!abandoned_.empty()) {
    keep_for_ever(std::move(abandoned_));
    [[maybe_unused]] auto* kept_worker = worker_.release();
    [[maybe_unused]] auto* kept_context = context_.release();
    return;
  }
  worker_.reset();
  {
    const std::scoped_lock lock(mutex_);
    known_.clear();
    regions_.clear();
  }
  probe_slot_.reset();
  cuda_probe_slot_.reset();
  context_.reset();
}

// Called by UCX for whatever a peer sends; the bytes are nobody's we know.
ucs_status_t UcxFabric::on_message(void* fabric, const void*, std::size_t header_bytes, void* data, std::size_t bytes,
                                   const ucp_am_recv_param_t* param) {
  auto& self = *static_cast<UcxFabric*>(fabric);
  const bool rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;  // we never send these
  if (header_bytes != 0 || rendezvous || bytes > kMaxMessageBytes) {
    log_warning("a message of {} + {} bytes was dropped: no fabric sends such messages", header_bytes, bytes);
    return UCS_OK;
  }
  try {
    self.listener_.on_message({static_cast<const std::byte*>(data), bytes});
  } catch (const std::exception& error) {
    log_error("the listener failed to take a message of {} bytes: {}", bytes, error.what());
  }
  return UCS_OK;
}

// Each region is read and the same bytes are put back: it proves the path and the key, and nothing changes even if
// the weights were replaced since the card was made (bytes in a card could be stale). Tcp and cuda_ipc cannot read
// without emulation; for what they carry, a put into the peer's probe slot of that kind of memory stands.
void UcxFabric::probe(const std::shared_ptr<Peer>& peer, Deadline deadline) {
  const auto& targets = peer->targets();
  struct Probe {
    Mapping scratch;
    Mapping cuda_scratch;  // from host memory UCX has no zero-copy path to a GPU
    std::vector<Tally> reads;
    Tally writes;
  };
  const auto probe = std::make_shared<Probe>();
  probe->reads = std::vector<Tally>(targets.size());
  on_progress_thread([&] {
    MemorySpan span{nullptr, targets.size() * kProbeSlotBytes, MemoryKind::host};
    probe->scratch = std::make_shared<const MemoryMapping>(context_.get(), span);
    span.kind = MemoryKind::cuda;
    if (cuda_probe_slot_) probe->cuda_scratch = std::make_shared<const MemoryMapping>(context_.get(), span);
    peer->keep(probe);
  });
  const auto submit = [&](Submission::Kind kind, std::uint32_t target, Tally& tally) {
    throw_if_failed(peer->queue().push(deadline, peer->name(), [&](Submission& slot) {
      slot.kind = kind;
      const bool cuda = probe->cuda_scratch && targets[target].kind == MemoryKind::cuda;
      slot.local = cuda ? probe->cuda_scratch : probe->scratch;
      slot.local_offset = target * kProbeSlotBytes;
      slot.target = target;
      slot.target_offset = 0;
      slot.bytes = std::min(kProbeBytes, targets[target].bytes);
      slot.tally = &tally;
    }));
    wake();
  };
  for (std::uint32_t i = 0; i < targets.size(); ++i) {
    if (!peer->is_probe_slot(i)) submit(Submission::Kind::get, i, probe->reads[i]);
  }
  for (std::uint32_t i = 0; i < targets.size(); ++i) {
    const auto read =
        probe->reads[i].wait(deadline, fmt::format("first contact with region {} of {}", i, peer->name()));
    if (read.code() == Code::refused) continue;
    throw_if_failed(read);
    submit(Submission::Kind::put, i, probe->writes);
  }
  submit(Submission::Kind::flush, 0, probe->writes);
  throw_if_failed(probe->writes.wait(deadline, fmt::format("the probe puts of first contact with {}", peer->name())));
}

}  // namespace weightcast
