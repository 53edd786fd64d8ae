#include "plugin/controller_core.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace weightcast {
namespace {

constexpr std::uint32_t kConnectAttempts = 3;
constexpr const char* kLeft = "it left";

RankKey key_of(const Join& join) { return {join.role, join.rank}; }

Party party_of(Role role) { return role == Role::trainer ? Party::trainer : Party::server; }

}  // namespace

std::string_view to_string(ClusterState state) noexcept {
  switch (state) {
    case ClusterState::gathering: return "gathering";
    case ClusterState::planning: return "planning";
    case ClusterState::connecting: return "connecting";
    case ClusterState::idle: return "idle";
    case ClusterState::arming: return "arming";
    case ClusterState::moving: return "moving";
    case ClusterState::committing: return "committing";
    case ClusterState::aborting: return "aborting";
  }
  return "unknown";
}

ControllerCore::ControllerCore(const Config& config, std::uint64_t incarnation, Clock::time_point now)
    : config_(config), incarnation_(incarnation), now_(now), connect_began_(now), retry_at_(now), waiting_since_(now) {}

std::vector<ControllerAction> ControllerCore::on(const ControllerEvent& event, Clock::time_point now) {
  now_ = now;
  if (const auto* frame = std::get_if<FrameArrived>(&event)) on_frame(*frame);
  if (const auto* plan = std::get_if<PlanMade>(&event)) on_plan(*plan);
  if (std::holds_alternative<Tick>(event)) on_tick();
  consider_plan();
  return std::exchange(actions_, {});
}

void ControllerCore::send(const Member& member, Message message) {
  actions_.push_back(SendFrame{member.connection, std::move(message)});
}

void ControllerCore::on_frame(const FrameArrived& frame) {
  if (const auto* join = std::get_if<Join>(&frame.message)) {
    on_join(frame.connection, *join);
    return;
  }
  const auto known = by_connection_.find(frame.connection);
  if (known == by_connection_.end()) {
    const bool waits = std::any_of(pending_.begin(), pending_.end(),
                                   [&](const auto& item) { return item.second.connection == frame.connection; });
    if (!waits && !std::holds_alternative<Leave>(frame.message)) {
      actions_.push_back(SendFrame{frame.connection, Rejoin{}});
    }
    return;
  }
  const RankKey key = known->second;
  Member& member = members_.at(key);
  member.last_heard = now_;
  if (!may_send(party_of(key.role), frame.message)) {
    const std::string text =
        fmt::format("a {} may not send '{}' messages", to_string(key.role), type_of(frame.message));
    send(member, Refused{Code::refused, text});
    lose(key, text, true);
    return;
  }
  on_member_message(key, member, frame.message);
}

std::optional<std::string> ControllerCore::reason_to_refuse(const Join& join, Catalog& catalog) const {
  const RankKey key = key_of(join);
  if (join.run != config_.run) {
    return fmt::format("{} belongs to run '{}', this controller to run '{}': set \"run\" alike", to_string(key),
                       join.run, config_.run);
  }
  const auto& expected = config_.controller;
  const std::uint32_t count =
      join.role == Role::trainer ? expected.trainers : expected.replicas * expected.servers_per_replica;
  if (join.rank >= count) {
    return fmt::format("{} joined, but this controller expects {} {}s (ranks 0 to {}): see \"controller\"",
                       to_string(key), count, to_string(join.role), count - 1);
  }
  if (join.incarnation == 0) return fmt::format("{} joined without an incarnation", to_string(key));
  try {
    catalog = parse_catalog(join.catalog, fmt::format("catalog of {}", to_string(key)));
  } catch (const Error& error) {
    return error.what();
  }
  if (catalog.role != join.role || catalog.rank != join.rank) {
    return fmt::format("{} sent the catalog of {}", to_string(key), name_of(catalog));
  }
  if (join.role == Role::server && catalog.replica >= expected.replicas) {
    return fmt::format("{} names replica {}, but this controller expects {} replicas", to_string(key), catalog.replica,
                       expected.replicas);
  }
  if (digest_of(catalog) != join.catalog_digest) {
    return fmt::format(
        "{} and this controller read its catalog differently (digest {:016x} and {:016x}): "
        "different builds of weightcast",
        to_string(key), join.catalog_digest, digest_of(catalog));
  }
  return std::nullopt;
}

