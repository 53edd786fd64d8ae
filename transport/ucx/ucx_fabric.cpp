#include "transport/ucx/ucx_fabric.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/statvfs.h>

#include <algorithm>

#include "transport/base/log.h"
#include "transport/cuda.h"

namespace weightcast {
namespace {

Status check_range(const char* what, std::uint64_t offset, std::uint64_t bytes, std::uint64_t region_bytes) {
  if (bytes > 0 && offset <= region_bytes && bytes <= region_bytes - offset) return {};
  return {Code::invalid_argument, fmt::format("put: {} bytes at {} do not lie in the {} region of {} bytes", bytes,
                                              offset, what, region_bytes)};
}

void check_shared_memory_space(std::uint64_t bytes) {
  struct statvfs space {};
  if (::statvfs("/dev/shm", &space) != 0) {
    throw Error(Code::unavailable, "allocate: /dev/shm cannot be read: mount a tmpfs there");
  }
  const std::uint64_t free_bytes = static_cast<std::uint64_t>(space.f_bavail) * space.f_frsize;
  if (bytes > free_bytes) {
    throw Error(Code::unavailable,
                fmt::format("allocate: {} bytes of shared memory needed, {} free in /dev/shm: make it larger (docker: "
                            "--shm-size, Kubernetes: an emptyDir of medium Memory)",
                            bytes, free_bytes));
  }
}

}  // namespace

UcxFabric::UcxFabric(const FabricOptions& options, FabricListener& listener)
    : options_(options), listener_(listener), wake_event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (wake_event_.get() < 0) throw Error(Code::unavailable, "eventfd: the process has no free file descriptor");
  std::promise<void> opened;
  auto result = opened.get_future();
  thread_ = std::thread([this, &opened] { run(std::move(opened)); });
  try {
    result.get();
  } catch (...) {
    thread_.join();
    throw;
  }
}

UcxFabric::~UcxFabric() {
  stopping_ = true;
  wake();
  thread_.join();
}

void UcxFabric::wake() const noexcept {
  // Pairs with sleep(): both exchange, so the later one sees what the other did before.
  if (asleep_.exchange(false)) {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(wake_event_.get(), &one, sizeof one);
  }
}

// ---- memory ----

RegionId UcxFabric::keep(Mapping mapping) {
  const RegionId id = next_id_++;
  const std::scoped_lock lock(mutex_);
  regions_.emplace(id, std::move(mapping));
  return id;
}

UcxFabric::Mapping UcxFabric::mapping(RegionId region) const {
  const std::scoped_lock lock(mutex_);
  const auto it = regions_.find(region);
  return it == regions_.end() ? nullptr : it->second;
}

RegionId UcxFabric::register_memory(MemorySpan memory) {
  if (memory.address == nullptr || memory.bytes == 0) {
    throw Error(Code::invalid_argument, "register_memory: an empty span cannot be registered");
  }
  const bool cuda = memory.kind == MemoryKind::cuda;
  const int device = cuda ? check_cuda_memory(memory) : 0;
  return keep(on_progress_thread([&] {
    if (cuda) {
      use_primary_cuda_context(device);
      if (!cuda_probe_slot_) {
        const MemorySpan slot{nullptr, kProbeSlotBytes, MemoryKind::cuda};
        cuda_probe_slot_ = std::make_shared<const MemoryMapping>(context_.get(), slot);
      }
    }
    return std::make_shared<const MemoryMapping>(context_.get(), memory);
  }));
}

RegionId UcxFabric::allocate(std::uint64_t bytes) {
  if (bytes == 0) throw Error(Code::invalid_argument, "allocate: 0 bytes");
  if (options_.same_host_shortcuts) check_shared_memory_space(bytes);
  const MemorySpan span{nullptr, bytes, MemoryKind::host};
  return keep(on_progress_thread([&] { return std::make_shared<const MemoryMapping>(context_.get(), span); }));
}

MemorySpan UcxFabric::memory(RegionId region) const {
  const auto found = mapping(region);
  if (!found) throw Error(Code::invalid_argument, fmt::format("no region {} in this fabric", region));
  return found->span();
}

void UcxFabric::release(RegionId region) {
  on_progress_thread([this, region] {
    const std::scoped_lock lock(mutex_);
    regions_.erase(region);
  });
}

// ---- peers ----

Bytes UcxFabric::card(std::span<const RegionId> regions) const {
  std::vector<Mapping> mappings{probe_slot_};
  for (const auto region : regions) {
    mappings.push_back(mapping(region));
    if (!mappings.back()) throw Error(Code::invalid_argument, fmt::format("card: no region {} in this fabric", region));
  }
  const auto is_cuda = [](const Mapping& it) { return it->span().kind == MemoryKind::cuda; };
  return on_progress_thread([&] {
    if (std::any_of(mappings.begin(), mappings.end(), is_cuda)) mappings.push_back(cuda_probe_slot_);
    Card card;
    std::vector<Bytes> keys;
    card.worker_address = address_;
    keys.reserve(mappings.size());
    for (const auto& mapping : mappings) keys.push_back(mapping->packed_rkey());
    for (std::size_t i = 0; i < mappings.size(); ++i) {
      const auto span = mappings[i]->span();
      card.regions.push_back({span.bytes, reinterpret_cast<std::uint64_t>(span.address), span.kind, keys[i]});
    }
    return write_card(card);
  });
}

