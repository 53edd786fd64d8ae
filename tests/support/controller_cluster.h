// A controller's state machine with the members that talk to it, said in the words of the protocol.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "plugin/controller_core.h"
#include "tests/support/actions.h"
#include "tests/support/small_cluster.h"

namespace weightcast {

inline constexpr RankKey kTrainer0{Role::trainer, 0};
inline constexpr RankKey kTrainer1{Role::trainer, 1};
inline constexpr RankKey kServer0{Role::server, 0};
inline constexpr RankKey kServer1{Role::server, 1};

inline std::uint64_t usual_incarnation(const RankKey& key) {
  return (key.role == Role::server ? 200U : 100U) + key.rank;
}

// A controller of two trainers and two replicas of one server each (or one replica of two), and its clock.
struct Cluster {
  explicit Cluster(std::uint32_t replicas = 2, std::uint32_t ranks = 1)
      : config(small_config(2, replicas, ranks)), core(config, 7, now) {}

  void event(const ControllerEvent& what) {
    for (ControllerAction& action : core.on(what, now)) {
      if (auto* plan = std::get_if<MakePlan>(&action)) generation = plan->generation;
      actions.push_back(std::move(action));
    }
  }
  void says(const RankKey& key, Message message) { event(FrameArrived{to_string(key), std::move(message)}); }
  void later(std::uint32_t wait_ms) {
    now += Milliseconds(wait_ms);
    event(Tick{});
  }
  // Time passes, and everyone but `dead` goes on sending heartbeats.
  void later_without(std::uint32_t wait_ms, const std::vector<RankKey>& dead) {
    for (std::uint32_t spent = 0; spent < wait_ms; spent += 100) {
      now += Milliseconds(100);
      for (const RankKey& key : all) {
        if (std::find(dead.begin(), dead.end(), key) == dead.end()) says(key, Heartbeat{1, 0});
      }
      event(Tick{});
    }
  }
  void joins(const RankKey& key, std::uint64_t committed = 0, std::uint64_t ready = 0, std::uint64_t decided = 0) {
    Join join = small_join(config, key.role, key.rank, usual_incarnation(key));
    join.committed_version = committed;
    join.ready_version = ready;
    join.decided_version = decided;
    says(key, join);
    says(key, CardOffer{{1}, {{0, 0}}});
  }
  void plan_and_connect() {
    PlanMade plan{generation, {}, {}, {100, 20}, feeds};  // bytes into each server
    for (const RankKey& key : all) plan.tables[key] = {1};
    event(plan);
    for (const RankKey& key : all) says(key, Connected{generation, 0.1, {}});
  }
  void becomes_idle() {
    for (const RankKey& key : all) joins(key);
    plan_and_connect();
    REQUIRE(core.state() == ClusterState::idle);
  }
  void both_push(std::uint64_t version) {
    says(kTrainer0, Pushed{version});
    says(kTrainer1, Pushed{version});
    for (const Begin& begin : got<Begin>(kServer0)) token = begin.token;
  }
  void arms(std::uint64_t version) {
    says(kServer0, Armed{version, token});
    says(kServer1, Armed{version, token});
  }
  void moves(std::uint64_t version) {
    both_push(version);
    arms(version);
    REQUIRE(core.state() == ClusterState::moving);
  }
  void all_sent(std::uint64_t version) {
    says(kTrainer0, Sent{version, token, 8, 0.1, 0.1});
    says(kTrainer1, Sent{version, token, 8, 0.1, 0.1});
  }
  template <class Wanted>
  std::vector<Wanted> got(const RankKey& key) const {
    std::vector<Wanted> found;
    for (const SendFrame& frame : all_of<SendFrame>(actions)) {
      const auto* wanted = std::get_if<Wanted>(&frame.message);
      if (wanted != nullptr && frame.connection == to_string(key)) found.push_back(*wanted);
    }
    return found;
  }
  [[nodiscard]] std::string abort_text(const RankKey& key) const {
    const auto aborts = got<Abort>(key);
    return aborts.empty() ? "" : aborts.back().text;
  }

  std::vector<RankKey> all{kTrainer0, kTrainer1, kServer0, kServer1};
  std::map<std::uint32_t, std::set<std::uint32_t>> feeds;  // of the next plan
  Config config;
  Clock::time_point now{Milliseconds(1000)};
  ControllerCore core;
  std::vector<ControllerAction> actions;  // since the last clear()
  std::uint64_t generation = 0;
  std::uint64_t token = 0;
};

}  // namespace weightcast