void ControllerCore::on_join(const std::string& connection, const Join& join) {
  const RankKey key = key_of(join);
  Catalog catalog;
  if (const auto reason = reason_to_refuse(join, catalog)) {
    note(true, "refused a join: {}", *reason);
    actions_.push_back(SendFrame{connection, Refused{Code::refused, *reason}});
    return;
  }
  quiet_.insert(join.incarnation);  // a join says that nothing is in flight
  if (const auto known = members_.find(key); known != members_.end()) {
    if (known->second.join.incarnation != join.incarnation) {
      pending_[key] = {connection, join, now_};  // until the one that holds the rank is heard of, or counted dead
      return;
    }
    refuse_rival(key);  // else it would be let in while this one is lost and joins again
    lose(key, "it joined again", false);
  }
  if (const auto same = by_connection_.find(connection); same != by_connection_.end()) {
    lose(RankKey(same->second), "its connection joined as another rank", true);
  }
  admit(connection, join, std::move(catalog));
}

void ControllerCore::admit(const std::string& connection, const Join& join, Catalog catalog) {
  const RankKey key = key_of(join);
  Member member;
  member.connection = connection;
  member.join = join;
  member.join.catalog.clear();
  member.catalog = std::move(catalog);
  member.last_heard = now_;
  decided_version_ = std::max({decided_version_, join.committed_version, join.decided_version});
  note(false, "{} joined ({} entries{})", name_of(member.catalog), member.catalog.entries.size(),
       join.committed_version != 0 ? fmt::format(", holds version {}", join.committed_version) : "");
  send(member, Welcome{incarnation_});
  by_connection_[connection] = key;
  members_[key] = std::move(member);
}

void ControllerCore::on_member_message(const RankKey& key, Member& member, const Message& message) {
  if (const auto* heartbeat = std::get_if<Heartbeat>(&message)) {
    member.bytes_done = heartbeat->bytes_done;
    send(member, Echo{heartbeat->sent_ms});
    const auto rival = pending_.find(key);
    const Milliseconds sent_since(config_.times.heartbeat_idle_ms);  // not under way before its sender died
    if (rival != pending_.end() && now_ - rival->second.since >= sent_since) refuse_rival(key);
  } else if (const auto* card = std::get_if<CardOffer>(&message)) {
    member.card = *card;
    membership_changed_ = true;
  } else if (const auto* connected = std::get_if<Connected>(&message)) {
    on_connected(member, *connected);
  } else if (const auto* pushed = std::get_if<Pushed>(&message)) {
    on_pushed(member, pushed->version);
  } else if (const auto* armed = std::get_if<Armed>(&message)) {
    on_armed(member, armed->token);
  } else if (const auto* sent = std::get_if<Sent>(&message)) {
    on_sent(member, *sent);
  } else if (const auto* ready = std::get_if<Ready>(&message)) {
    on_ready(member, *ready);
  } else if (const auto* committed = std::get_if<Committed>(&message)) {
    on_committed(member, *committed);
  } else if (const auto* quiesced = std::get_if<Quiesced>(&message)) {
    on_quiesced(member, quiesced->token);
  } else if (const auto* lost = std::get_if<PeerLost>(&message)) {
    const RankKey peer{lost->role, lost->rank};
    if (const auto it = members_.find(peer); it != members_.end()) {
      const std::string why = fmt::format("{} lost its connection to it: {}", to_string(key), lost->cause);
      send(it->second, Rejoin{});  // should it still live, it comes back with fresh endpoints
      lose(peer, why, true);
    }
  } else if (const auto* failed = std::get_if<Failed>(&message)) {
    if (failed->version == 0 && state_ == ClusterState::connecting) {
      connect_failed(failed->text);
    } else if (of_update(failed->token) && takes_part(member)) {
      abort_update(failed->code, failed->text);
    } else if (failed->version == 0) {
      lose(key, failed->text, false);
    }
  } else if (std::holds_alternative<Leave>(message)) {
    lose(key, kLeft, false);
  }
}

// The process that holds the rank lives: another one that claims it is turned away.
void ControllerCore::refuse_rival(const RankKey& key) {
  const auto rival = pending_.find(key);
  if (rival == pending_.end()) return;
  const std::string text = fmt::format(
      "{} is held by another live process: give this one another rank, or end that one first", to_string(key));
  actions_.push_back(SendFrame{rival->second.connection, Refused{Code::refused, text}});
  pending_.erase(rival);
}

