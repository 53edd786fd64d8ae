// What each trainer sends in a simulated update: the plan's steps in their order, or the published way.
#include <algorithm>
#include <map>
#include <numeric>
#include <string_view>
#include <tuple>
#include <unordered_map>

#include "schedule/blocks.h"
#include "schedule/simulation.h"

namespace weightcast::simulation {
namespace {

using std::uint32_t;
using std::uint64_t;

constexpr uint64_t kMostTransfers = 250'000;  // about; more take longer to simulate and show nothing new

// Routes that are used again and again, once each.
class RouteBook {
 public:
  uint32_t number_of(RouteHops hops) {
    const auto [at, is_new] = numbers_.emplace(std::move(hops), static_cast<uint32_t>(numbers_.size()));
    return at->second;
  }
  std::vector<RouteHops> in_order() const {
    std::vector<RouteHops> routes(numbers_.size());
    for (const auto& [hops, number] : numbers_) routes[number] = hops;
    return routes;
  }

 private:
  std::map<RouteHops, uint32_t> numbers_;
};

RouteHops hops_of(const std::vector<Destination>& destinations) {
  RouteHops hops;
  hops.reserve(destinations.size());
  for (const auto& to : destinations) {
    Hop hop{to.server};
    if (to.relay) {
      const auto from = std::find_if(hops.begin(), hops.end(), [&](const Hop& h) { return h.server == *to.relay; });
      hop.from = static_cast<uint32_t>(from - hops.begin());
    }
    hops.push_back(hop);
  }
  return hops;
}

uint64_t bytes_of(const ScaleStep& step) {
  return static_cast<uint64_t>(elements(step.blocks)) * scale_bytes(step.recipe);
}

// Puts of a box, in stored elements, into an entry: one where its rows lie without gaps, else one for each row.
uint64_t puts_of(const Box& box, const Entry& to, uint64_t element_bytes) {
  if (box.axes < 2) return 1;
  const auto rows = static_cast<std::size_t>(box.axes - 2);
  uint64_t matrices = 1;
  for (std::size_t axis = 0; axis < rows; ++axis) matrices *= static_cast<uint64_t>(box.extent[axis]);
  const bool is_gapless = to.strides_bytes[rows] == box.extent[rows + 1] * static_cast<std::int64_t>(element_bytes);
  return is_gapless ? matrices : matrices * static_cast<uint64_t>(box.extent[rows]);
}

// Adds a load behind the last one, or to it where both take the same route and one grain holds them.
void append(std::vector<Load>& loads, const Load& load, uint64_t grain_bytes) {
  if (!loads.empty()) {
    auto& last = loads.back();
    if (last.route == load.route && last.needs_amax == load.needs_amax &&
        last.is_second_group == load.is_second_group && last.bytes + load.bytes <= grain_bytes) {
      last.source_bytes += load.source_bytes;
      last.bytes += load.bytes;
      last.scratch += load.scratch;
      last.puts += load.puts;
      last.gather_s += load.gather_s;
      return;
    }
  }
  const auto pieces = std::max<uint64_t>(1, (load.bytes + grain_bytes - 1) / grain_bytes);
  Load piece = load;
  for (uint64_t i = 0; i < pieces; ++i) {
    const auto share = [&](uint64_t whole) { return whole * (i + 1) / pieces - whole * i / pieces; };
    piece.source_bytes = share(load.source_bytes);
    piece.bytes = share(load.bytes);
    piece.scratch = share(load.scratch);
    piece.puts = static_cast<uint32_t>(std::max<uint64_t>(1, share(load.puts)));
    piece.gather_s = load.gather_s / static_cast<double>(pieces);
    loads.push_back(piece);
  }
}

// Loads so large that about kMostTransfers are to be simulated.
uint64_t grain_of(uint64_t bytes, uint64_t chunk_bytes) { return std::max(chunk_bytes, bytes / kMostTransfers); }

class PlanReader {
 public:
  PlanReader(const Plan& plan, const Catalogs& catalogs) : plan_(plan), catalogs_(catalogs) {
    work_.trainers.resize(catalogs.trainers.size());
    work_.amax_source_bytes.resize(catalogs.trainers.size());
    work_.amax_from.resize(catalogs.trainers.size());
    work_.chunk_bytes = plan.chunk_bytes;
    uint64_t bytes = 0;
    for (const auto& step : plan.steps) {
      uint64_t direct = 0;
      for (const auto& to : step.destinations) direct += to.relay ? 0 : 1;
      bytes += step.count * value_bytes(step.box, step.recipe) * direct;
    }
    work_.grain_bytes = grain_of(bytes, plan.chunk_bytes);
  }