PeerId UcxFabric::connect(const std::string& name, std::span<const std::byte> card, Deadline deadline) {
  const auto start = Clock::now();
  const Card parsed = parse_card(card);
  if (parsed.regions.empty()) {
    throw Error(Code::invalid_argument, fmt::format("the card of {} lacks its probe slot", name));
  }
  PeerSetup setup{next_id_++, name, nullptr, &listener_, &lease_, options_.window, options_.queue_length};
  const auto peer = on_progress_thread([&] {
    setup.worker = worker_.get();
    auto made = std::make_shared<Peer>(setup, parsed);
    try {
      made->unpack_keys(parsed);
    } catch (...) {
      made->start_close();
      closing_.push_back(std::move(made));
      throw;
    }
    peers_.push_back(made);
    return made;
  });
  {
    const std::scoped_lock lock(mutex_);
    known_.emplace(setup.id, Known{peer, {name, {}, 0}});
  }
  try {
    probe(peer, deadline);
  } catch (...) {
    disconnect(setup.id);
    throw;
  }
  const auto path = on_progress_thread([&] {
    std::string paths;
    for (std::uint32_t target = 1; target <= peer->offered(); ++target) {
      const auto next = peer->path_to(target);
      if (paths.find(next) == std::string::npos) paths += (paths.empty() ? "" : "+") + next;
    }
    return paths.empty() ? peer->path_to(0) : paths;
  });
  const double took_s = seconds_since(start);
  log_info("{}: {} regions reached by {} in {:.1f} ms", name, peer->offered(), path, took_s * 1e3);
  const std::scoped_lock lock(mutex_);
  if (const auto it = known_.find(setup.id); it != known_.end()) it->second.facts = {name, path, took_s};
  return setup.id;
}

std::shared_ptr<Peer> UcxFabric::find(PeerId peer) const {
  const std::scoped_lock lock(mutex_);
  const auto it = known_.find(peer);
  return it == known_.end() ? nullptr : it->second.peer;
}

PeerFacts UcxFabric::peer_facts(PeerId peer) const {
  const std::scoped_lock lock(mutex_);
  const auto it = known_.find(peer);
  if (it == known_.end()) throw Error(Code::invalid_argument, fmt::format("no peer {} in this fabric", peer));
  return it->second.facts;
}

void UcxFabric::disconnect(PeerId peer) {
  std::shared_ptr<Peer> found;
  {
    const std::scoped_lock lock(mutex_);
    const auto it = known_.find(peer);
    if (it == known_.end()) return;
    found = std::move(it->second.peer);
    known_.erase(it);
  }
  on_progress_thread([&] {
    found->start_close();
    closing_.push_back(found);
    std::erase(peers_, found);
  });
}

MemorySpan UcxFabric::mapped(PeerId peer, std::uint32_t target_region) const {
  const auto found = find(peer);
  if (!found || target_region >= found->offered()) return {};
  return found->mapped(target_region + 1);  // 0 is the probe slot
}

// ---- the data path ----

Status UcxFabric::put(const Put& put, Deadline deadline) {
  const auto peer = find(put.peer);
  auto source = mapping(put.source_region);
  if (!peer) return {Code::invalid_argument, fmt::format("put: no peer {}: disconnected?", put.peer)};
  if (!source) return {Code::invalid_argument, fmt::format("put: no region {}: released?", put.source_region)};
  const std::uint64_t target = put.target_region + std::uint64_t{1};  // 0 is the probe slot
  if (target > peer->offered()) {
    return {Code::invalid_argument,
            fmt::format("put: {} has {} regions, not region {}", peer->name(), peer->offered(), put.target_region)};
  }
  if (auto status = check_range("source", put.source_offset, put.bytes, source->span().bytes); !status.ok()) {
    return status;
  }
  if (auto status = check_range("target", put.target_offset, put.bytes, peer->targets()[target].bytes); !status.ok()) {
    return status;
  }
  const auto target_index = static_cast<std::uint32_t>(target);
  const bool host = source->span().kind == MemoryKind::host;
  if (host && peer->store(target_index, put.target_offset, source->span().address + put.source_offset, put.bytes)) {
    return {};
  }
  auto status = peer->queue().push(deadline, peer->name(), [&](Submission& slot) {
    slot.kind = Submission::Kind::put;
    slot.local = std::move(source);
    slot.local_offset = put.source_offset;
    slot.target = target_index;
    slot.target_offset = put.target_offset;
    slot.bytes = put.bytes;
    slot.tally = put.tally;
  });
  if (status.ok()) wake();
  return status;
}

Status UcxFabric::submit_message(Submission::Kind kind, PeerId id, std::span<const std::byte> message, Tally* tally,
                                 Deadline deadline) {
  const auto peer = find(id);
  if (!peer) return {Code::invalid_argument, fmt::format("message: no peer {}: disconnected?", id)};
  if (message.size() > kMaxMessageBytes) {
    return {Code::invalid_argument, fmt::format("message of {} bytes to {}: at most {} are allowed", message.size(),
                                                peer->name(), kMaxMessageBytes)};
  }
  auto status = peer->queue().push(deadline, peer->name(), [&](Submission& slot) {
    slot.kind = kind;
    slot.bytes = message.size();
    slot.message.assign(message.begin(), message.end());
    slot.tally = tally;
  });
  if (status.ok()) wake();
  return status;
}

Status UcxFabric::signal(PeerId peer, std::span<const std::byte> message, Tally* tally, Deadline deadline) {
  return submit_message(Submission::Kind::signal, peer, message, tally, deadline);
}

Status UcxFabric::send(PeerId peer, std::span<const std::byte> message, Tally* tally, Deadline deadline) {
  return submit_message(Submission::Kind::send, peer, message, tally, deadline);
}

}  // namespace weightcast