void ControllerCore::lose(RankKey key, const std::string& why, bool could_still_write) {
  const auto it = members_.find(key);
  if (it == members_.end()) return;
  const Member gone = std::move(it->second);
  by_connection_.erase(gone.connection);
  members_.erase(it);
  note(why != kLeft, "{} is out: {}", name_of(gone.catalog), why);
  membership_changed_ = membership_changed_ || gone.active || gone.card;
  if (in_update() && gone.active) {
    const bool done = gone.quiesced || (key.role == Role::trainer ? gone.sent : gone.ready || !passes_on(key));
    if (!done && could_still_write && update_->gone) quiet_.erase(gone.join.incarnation);
    if (key.role == Role::server) {
      if (!gone.committed && update_->replicas.contains(gone.catalog.replica)) {
        drop_replica(gone.catalog.replica, key.rank, fmt::format("server {} is out: {}", key.rank, why));
      }
    } else if (!done) {
      abort_update(Code::unreachable, fmt::format("trainer {} is out: {}; version {} is given up, servers keep what "
                                                  "they have committed",
                                                  key.rank, why, update_->version));
    }
    if (in_update()) check_quiesced();
    if (in_update()) check_progress();
  }
  if (state_ == ClusterState::connecting && gone.active) {
    state_ = ClusterState::gathering;
    reason_ = why;
  }
  if (const auto rival = pending_.find(key); rival != pending_.end()) {
    const PendingJoin next = std::move(rival->second);
    pending_.erase(rival);
    on_join(next.connection, next.join);
  }
}

void ControllerCore::on_tick() {
  const Milliseconds bound(in_update() ? config_.times.death_busy_ms : config_.times.death_idle_ms);
  std::vector<RankKey> silent;
  for (const auto& [key, member] : members_) {
    if (now_ - member.last_heard > bound) silent.push_back(key);
  }
  for (const RankKey& key : silent) {
    lose(key, fmt::format("no heartbeat for {} ms (killed, stopped or cut off)", bound.count()), true);
  }
  if (state_ == ClusterState::connecting && now_ - connect_began_ > Milliseconds(config_.times.join_ms)) {
    std::string who;
    for (const auto& [key, member] : members_) {
      if (member.active && !member.connected) who += (who.empty() ? "" : ", ") + to_string(key);
    }
    connect_failed(fmt::format("not connected after {} ms: {}", config_.times.join_ms, who));
  }
  check_update_bounds();
}

bool ControllerCore::everyone_joined() const {
  const auto& expected = config_.controller;
  const std::size_t count =
      std::size_t{expected.trainers} + std::size_t{expected.replicas} * expected.servers_per_replica;
  return members_.size() == count &&
         std::all_of(members_.begin(), members_.end(), [](const auto& item) { return item.second.card.has_value(); });
}

std::string ControllerCore::missing_ranks() const {
  std::string text;
  const auto& expected = config_.controller;
  const auto list = [&](Role role, std::uint32_t count) {
    for (std::uint32_t rank = 0; rank < count; ++rank) {
      const auto it = members_.find({role, rank});
      if (it != members_.end() && it->second.card) continue;
      if (!text.empty()) text += ", ";
      text += to_string(RankKey{role, rank});
    }
  };
  list(Role::trainer, expected.trainers);
  list(Role::server, expected.replicas * expected.servers_per_replica);
  return text;
}

// Marks who takes part in the next plan: every trainer, and the servers of replicas that are whole.
bool ControllerCore::choose_active() {
  std::map<std::uint32_t, std::uint32_t> ranks_of_replica;
  for (const auto& [key, member] : members_) {
    if (key.role == Role::server && member.card) ++ranks_of_replica[member.catalog.replica];
  }
  std::size_t trainers = 0;
  std::size_t servers = 0;
  for (auto& [key, member] : members_) {
    const bool whole =
        key.role == Role::trainer || ranks_of_replica[member.catalog.replica] == config_.controller.servers_per_replica;
    member.active = member.card.has_value() && whole;
    member.connected = false;
    if (member.active) ++(key.role == Role::trainer ? trainers : servers);
  }
  return trainers > 0 && servers > 0;
}