  Workload read() {
    for (const auto& step : plan_.steps) add(step);
    for (const auto& step : plan_.scale_steps) add(step);
    for (const auto& exchange : plan_.amax) {
      if (exchange.from == exchange.to) continue;
      for (const auto& run : exchange.runs) {
        work_.amax_source_bytes[exchange.from] += run.count * elements_measured(exchange.from, run);
      }
      work_.amax_from[exchange.to].push_back(exchange.from);
    }
    work_.routes = book_.in_order();
    return std::move(work_);
  }

 private:
  // What the sender reads, at most, for the maxima of one tensor of a run.
  [[nodiscard]] uint64_t elements_measured(uint32_t trainer, const AmaxRun& run) const {
    const auto& held = entry_of(catalogs_.trainers[trainer], run.from_column, run.first).box;
    uint64_t count = 1;
    for (std::size_t axis = 0; axis < run.blocks.axes; ++axis) {
      const auto edge = block_edge(run.recipe, run.blocks.axes, axis);
      count *= static_cast<uint64_t>(std::min(run.blocks.extent[axis] * edge, held.extent[axis]));
    }
    return count;
  }

  void add(const Step& step) {
    const auto& from = entry_of(catalogs_.trainers[step.trainer], step.column, step.first);
    Load load;
    load.source_bytes = step.count * static_cast<uint64_t>(elements(step.box)) * element_bytes(from.source_type);
    load.bytes = step.count * value_bytes(step.box, step.recipe);
    const bool is_put_as_it_stands = from.source_type == SourceType::bf16 && step.recipe == Recipe::bf16;
    load.scratch = is_put_as_it_stands ? 0 : load.bytes;
    load.puts = puts_of(step, stored_box(step.box, step.recipe), element_bytes(step.recipe));
    load.needs_amax = step.needs_amax;
    add(step.trainer, load, step.destinations);
  }

  void add(const ScaleStep& step) {
    Load load;
    load.bytes = step.count * bytes_of(step);
    load.scratch = load.bytes;
    load.puts = puts_of(step, step.blocks, scale_bytes(step.recipe));
    add(step.trainer, load, step.destinations);
  }

  // Into one of the destinations: most are laid out alike.
  template <class AnyStep>
  uint32_t puts_of(const AnyStep& step, const Box& box, uint64_t element_bytes) const {
    const auto& to = step.destinations.front();
    const auto& entry = entry_of(catalogs_.servers[to.server], to.column, step.first);
    return static_cast<uint32_t>(
        std::min<uint64_t>(step.count * simulation::puts_of(box, entry, element_bytes), UINT32_MAX));
  }

  [[nodiscard]] const Entry& entry_of(const Catalog& catalog, uint32_t column, uint32_t position) const {
    return catalog.entries[plan_.columns[column][position]];
  }

  void add(uint32_t trainer, Load& load, const std::vector<Destination>& destinations) {
    if (before_ == nullptr || *before_ != destinations) {
      before_ = &destinations;
      route_ = book_.number_of(hops_of(destinations));
    }
    load.route = route_;
    append(work_.trainers[trainer], load, work_.grain_bytes);
  }

