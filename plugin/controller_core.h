// The controller's decisions as a pure state machine: events in, actions out. No thread, socket, clock or randomness
// inside; plugin/controller.cpp drives it, tests/controller_core_test.cpp is its table. States and messages:
// plugin/PROTOCOL.md.
//
// What it guarantees
//   - A version is committed by a replica only when every rank of it has verified all its bytes; ranks of a replica
//     are told together, and what one of them was told is never taken back.
//   - No update begins before every put of an earlier one is known to have ended: senders say so (Sent, Ready,
//     Quiesced, Join), and servers take other landing memory when one died without saying it (TableOffer::quiet).
//   - Every wait ends: by its answer, by a death, or by its bound, and then names who was waited for.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "plugin/messages.h"
#include "schedule/config.h"
#include "schedule/plan.h"
#include "schedule/topology.h"
#include "transport/base/units.h"

namespace weightcast {

// ---- events ----
struct FrameArrived {
  std::string connection;
  Message message;
};
// The answer to MakePlan. On failure only `generation` and `status` count.
struct PlanMade {
  std::uint64_t generation = 0;
  Status status;
  std::map<RankKey, std::vector<std::uint8_t>> tables;
  std::vector<std::uint64_t> server_bytes;                 // into each server, by rank
  std::map<std::uint32_t, std::set<std::uint32_t>> feeds;  // which servers pass on to which others
};
struct Tick {};
using ControllerEvent = std::variant<FrameArrived, PlanMade, Tick>;

// ---- actions ----
struct SendFrame {
  std::string connection;
  Message message;
};
struct MakePlan {  // plan, prove, encode; answer with PlanMade. Absent ranks have empty catalogs.
  std::uint64_t generation = 0;
  Catalogs catalogs;
  Topology topology;  // empty where a rank has not said how fast its links are
};
struct Note {  // a line for the log
  bool warning = false;
  std::string text;
};
using ControllerAction = std::variant<SendFrame, MakePlan, Note>;

enum class ClusterState : std::uint8_t { gathering, planning, connecting, idle, arming, moving, committing, aborting };
[[nodiscard]] std::string_view to_string(ClusterState state) noexcept;

class ControllerCore {
 public:
  // `incarnation`: random, never 0; names this controller and seeds the tokens of its updates.
  ControllerCore(const Config& config, std::uint64_t incarnation, Clock::time_point now);

  [[nodiscard]] std::vector<ControllerAction> on(const ControllerEvent& event, Clock::time_point now);
  // Adds a frame's size, in or out, to the control bytes of the update under way; heartbeats are not counted.
  void count_control_bytes(const Message& message, std::uint64_t bytes);

  [[nodiscard]] ClusterState state() const noexcept { return state_; }
  [[nodiscard]] std::uint64_t version() const noexcept { return decided_version_; }
  [[nodiscard]] std::string status_json(const std::string& address) const;

 private:
  struct Member {
    std::string connection;
    Join join;
    Catalog catalog;
    std::optional<CardOffer> card;
    Clock::time_point last_heard;
    bool active = false;     // part of the current plan
    bool connected = false;  // to the current plan's peers
    double first_contact_s = 0;
    std::vector<std::string> paths;
    std::uint64_t pushed_version = 0;
    std::uint64_t bytes_done = 0;
    // of the update under way
    bool armed = false;
    bool sent = false;
    bool ready = false;
    bool commit_told = false;
    bool committed = false;
    bool quiesced = false;
  };
  struct PendingJoin {
    std::string connection;
    Join join;
    Clock::time_point since;
  };
  struct Update {
    std::uint64_t version = 0;
    std::uint64_t token = 0;
    Clock::time_point stage_began;
    Clock::time_point go;
    bool gone = false;                 // Go was sent
    bool again = false;                // aborted, to be tried again by another plan
    std::set<std::uint32_t> replicas;  // still taking part
    std::uint64_t bytes = 0;
    std::uint64_t control_bytes = 0;
    double transfer_s = 0;
    double stall_ms = 0;
    double cast_s = 0;
    double verify_s = 0;
  };

