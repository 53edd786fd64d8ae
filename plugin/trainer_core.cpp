#include "plugin/trainer_core.h"

#include <fmt/format.h>

#include <utility>

namespace weightcast {

TrainerCore::TrainerCore(const Config& config, Join join, Clock::time_point now)
    : config_(config), join_(std::move(join)), now_(now), last_beat_(now), joined_at_(now), last_heard_(now) {
  view_.waiting_for = fmt::format("the controller at {}", config_.controller.address);
}

std::vector<TrainerAction> TrainerCore::start(Clock::time_point now) {
  now_ = now;
  send_join();
  return std::exchange(actions_, {});
}

std::vector<TrainerAction> TrainerCore::on(const TrainerEvent& event, Clock::time_point now) {
  now_ = now;
  if (const auto* moved = std::get_if<Moved>(&event)) {
    on_moved(*moved);
  } else if (!view_.fatal.ok()) {
    if (std::holds_alternative<PushCalled>(event)) begin_push(std::get<PushCalled>(event));
  } else if (const auto* message = std::get_if<Message>(&event)) {
    on_message(*message);
  } else if (const auto* opened = std::get_if<FabricOpened>(&event)) {
    fabric_open_ = opened->status.ok();
    card_ = opened->card;
    if (!fabric_open_) {
      fail(opened->status);
      send(Leave{});
    } else {
      phase_ = Phase::carded;
      view_.waiting_for = "the other ranks to join";
      if (welcomed_) send(CardOffer{card_, {}});
    }
  } else if (const auto* linked = std::get_if<Linked>(&event)) {
    linking_ = false;
    if (next_table_) {
      link_next();
    } else if (!linked->status.ok()) {
      send(Failed{0, 0, linked->status.code(), linked->status.message()});
      view_.waiting_for = linked->status.message();
    } else {
      phase_ = Phase::connected;
      view_.connected = true;
      view_.paths = linked->paths;
      if (!std::exchange(linked_once_, true)) view_.first_contact_s = linked->first_contact_s;
      view_.waiting_for = "the other ranks to connect";
      send(Connected{linked->generation, linked->first_contact_s, linked->paths});
      if (offers(view_.pushing)) send(Pushed{view_.pushing});
    }
  } else if (const auto* push = std::get_if<PushCalled>(&event)) {
    begin_push(*push);
  } else if (const auto* cancelled = std::get_if<PushCancelled>(&event)) {
    if (moving_) actions_.push_back(StopMoving{cancelled->why});
    if (view_.pushing == cancelled->version) end(cancelled->why);
  } else if (const auto* failed = std::get_if<PeerFailed>(&event)) {
    send(PeerLost{failed->role, failed->rank, failed->cause});
  } else if (const auto* tick = std::get_if<TrainerTick>(&event)) {
    on_tick(tick->bytes_done);
  }
  return std::exchange(actions_, {});
}

void TrainerCore::send_join() {
  welcomed_ = false;
  rejoin_owed_ = false;
  joined_at_ = now_;
  send(join_);
  if (view_.pushing != 0 && view_.released == view_.pushing) {
    end(Status(Code::aborted, fmt::format("version {}: its bytes have left, but the controller at {} was lost before "
                                          "it said whether they were committed: ask the servers, then push again",
                                          view_.pushing, config_.controller.address)));
  }
}

void TrainerCore::begin_push(const PushCalled& push) {
  view_.push_ticket = push.ticket;
  view_.pushing = push.version;
  view_.released = view_.ended = 0;
  view_.report.clear();
  if (!view_.fatal.ok()) {
    end(view_.fatal);
  } else if (phase_ == Phase::connected) {
    beat(0);
    send(Pushed{push.version});
  }
}

// Whether the source of `version` stands still, to be sent. Once it was released its bytes may be others.
bool TrainerCore::offers(std::uint64_t version) const noexcept {
  return version != 0 && view_.pushing == version && view_.released != version && !moving_;
}

void TrainerCore::fail(Status why) {
  view_.fatal = std::move(why);
  if (moving_) actions_.push_back(StopMoving{view_.fatal});
  if (view_.pushing != 0) end(view_.fatal);
}

void TrainerCore::on_message(const Message& message) {
  last_heard_ = now_;
  silent_ = false;
  if (std::holds_alternative<Welcome>(message)) {
    welcomed_ = true;
    beat(0);
    if (fabric_open_) {
      send(CardOffer{card_, {}});
    } else if (phase_ == Phase::joining) {
      phase_ = Phase::opening;
      view_.waiting_for = "the fabric to open";
      actions_.push_back(OpenFabric{});
    }
  } else if (const auto* refused = std::get_if<Refused>(&message)) {
    fail(Status(refused->code, refused->text));
  } else if (std::holds_alternative<Rejoin>(message)) {
    if (moving_) {
      rejoin_owed_ = true;
      actions_.push_back(StopMoving{
          Status(Code::aborted, fmt::format("version {}: the controller counted this trainer out", moving_version_))});
    } else if (welcomed_ || now_ - joined_at_ >= Milliseconds(config_.times.heartbeat_idle_ms)) {
      send_join();  // else the answer to one is on its way
    }
  } else if (const auto* table = std::get_if<TableOffer>(&message)) {
    next_table_ = *table;
    link_next();
  } else if (const auto* go = std::get_if<Go>(&message)) {
    on_go(*go);
  } else if (const auto* echo = std::get_if<Echo>(&message)) {
    const auto own_ms = std::chrono::duration_cast<Milliseconds>(now_.time_since_epoch()).count();
    if (echo->sent_ms > static_cast<std::uint64_t>(own_ms)) return;
    actions_.push_back(SetLease{Clock::time_point(Milliseconds(echo->sent_ms)) + Milliseconds(config_.times.lease_ms)});
  } else if (const auto* abort = std::get_if<Abort>(&message)) {
    if (moving_ && moving_token_ == abort->token) {
      quiesce_owed_ = true;
      again_ = abort->again;
      actions_.push_back(StopMoving{Status(abort->code, abort->text)});
    } else {
      send(Quiesced{abort->version, abort->token});
    }
    const bool keeps = abort->again && view_.released != view_.pushing;
    if (view_.pushing == abort->version && !keeps) end(Status(abort->code, abort->text));
  } else if (const auto* drop = std::get_if<Drop>(&message)) {
    actions_.push_back(DropServers{drop->servers});
  } else if (const auto* done = std::get_if<Done>(&message)) {
    if (view_.pushing == done->version) end({}, done->report);
  }
}

void TrainerCore::on_go(const Go& go) {
  if (!offers(go.version) || phase_ != Phase::connected) {
    send(Failed{go.version, go.token, Code::aborted,
                fmt::format("trainer {} does not offer version {} (any more)", join_.rank, go.version)});
    return;
  }
  moving_ = true;
  moving_version_ = go.version;
  moving_token_ = go.token;
  moving_ticket_ = view_.push_ticket;
  quiesce_owed_ = false;
  again_ = false;
  actions_.push_back(Move{go.version, go.token});
}

void TrainerCore::on_moved(const Moved& moved) {
  moving_ = false;
  const bool current = moving_ticket_ == view_.push_ticket;  // else its caller has given it up
  const bool again = std::exchange(again_, false) && current && view_.pushing == moved.version;
  if (current && !again) view_.released = moved.version;
  if (std::exchange(quiesce_owed_, false)) {
    send(Quiesced{moved.version, moving_token_});
  } else if (moved.status.ok()) {
    send(Sent{moved.version, moving_token_, moved.bytes, moved.seconds, moved.cast_seconds});
    view_.waiting_for = fmt::format("the servers to verify and commit version {}", moved.version);
  } else if (!rejoin_owed_) {
    send(Failed{moved.version, moving_token_, moved.status.code(), moved.status.message()});
    send(Quiesced{moved.version, moving_token_});
  }
  if (!view_.fatal.ok()) return;
  if (!moved.status.ok() && current && !again && view_.pushing != 0) {
    // The lease runs out before the controller counts as dead, and means the same to whoever pushes.
    const Milliseconds lease(config_.times.lease_ms);
    end(moved.status.code() == Code::refused && now_ - last_heard_ > lease ? silence(lease) : moved.status);
  }
  if (rejoin_owed_ || moved.cut_off) send_join();
  link_next();
}

void TrainerCore::end(Status status, std::string report) {
  view_.ended = std::exchange(view_.pushing, 0);
  if (!moving_ || moving_ticket_ != view_.push_ticket) view_.released = view_.ended;
  view_.ended_status = std::move(status);
  view_.report = std::move(report);
}

void TrainerCore::link_next() {
  if (!next_table_ || linking_ || moving_ || !fabric_open_) return;
  linking_ = true;
  phase_ = Phase::linking;
  view_.connected = false;
  view_.waiting_for = "the connections to its peers";
  actions_.push_back(Link{*std::exchange(next_table_, std::nullopt)});
}

// Its echo renews the lease. Besides the regular ones: a welcome and a push, so that the echo arrives before any Go.
void TrainerCore::beat(std::uint64_t bytes_done) {
  last_beat_ = now_;
  const auto own_ms = std::chrono::duration_cast<Milliseconds>(now_.time_since_epoch()).count();
  send(Heartbeat{static_cast<std::uint64_t>(own_ms), bytes_done});
}

Status TrainerCore::silence(Milliseconds wait) const {
  return {Code::unreachable, fmt::format("the controller at {} has not answered for {} ms (killed, stopped or cut "
                                         "off); version {} is given up, servers keep what they have committed",
                                         config_.controller.address, wait.count(), view_.pushing)};
}

void TrainerCore::on_tick(std::uint64_t bytes_done) {
  if (!view_.fatal.ok()) return;
  const bool busy = moving_ || view_.pushing != 0;
  const bool puts = busy || phase_ == Phase::linking;  // first contact puts too, and needs a lease
  const auto& times = config_.times;
  if (now_ - last_beat_ >= Milliseconds(puts ? times.heartbeat_busy_ms : times.heartbeat_idle_ms)) {
    beat(bytes_done);
  }
  const Milliseconds bound(busy ? times.death_busy_ms : times.death_idle_ms);
  if (welcomed_ && now_ - last_heard_ > bound) {
    view_.waiting_for =
        fmt::format("the controller at {}, silent for {} ms", config_.controller.address, bound.count());
    const Status why = silence(bound);
    if (moving_ && !std::exchange(silent_, true)) actions_.push_back(StopMoving{why});
    if (view_.pushing != 0) end(why);
  }
}

}  // namespace weightcast