  const Plan& plan_;
  const Catalogs& catalogs_;
  Workload work_;
  RouteBook book_;
  const std::vector<Destination>* before_ = nullptr;
  uint32_t route_ = 0;
};

// ---- the published way ----

struct Gathered {
  bool is_expert = false;
  std::map<uint32_t, uint64_t> own_bytes;     // by trainer that holds a shard
  std::map<uint32_t, uint64_t> server_bytes;  // by server that takes some of it
};

// Every tensor of the plan, in order of its first step.
std::vector<Gathered> gathered_of(const Plan& plan, const Catalogs& catalogs, const std::string& expert_part) {
  std::unordered_map<std::string_view, std::size_t> numbers;
  std::vector<Gathered> tensors;
  const auto for_each_tensor = [&](const auto& step, const auto& visit) {
    for (uint32_t i = step.first; i < step.first + step.count; ++i) {
      const auto& entry = catalogs.trainers[step.trainer].entries[plan.columns[step.column][i]];
      const auto [at, is_new] = numbers.emplace(entry.tensor, tensors.size());
      if (is_new) tensors.push_back({entry.tensor.str().find(expert_part) != std::string::npos, {}, {}});
      visit(tensors[at->second], entry);
    }
  };
  for (const auto& step : plan.steps) {
    for_each_tensor(step, [&](Gathered& tensor, const Entry& entry) {
      tensor.own_bytes[step.trainer] += static_cast<uint64_t>(elements(step.box)) * element_bytes(entry.source_type);
      for (const auto& to : step.destinations) tensor.server_bytes[to.server] += value_bytes(step.box, step.recipe);
    });
  }
  for (const auto& step : plan.scale_steps) {
    for_each_tensor(step, [&](Gathered& tensor, const Entry&) {
      for (const auto& to : step.destinations) tensor.server_bytes[to.server] += bytes_of(step);
    });
  }
  std::stable_partition(tensors.begin(), tensors.end(), [](const Gathered& tensor) { return !tensor.is_expert; });
  return tensors;
}

}  // namespace

Workload work_of(const Plan& plan, const Catalogs& catalogs) { return PlanReader(plan, catalogs).read(); }

Workload gathered_work_of(const Plan& plan, const Catalogs& catalogs, const GatherBehaviour& behaviour) {
  const auto tensors = gathered_of(plan, catalogs, behaviour.expert_part);
  Workload work;
  work.trainers.resize(catalogs.trainers.size());
  work.amax_source_bytes.resize(catalogs.trainers.size());
  work.amax_from.resize(catalogs.trainers.size());
  work.chunk_bytes = plan.chunk_bytes;
  uint64_t own_bytes = 0;
  uint64_t taken_bytes = 0;
  for (const auto& tensor : tensors) {
    for (const auto& [trainer, bytes] : tensor.own_bytes) own_bytes += bytes;
    for (const auto& [server, bytes] : tensor.server_bytes) taken_bytes += bytes;
  }
  work.grain_bytes = grain_of(taken_bytes, plan.chunk_bytes);
  const double seconds_per_byte =
      behaviour.thread_ms * 1e-3 * static_cast<double>(work.trainers.size()) / static_cast<double>(own_bytes);
  RouteBook book;
  std::vector<uint64_t> sent(work.trainers.size());
  for (const auto& tensor : tensors) {
    std::map<std::pair<uint32_t, uint64_t>, RouteHops> takers;  // by trainer and bytes
    for (const auto& [server, bytes] : tensor.server_bytes) {
      const auto least = std::min_element(tensor.own_bytes.begin(), tensor.own_bytes.end(), [&](auto& a, auto& b) {
        return std::tie(sent[a.first], a.first) < std::tie(sent[b.first], b.first);
      });
      sent[least->first] += bytes;
      takers[{least->first, bytes}].push_back({server});
    }
    for (const auto& [trainer, bytes] : tensor.own_bytes) {
      Load load;
      load.is_second_group = tensor.is_expert;
      load.gather_s = static_cast<double>(bytes) * seconds_per_byte;
      load.route = book.number_of({});
      append(work.trainers[trainer], load, work.grain_bytes);
    }
    for (auto& [key, hops] : takers) {
      Load load;
      load.is_second_group = tensor.is_expert;
      load.bytes = key.second;
      load.scratch = key.second;
      load.puts = 1;
      load.route = book.number_of(std::move(hops));
      append(work.trainers[key.first], load, work.grain_bytes);
    }
  }
  work.routes = book.in_order();
  return work;
}

}  // namespace weightcast::simulation