void ControllerCore::consider_plan() {
  const bool resting = state_ == ClusterState::gathering || state_ == ClusterState::idle ||
                       state_ == ClusterState::connecting || state_ == ClusterState::planning;
  if (!membership_changed_ || in_update() || !resting || now_ < retry_at_) return;
  if ((generation_ == 0 && !everyone_joined()) || !choose_active()) {
    state_ = ClusterState::gathering;
    reason_ = "waiting for " + missing_ranks();
    return;
  }
  membership_changed_ = false;
  roll_forward();
  ++generation_;
  state_ = ClusterState::planning;
  MakePlan request;
  request.generation = generation_;
  const auto& expected = config_.controller;
  bool links_known = true;
  const auto fill = [&](Role role, std::uint32_t count, std::vector<Catalog>& into, std::vector<RankLinks>& links) {
    for (std::uint32_t rank = 0; rank < count; ++rank) {
      const auto it = members_.find({role, rank});
      const bool is_active = it != members_.end() && it->second.active;
      // Whoever is absent carries nothing, at whatever rate.
      links.push_back({UINT32_MAX, 1, 0});
      if (is_active) {
        const Join& join = it->second.join;
        links.back() = {nodes_.try_emplace(join.node, static_cast<std::uint32_t>(nodes_.size())).first->second,
                        static_cast<double>(join.nic_mbs) / 1e3, static_cast<double>(join.nvlink_mbs) / 1e3};
        links_known = links_known && join.nic_mbs > 0;
      }
      if (is_active) {
        into.push_back(it->second.catalog);
      } else {
        Catalog absent;
        absent.role = role;
        absent.rank = rank;
        into.push_back(std::move(absent));
      }
    }
  };
  fill(Role::trainer, expected.trainers, request.catalogs.trainers, request.topology.trainers);
  fill(Role::server, expected.replicas * expected.servers_per_replica, request.catalogs.servers,
       request.topology.servers);
  if (!links_known) request.topology = {};
  actions_.push_back(std::move(request));
}

// Whether a version that some rank of this replica has ready is the replica's to commit: one of its ranks was told so
// (later versions may have been decided without it), or another replica was and all ranks of this one have verified it.
bool ControllerCore::rolls_forward(std::uint32_t replica, std::uint64_t version) const {
  std::uint32_t holders = 0;
  for (const auto& [key, member] : members_) {
    if (key.role != Role::server || member.catalog.replica != replica) continue;
    const Join& join = member.join;
    if (join.committed_version == version || join.decided_version == version) return true;
    holders += join.ready_version == version ? 1 : 0;
  }
  return version == decided_version_ && holders == config_.controller.servers_per_replica;
}

// Settles what servers had ready when they joined: it is committed where it was decided, and given up elsewhere.
// (This controller is new, or these ranks were out.)
void ControllerCore::roll_forward() {
  std::set<RankKey> following;
  for (const auto& [key, member] : members_) {
    if (key.role == Role::server && rolls_forward(member.catalog.replica, member.join.ready_version)) {
      following.insert(key);
    }
  }
  for (auto& [key, member] : members_) {
    const std::uint64_t ready = member.join.ready_version;
    if (key.role != Role::server || ready == 0) continue;
    if (following.contains(key)) {
      note(false, "{} rolls forward to version {}", name_of(member.catalog), ready);
      send(member, Commit{ready});
      member.join.decided_version = ready;
    } else {
      send(member, Abort{ready, 0, Code::aborted,
                         fmt::format("version {} was not decided for replica {}; version {} stands", ready,
                                     member.catalog.replica, member.join.committed_version)});
    }
    member.join.ready_version = 0;
  }
}

bool ControllerCore::passes_on(const RankKey& key) const {
  return key.role == Role::server && feeds_.contains(key.rank);
}

bool ControllerCore::feeds(const RankKey& from, const RankKey& to) const {
  return passes_on(from) && to.role == Role::server && feeds_.at(from.rank).contains(to.rank);
}

