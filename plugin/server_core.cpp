#include "plugin/server_core.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace weightcast {

std::string_view to_string(ServerPhase phase) noexcept {
  switch (phase) {
    case ServerPhase::connecting: return "connecting";
    case ServerPhase::idle: return "idle";
    case ServerPhase::allow_due: return "allow_due";
    case ServerPhase::receiving: return "receiving";
    case ServerPhase::ready: return "ready";
    case ServerPhase::commit_due: return "commit_due";
    case ServerPhase::failed: return "failed";
  }
  return "unknown";
}

ServerCore::ServerCore(const Config& config, Join join, Catalog own, Clock::time_point now)
    : config_(config),
      join_(std::move(join)),
      own_(std::move(own)),
      now_(now),
      last_beat_(now),
      joined_at_(now),
      last_heard_(now) {
  view_.waiting_for = fmt::format("the controller at {}", config_.controller.address);
}

std::vector<ServerAction> ServerCore::start(Clock::time_point now) {
  now_ = now;
  send_join();
  return std::exchange(actions_, {});
}

std::vector<ServerAction> ServerCore::on(const ServerEvent& event, Clock::time_point now) {
  now_ = now;
  if (!view_.fatal.ok()) return {};
  if (const auto* message = std::get_if<Message>(&event)) {
    on_message(*message);
  } else if (const auto* card = std::get_if<CardMade>(&event)) {
    on_card(*card);
  } else if (const auto* arrived = std::get_if<SignalArrived>(&event)) {
    on_signal(*arrived);
  } else if (const auto* allow = std::get_if<AllowCalled>(&event)) {
    if (view_.phase == ServerPhase::allow_due && allow->version == view_.next_version) arm();
  } else if (const auto* done = std::get_if<CommitDone>(&event)) {
    view_.committed_version = done->version;
    view_.stall_ms = done->stall_ms;
    view_.torn = false;
    view_.phase = ServerPhase::idle;
    view_.next_version = 0;
    send(Committed{done->version, done->stall_ms});
  } else if (const auto* linked = std::get_if<Linked>(&event)) {
    on_linked(*linked);
  } else if (const auto* passed = std::get_if<PassedOn>(&event)) {
    on_passed_on(*passed);
  } else if (const auto* failed = std::get_if<PeerFailed>(&event)) {
    send(PeerLost{failed->role, failed->rank, failed->cause});
  } else if (const auto* tick = std::get_if<ServerTick>(&event)) {
    on_tick(tick->bytes_passed_on);
  }
  return std::exchange(actions_, {});
}

void ServerCore::send_join() {
  welcomed_ = false;
  rejoin_owed_ = false;
  joined_at_ = now_;
  Join join = join_;
  join.committed_version = view_.committed_version;
  const bool holds_ready = view_.phase == ServerPhase::ready || view_.phase == ServerPhase::commit_due;
  join.ready_version = holds_ready ? view_.next_version : 0;
  join.decided_version = view_.phase == ServerPhase::commit_due ? view_.next_version : 0;
  join.torn = view_.torn;
  send(std::move(join));
}

void ServerCore::on_message(const Message& message) {
  last_heard_ = now_;
  view_.controller_silent = false;
  if (std::holds_alternative<Welcome>(message)) {
    welcomed_ = true;
    beat(0);  // its echo is a lease for the puts of first contact
    if (card_) {
      send(*card_);
    } else if (!std::exchange(opening_, true)) {
      view_.waiting_for = "the fabric to open";
      actions_.push_back(OpenFabric{});
    }
  } else if (const auto* refused = std::get_if<Refused>(&message)) {
    on_refused(*refused);
  } else if (std::holds_alternative<Rejoin>(message)) {
    if (!welcomed_ && now_ - joined_at_ < Milliseconds(config_.times.heartbeat_idle_ms)) return;  // on its way
    if (view_.phase == ServerPhase::receiving || view_.phase == ServerPhase::allow_due) {
      give_up(Status(Code::aborted, fmt::format("version {}: the controller counted this server out or is a new one",
                                                view_.next_version)));
    }
    counted_out_ = !writers_.empty();
    if (passing_) {
      rejoin_owed_ = true;
      actions_.push_back(
          StopPassing{passing_token_, Status(Code::aborted, "the controller counted this server out or is a new one")});
    } else {
      send_join();
    }
  } else if (const auto* table = std::get_if<TableOffer>(&message)) {
    on_table(*table);
  } else if (const auto* begin = std::get_if<Begin>(&message)) {
    on_begin(*begin);
  } else if (const auto* commit = std::get_if<Commit>(&message)) {
    on_commit(*commit);
  } else if (const auto* abort = std::get_if<Abort>(&message)) {
    on_abort(*abort);
  } else if (const auto* drop = std::get_if<Drop>(&message)) {
    actions_.push_back(DropServers{drop->servers});
  } else if (const auto* echo = std::get_if<Echo>(&message)) {
    const auto own_ms = std::chrono::duration_cast<Milliseconds>(now_.time_since_epoch()).count();
    if (echo->sent_ms > static_cast<std::uint64_t>(own_ms)) return;
    actions_.push_back(SetLease{Clock::time_point(Milliseconds(echo->sent_ms)) + Milliseconds(config_.times.lease_ms)});
  }
}

