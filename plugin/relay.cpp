#include "plugin/relay.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "plugin/extent.h"

namespace weightcast {

void Relay::adopt(const ServerTable& table, Fabric& fabric, const LandingMemory& landing, const Routes& routes) {
  clear();
  {
    const std::scoped_lock lock(links_mutex_);
    fabric_ = &fabric;
    for (const auto& [rank, route] : routes.servers) {
      links_.push_back(std::make_unique<Link>());
      links_.back()->rank = rank;
      links_.back()->peer = route.peer;
    }
  }
  for (const ExpectedSender& sender : table.senders) {
    auto& known = signals_[{sender.role, sender.rank}];
    auto forward = sender.forwards.begin();
    for (std::uint32_t ordinal = 0; ordinal < sender.signals.size(); ++ordinal) {
      const std::size_t first = jobs_.size();
      for (; forward != sender.forwards.end() && forward->signal == ordinal; ++forward) {
        lay_out(sender, *forward, landing, routes);
      }
      known.push_back({first, jobs_.size()});
    }
  }
  ready_.reserve(jobs_.size());
}

void Relay::clear() {
  {
    const std::scoped_lock lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  const std::scoped_lock lock(running_, links_mutex_);
  links_.clear();
  jobs_.clear();
  signals_.clear();
  ready_.clear();
  fabric_ = nullptr;
}

void Relay::lay_out(const ExpectedSender& sender, const Forward& forward, const LandingMemory& landing,
                    const Routes& routes) {
  const auto route = routes.servers.find(forward.server);
  if (route == routes.servers.end()) {
    throw Error(Code::internal, fmt::format("{}: its table passes bytes on to server {}, which it is not connected to",
                                            name_of(catalog_), forward.server));
  }
  Job job;
  job.link = static_cast<std::size_t>(std::distance(routes.servers.begin(), route));
  job.ordinal = forward.ordinal;
  const auto own_regions = landing.regions();
  const auto own_placements = landing.placements();
  for (const ForwardedPiece& piece : forward.pieces) {
    const auto& [index, box] = sender.pieces[piece.piece];
    const Entry& entry = catalog_.entries[index];
    if (piece.to.region >= route->second.placements.size()) {
      throw Error(Code::internal,
                  fmt::format("{}: its table names region {} of server {}, which has {}", name_of(catalog_),
                              piece.to.region, forward.server, route->second.placements.size()));
    }
    const Placement& own = own_placements[entry.region];
    const Placement& other = route->second.placements[piece.to.region];
    const std::uint64_t element = stored_bytes(entry);
    const std::int64_t from_pitch = row_stride(entry.strides_bytes, entry.box.axes);
    const std::int64_t to_pitch = row_stride(piece.to.strides_bytes, entry.box.axes);
    const Box frame = stored_box(entry, entry.box);
    for_each_matrix(stored_box(entry, box), frame, [&](const MatrixView& view) {
      ByteRun run{
          job.link,
          route->second.peer,
          own_regions[own.card_region],
          own.byte_offset + byte_at(entry, view.origin),
          other.card_region,
          other.byte_offset + piece.to.byte_offset + offset_in_frame(frame, piece.to.strides_bytes, view.origin),
          static_cast<std::uint64_t>(view.cols) * element};
      for (std::int64_t row = 0; row < view.rows; ++row) {
        append_run(job.runs, run, config_.performance.chunk_bytes);
        run.from += static_cast<std::uint64_t>(from_pitch);
        run.to += static_cast<std::uint64_t>(to_pitch);
      }
      job.bytes += run.bytes * static_cast<std::uint64_t>(view.rows);
    });
  }
  jobs_.push_back(std::move(job));
}

void Relay::begin(std::uint64_t version, std::uint64_t token) {
  const std::scoped_lock lock(mutex_);
  token_ = token;
  version_ = version;
  deadline_ = Deadline::after(Milliseconds(config_.times.update_ms));
  bytes_done_ = 0;
  ready_.clear();
  for (Job& job : jobs_) job.is_ready = false;
  taken_ = 0;
  failure_ = closed_ ? Status(Code::aborted, "the server is being closed") : Status();
  stopped_ = closed_;
  for (const auto& link : links_) {
    link->puts.reset();
    link->signalled.reset();
  }
}

void Relay::verified(const Signal& signal, std::span<const Digest> digests) {
  {
    const std::scoped_lock lock(mutex_);
    const auto known = signals_.find({signal.role, signal.sender});
    if (signal.token != token_ || stopped_ || known == signals_.end()) return;
    const auto [first, end] = known->second[signal.ordinal];
    for (std::size_t job = first; job < end; ++job) {
      // A signal that comes twice, from a port that authenticates nobody, is passed on once.
      if (std::exchange(jobs_[job].is_ready, true)) continue;
      jobs_[job].digest = digests[job - first];
      ready_.push_back(job);
    }
  }
  changed_.notify_all();
}

// The next job; false when all are taken or the attempt is stopped.
bool Relay::take(std::size_t& job) {
  std::unique_lock lock(mutex_);
  while (!stopped_ && taken_ == ready_.size() && taken_ < jobs_.size()) {
    if (deadline_.passed()) {
      failure_ = Status(Code::timed_out, fmt::format("{}, version {}: waited {} ms for what it passes on",
                                                     name_of(catalog_), version_, config_.times.update_ms));
      stopped_ = true;
      break;
    }
    changed_.wait_for(lock, kPoll);
  }
  if (stopped_ || taken_ == jobs_.size()) return false;
  job = ready_[taken_++];
  return true;
}

RelayResult Relay::run() {
  const std::scoped_lock running(running_);
  if (fabric_ == nullptr) return {Status(Code::aborted, "there is no table any more"), false};
  fabric_->set_active(true);
  std::size_t job = 0;
  while (take(job)) pass_on(jobs_[job]);
  if (!stopped()) await_signals();
  RelayResult result;
  result.cut_off = drain();
  fabric_->set_active(false);
  const std::scoped_lock lock(mutex_);
  stopped_ = true;
  result.status = failure_;
  return result;
}

void Relay::pass_on(const Job& job) {
  Link& link = *links_[job.link];
  for (const ByteRun& run : job.runs) {
    // Where rows lie behind each other, runs are as long as a chunk; a longer row is cut here.
    for (std::uint64_t done = 0; done < run.bytes && !link.dropped && !stopped();) {
      const std::uint64_t bytes = std::min(run.bytes - done, config_.performance.chunk_bytes);
      const Put put{run.peer, run.from_region, run.from + done, run.to_region, run.to + done, bytes, &link.puts};
      const Status status = fabric_->put(put, deadline_);
      if (!status.ok()) {
        if (!link.dropped && status.code() != Code::unreachable) fail(status);
        return;
      }
      done += bytes;
    }
  }
  if (link.dropped || stopped()) return;
  const Signal signal{token_, version_, Role::server, catalog_.rank, link.rank, job.ordinal, job.bytes, job.digest};
  const Status status = fabric_->signal(link.peer, encode(signal), &link.signalled, deadline_);
  if (!status.ok() && !link.dropped && status.code() != Code::unreachable) fail(status);
  bytes_done_.fetch_add(job.bytes, std::memory_order_relaxed);
}

void Relay::await_signals() {
  for (const auto& link : links_) {
    const std::string what = fmt::format("server {} to take what is passed on of version {}", link->rank, version_);
    while (link->signalled.outstanding() != 0 && !stopped()) {
      if (deadline_.passed()) {
        fail(Status(Code::timed_out, fmt::format("{}, version {}: waited {} ms for {}", name_of(catalog_), version_,
                                                 config_.times.update_ms, what)));
        return;
      }
      (void)link->signalled.wait(Deadline::after(kPoll), what);
    }
    if (stopped()) return;
    const Status status = link->signalled.first_failure();
    if (link->dropped || status.ok()) continue;
    // A lost connection is the controller's to judge (PeerLost, Drop); anything else ends the update here.
    if (status.code() != Code::unreachable && status.code() != Code::aborted) fail(status);
  }
}

// Until nothing is in flight. What a peer does not take within its death bound is cut off: true then.
bool Relay::drain() {
  const auto flying = [this] {
    std::uint64_t count = 0;
    for (const auto& link : links_) count += link->puts.outstanding() + link->signalled.outstanding();
    return count;
  };
  const Deadline patience = Deadline::after(Milliseconds(config_.times.death_busy_ms));
  while (flying() != 0 && !patience.passed()) std::this_thread::sleep_for(Milliseconds(1));
  if (flying() == 0) return false;
  for (const auto& link : links_) fabric_->disconnect(link->peer);
  while (flying() != 0) std::this_thread::sleep_for(Milliseconds(1));
  return true;
}

void Relay::fail(Status why) {
  const std::scoped_lock lock(mutex_);
  if (stopped_) return;
  failure_ = std::move(why);
  stopped_ = true;
}

void Relay::stop(std::uint64_t token, const Status& why) {
  {
    const std::scoped_lock lock(mutex_);
    if (token != token_ || stopped_) return;
    failure_ = why;
    stopped_ = true;
  }
  changed_.notify_all();
}

void Relay::close() {
  {
    const std::scoped_lock lock(mutex_);
    closed_ = true;
    if (!stopped_) failure_ = Status(Code::aborted, "the server is being closed");
    stopped_ = true;
  }
  changed_.notify_all();
}

void Relay::drop(std::uint32_t server) {
  const std::scoped_lock lock(links_mutex_);
  for (const auto& link : links_) {
    if (link->rank != server || link->dropped.exchange(true)) continue;
    fabric_->disconnect(link->peer);
  }
}

}  // namespace weightcast