void ControllerCore::on_plan(const PlanMade& plan) {
  if (plan.generation != generation_ || state_ != ClusterState::planning) return;
  if (!plan.status.ok()) {
    const bool complete = missing_ranks().empty();  // else ranks are leaving, or on their way
    note(complete, "no plan: {}", plan.status.message());
    state_ = ClusterState::gathering;
    reason_ = plan.status.message();
    if (complete) refuse_everyone(plan.status.code(), plan.status.message());
    return;
  }
  server_bytes_ = plan.server_bytes;
  feeds_ = plan.feeds;
  state_ = ClusterState::connecting;
  connect_began_ = now_;
  for (auto& [key, member] : members_) {
    if (!member.active) continue;
    TableOffer offer;
    offer.generation = generation_;
    offer.table = plan.tables.at(key);
    if (key.role == Role::server) offer.quiet.assign(quiet_.begin(), quiet_.end());
    for (const auto& [peer_key, peer] : members_) {
      if (!peer.active || peer_key == key) continue;
      const bool puts = key.role == Role::trainer || feeds(key, peer_key);
      if (!puts && peer_key.role == Role::server && !feeds(peer_key, key)) continue;
      const CardOffer card = puts ? *peer.card : CardOffer{};
      offer.peers.push_back({peer_key.role, peer_key.rank, peer.join.incarnation, card.card, card.placements});
    }
    send(member, std::move(offer));
  }
}

void ControllerCore::on_connected(Member& member, const Connected& connected) {
  if (state_ != ClusterState::connecting || connected.generation != generation_) return;
  member.connected = true;
  member.first_contact_s = connected.first_contact_s;
  member.paths = connected.paths;
  for (const auto& [key, other] : members_) {
    if (other.active && !other.connected) return;
  }
  first_contact_s_ = 0;
  for (const auto& [key, other] : members_) {
    if (other.active) first_contact_s_ = std::max(first_contact_s_, other.first_contact_s);
  }
  connect_failures_ = 0;
  state_ = ClusterState::idle;
  reason_.clear();
  note(false, "connected: plan {}, first contact {:.3f} s", generation_, first_contact_s_);
  try_begin();
}

void ControllerCore::connect_failed(const std::string& text) {
  note(true, "connecting failed: {}", text);
  state_ = ClusterState::gathering;
  reason_ = text;
  membership_changed_ = true;
  retry_at_ = now_ + Milliseconds(config_.times.death_idle_ms);  // by then the dead are counted out
  if (++connect_failures_ >= kConnectAttempts) refuse_everyone(Code::unreachable, text);
}

void ControllerCore::refuse_everyone(Code code, const std::string& text) {
  for (const auto& [key, member] : members_) send(member, Refused{code, text});
  for (const auto& [key, rival] : pending_) actions_.push_back(SendFrame{rival.connection, Refused{code, text}});
  pending_.clear();
  members_.clear();
  by_connection_.clear();
  generation_ = 0;
  connect_failures_ = 0;
}

std::string ControllerCore::status_json(const std::string& address) const {
  nlohmann::ordered_json status;
  status["state"] = to_string(state_);
  status["reason"] = reason_;
  status["version"] = decided_version_;
  status["address"] = address;
  status["run"] = config_.run;
  status["plan"] = generation_;
  status["first_contact_s"] = first_contact_s_;
  status["members"] = nlohmann::ordered_json::array();
  for (const auto& [key, member] : members_) {
    nlohmann::ordered_json item{
        {"role", to_string(key.role)},
        {"rank", key.rank},
        {"active", member.active},
        {"connected", member.connected},
        {"silent_ms", std::chrono::duration_cast<Milliseconds>(now_ - member.last_heard).count()},
        {"bytes_done", member.bytes_done},
        {"paths", member.paths}};
    if (key.role == Role::server) {
      item["replica"] = member.catalog.replica;
      item["landing"] = member.join.landing;
      item["committed_version"] = member.join.committed_version;
      item["torn"] = member.join.torn;
    }
    status["members"].push_back(std::move(item));
  }
  if (update_) {
    std::uint64_t done = 0;
    std::uint64_t total = 0;
    for (const auto& [key, member] : members_) done += key.role == Role::trainer ? member.bytes_done : 0;
    for (std::uint32_t rank = 0; rank < server_bytes_.size(); ++rank) {
      const auto server = members_.find({Role::server, rank});
      if (server != members_.end() && takes_part(server->second)) total += server_bytes_[rank];
    }
    status["update"] = {
        {"version", update_->version}, {"bytes_done", done}, {"bytes_total", total}, {"replicas", update_->replicas}};
  }
  return status.dump();
}

}  // namespace weightcast
