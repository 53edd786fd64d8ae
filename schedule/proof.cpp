#include "schedule/proof.h"

#include <vector>

#include "schedule/proof_checks.h"
#include "schedule/proof_geometry.h"

namespace weightcast {
namespace proof {
namespace {

bool lies_in(const Box& inner, const Box& outer) {
  if (inner.axes != outer.axes || inner.axes == 0) return false;
  for (std::size_t axis = 0; axis < inner.axes; ++axis) {
    if (inner.extent[axis] < 1) return false;
  }
  return contains(outer, inner);
}

// The checks that steps and scale steps have in common.
class Routes {
 public:
  Routes(const Plan& plan, const Catalogs& catalogs, Facts& facts, Proof& proof)
      : plan_(plan), catalogs_(catalogs), facts_(facts), proof_(proof), received_(catalogs.servers.size()) {}

  void check(std::size_t index) {
    const auto& step = plan_.steps[index];
    const auto who = [&] { return describe(plan_, catalogs_, index); };
    const auto& source = source_of(step, fmt::format("step {}", index));
    if (!lies_in(step.box, source.entry->box)) {
      violated("{}, but holds {} in its entry {}", who(), to_string(source.entry->box), entry_of(step, step.column));
    }
    if (!lies_in(step.box, step.frame)) violated("{}, outside its frame {}", who(), to_string(step.frame));
    if (step.signal != 0) violated("{} has signal {}, but a pair has only signal 0", who(), step.signal);
    if (!is_of_whole_bytes(step.box, step.recipe)) violated("{} cuts bytes of {}", who(), to_string(step.recipe));
    const auto bytes = bytes_of(step.box, step.recipe);
    check_destinations(step, source, bytes, who, [&](const Destination& to, const ColumnFacts& taken) {
      check_entry(step, to, taken, who, *source.entry, false);
      if (taken.entry->recipe != step.recipe) {
        violated("{} as {}, but {} holds {}", who(), to_string(step.recipe), where(step, to),
                 to_string(taken.entry->recipe));
      }
      if (taken.entry->shape != source.entry->shape) {
        violated("{}, but {} means a tensor of another shape", who(), where(step, to));
      }
    });
  }

  void check_scales(std::size_t index) {
    const auto& step = plan_.scale_steps[index];
    const auto who = [&] { return describe_scales(plan_, catalogs_, index); };
    const auto& source = source_of(step, fmt::format("scale step {}", index));
    if (!lies_in(step.blocks, blocks_meeting(source.entry->box, step.recipe))) {
      violated("{}, but its entry {} holds {}", who(), entry_of(step, step.column), to_string(source.entry->box));
    }
    if (!lies_in(step.blocks, step.frame)) violated("{}, outside its frame {}", who(), to_string(step.frame));
    const auto bytes = static_cast<std::uint64_t>(elements(step.blocks)) * scale_bytes(step.recipe);
    check_destinations(step, source, bytes, who, [&](const Destination& to, const ColumnFacts& taken) {
      check_entry(step, to, taken, who, *source.entry, true);
      if (taken.entry->recipe != step.recipe) {
        violated("{} of {}, but {} holds those of {}", who(), to_string(step.recipe), where(step, to),
                 to_string(taken.entry->recipe));
      }
    });
  }

 private:
  template <class AnyStep>
  ColumnFacts& source_of(const AnyStep& step, const std::string& name) {
    auto& source = facts_.trainer(step.trainer, step.column, [&] { return name; });
    if (step.count == 0 || step.first > source.tensors.size() || step.count > source.tensors.size() - step.first) {
      violated("{} is for {} tensors from {} on of column {}, which has {}", name, step.count, step.first, step.column,
               source.tensors.size());
    }
    if (source.entry->is_scales) {
      violated("{} is for entry {} of trainer {}, which is not one of weights", name, entry_of(step, step.column),
               step.trainer);
    }
    return source;
  }

  template <class AnyStep>
  [[nodiscard]] std::uint32_t entry_of(const AnyStep& step, std::uint32_t column) const {
    return plan_.columns[column][step.first];
  }
  template <class AnyStep>
  [[nodiscard]] std::string where(const AnyStep& step, const Destination& to) const {
    return fmt::format("entry {} of server {}", entry_of(step, to.column), to.server);
  }

  template <class AnyStep, class Who, class Check>
  void check_destinations(const AnyStep& step, const ColumnFacts& source, std::uint64_t bytes, const Who& who,
                          const Check& check) {
    if (step.destinations.empty()) violated("{} to nobody", who());
    ++step_;
    for (const auto& to : step.destinations) {
      auto& taken = facts_.server(to.server, to.column, who);
      if (taken.checked != step_) {  // not once for each server that has the same entries
        if (!Facts::same_tensors(source, taken, step.first, step.count)) wrong_tensors(step, to, taken, who);
        check(to, taken);
        taken.checked = step_;
      }
      if (to.relay) {
        if (*to.relay >= received_.size() || received_[*to.relay] != step_ || *to.relay == to.server) {
          violated("{} reaches server {} through server {}, which has not received it before", who(), to.server,
                   *to.relay);
        }
        proof_.relayed_bytes += bytes * step.count;
      }
      received_[to.server] = step_;
    }
  }

  template <class AnyStep, class Who>
  [[noreturn]] void wrong_tensors(const AnyStep& step, const Destination& to, const ColumnFacts& taken,
                                  const Who& who) const {
    if (step.first + step.count > taken.tensors.size()) {
      violated("{} goes to column {} of server {}, which has {} entries only", who(), to.column, to.server,
               taken.tensors.size());
    }
    violated("{} goes to {}, which holds {}", who(), where(step, to),
             catalogs_.servers[to.server].entries[entry_of(step, to.column)].tensor);
  }