  // members (controller_core.cpp)
  void on_frame(const FrameArrived& frame);
  void on_join(const std::string& connection, const Join& join);
  [[nodiscard]] std::optional<std::string> reason_to_refuse(const Join& join, Catalog& catalog) const;
  void admit(const std::string& connection, const Join& join, Catalog catalog);
  void on_member_message(const RankKey& key, Member& member, const Message& message);
  void lose(RankKey key, const std::string& why, bool could_still_write);
  void refuse_rival(const RankKey& key);
  void on_tick();
  void consider_plan();
  [[nodiscard]] std::string missing_ranks() const;
  [[nodiscard]] bool everyone_joined() const;
  [[nodiscard]] bool choose_active();
  void roll_forward();
  [[nodiscard]] bool rolls_forward(std::uint32_t replica, std::uint64_t version) const;
  void on_plan(const PlanMade& plan);
  void on_connected(Member& member, const Connected& connected);
  void connect_failed(const std::string& text);
  void refuse_everyone(Code code, const std::string& text);
  // one update (controller_update.cpp)
  void on_pushed(Member& member, std::uint64_t version);
  void try_begin();
  void begin(std::uint64_t version);
  void on_armed(Member& member, std::uint64_t token);
  void on_sent(Member& member, const Sent& sent);
  void on_ready(Member& member, const Ready& ready);
  void on_committed(Member& member, const Committed& committed);
  void on_quiesced(Member& member, std::uint64_t token);
  void check_progress();
  void commit_replica(std::uint32_t replica);
  void drop_replica(std::uint32_t replica, std::uint32_t lost_rank, const std::string& why);
  [[nodiscard]] std::map<std::uint32_t, std::uint32_t> starved_by(std::uint32_t replica, std::uint32_t lost_rank) const;
  [[nodiscard]] bool can_be_sent_again() const;
  void abort_update(Code code, const std::string& text, bool again = false);
  void check_quiesced();
  [[nodiscard]] bool passes_on(const RankKey& key) const;
  [[nodiscard]] bool feeds(const RankKey& from, const RankKey& to) const;
  [[nodiscard]] std::string still_putting() const;
  void finish();
  void rest();
  void check_update_bounds();
  [[nodiscard]] std::string report() const;
  [[nodiscard]] bool in_update() const noexcept { return update_.has_value(); }
  [[nodiscard]] bool of_update(std::uint64_t token) const noexcept { return update_ && token == update_->token; }
  [[nodiscard]] bool replica_all(std::uint32_t replica, bool Member::*flag) const;
  [[nodiscard]] std::string waiting_for(Role role, bool Member::*flag) const;

  void send(const Member& member, Message message);
  template <class... Args>
  void note(bool warning, fmt::format_string<Args...> format, Args&&... args) {
    actions_.push_back(Note{warning, fmt::format(format, std::forward<Args>(args)...)});
  }
  template <class Visit>
  void each_active(Role role, Visit&& visit) {
    for (auto& [key, member] : members_) {
      if (key.role == role && member.active) visit(key, member);
    }
  }
  [[nodiscard]] bool takes_part(const Member& member) const;

  const Config config_;
  const std::uint64_t incarnation_;
  Clock::time_point now_;
  std::vector<ControllerAction> actions_;
  ClusterState state_ = ClusterState::gathering;
  std::string reason_;  // of gathering, for status
  std::map<RankKey, Member> members_;
  std::map<std::string, RankKey> by_connection_;
  std::map<RankKey, PendingJoin> pending_;
  // Incarnations of ranks that joined and were not lost in mid-put: outside updates they have no put in flight.
  std::set<std::uint64_t> quiet_;
  bool membership_changed_ = false;
  std::uint64_t generation_ = 0;             // of the plan; 0: never planned
  std::vector<std::uint64_t> server_bytes_;  // of the plan
  Clock::time_point connect_began_;
  Clock::time_point retry_at_;
  std::uint32_t connect_failures_ = 0;
  double first_contact_s_ = 0;
  std::map<std::string, std::uint32_t> nodes_;              // numbers, the same from plan to plan
  std::map<std::uint32_t, std::set<std::uint32_t>> feeds_;  // of the plan
  std::uint64_t spoilt_version_ = 0;  // was to be tried again, but a trainer's source may have changed by then
  std::uint64_t decided_version_ = 0;
  std::uint64_t attempts_ = 0;
  Clock::time_point waiting_since_;  // outside updates: how long pushes have waited for others
  std::optional<Update> update_;
};

}  // namespace weightcast
