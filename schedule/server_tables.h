// What every server is sent, by whom, under which signals, and what it passes on.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "schedule/plan.h"

namespace weightcast {

// Made for all servers at once, because what a server signals to another follows from what was signalled to it. Pure;
// linear in the destinations of the plan's steps.
class ServerTables {
 public:
  // Both outlive it.
  ServerTables(const Plan& plan, const Catalogs& catalogs);

  [[nodiscard]] ServerTable of(std::uint32_t server) const;
  // Who passes on to whom.
  [[nodiscard]] const std::map<std::uint32_t, std::set<std::uint32_t>>& feeds() const noexcept { return feeds_; }

 private:
  // One tensor of a step (scale steps count on behind the others), as one of the step's destinations takes it.
  struct Taken {
    std::uint32_t step = 0;
    std::uint32_t tensor = 0;
    std::uint32_t destination = 0;
  };
  struct Passed {
    std::uint32_t piece = 0;  // of the signal that it came with
    Taken to;
  };
  struct Onward {
    std::uint32_t server = 0;
    std::uint32_t ordinal = 0;
    std::vector<Passed> pieces;
  };
  struct Sent {
    Role role = Role::trainer;
    std::uint32_t rank = 0;
    std::uint64_t bytes = 0;
    std::vector<Taken> pieces;
    std::vector<Onward> onward;
  };

  void add_direct();
  void add_onward();
  void pass_on(std::uint32_t server, std::size_t signal);
  [[nodiscard]] const std::vector<Destination>& destinations_of(const Taken& taken) const;
  [[nodiscard]] const Box& box_of(const Taken& taken) const;
  [[nodiscard]] std::uint64_t bytes_of(const Taken& taken) const;
  [[nodiscard]] std::uint32_t entry_of(const Taken& taken) const;

  const Plan& plan_;
  const Catalogs& catalogs_;
  std::vector<std::vector<Sent>> signals_;  // by server
  std::map<std::uint32_t, std::set<std::uint32_t>> feeds_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint32_t> ordinals_;  // from and to: so many signals
  std::vector<std::pair<std::uint32_t, std::size_t>> wave_;  // signals whose onward ones are still to be made
};

}  // namespace weightcast
