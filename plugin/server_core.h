// A server's decisions as a pure state machine: events in, actions out; plugin/server.cpp drives it.
//
// What it guarantees: `ready` is said only after every expected signal of this attempt came, every landed byte matched
// and all that the plan says was passed on; after `ready` the landing memory stays as it is until commit or abort; what
// the controller has decided (commit_due) nothing takes back; a suspect's memory is never reused; a join and `quiesced`
// are said only when no put of this server is in flight.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "plugin/messages.h"
#include "plugin/signal.h"
#include "plugin/trainer_core.h"
#include "schedule/config.h"
#include "schedule/plan.h"
#include "transport/base/units.h"

namespace weightcast {

// The numbers are part of the C ABI (weightcast_phase).
enum class ServerPhase : std::uint8_t {
  connecting = 0,
  idle = 1,
  allow_due = 2,
  receiving = 3,
  ready = 4,
  commit_due = 5,
  failed = 6,
};
[[nodiscard]] std::string_view to_string(ServerPhase phase) noexcept;

// ---- events (beside those of trainer_core.h) ----
struct CardMade {  // the answer to OpenFabric
  Status status;
  std::vector<std::uint8_t> card;
  std::vector<Placement> placements;
};
struct SignalArrived {
  Signal signal;
  Status verified;     // whether what landed is what the signal says; see Verifier
  double seconds = 0;  // that verifying took
};
struct AllowCalled {
  std::uint64_t version = 0;
};
struct CommitDone {  // the host's thread has switched the live weights
  std::uint64_t version = 0;
  double stall_ms = 0;
};
struct PassedOn {  // the answer to PassOn: nothing is in flight
  std::uint64_t token = 0;
  Status status;
  bool cut_off = false;  // connections had to be cut to end the puts: they must be made again
};
struct ServerTick {
  std::uint64_t bytes_passed_on = 0;
};
using ServerEvent =
    std::variant<Message, CardMade, Linked, SignalArrived, PassedOn, PeerFailed, AllowCalled, CommitDone, ServerTick>;

// ---- actions (beside SendMessage, OpenFabric, DropServers and SetLease) ----
struct AdoptTable {  // what signals that arrive from now on are verified against
  ServerTable table;
  std::uint64_t generation = 0;
  std::vector<PeerCard> peers;  // where the table passes on: connect to them, answer with Linked
};
struct PassOn {  // what is verified from now on; answer with PassedOn
  std::uint64_t version = 0;
  std::uint64_t token = 0;
};
struct StopPassing {
  std::uint64_t token = 0;
  Status why;
};
using ServerAction = std::variant<SendMessage, OpenFabric, AdoptTable, PassOn, StopPassing, DropServers, SetLease>;

struct ServerView {
  Status fatal;
  Status refusal;  // of the run as a whole; the rank serves on and joins the next
  ServerPhase phase = ServerPhase::connecting;
  std::uint64_t committed_version = 0;
  std::uint64_t next_version = 0;
  bool torn = false;
  std::uint64_t ended = 0;  // the last version given up here
  Status ended_status;
  std::uint64_t ended_count = 0;   // updates given up here so far
  double verify_seconds = 0;       // of the last version, most of them while bytes still came
  double stall_ms = 0;             // of the last commit
  bool controller_silent = false;  // longer than a living one is, and still
  std::string waiting_for;
};

class ServerCore {
 public:
  // `join` carries rank, catalog, landing and incarnation. `own`: for checking tables.
  ServerCore(const Config& config, Join join, Catalog own, Clock::time_point now);

  [[nodiscard]] std::vector<ServerAction> start(Clock::time_point now);
  [[nodiscard]] std::vector<ServerAction> on(const ServerEvent& event, Clock::time_point now);
  [[nodiscard]] const ServerView& view() const noexcept { return view_; }
  [[nodiscard]] const ServerTable& table() const noexcept { return table_; }
  [[nodiscard]] const Catalog& catalog() const noexcept { return own_; }

 private:
  void on_message(const Message& message);
  void on_refused(const Refused& refused);
  void on_card(const CardMade& card);
  void on_table(const TableOffer& offer);
  void on_linked(const Linked& linked);
  void on_passed_on(const PassedOn& passed);
  void on_begin(const Begin& begin);
  void on_signal(const SignalArrived& arrived);
  void ready_when_complete();
  void on_commit(const Commit& commit);
  void on_abort(const Abort& abort);
  [[nodiscard]] bool is_safe_from_late_puts(const TableOffer& offer);
  void on_tick(std::uint64_t bytes_passed_on);
  void beat(std::uint64_t bytes_passed_on);
  void arm();
  void give_up(Status why);
  void fail_update(Code code, std::string text);
  void send_join();
  void send(Message message) { actions_.push_back(SendMessage{std::move(message)}); }
  [[nodiscard]] bool in_place() const { return join_.landing == "in_place"; }

  const Config config_;
  const Join join_;
  const Catalog own_;
  Clock::time_point now_;
  std::vector<ServerAction> actions_;
  ServerView view_;
  bool welcomed_ = false;
  bool opening_ = false;
  std::optional<CardOffer> card_;
  ServerTable table_;
  std::set<std::uint64_t> senders_;  // incarnations, of the table
  std::set<std::uint64_t> writers_;  // that may have puts in flight into the landing memory
  bool counted_out_ =
      false;  // with writers: whom the controller told to drop this rank may have left puts on their way
  std::uint64_t token_ = 0;
  std::map<RankKey, std::vector<SignalExtent>> expected_;  // of the table: each sender's signals
  std::set<std::pair<RankKey, std::uint32_t>> missing_;    // sender and ordinal, of this attempt
  bool passing_ = false;                                   // until PassedOn
  std::uint64_t passing_token_ = 0;                        // its attempt
  std::optional<Quiesced> quiesce_owed_;                   // once nothing is in flight
  bool rejoin_owed_ = false;                               // likewise
  Clock::time_point last_beat_;
  Clock::time_point joined_at_;
  Clock::time_point last_heard_;
};

}  // namespace weightcast
