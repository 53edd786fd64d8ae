#include "schedule/proof.h"

#include <vector>

#include "schedule/proof_checks.h"
#include "schedule/proof_geometry.h"

namespace weightcast {
namespace proof {
namespace {

const Entry& source_of(const Plan& plan, const Catalogs& catalogs, std::size_t step) {
  return catalogs.trainers[plan.steps[step].trainer].entries[plan.steps[step].column];
}

const Entry& source_of_scales(const Plan& plan, const Catalogs& catalogs, std::size_t step) {
  return catalogs.trainers[plan.scale_steps[step].trainer].entries[plan.scale_steps[step].column];
}

bool is_empty(const Box& box) {
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    if (box.extent[axis] < 1) return true;
  }
  return box.axes == 0;
}

bool lies_in(const Box& inner, const Box& outer) {
  return inner.axes == outer.axes && !is_empty(inner) && contains(outer, inner);
}

// What the other checks take for granted of a catalog.
void check_catalog(const Catalog& catalog, std::size_t rank) {
  const auto* role = catalog.role == Role::trainer ? "trainer" : "server";
  if (catalog.rank != rank) violated("the catalog in place {} is that of {} {}", rank, role, catalog.rank);
  for (std::size_t index = 0; index < catalog.entries.size(); ++index) {
    const auto& entry = catalog.entries[index];
    const auto where = [&] { return fmt::format("entry {} of {} {} ({})", index, role, rank, entry.tensor); };
    if (!entry.is_scales && !lies_in(entry.box, whole(entry.shape))) {
      violated("{} holds {}, which is not inside its tensor", where(), to_string(entry.box));
    }
    const auto bytes = entry.is_scales                ? sizeof(float)
                       : catalog.role == Role::server ? element_bytes(entry.recipe)
                                                      : element_bytes(entry.source_type);
    if (entry.region >= catalog.regions.size() || !fits(entry, bytes, catalog.regions[entry.region].bytes)) {
      violated("{} does not lie inside a region", where());
    }
  }
}

// The part that steps and scale steps have in common, with the words for both.
struct Route {
  const char* kind;
  std::size_t index;
  std::uint32_t trainer;
  std::uint32_t entry;
};

void check_source(const Route& route, const Catalogs& catalogs) {
  if (route.trainer >= catalogs.trainers.size()) {
    violated("{} {} is for trainer {}, but there are {} trainers", route.kind, route.index, route.trainer,
             catalogs.trainers.size());
  }
  const auto& entries = catalogs.trainers[route.trainer].entries;
  if (route.entry >= entries.size() || entries[route.entry].is_scales) {
    violated("{} {} is for entry {} of trainer {}, which is not one of its {} entries of weights", route.kind,
             route.index, route.entry, route.trainer, entries.size());
  }
}

template <class Who>
const Entry& destination_entry(const Destination& destination, const Catalogs& catalogs, const Who& who) {
  if (destination.server >= catalogs.servers.size()) {
    violated("{} goes to server {}, but there are {} servers", who(), destination.server, catalogs.servers.size());
  }
  const auto& entries = catalogs.servers[destination.server].entries;
  if (destination.column >= entries.size()) {
    violated("{} goes to entry {} of server {}, which has {} entries", who(), destination.column, destination.server,
             entries.size());
  }
  if (destination.relay) {
    violated("{} reaches server {} through server {}: relayed routes are not supported", who(), destination.server,
             *destination.relay);
  }
  return entries[destination.column];
}

template <class Who>
void check_destination(const Destination& destination, const Entry& entry, const Who& who, const std::string& tensor,
                       bool is_scales, const Box& frame) {
  const auto where = [&] { return fmt::format("entry {} of server {}", destination.column, destination.server); };
  if (entry.tensor != tensor) violated("{} goes to {}, which holds {}", who(), where(), entry.tensor);
  if (entry.is_scales != is_scales) {
    violated("{} goes to {}, which holds the {} of {}", who(), where(), entry.is_scales ? "scales" : "values", tensor);
  }
  if (entry.box != frame) {
    violated("{} counts in the frame {}, but {} holds {}", who(), to_string(frame), where(), to_string(entry.box));
  }
}

void check_step(const Plan& plan, const Catalogs& catalogs, std::size_t index) {
  const auto& step = plan.steps[index];
  check_source({"step", index, step.trainer, step.column}, catalogs);
  const auto& source = source_of(plan, catalogs, index);
  const auto who = [&] { return describe(plan, catalogs, index); };
  if (!lies_in(step.box, source.box)) {
    violated("{}, but holds {} in its entry {}", who(), to_string(source.box), step.column);
  }
  if (!lies_in(step.box, step.frame)) violated("{}, outside its frame {}", who(), to_string(step.frame));
  if (step.signal != 0) violated("{} has signal {}, but a pair has only signal 0", who(), step.signal);
  if (step.destinations.empty()) violated("{} to nobody", who());
  for (const auto& destination : step.destinations) {
    const auto& entry = destination_entry(destination, catalogs, who);
    check_destination(destination, entry, who, source.tensor, false, step.frame);
    if (entry.recipe != step.recipe) {
      violated("{} as {}, but entry {} of server {} holds {}", who(), to_string(step.recipe), destination.column,
               destination.server, to_string(entry.recipe));
    }
    if (entry.shape != source.shape) {
      violated("{}, but entry {} of server {} means a tensor of another shape", who(), destination.column,
               destination.server);
    }
  }
}

void check_scale_step(const Plan& plan, const Catalogs& catalogs, std::size_t index) {
  const auto& step = plan.scale_steps[index];
  check_source({"scale step", index, step.trainer, step.column}, catalogs);
  const auto& source = source_of_scales(plan, catalogs, index);
  const auto who = [&] { return describe_scales(plan, catalogs, index); };
  if (!lies_in(step.blocks, blocks_touched(source.box))) {
    violated("{}, but its entry {} holds {}", who(), step.column, to_string(source.box));
  }
  if (!lies_in(step.blocks, step.frame)) violated("{}, outside its frame {}", who(), to_string(step.frame));
  if (step.destinations.empty()) violated("{} to nobody", who());
  for (const auto& destination : step.destinations) {
    const auto& entry = destination_entry(destination, catalogs, who);
    check_destination(destination, entry, who, source.tensor, true, step.frame);
  }
}

void check_totals(const char* role, const char* does, const std::vector<std::uint64_t>& said,
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

void check_totals(const Plan& plan, const Catalogs& catalogs) {
  std::vector<std::uint64_t> out(catalogs.trainers.size());
  std::vector<std::uint64_t> in(catalogs.servers.size());
  const auto count = [&](std::uint32_t trainer, const std::vector<Destination>& to, std::uint64_t bytes) {
    out[trainer] += bytes * to.size();
    for (const auto& destination : to) in[destination.server] += bytes;
  };
  for (const auto& step : plan.steps) {
    count(step.trainer, step.destinations, static_cast<std::uint64_t>(elements(step.box)) * element_bytes(step.recipe));
  }
  for (const auto& step : plan.scale_steps) {
    count(step.trainer, step.destinations, static_cast<std::uint64_t>(elements(step.blocks)) * sizeof(float));
  }
  check_totals("trainer", "sends", plan.trainer_bytes, out);
  check_totals("server", "takes", plan.server_bytes, in);
}

std::string describe(const Plan& plan, const Catalogs& catalogs, std::size_t step) {
  return fmt::format("step {} (trainer {} sends {} {})", step, plan.steps[step].trainer,
                     source_of(plan, catalogs, step).tensor, to_string(plan.steps[step].box));
}

std::string describe_scales(const Plan& plan, const Catalogs& catalogs, std::size_t scale_step) {
  return fmt::format("scale step {} (trainer {} sends the scales of {} blocks {})", scale_step,
                     plan.scale_steps[scale_step].trainer, source_of_scales(plan, catalogs, scale_step).tensor,
                     to_string(plan.scale_steps[scale_step].blocks));
}

namespace {

// The steps of `families`, one for each tensor; columns are replaced by the entries that they name.
template <class AnyStep>
std::vector<AnyStep> each_tensor(const std::vector<AnyStep>& families, const std::vector<Column>& columns,
                                 const char* kind) {
  std::vector<AnyStep> steps;
  const auto resolve = [&](std::uint32_t& column, std::size_t step, std::size_t tensor) {
    if (column >= columns.size() || tensor >= columns[column].size()) {
      violated("{} {} is for tensor {} of column {}, which does not exist", kind, step, tensor, column);
    }
    column = columns[column][tensor];
  };
  for (std::size_t index = 0; index < families.size(); ++index) {
    const auto& family = families[index];
    if (family.count == 0) violated("{} {} is for no tensor", kind, index);
    for (std::uint32_t i = 0; i < family.count; ++i) {
      auto& step = steps.emplace_back(family);
      const auto tensor = std::size_t{family.first} + i;
      resolve(step.column, index, tensor);
      for (auto& to : step.destinations) resolve(to.column, index, tensor);
      step.first = 0;
      step.count = 1;
    }
  }
  return steps;
}

}  // namespace

Plan tensor_by_tensor(const Plan& families) {
  Plan plan = families;
  plan.steps = each_tensor(families.steps, families.columns, "step");
  plan.scale_steps = each_tensor(families.scale_steps, families.columns, "scale step");
  for (std::size_t i = 0; i < plan.amax.size(); ++i) {
    auto& runs = plan.amax[i].runs;
    runs.clear();
    for (const auto& run : families.amax[i].runs) {
      for (const auto column : {run.from_column, run.to_column}) {
        if (column >= families.columns.size() || run.first > families.columns[column].size() ||
            run.count > families.columns[column].size() - run.first) {
          violated("an amax exchange names tensors of column {}, which do not exist", column);
        }
      }
      for (auto tensor = run.first; tensor < run.first + run.count; ++tensor) {
        runs.push_back(
            {families.columns[run.from_column][tensor], families.columns[run.to_column][tensor], 0, 1, run.blocks});
      }
    }
  }
  return plan;
}

void check_routes(const Plan& plan, const Catalogs& catalogs) {
  for (std::size_t rank = 0; rank < catalogs.trainers.size(); ++rank) check_catalog(catalogs.trainers[rank], rank);
  for (std::size_t rank = 0; rank < catalogs.servers.size(); ++rank) check_catalog(catalogs.servers[rank], rank);
  for (std::size_t step = 0; step < plan.steps.size(); ++step) check_step(plan, catalogs, step);
  for (std::size_t step = 0; step < plan.scale_steps.size(); ++step) check_scale_step(plan, catalogs, step);
}

}  // namespace proof

Proof prove(const Plan& families, const Catalogs& catalogs) {
  Proof proof;
  const auto plan = proof::tensor_by_tensor(families);
  proof::check_routes(plan, catalogs);
  proof::check_coverage(plan, catalogs, proof);
  proof::check_amax(plan, catalogs, proof);
  proof::check_chunks(plan, catalogs);
  proof::check_totals(plan, catalogs);
  return proof;
}

}  // namespace weightcast
