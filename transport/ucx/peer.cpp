#include "transport/ucx/peer.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "transport/base/log.h"
#include "transport/base/stream_copy.h"
#include "transport/cuda.h"
#include "transport/ucx/inspect.h"

namespace weightcast {
namespace {

// A message handed to UCX just before disconnect() still leaves; a peer that takes longer is not waited for.
constexpr Milliseconds kLastFlush{200};

// A signal leaves behind all that was posted before it: on a slow link a full window would hold it up, and with it all
// who verify and pass on. So puts are in flight as far as they are done within this time, and two at least.
constexpr Milliseconds kLongestPut{25};
constexpr std::uint32_t kFewestPuts = 2;

bool is_transfer(Submission::Kind kind) { return kind == Submission::Kind::put || kind == Submission::Kind::get; }

const char* verb(Submission::Kind kind) {
  switch (kind) {
    case Submission::Kind::put: return "put to";
    case Submission::Kind::get: return "read from";
    case Submission::Kind::flush: return "flush to";
    case Submission::Kind::signal: return "signal to";
    case Submission::Kind::send: return "message to";
  }
  return "operation on";
}

}  // namespace

Peer::Peer(PeerSetup setup, const Card& card)
    : setup_(std::move(setup)),
      queue_(setup_.queue_length),
      flights_(2 * std::max(1u, setup_.window)),
      batches_(flights_.size() / 2 + 1) {
  setup_.window = allowed_ = static_cast<std::uint32_t>(flights_.size() / 2);
  signals_.reserve(setup_.window);
  ucp_ep_params_t params{};
  params.field_mask =
      UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(card.worker_address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler = {&on_endpoint_error, this};
  if (const auto status = ucx().ucp_ep_create(setup_.worker, &params, &endpoint_); status != UCS_OK) {
    throw Error(Code::unreachable, fmt::format("no transport leads to {}: {}: check that both sides name interfaces of "
                                               "one network and run the same UCX",
                                               setup_.name, ucx_text(status)));
  }
}

void Peer::unpack_keys(const Card& card) {
  offered_ = card.offered();
  for (const auto& region : card.regions) {
    ucp_rkey_h rkey = nullptr;
    const auto status = ucx().ucp_ep_rkey_unpack(endpoint_, region.rkey.data(), &rkey);
    if (status != UCS_OK) {
      throw Error(Code::invalid_argument, fmt::format("the key of region {} of {} cannot be used here: {}",
                                                      rkeys_.size(), setup_.name, ucx_text(status)));
    }
    rkeys_.emplace_back(rkey);
    targets_.push_back({reinterpret_cast<std::byte*>(region.base_address), region.bytes, region.kind});
    void* mapped = nullptr;
    // Shared memory and cuda_ipc map. Of a GPU's memory only what kernels reach counts, not a window for the CPU.
    bool is_mapped = ucx().ucp_rkey_ptr(rkey, region.base_address, &mapped) == UCS_OK;
    if (region.kind == MemoryKind::cuda) is_mapped = is_mapped && is_cuda_memory(static_cast<std::byte*>(mapped));
    const std::scoped_lock lock(mapped_mutex_);
    mapped_.push_back(is_mapped ? static_cast<std::byte*>(mapped) : nullptr);
  }
}

bool Peer::store(std::uint32_t target, std::uint64_t offset, const std::byte* from, std::uint64_t bytes) {
  const std::shared_lock lock(mapped_mutex_);
  if (target >= mapped_.size() || mapped_[target] == nullptr || !is_host(target) || !lease_holds()) return false;
  stream_copy(mapped_[target] + offset, from, bytes);
  return true;
}

MemorySpan Peer::mapped(std::uint32_t target) const {
  const std::shared_lock lock(mapped_mutex_);
  if (target >= mapped_.size() || mapped_[target] == nullptr) return {};
  return {mapped_[target], targets_[target].bytes, targets_[target].kind};
}

bool Peer::pump() {
  // Puts through shared memory complete at once, so the window alone would not end this loop; others want a turn.
  std::uint32_t posted = 0;
  while (posted < setup_.window && !closing_) {
    Flight* flight = take_next();
    if (flight == nullptr) break;
    ++posted;
    post(*flight);
  }
  return posted > 0;
}

bool Peer::fits(const Submission& next) const {
  return is_transfer(next.kind) ? transfers_ < allowed_ : messages_ < setup_.window;
}

Peer::Flight* Peer::take_next() {
  const auto idle = std::find_if(flights_.begin(), flights_.end(), [](const Flight& f) { return !f.in_use; });
  if (idle == flights_.end()) return nullptr;
  if (!queue_.take(idle->what, [this](const Submission& next) { return fits(next); })) return nullptr;
  idle->peer = this;
  idle->in_use = true;
  idle->flushed = false;
  return &*idle;
}

void Peer::post(Flight& flight) {
  if (is_transfer(flight.what.kind)) {
    ++transfers_;
    flight.posted = Clock::now();
    flight.batch = newest_batch_;
    ++batch(newest_batch_).outstanding;
    post_transfer(flight);
    return;
  }
  ++messages_;
  if (flight.what.kind == Submission::Kind::send) {
    post_message(flight);
    return;
  }
  flight.batch = newest_batch_++;
  batch(newest_batch_) = {};
  signals_.push_back(&flight);
  post_flush(flight);
}

Status Peer::reason_not_to_post(const Submission& what) const {
  if (!failure_.ok()) return failure_;
  if (closing_) return {Code::aborted, fmt::format("{} {}: disconnected", verb(what.kind), setup_.name)};
  if (what.kind == Submission::Kind::put && !lease_holds()) {
    return {Code::refused,
            fmt::format("put to {} not made: the lease has run out, the controller has not been heard in "
                        "time",
                        setup_.name)};
  }
  return {};
}

ucp_request_param_t Peer::parameters(Flight& flight, ucp_send_nbx_callback_t done) const {
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  params.cb.send = done;
  params.user_data = &flight;
  return params;
}

void Peer::post_transfer(Flight& flight) {
  const auto& what = flight.what;
  if (const auto reason = reason_not_to_post(what); !reason.ok()) {
    end_transfer(flight, reason);
    return;
  }
  auto params = parameters(flight, &on_transfer_done);
  params.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH | UCP_OP_ATTR_FIELD_MEMORY_TYPE | UCP_OP_ATTR_FLAG_MULTI_SEND;
  params.memh = what.local->handle();
  params.memory_type = ucx_memory_type(what.local->span().kind);
  auto* local = what.local->span().address + what.local_offset;
  const auto remote = reinterpret_cast<std::uint64_t>(targets_[what.target].address) + what.target_offset;
  auto* rkey = rkeys_[what.target].get();
  void* request = what.kind == Submission::Kind::put
                      ? ucx().ucp_put_nbx(endpoint_, local, what.bytes, remote, rkey, &params)
                      : ucx().ucp_get_nbx(endpoint_, local, what.bytes, remote, rkey, &params);
  if (!UCS_PTR_IS_PTR(request)) transfer_done(flight, UCS_PTR_RAW_STATUS(request));
}

void Peer::post_flush(Flight& flight) {
  if (const auto reason = reason_not_to_post(flight.what); !reason.ok()) {
    flush_done(flight, UCS_ERR_CANCELED);
    return;
  }
  const auto params = parameters(flight, &on_flush_done);
  void* request = ucx().ucp_ep_flush_nbx(endpoint_, &params);
  if (!UCS_PTR_IS_PTR(request)) flush_done(flight, UCS_PTR_RAW_STATUS(request));
}

void Peer::post_message(Flight& flight) {
  if (const auto reason = reason_not_to_post(flight.what); !reason.ok()) {
    finish(flight, reason);
    return;
  }
  auto params = parameters(flight, &on_message_done);
  params.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  params.flags = UCP_AM_SEND_FLAG_EAGER;
  params.memory_type = UCS_MEMORY_TYPE_HOST;
  const auto& message = flight.what.message;
  void* request = ucx().ucp_am_send_nbx(endpoint_, kMessageId, nullptr, 0, message.data(), message.size(), &params);
  if (UCS_PTR_IS_PTR(request)) return;
  finish(flight, failure_of(flight.what, UCS_PTR_RAW_STATUS(request)));
}

void Peer::transfer_done(Flight& flight, ucs_status_t status) { end_transfer(flight, failure_of(flight.what, status)); }

void Peer::end_transfer(Flight& flight, const Status& result) {
  const auto took = Clock::now() - flight.posted;
  if (took > kLongestPut) {
    allowed_ = std::max(std::min(kFewestPuts, setup_.window), allowed_ - 1);
  } else if (took < kLongestPut / 2) {
    allowed_ = std::min(setup_.window, allowed_ + 1);
  }
  auto& of = batch(flight.batch);
  --of.outstanding;
  // A read that fails changes nothing over there, so no signal need be held back.
  if (flight.what.kind == Submission::Kind::put && !result.ok() && of.failure.ok()) of.failure = result;
  finish(flight, result);
  advance_signals();
}

void Peer::flush_done(Flight& flight, ucs_status_t status) {
  flight.flushed = true;
  auto& of = batch(flight.batch);
  if (of.failure.ok()) of.failure = failure_of(flight.what, status);
  advance_signals();
}

// Signals leave in the order they were given. A flush succeeds after failed puts, so their own statuses decide.
void Peer::advance_signals() {
  while (!signals_.empty()) {
    auto& oldest = *signals_.front();
    const auto& of = batch(oldest.batch);
    if (!oldest.flushed || of.outstanding > 0) return;
    signals_.erase(signals_.begin());
    if (!of.failure.ok() || oldest.what.kind == Submission::Kind::flush) {
      finish(oldest, of.failure);
    } else {
      post_message(oldest);
    }
  }
}

void Peer::finish(Flight& flight, const Status& status) {
  --(is_transfer(flight.what.kind) ? transfers_ : messages_);
  flight.what.local.reset();
  flight.in_use = false;
  if (auto* tally = std::exchange(flight.what.tally, nullptr); tally != nullptr) tally->complete(status);
}

Status Peer::failure_of(const Submission& what, ucs_status_t status) const {
  if (status == UCS_OK) return {};
  if (closing_) return {Code::aborted, fmt::format("{} {}: disconnected", verb(what.kind), setup_.name)};
  if (!failure_.ok()) return failure_;
  if (status == UCS_ERR_CANCELED || status == UCS_ERR_UNSUPPORTED) {
    return {Code::refused,
            fmt::format("no zero-copy path carries a {} {} ({}): UCX could only copy it through messages, "
                        "many times slower; set allow_emulation to accept that",
                        verb(what.kind), setup_.name, ucx_text(status))};
  }
  return {Code::unreachable,
          fmt::format("{} {} ({} bytes) failed: {}", verb(what.kind), setup_.name, what.bytes, ucx_text(status))};
}

void Peer::drop_waiting(const Status& why) {
  Submission dropped;
  while (queue_.take(dropped, [](const Submission&) { return true; })) {
    if (auto* tally = std::exchange(dropped.tally, nullptr); tally != nullptr) tally->complete(why);
    dropped.local.reset();
  }
}

void Peer::end_tallies() {
  for (auto& flight : flights_) {
    if (auto* tally = std::exchange(flight.what.tally, nullptr); flight.in_use && tally != nullptr) {
      tally->complete({Code::aborted, fmt::format("{} {}: disconnected", verb(flight.what.kind), setup_.name)});
    }
  }
}

void Peer::start_close() {
  if (std::exchange(closing_, true)) return;
  {
    const std::scoped_lock lock(mapped_mutex_);
    mapped_.clear();
  }
  queue_.close();
  drop_waiting({Code::aborted, fmt::format("{} was disconnected before this operation began", setup_.name)});
  end_tallies();
  close_by_ = Clock::now() + kLastFlush;
  if (failure_.ok() && transfers_ == 0 && messages_ == 0) {
    const ucp_request_param_t params{};
    last_flush_ = ucx().ucp_ep_flush_nbx(endpoint_, &params);
    if (!UCS_PTR_IS_PTR(last_flush_)) last_flush_ = nullptr;
  }
}

bool Peer::is_closed() {
  if (lingers()) return false;
  if (last_flush_ != nullptr) {
    if (ucx().ucp_request_check_status(last_flush_) == UCS_INPROGRESS && Clock::now() < close_by_) return false;
    ucx().ucp_request_free(std::exchange(last_flush_, nullptr));
  }
  if (endpoint_ != nullptr) {
    ucp_request_param_t params{};
    params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    params.flags = UCP_EP_CLOSE_FLAG_FORCE;
    close_request_ = ucx().ucp_ep_close_nbx(std::exchange(endpoint_, nullptr), &params);
    if (!UCS_PTR_IS_PTR(close_request_)) close_request_ = nullptr;
  }
  if (close_request_ != nullptr) {
    if (ucx().ucp_request_check_status(close_request_) == UCS_INPROGRESS) return false;
    ucx().ucp_request_free(std::exchange(close_request_, nullptr));
  }
  if (transfers_ > 0 || messages_ > 0) return false;
  rkeys_.clear();
  kept_.clear();
  return true;
}

std::string Peer::path_to(std::uint32_t target) const {
  const bool host = is_host(target);
  if (host && mapped(target).address != nullptr) return "posix";
  const auto lanes = parse_put_lanes(printed([this](std::FILE* out) { ucx().ucp_ep_print_info(endpoint_, out); }));
  const auto only_cuda = [](const std::string& name) { return name.starts_with("cuda") || name == "gdr_copy"; };
  for (const auto& lane : lanes) {
    if (only_cuda(lane) != host) return lane;
  }
  return lanes.empty() ? "unknown" : lanes.front();
}

void Peer::on_endpoint_error(void* peer, ucp_ep_h, ucs_status_t status) {
  auto& self = *static_cast<Peer*>(peer);
  if (!self.failure_.ok()) return;
  self.failure_ = {
      Code::unreachable,
      fmt::format("{} is unreachable: {} (its process ended, or freed memory that it had registered, or the "
                  "network is down)",
                  self.setup_.name, ucx_text(status))};
  if (self.closing_) return;
  try {
    self.setup_.listener->on_peer_failure(self.setup_.id, self.failure_);
  } catch (const std::exception& error) {
    log_error("the listener failed to take the failure of {}: {}", self.setup_.name, error.what());
  }
}

void Peer::on_transfer_done(void* request, ucs_status_t status, void* flight) {
  auto& it = *static_cast<Flight*>(flight);
  ucx().ucp_request_free(request);
  it.peer->transfer_done(it, status);
}

void Peer::on_flush_done(void* request, ucs_status_t status, void* flight) {
  auto& it = *static_cast<Flight*>(flight);
  ucx().ucp_request_free(request);
  it.peer->flush_done(it, status);
}

void Peer::on_message_done(void* request, ucs_status_t status, void* flight) {
  auto& it = *static_cast<Flight*>(flight);
  ucx().ucp_request_free(request);
  it.peer->finish(it, it.peer->failure_of(it.what, status));
}

}  // namespace weightcast
