// A trainer's decisions as a pure state machine: events in, actions out; plugin/trainer.cpp drives it.
//
// What it guarantees: a version counts as released only when the pipeline has said that none of its puts is in
// flight; a join is sent only in that state; the lease never outlives the controller's last answer by more than
// times.lease_ms of this process's own clock.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "plugin/messages.h"
#include "schedule/config.h"
#include "transport/base/units.h"

namespace weightcast {

// ---- events ----
struct FabricOpened {
  Status status;
  std::vector<std::uint8_t> card;
};
struct Linked {  // the answer to Link
  std::uint64_t generation = 0;
  Status status;
  double first_contact_s = 0;
  std::vector<std::string> paths;
};
struct PushCalled {
  std::uint64_t version = 0;
  std::uint64_t ticket = 0;  // of the call: tells an answer to it from one to an earlier attempt
};
struct PushCancelled {  // the caller waits no longer
  std::uint64_t version = 0;
  Status why;
};
struct Moved {  // the answer to Move: nothing is in flight
  std::uint64_t version = 0;
  std::uint64_t token = 0;
  Status status;
  std::uint64_t bytes = 0;
  double seconds = 0;
  double cast_seconds = 0;
  bool cut_off = false;  // connections had to be cut to end the puts: they must be made again
};
struct PeerFailed {
  Role role = Role::server;
  std::uint32_t rank = 0;
  std::string cause;
};
struct TrainerTick {
  std::uint64_t bytes_done = 0;
};
using TrainerEvent =
    std::variant<Message, FabricOpened, Linked, PushCalled, PushCancelled, Moved, PeerFailed, TrainerTick>;

// ---- actions ----
struct SendMessage {
  Message message;
};
struct OpenFabric {};
struct Link {  // decode the table, connect to its peers; answer with Linked
  TableOffer offer;
};
struct Move {  // run the pipeline; answer with Moved
  std::uint64_t version = 0;
  std::uint64_t token = 0;
};
struct StopMoving {
  Status why;
};
struct DropServers {
  std::vector<std::uint32_t> servers;
};
struct SetLease {
  Clock::time_point until;
};
using TrainerAction = std::variant<SendMessage, OpenFabric, Link, Move, StopMoving, DropServers, SetLease>;

// What callers wait for. Versions are 0 for none.
struct TrainerView {
  Status fatal;            // this handle does nothing any more
  bool connected = false;  // to the peers of the current plan
  double first_contact_s = 0;
  std::vector<std::string> paths;
  std::uint64_t push_ticket = 0;  // of the push that the next three are about
  std::uint64_t pushing = 0;      // offered, not yet ended
  std::uint64_t released = 0;     // the last version whose source may change
  std::uint64_t ended = 0;        // the last version that ended
  Status ended_status;            // of it
  std::string report;             // of it, when it was committed
  std::string waiting_for;        // what the handle waits for now, for messages
};

class TrainerCore {
 public:
  // `join` carries rank, catalog and incarnation; it is sent at once, and again on Rejoin.
  TrainerCore(const Config& config, Join join, Clock::time_point now);

  [[nodiscard]] std::vector<TrainerAction> start(Clock::time_point now);
  [[nodiscard]] std::vector<TrainerAction> on(const TrainerEvent& event, Clock::time_point now);
  [[nodiscard]] const TrainerView& view() const noexcept { return view_; }

 private:
  enum class Phase : std::uint8_t { joining, opening, carded, linking, connected };

  void on_message(const Message& message);
  void on_go(const Go& go);
  void on_moved(const Moved& moved);
  [[nodiscard]] Status silence(Milliseconds wait) const;  // of the controller
  void on_tick(std::uint64_t bytes_done);
  void beat(std::uint64_t bytes_done);
  void begin_push(const PushCalled& push);
  void fail(Status why);
  void end(Status status, std::string report = {});
  [[nodiscard]] bool offers(std::uint64_t version) const noexcept;
  void send(Message message) { actions_.push_back(SendMessage{std::move(message)}); }
  void send_join();
  void link_next();

  const Config config_;
  const Join join_;
  Clock::time_point now_;
  std::vector<TrainerAction> actions_;
  TrainerView view_;
  Phase phase_ = Phase::joining;
  bool welcomed_ = false;
  bool fabric_open_ = false;
  std::vector<std::uint8_t> card_;
  bool linking_ = false;
  bool linked_once_ = false;
  std::optional<TableOffer> next_table_;  // came while linking or moving
  bool moving_ = false;
  std::uint64_t moving_version_ = 0;
  std::uint64_t moving_token_ = 0;
  std::uint64_t moving_ticket_ = 0;
  bool quiesce_owed_ = false;  // the controller waits for Quiesced of moving_token_
  bool again_ = false;         // the attempt under way is given up, its version is offered again to the next plan
  bool rejoin_owed_ = false;   // a join waits until nothing is in flight
  bool silent_ = false;        // the controller has not answered for too long
  Clock::time_point last_beat_;
  Clock::time_point joined_at_;
  Clock::time_point last_heard_;
};

}  // namespace weightcast
