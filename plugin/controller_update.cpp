// One update: pushed by every trainer, armed by every server, moved, verified, committed replica by replica.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "plugin/controller_core.h"

namespace weightcast {
namespace {

// A token tells the attempts of one version, and of one controller, apart (splitmix64).
std::uint64_t token_of(std::uint64_t incarnation, std::uint64_t attempt) {
  std::uint64_t x = incarnation + attempt * 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

void ControllerCore::count_control_bytes(const Message& message, std::uint64_t bytes) {
  if (std::holds_alternative<Heartbeat>(message) || std::holds_alternative<Echo>(message)) return;
  if (update_) update_->control_bytes += bytes;
}

bool ControllerCore::takes_part(const Member& member) const {
  return member.active && update_ &&
         (member.join.role == Role::trainer || update_->replicas.contains(member.catalog.replica));
}

bool ControllerCore::replica_all(std::uint32_t replica, bool Member::*flag) const {
  return std::all_of(members_.begin(), members_.end(), [&](const auto& item) {
    const Member& member = item.second;
    return member.join.role != Role::server || !member.active || member.catalog.replica != replica || member.*flag;
  });
}

// "server 1, server 3": those whose flag is still missing; empty when there is none.
std::string ControllerCore::waiting_for(Role role, bool Member::*flag) const {
  std::string text;
  for (const auto& [key, member] : members_) {
    if (key.role != role || !takes_part(member) || member.*flag) continue;
    if (!text.empty()) text += ", ";
    text += to_string(key);
  }
  return text;
}

void ControllerCore::on_pushed(Member& member, std::uint64_t version) {
  if (version <= decided_version_) {
    send(member, Abort{version, 0, Code::invalid_argument,
                       fmt::format("version {} is not above version {}, which is committed: versions only grow",
                                   version, decided_version_)});
    return;
  }
  if (version == spoilt_version_) {
    send(member,
         Abort{version, 0, Code::aborted,
               fmt::format("version {}: servers that passed it on are out, and it cannot be sent again, because "
                           "a trainer's source may have changed: push a new version",
                           version)});
    return;
  }
  const bool first =
      std::none_of(members_.begin(), members_.end(), [](const auto& item) { return item.second.pushed_version != 0; });
  if (first) waiting_since_ = now_;
  member.pushed_version = version;
  try_begin();
}

void ControllerCore::try_begin() {
  if (state_ != ClusterState::idle) return;
  std::set<std::uint64_t> versions;
  each_active(Role::trainer, [&](const RankKey&, const Member& member) { versions.insert(member.pushed_version); });
  if (versions.contains(0) || versions.empty()) return;
  if (versions.size() == 1) {
    begin(*versions.begin());
    return;
  }
  std::string text = "the trainers push different versions:";
  each_active(Role::trainer, [&](const RankKey& key, const Member& member) {
    text += fmt::format(" {} pushes {};", to_string(key), member.pushed_version);
  });
  text += " push the same number everywhere";
  each_active(Role::trainer, [&](const RankKey&, Member& member) {
    send(member, Abort{std::exchange(member.pushed_version, 0), 0, Code::invalid_argument, text});
  });
}

void ControllerCore::begin(std::uint64_t version) {
  update_ = Update{};
  update_->version = version;
  update_->token = token_of(incarnation_, ++attempts_);
  update_->stage_began = now_;
  state_ = ClusterState::arming;
  for (auto& [key, member] : members_) {
    member.armed = member.sent = member.ready = member.commit_told = member.committed = member.quiesced = false;
    member.bytes_done = 0;
    if (key.role == Role::server && member.active) update_->replicas.insert(member.catalog.replica);
  }
  each_active(Role::server, [&](const RankKey&, const Member& member) {
    send(member, Begin{version, update_->token});
  });
}

void ControllerCore::on_armed(Member& member, std::uint64_t token) {
  if (!of_update(token)) return;
  member.armed = true;
  check_progress();
}

void ControllerCore::on_sent(Member& member, const Sent& sent) {
  if (!of_update(sent.token)) return;
  member.sent = true;
  if (member.pushed_version == sent.version) member.pushed_version = 0;
  if (update_->again) spoilt_version_ = sent.version;
  update_->cast_s += sent.cast_seconds;
  check_quiesced();
  check_progress();
}

void ControllerCore::on_ready(Member& member, const Ready& ready) {
  if (!of_update(ready.token) || !takes_part(member)) return;
  member.ready = true;
  update_->bytes += ready.bytes;
  update_->verify_s = std::max(update_->verify_s, ready.verify_seconds);
  check_progress();
}

void ControllerCore::on_committed(Member& member, const Committed& committed) {
  member.join.committed_version = std::max(member.join.committed_version, committed.version);
  member.join.torn = false;
  decided_version_ = std::max(decided_version_, committed.version);
  if (!in_update() || committed.version != update_->version) return;
  member.committed = true;
  update_->stall_ms = std::max(update_->stall_ms, committed.stall_ms);
  check_progress();
}

void ControllerCore::on_quiesced(Member& member, std::uint64_t token) {
  if (!of_update(token)) return;
  member.quiesced = true;
  check_quiesced();
  check_progress();
}

// Takes the update to its next stage as soon as everyone has answered.
void ControllerCore::check_progress() {
  if (!in_update() || state_ == ClusterState::aborting) return;
  if (state_ == ClusterState::arming && waiting_for(Role::server, &Member::armed).empty()) {
    state_ = ClusterState::moving;
    update_->stage_began = update_->go = now_;
    update_->gone = true;
    each_active(Role::trainer, [&](const RankKey&, const Member& member) {
      send(member, Go{update_->version, update_->token});
    });
  }
  if (state_ == ClusterState::moving) {
    for (const std::uint32_t replica : update_->replicas) {
      if (replica_all(replica, &Member::ready)) commit_replica(replica);
    }
    if (waiting_for(Role::trainer, &Member::sent).empty() && waiting_for(Role::server, &Member::ready).empty() &&
        still_putting().empty()) {
      state_ = ClusterState::committing;
      update_->stage_began = now_;
      update_->transfer_s = seconds(now_ - update_->go);
    }
  }
  if (state_ == ClusterState::committing && waiting_for(Role::server, &Member::committed).empty()) finish();
}

void ControllerCore::commit_replica(std::uint32_t replica) {
  each_active(Role::server, [&](const RankKey&, Member& member) {
    if (member.catalog.replica != replica || member.commit_told) return;
    member.commit_told = true;
    member.join.decided_version = update_->version;
    send(member, Commit{update_->version});
    decided_version_ = std::max(decided_version_, update_->version);
  });
}

void ControllerCore::drop_replica(std::uint32_t replica, std::uint32_t lost_rank, const std::string& why) {
  update_->replicas.erase(replica);
  if (update_->replicas.empty() && state_ != ClusterState::aborting) {
    abort_update(Code::unreachable, fmt::format("{}; no whole replica is left for version {}", why, update_->version));
    return;
  }
  Drop drop{{lost_rank}};
  each_active(Role::server, [&](const RankKey& key, const Member& member) {
    if (member.catalog.replica != replica) return;
    drop.servers.push_back(key.rank);
    if (!member.commit_told && state_ != ClusterState::aborting) {
      send(member,
           Abort{update_->version, update_->token, Code::aborted,
                 fmt::format("replica {} takes no part in version {} any more: {}", replica, update_->version, why)});
    }
  });
  if (state_ == ClusterState::aborting) return;
  // Who feeds these servers may hear of it only after the trainers' Go, and put into memory that nobody has armed.
  const bool is_fed = std::any_of(feeds_.begin(), feeds_.end(), [&](const auto& feed) {
    return std::any_of(drop.servers.begin(), drop.servers.end(),
                       [&](std::uint32_t rank) { return feed.second.contains(rank); });
  });
  const auto starved = starved_by(replica, lost_rank);
  // As long as no trainer has let its source go and nobody has been told to commit, the version is sent again by a plan
  // without this replica. Nobody is told to drop it first: a trainer might be done then, and let its source go.
  if ((!update_->gone && is_fed) || (!starved.empty() && can_be_sent_again())) {
    abort_update(Code::aborted, fmt::format("{}; version {} is sent again, without it", why, update_->version), true);
    return;
  }
  each_active(Role::trainer, [&](const RankKey&, const Member& member) { send(member, drop); });
  each_active(Role::server, [&](const RankKey& key, const Member& member) {
    if (passes_on(key) && takes_part(member)) send(member, drop);
  });
  for (const auto& [fed, rank] : starved) {
    if (!in_update() || !update_->replicas.contains(fed)) continue;
    drop_replica(fed, rank, fmt::format("{}, which passed it on to server {}", why, rank));
  }
}

// The replicas that get nothing more, since this one was to pass it on, with a server of each.
std::map<std::uint32_t, std::uint32_t> ControllerCore::starved_by(std::uint32_t replica,
                                                                  std::uint32_t lost_rank) const {
  std::map<std::uint32_t, std::uint32_t> starved;
  for (const auto& [from, fed] : feeds_) {
    const auto source = members_.find({Role::server, from});
    const bool is_out = source == members_.end() ? from == lost_rank : source->second.catalog.replica == replica;
    if (!is_out) continue;
    for (const std::uint32_t rank : fed) {
      const auto it = members_.find({Role::server, rank});
      if (it == members_.end() || !takes_part(it->second) || it->second.ready) continue;
      starved.emplace(it->second.catalog.replica, rank);
    }
  }
  return starved;
}

bool ControllerCore::can_be_sent_again() const {
  return std::none_of(members_.begin(), members_.end(), [](const auto& item) {
    const Member& member = item.second;
    return member.active && (member.join.role == Role::trainer ? member.sent : member.commit_told);
  });
}

void ControllerCore::abort_update(Code code, const std::string& text, bool again) {
  if (state_ != ClusterState::aborting) {
    note(true, "version {} aborted: {}", update_->version, text);
    state_ = ClusterState::aborting;
    update_->stage_began = now_;
    update_->again = again;
    const Abort abort{update_->version, update_->token, code, text, again};
    each_active(Role::trainer, [&](const RankKey&, Member& member) {
      if (member.pushed_version == update_->version) member.pushed_version = 0;
      send(member, abort);
    });
    each_active(Role::server, [&](const RankKey&, const Member& member) {
      if (!member.commit_told) send(member, abort);
    });
  }
  if (update_->again && !again) {  // it cannot be after all: nobody keeps a source for it
    update_->again = false;
    const Abort abort{update_->version, update_->token, code, text};
    each_active(Role::trainer, [&](const RankKey&, const Member& member) { send(member, abort); });
  }
  check_quiesced();
}

// "trainer 0, server 3": who may have puts in flight.
std::string ControllerCore::still_putting() const {
  std::string text;
  for (const auto& [key, member] : members_) {
    const bool puts = key.role == Role::trainer ? !member.sent : passes_on(key) && !member.ready;
    if (!member.active || !puts || member.quiesced) continue;
    if (!text.empty()) text += ", ";
    text += to_string(key);
  }
  return text;
}

// Rest is reached when no live rank has a put in flight. Those that died in mid-put are not in quiet_.
void ControllerCore::check_quiesced() {
  if (state_ == ClusterState::aborting && still_putting().empty()) rest();
}

void ControllerCore::finish() {
  const std::string text = report();
  decided_version_ = std::max(decided_version_, update_->version);
  note(false, "version {} done: {}", update_->version, text);
  each_active(Role::trainer, [&](const RankKey&, const Member& member) { send(member, Done{update_->version, text}); });
  rest();
}

void ControllerCore::rest() {
  update_.reset();
  waiting_since_ = now_;
  state_ = membership_changed_ ? ClusterState::gathering : ClusterState::idle;
  try_begin();
}

void ControllerCore::check_update_bounds() {
  const Milliseconds update_bound(config_.times.update_ms);
  if (!in_update()) {
    if (now_ - waiting_since_ <= update_bound) return;
    std::string missing;
    each_active(Role::trainer, [&](const RankKey& key, const Member& member) {
      if (member.pushed_version == 0) missing += (missing.empty() ? "" : ", ") + to_string(key);
    });
    if (state_ != ClusterState::idle || missing.empty()) {
      missing = reason_.empty() ? fmt::format("the cluster is {}", to_string(state_)) : reason_;
    } else {
      missing = "waiting for " + missing;
    }
    for (auto& [key, member] : members_) {
      if (member.pushed_version == 0) continue;
      const std::uint64_t version = std::exchange(member.pushed_version, 0);
      send(member,
           Abort{version, 0, Code::timed_out,
                 fmt::format("version {} did not begin within {} ms: {}", version, update_bound.count(), missing)});
    }
    return;
  }
  const auto spent = now_ - update_->stage_began;
  if (state_ == ClusterState::arming && spent > update_bound) {
    abort_update(Code::timed_out, fmt::format("version {}: not prepared to receive within {} ms: {}", update_->version,
                                              update_bound.count(), waiting_for(Role::server, &Member::armed)));
  } else if (state_ == ClusterState::moving && spent > update_bound) {
    const std::string trainers = still_putting();
    const std::string servers = waiting_for(Role::server, &Member::ready);
    abort_update(Code::timed_out,
                 fmt::format("version {}: not done within {} ms (times.update_ms): sending: {}; not yet verified: {}",
                             update_->version, update_bound.count(), trainers.empty() ? "none" : trainers,
                             servers.empty() ? "none" : servers));
  } else if (state_ == ClusterState::committing && spent > Milliseconds(config_.times.commit_ms)) {
    note(true, "version {} is decided but not committed within {} ms by {}", update_->version, config_.times.commit_ms,
         waiting_for(Role::server, &Member::committed));
    finish();
  } else if (state_ == ClusterState::aborting && spent > Milliseconds(2ULL * config_.times.death_busy_ms)) {
    std::vector<RankKey> stuck;
    for (const auto& [key, member] : members_) {
      const bool puts = key.role == Role::trainer ? !member.sent : passes_on(key) && !member.ready;
      if (member.active && puts && !member.quiesced) stuck.push_back(key);
    }
    for (const RankKey& key : stuck) lose(key, "it did not end its puts after an abort", true);
    if (in_update()) check_quiesced();
  }
}

std::string ControllerCore::report() const {
  std::set<std::uint32_t> committed;
  std::vector<std::uint32_t> late;
  std::uint32_t servers = 0;
  for (const std::uint32_t replica : update_->replicas) {
    if (replica_all(replica, &Member::committed)) {
      committed.insert(replica);
    } else {
      late.push_back(replica);
    }
  }
  for (const auto& [key, member] : members_) servers += key.role == Role::server && takes_part(member) ? 1 : 0;
  const nlohmann::ordered_json json{{"version", update_->version},
                                    {"bytes", update_->bytes},
                                    {"servers", servers},
                                    {"replicas_committed", committed},
                                    {"replicas_late", late},
                                    {"first_contact_s", first_contact_s_},
                                    {"transfer_s", update_->transfer_s},
                                    {"stall_ms", update_->stall_ms},
                                    {"cast_s", update_->cast_s},
                                    {"verify_s", update_->verify_s},
                                    {"control_bytes", update_->control_bytes}};
  return json.dump();
}

}  // namespace weightcast