  template <class AnyStep, class Who>
  void check_entry(const AnyStep& step, const Destination& to, const ColumnFacts& taken, const Who& who,
                   const Entry& source, bool is_scales) const {
    if (taken.entry->is_scales != is_scales) {
      violated("{} goes to {}, which holds the {} of {}", who(), where(step, to),
               taken.entry->is_scales ? "scales" : "values", source.tensor);
    }
    if (taken.entry->box != step.frame) {
      violated("{} counts in the frame {}, but {} holds {}", who(), to_string(step.frame), where(step, to),
               to_string(taken.entry->box));
    }
  }

  const Plan& plan_;
  const Catalogs& catalogs_;
  Facts& facts_;
  Proof& proof_;
  std::size_t step_ = 0;               // counts steps and scale steps
  std::vector<std::size_t> received_;  // by server: the last of them that it is a destination of
};

template <class AnyStep>
std::string sends(const char* kind, std::size_t index, const AnyStep& step, const Box& box, const char* what,
                  const Plan& plan, const Catalogs& catalogs) {
  const auto& tensor = catalogs.trainers[step.trainer].entries[plan.columns[step.column][step.first]].tensor;
  return fmt::format("{} {} (trainer {} sends {}{} {}{})", kind, index, step.trainer, what, tensor, to_string(box),
                     step.count > 1 ? fmt::format(" and of {} more", step.count - 1) : "");
}

void compare(const char* role, const char* does, const std::vector<std::uint64_t>& said,
             const std::vector<std::uint64_t>& counted) {
  if (said.size() != counted.size()) {
    violated("totals for {} {}s, but there are {}", said.size(), role, counted.size());
  }
  for (std::size_t rank = 0; rank < counted.size(); ++rank) {
    if (said[rank] == counted[rank]) continue;
    violated("{} {} {} {} bytes, but the plan's total says {}", role, rank, does, counted[rank], said[rank]);
  }
}

}  // namespace

void check_totals(const Plan& plan, const Catalogs& catalogs, const Topology& topology) {
  std::vector<std::uint64_t> out(catalogs.trainers.size());
  std::vector<std::uint64_t> in(catalogs.servers.size());
  std::vector<ServerLoad> loads(catalogs.servers.size());
  const auto has_nvlink = [&](std::uint32_t rank) {
    return rank < topology.servers.size() && topology.servers[rank].nvlink_gbs > 0;
  };
  const auto share_nvlink = [&](std::uint32_t a, std::uint32_t b) {
    return has_nvlink(a) && has_nvlink(b) && topology.servers[a].node == topology.servers[b].node;
  };
  const auto count = [&](const auto& step, std::uint64_t bytes) {
    for (const auto& to : step.destinations) {
      in[to.server] += bytes;
      const bool by_nvlink = to.relay && share_nvlink(*to.relay, to.server);
      (by_nvlink ? loads[to.server].nvlink_in : loads[to.server].nic_in) += bytes;
      if (!to.relay) {
        out[step.trainer] += bytes;
      } else {
        (by_nvlink ? loads[*to.relay].nvlink_out : loads[*to.relay].nic_out) += bytes;
      }
    }
  };
  for (const auto& step : plan.steps) {
    count(step, step.count * bytes_of(step.box, step.recipe));
  }
  for (const auto& step : plan.scale_steps) {
    count(step, step.count * static_cast<std::uint64_t>(elements(step.blocks)) * scale_bytes(step.recipe));
  }
  compare("trainer", "sends", plan.trainer_bytes, out);
  compare("server", "takes", plan.server_bytes, in);
  if (plan.server_loads.size() != loads.size()) {
    violated("loads of {} servers, but there are {}", plan.server_loads.size(), loads.size());
  }
  for (std::size_t rank = 0; rank < loads.size(); ++rank) {
    if (plan.server_loads[rank] != loads[rank]) violated("the links of server {} carry other bytes than it says", rank);
  }
}

std::string describe(const Plan& plan, const Catalogs& catalogs, std::size_t step) {
  return sends("step", step, plan.steps[step], plan.steps[step].box, "", plan, catalogs);
}

std::string describe_scales(const Plan& plan, const Catalogs& catalogs, std::size_t scale_step) {
  const auto& step = plan.scale_steps[scale_step];
  return sends("scale step", scale_step, step, step.blocks, "the scales of blocks of ", plan, catalogs);
}

void check_routes(const Plan& plan, const Catalogs& catalogs, Facts& facts, Proof& proof) {
  Routes routes(plan, catalogs, facts, proof);
  for (std::size_t step = 0; step < plan.steps.size(); ++step) routes.check(step);
  for (std::size_t step = 0; step < plan.scale_steps.size(); ++step) routes.check_scales(step);
}

}  // namespace proof

Prover::Prover(const Catalogs& catalogs) : facts_(std::make_unique<proof::CatalogFacts>(catalogs)) {
  proof::check_memory(catalogs);
}
Prover::Prover(Prover&&) noexcept = default;
Prover& Prover::operator=(Prover&&) noexcept = default;
Prover::~Prover() = default;

Proof Prover::prove(const Plan& plan, const Topology& topology) const {
  const auto& catalogs = facts_->catalogs();
  Proof proof;
  proof::Facts facts(plan, *facts_);
  proof::check_routes(plan, catalogs, facts, proof);
  proof::check_coverage(plan, catalogs, facts, proof);
  proof::check_amax(plan, catalogs, facts, proof);
  proof::check_chunks(plan, catalogs);
  proof::check_totals(plan, catalogs, topology);
  return proof;
}

Proof prove(const Plan& plan, const Catalogs& catalogs, const Topology& topology) {
  return Prover(catalogs).prove(plan, topology);
}

}  // namespace weightcast
