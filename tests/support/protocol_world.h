// A cluster in one thread: the controller's, trainers' and servers' state machines on a virtual clock, joined by
// ordered, delayed connections; memory that puts write into; hosts that push, allow and commit; and faults. One seed,
// one history. After every event of memory and of commits the rules are checked; what is broken goes to `broken`.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "plugin/controller_core.h"
#include "plugin/server_core.h"
#include "plugin/trainer_core.h"

namespace weightcast::simulation {

struct WorldOptions {
  std::uint64_t seed = 0;
  std::uint32_t trainers = 2;
  std::uint32_t replicas = 2;
  std::uint32_t servers_per_replica = 2;
  bool in_place = false;
  bool relay = false;  // the first server passes everything on to all others
  bool faults = true;
  bool verbose = false;
};

// What one put left behind: who may not mix with whom.
struct Stamp {
  std::uint64_t version = 0;
  std::uint64_t token = 0;
  std::uint64_t content = 0;  // of the source when it was read
};

struct Memory {
  std::uint64_t attempt = 0;  // the last one that the server armed it for
  bool sealed = false;        // ready or being committed: nobody may write
  bool closed = false;
  std::map<std::uint32_t, Stamp> parts;  // by trainer
};

struct Target {
  std::uint32_t server = 0;
  std::uint64_t incarnation = 0;
  std::uint64_t memory = 0;
  bool dropped = false;
  bool failed = false;
};

struct Frame {
  Clock::time_point arrives;
  std::uint64_t epoch = 0;  // of the controller that was up when it was sent; 0: none was
  Message message;
};

class World;

// One operating-system process: what happens to it waits while it is stopped and is lost once it is dead.
struct Process {
  RankKey key;
  std::uint64_t incarnation = 0;
  bool alive = true;
  bool stopped = false;
  std::vector<std::function<void()>> deferred;
  std::deque<Frame> outbox, inbox;  // to and from the controller
  std::uint64_t connection = 1;     // counts them
  std::unique_ptr<TrainerCore> trainer;
  std::unique_ptr<ServerCore> server;
  // a trainer's
  Clock::time_point lease;
  std::vector<Target> targets;
  std::optional<Status> stop;
  std::uint64_t content = 0;
  std::uint64_t tickets = 0;
  std::uint64_t move_token = 0;
  std::uint64_t app_version = 0;  // being pushed
  bool cancelled = false;
  Clock::duration push_spent{};
  // a server's
  std::uint64_t memory = 0;
  std::uint64_t committing = 0;
  std::uint64_t pass_token = 0;
  std::uint64_t pass_left = 0;                                   // puts
  std::deque<std::pair<std::uint32_t, std::size_t>> pass_queue;  // trainer and target
};

class World {
 public:
  explicit World(const WorldOptions& options);

  void run();  // faults, then calm, then a push that must succeed
  [[nodiscard]] const std::vector<std::string>& broken() const noexcept { return broken_; }
  [[nodiscard]] std::uint64_t commits() const noexcept { return commits_; }
  [[nodiscard]] std::uint64_t pushes_ended() const noexcept { return pushes_ended_; }
  [[nodiscard]] std::uint64_t fabrics_closed() const noexcept { return fabrics_closed_; }

 private:
  // time
  void at(Clock::duration delay, std::function<void()> what);
  void at_process(Process& process, Clock::duration delay, std::function<void()> what);
  void run_until(Clock::time_point end, const std::function<bool()>& done);
  Milliseconds between(std::int64_t least_ms, std::int64_t most_ms);
  // As between(), but until calm now and then much longer.
  Milliseconds mostly_between(std::int64_t least_ms, std::int64_t most_ms);
  bool chance(double probability) { return std::uniform_real_distribution<>(0, 1)(random_) < probability; }
  // processes and connections
  void start_controller();
  Process& start_process(RankKey key);
  void tick(Process& process);
  void controller_event(const ControllerEvent& event);
  void send_up(Process& process, const Message& message);
  [[nodiscard]] std::string connection_of(const Process& process) const;
  void deliver_up(Process& process);
  void deliver_down(Process& process);
  void make_plan(const MakePlan& request);
  [[nodiscard]] Process* current(RankKey key);
  // trainers
  void trainer_event(Process& process, const TrainerEvent& event);
  void link(Process& process, const TableOffer& offer);
  void move(Process& process, const Move& order);
  void put_next(Process& process, std::uint64_t version, std::uint64_t token, std::size_t index);
  void land(const Target& target, std::uint32_t trainer, const Stamp& stamp);
  void signal(const Process& process, const Target& target, const Stamp& stamp, std::uint32_t ordinal);
  void end_move(Process& process, std::uint64_t version, std::uint64_t token, Status status);
  void drive_push(Process& process);
  // servers
  void server_event(Process& process, const ServerEvent& event);
  void hear_signal(Process& process, const Signal& signal);
  void drive_host(Process& process);
  void commit(Process& process, std::uint64_t version);
  void take_memory(Process& process);
  // relay
  void relay_through_first(const std::vector<std::uint32_t>& servers, PlanMade& plan) const;
  void link_onward(Process& process, const AdoptTable& order);
  void pass_on(Process& process, const PassOn& order);
  void pass_next(Process& process, std::uint64_t token);
  void end_passing(Process& process, std::uint64_t token, Status status);
  // faults
  void fault();
  void calm();
  void check_agreement(bool also_replaced);
  void kill(Process& process);
  void restart(RankKey key, Milliseconds delay);
  void stop(Process& process, Milliseconds how_long);
  void crash_controller();
  void crash_after(const Message& message);
  void reset_connection(Process& process);
  void expect(bool holds, const std::string& rule);
  void say(const std::string& line);

  struct Timed {
    Clock::time_point when;
    std::uint64_t order;
    std::function<void()> what;
    bool operator>(const Timed& other) const { return std::pair(when, order) > std::pair(other.when, other.order); }
  };

  const WorldOptions options_;
  Config config_;
  std::mt19937_64 random_;
  Clock::time_point now_{};
  std::uint64_t order_ = 0;
  std::vector<Timed> queue_;   // a heap
  std::uint64_t names_ = 100;  // incarnations, memories, contents
  std::unique_ptr<ControllerCore> controller_;
  std::uint64_t epoch_ = 0;
  std::vector<std::unique_ptr<Process>> processes_;
  std::map<std::string, Process*> connections_;
  std::map<std::uint64_t, Memory> memories_;
  std::uint64_t app_version_ = 1;
  std::map<std::uint64_t, std::uint64_t> token_of_version_;                  // committed
  std::set<std::pair<std::uint32_t, std::uint64_t>> ready_;                  // (server rank, version)
  std::map<std::pair<std::uint32_t, std::uint64_t>, std::uint64_t> pushed_;  // (trainer, version): content
  std::map<std::uint64_t, std::set<std::uint32_t>> succeeded_;               // version: trainers told so
  std::set<std::uint32_t> replaced_;                                         // servers that were killed
  std::vector<std::string> broken_;
  bool is_calm_ = false;
  bool callers_rest_ = false;
  std::uint64_t commits_ = 0;
  std::uint64_t pushes_ended_ = 0;
  std::uint64_t fabrics_closed_ = 0;
};

}  // namespace weightcast::simulation