// Not welcomed, this rank is at fault. Afterwards the run is, as a trainer's with another checkpoint: an engine
// outlives it.
void ServerCore::on_refused(const Refused& refused) {
  if (!welcomed_) {
    view_.fatal = Status(refused.code, refused.text);
    view_.phase = ServerPhase::failed;
  } else {
    view_.refusal = Status(refused.code, refused.text);
    view_.waiting_for = fmt::format("a run that is not refused: {}", refused.text);
  }
}

void ServerCore::on_card(const CardMade& card) {
  if (!card.status.ok()) {
    view_.fatal = card.status;
    view_.phase = ServerPhase::failed;
    send(Failed{0, 0, card.status.code(), card.status.message()});
    return;
  }
  card_ = CardOffer{card.card, card.placements};
  view_.waiting_for = "the other ranks to join";
  if (welcomed_) send(*card_);
}

void ServerCore::on_table(const TableOffer& offer) {
  if (!card_) return;  // of the memory before; the next plan knows the new card
  try {
    table_ = decode_server_table(offer.table, own_);
  } catch (const Error& error) {
    send(Failed{0, 0, error.code(), fmt::format("{} cannot read its table: {}", name_of(own_), error.what())});
    return;
  }
  view_.refusal = Status();
  expected_.clear();
  for (const ExpectedSender& sender : table_.senders) expected_[{sender.role, sender.rank}] = sender.signals;
  if (!is_safe_from_late_puts(offer)) return;
  senders_.clear();
  for (const PeerCard& peer : offer.peers) {
    if (peer.role == Role::trainer || expected_.contains({peer.role, peer.rank})) senders_.insert(peer.incarnation);
  }
  actions_.push_back(AdoptTable{table_, offer.generation, offer.peers});
  if (!passes_on(table_)) on_linked({offer.generation, {}, 0, {}});
}

void ServerCore::on_linked(const Linked& linked) {
  if (!linked.status.ok()) {
    send(Failed{0, 0, linked.status.code(), linked.status.message()});
    view_.waiting_for = linked.status.message();
    return;
  }
  if (view_.phase == ServerPhase::connecting) {
    view_.phase = ServerPhase::idle;
    view_.waiting_for = "an update";
  }
  send(Connected{linked.generation, linked.first_contact_s, linked.paths});
}

// Whether late puts of earlier attempts can no longer arrive; if they can, another card is on its way.
bool ServerCore::is_safe_from_late_puts(const TableOffer& offer) {
  const bool all_quiet = std::all_of(writers_.begin(), writers_.end(), [&](std::uint64_t writer) {
    return std::find(offer.quiet.begin(), offer.quiet.end(), writer) != offer.quiet.end();
  });
  if (all_quiet && !counted_out_) return true;
  writers_.clear();
  counted_out_ = false;
  card_.reset();
  view_.phase = ServerPhase::connecting;
  view_.waiting_for = "another fabric";
  actions_.push_back(OpenFabric{});
  return false;
}

void ServerCore::on_begin(const Begin& begin) {
  if (view_.phase == ServerPhase::commit_due || view_.phase == ServerPhase::connecting || passing_) {
    send(
        Failed{begin.version, begin.token, Code::aborted,
               fmt::format("{} cannot receive version {}: {}", name_of(own_), begin.version,
                           view_.phase == ServerPhase::connecting ? std::string("it has no table yet")
                           : passing_                             ? std::string("it still passes on an earlier attempt")
                                      : fmt::format("its host has not committed version {} yet", view_.next_version))});
    return;
  }
  view_.next_version = begin.version;
  token_ = begin.token;
  writers_ = senders_;
  view_.verify_seconds = 0;
  missing_.clear();
  for (const auto& [sender, signals] : expected_) {
    for (std::uint32_t ordinal = 0; ordinal < signals.size(); ++ordinal) missing_.emplace(sender, ordinal);
  }
  if (in_place()) {
    view_.phase = ServerPhase::allow_due;
    view_.waiting_for = fmt::format("the host to pause its engine and allow version {}", begin.version);
  } else {
    arm();
  }
}

void ServerCore::arm() {
  view_.torn = in_place();
  view_.phase = ServerPhase::receiving;
  view_.waiting_for = fmt::format("the senders' bytes of version {}", view_.next_version);
  if (passes_on(table_)) {
    passing_ = true;
    passing_token_ = token_;
    actions_.push_back(PassOn{view_.next_version, token_});
    beat(0);
  }
  send(Armed{view_.next_version, token_});
  ready_when_complete();  // at once where nobody sends anything
}

void ServerCore::on_signal(const SignalArrived& arrived) {
  const Signal& signal = arrived.signal;
  if (view_.phase != ServerPhase::receiving || signal.token != token_ || signal.version != view_.next_version ||
      signal.server != own_.rank || missing_.erase({RankKey{signal.role, signal.sender}, signal.ordinal}) == 0) {
    return;  // of an attempt that has ended, or nobody's
  }
  view_.verify_seconds += arrived.seconds;
  const RankKey sender{signal.role, signal.sender};
  const std::uint64_t planned = expected_.at(sender)[signal.ordinal].bytes;
  if (signal.bytes != planned) {
    fail_update(Code::corrupted,
                fmt::format("{}: {} sent {} bytes of version {} with its signal {}, {} were planned", name_of(own_),
                            to_string(sender), signal.bytes, signal.version, signal.ordinal, planned));
  } else if (!arrived.verified.ok()) {
    fail_update(arrived.verified.code(), arrived.verified.message());
  } else {
    ready_when_complete();
  }
}

void ServerCore::on_passed_on(const PassedOn& passed) {
  passing_ = false;
  if (view_.phase == ServerPhase::receiving && passed.token == token_) {
    if (passed.status.ok()) {
      ready_when_complete();
    } else {
      fail_update(passed.status.code(), passed.status.message());
    }
  }
  if (quiesce_owed_) send(*std::exchange(quiesce_owed_, std::nullopt));
  if (rejoin_owed_ || passed.cut_off) send_join();
}

void ServerCore::ready_when_complete() {
  if (!missing_.empty() || passing_) return;
  view_.phase = ServerPhase::ready;
  writers_.clear();  // whoever has signalled everything has nothing in flight
  view_.waiting_for =
      fmt::format("the other ranks of replica {} to verify version {}", own_.replica, view_.next_version);
  std::uint64_t bytes = 0;
  for (const ExpectedSender& sender : table_.senders) bytes += sender.bytes;
  send(Ready{view_.next_version, token_, bytes, view_.verify_seconds});
}

void ServerCore::on_commit(const Commit& commit) {
  if (commit.version != view_.next_version || view_.phase != ServerPhase::ready) return;
  view_.phase = ServerPhase::commit_due;
  view_.waiting_for = fmt::format("the host to commit version {}", commit.version);
}

void ServerCore::on_abort(const Abort& abort) {
  if (abort.version == view_.next_version && view_.phase != ServerPhase::commit_due) {
    give_up(Status(abort.code, abort.text));
  }
  if (!passes_on(table_) || abort.token == 0) return;
  if (passing_) {
    quiesce_owed_ = Quiesced{abort.version, abort.token};
  } else {
    send(Quiesced{abort.version, abort.token});
  }
}

void ServerCore::give_up(Status why) {
  if (passing_) actions_.push_back(StopPassing{passing_token_, why});
  view_.ended = view_.next_version;
  ++view_.ended_count;
  view_.ended_status = std::move(why);
  view_.next_version = 0;
  view_.phase = ServerPhase::idle;
  view_.waiting_for = "an update";
  token_ = 0;
}

void ServerCore::fail_update(Code code, std::string text) {
  send(Failed{view_.next_version, token_, code, text});
  give_up(Status(code, std::move(text)));
}

void ServerCore::beat(std::uint64_t bytes_passed_on) {
  last_beat_ = now_;
  const auto own_ms = std::chrono::duration_cast<Milliseconds>(now_.time_since_epoch()).count();
  send(Heartbeat{static_cast<std::uint64_t>(own_ms), bytes_passed_on});
}

void ServerCore::on_tick(std::uint64_t bytes_passed_on) {
  const auto& times = config_.times;
  const bool busy = view_.next_version != 0 || passing_;
  if (now_ - last_beat_ >= Milliseconds(busy ? times.heartbeat_busy_ms : times.heartbeat_idle_ms)) {
    beat(bytes_passed_on);
  }
  const Milliseconds bound(busy ? times.death_busy_ms : times.death_idle_ms);
  if (!welcomed_ || now_ - last_heard_ <= bound) return;
  if (view_.phase == ServerPhase::receiving || view_.phase == ServerPhase::allow_due) {
    fail_update(Code::unreachable,
                fmt::format("the controller at {} has not answered for {} ms; {} keeps version {}",
                            config_.controller.address, bound.count(), name_of(own_), view_.committed_version));
  }
  view_.controller_silent = true;
  view_.waiting_for =
      fmt::format("the controller at {}, silent for more than {} ms", config_.controller.address, bound.count());
}

}  // namespace weightcast
