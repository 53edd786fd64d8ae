#include "schedule/simulate_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "schedule/strict_json.h"
#include "schedule/units_text.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

using Json = nlohmann::ordered_json;

double gap_of(const Simulated& simulated) {
  return simulated.bound.seconds > 0 ? simulated.result.makespan_s / simulated.bound.seconds - 1 : 0;
}

std::string bound_text(const Simulated& simulated) {
  if (simulated.bound.seconds <= 0) return "no rate is known";
  return fmt::format("{} ({})", time_text(simulated.bound.seconds), simulated.bound.binding);
}

const StageUse* use_of(const SimulationResult& result, std::string_view stage) {
  const auto found =
      std::find_if(result.stages.begin(), result.stages.end(), [&](const StageUse& use) { return use.stage == stage; });
  return found == result.stages.end() ? nullptr : &*found;
}

Json event(std::string_view phase, std::uint64_t process, int thread, std::string_view name) {
  return {{"ph", phase}, {"pid", process}, {"tid", thread}, {"name", name}};
}

void name_process(Json& events, std::uint64_t process, const std::string& name, std::uint64_t order) {
  auto named = event("M", process, 0, "process_name");
  named["args"] = {{"name", name}};
  events.push_back(std::move(named));
  auto sorted = event("M", process, 0, "process_sort_index");
  sorted["args"] = {{"sort_index", order}};
  events.push_back(std::move(sorted));
}

std::uint64_t process_of(Role role, std::uint32_t rank) {
  constexpr std::uint64_t kServers = 1'000'000;  // behind all trainers
  return 2 * ((role == Role::server ? kServers : 0) + rank) + 2;
}

// Where a measured process named "trainer 3" belongs: behind the simulated one.
std::uint64_t place_of_measured(const std::string& name, std::uint64_t process) {
  std::uint32_t rank = 0;
  if (std::sscanf(name.c_str(), "trainer %u", &rank) == 1) return process_of(Role::trainer, rank) + 1;
  if (std::sscanf(name.c_str(), "server %u", &rank) == 1) return process_of(Role::server, rank) + 1;
  return 10'000'000 + process;
}

// Every event of a measured process, with the number of its place; its name says what it is.
void add_events(const Json& measured, Json& events) {
  std::map<std::uint64_t, std::uint64_t> places;
  for (const auto& one : measured) {
    if (one.at("ph") != "M" || one.at("name") != "process_name") continue;
    const auto name = one.at("args").at("name").get<std::string>();
    const auto process = one.at("pid").get<std::uint64_t>();
    places[process] = place_of_measured(name, process);
    name_process(events, places[process], name + ", measured", places[process]);
  }
  for (auto one : measured) {
    if (one.at("ph") == "M" && one.at("name") != "thread_name") continue;
    const auto place = places.find(one.at("pid").get<std::uint64_t>());
    if (place != places.end()) one["pid"] = place->second;
    events.push_back(std::move(one));
  }
}

void add_measured(Json& events, std::string_view text, const std::string& origin) {
  const auto document = parse_strict_json(text, origin);
  try {
    add_events(document.at("traceEvents"), events);
  } catch (const Json::exception&) {
    throw Error(Code::invalid_argument,
                fmt::format("{}: is no trace: an object with \"traceEvents\" is expected, each event with \"ph\", a "
                            "\"pid\" and a \"name\"",
                            origin));
  }
}

}  // namespace

std::string to_text(const Simulated& simulated) {
  const auto& result = simulated.result;
  auto text = fmt::format("{} trainers to {} servers, {}: {} until every server has verified it\n", simulated.trainers,
                          simulated.servers, size_text(simulated.bytes), time_text(result.makespan_s));
  text += fmt::format("bound: {}; simulated {:.1f} % above it\n", bound_text(simulated), 100 * gap_of(simulated));
  text += fmt::format("binding: {}\n\n", result.binding);
  text += fmt::format("{:<8}  {:>9}  {:>7}\n", "stage", "mean busy", "busiest");
  for (const auto& use : result.stages) {
    text += fmt::format("{:<8}  {:>7.1f} %  {:>5.1f} %  {} {}\n", use.stage, 100 * use.mean, 100 * use.most,
                        to_string(use.role), use.rank);
  }
  const auto [first, last] = std::minmax_element(result.server_ready_s.begin(), result.server_ready_s.end());
  text += fmt::format("\nfirst server ready after {}, last after {}\n", time_text(*first), time_text(*last));
  text += fmt::format("stall of an engine: staged {:.2f} ms, in place {:.2f} ms, delta {:.2f} ms\n",
                      result.staged_stall_ms, result.in_place_stall_ms, result.delta_stall_ms);
  return text +
         fmt::format("simulated as {} transfers of {} at most\n", result.transfers, size_text(result.grain_bytes));
}

std::string to_text(const Simulated& before, const Simulated& after) {
  constexpr auto kRow = "{:<20}  {:>26}  {:>26}  {:>8}\n";
  std::string text;
  const auto row = [&](std::string_view what, const std::string& was, const std::string& is,
                       const std::string& change) { text += fmt::format(kRow, what, was, is, change); };
  const auto change = [](double was, double is) {
    return was > 0 ? fmt::format("{:+.1f} %", 100 * (is / was - 1)) : std::string("");
  };
  const auto times = [&](std::string_view what, double was, double is) {
    row(what, time_text(was), time_text(is), change(was, is));
  };
  const auto& was = before.result;
  const auto& is = after.result;
  row("", "as it is", "with the changes", "");
  row("ranks", fmt::format("{} to {}", before.trainers, before.servers),
      fmt::format("{} to {}", after.trainers, after.servers), "");
  row("bytes", size_text(before.bytes), size_text(after.bytes),
      change(static_cast<double>(before.bytes), static_cast<double>(after.bytes)));
  times("bound", before.bound.seconds, after.bound.seconds);
  times("simulated", was.makespan_s, is.makespan_s);
  row("above the bound", fmt::format("{:.1f} %", 100 * gap_of(before)), fmt::format("{:.1f} %", 100 * gap_of(after)),
      "");
  times("stall, staged", was.staged_stall_ms * 1e-3, is.staged_stall_ms * 1e-3);
  times("stall, in place", was.in_place_stall_ms * 1e-3, is.in_place_stall_ms * 1e-3);
  times("stall, delta", was.delta_stall_ms * 1e-3, is.delta_stall_ms * 1e-3);
  for (const auto lane : lanes()) {
    const auto* old = use_of(was, lane);
    const auto* now = use_of(is, lane);
    if (old == nullptr && now == nullptr) continue;
    const auto busy = [](const StageUse* use) {
      return use == nullptr ? std::string("-")
                            : fmt::format("{:.1f} % {} {}", 100 * use->most, to_string(use->role), use->rank);
    };
    row(fmt::format("busiest {}", lane), busy(old), busy(now), "");
  }
  text += fmt::format("\nbound was set by  {}\n       is set by  {}\n", before.bound.binding, after.bound.binding);
  return text + fmt::format("binding was  {}\n         is  {}\n", was.binding, is.binding);
}

std::string to_json(const Simulated& simulated) {
  const auto& result = simulated.result;
  auto stages = Json::array();
  for (const auto& use : result.stages) {
    stages.push_back({{"stage", use.stage},
                      {"mean", use.mean},
                      {"most", use.most},
                      {"role", to_string(use.role)},
                      {"rank", use.rank}});
  }
  auto spans = Json::array();
  for (const auto& span : result.spans) {
    spans.push_back({span.role == Role::trainer ? "trainer" : "server", span.rank, lanes()[span.lane],
                     static_cast<double>(span.begin_s), static_cast<double>(span.end_s)});
  }
  const bool has_bound = simulated.bound.seconds > 0;
  const Json document = {
      {"format", "weightcast.simulation/1"},
      {"trainers", simulated.trainers},
      {"servers", simulated.servers},
      {"bytes", simulated.bytes},
      {"makespan_s", result.makespan_s},
      {"landed_s", result.landed_s},
      {"bound_s", has_bound ? Json(simulated.bound.seconds) : Json(nullptr)},
      {"bound_binding", has_bound ? Json(simulated.bound.binding) : Json(nullptr)},
      {"gap", has_bound ? Json(gap_of(simulated)) : Json(nullptr)},
      {"binding", result.binding},
      {"stages", stages},
      {"stall_ms",
       {{"staged", result.staged_stall_ms}, {"in_place", result.in_place_stall_ms}, {"delta", result.delta_stall_ms}}},
      {"trainer_done_s", result.trainer_done_s},
      {"server_ready_s", result.server_ready_s},
      {"transfers", result.transfers},
      {"grain_bytes", result.grain_bytes},
      {"spans", spans}};
  return document.dump();
}

std::string to_trace(const SimulationResult& result, std::string_view measured, const std::string& origin) {
  auto events = Json::array();
  std::set<std::uint64_t> named;
  for (const auto& span : result.spans) {
    const auto process = process_of(span.role, span.rank);
    if (named.insert(process).second) {
      name_process(events, process, fmt::format("{} {}, simulated", to_string(span.role), span.rank), process);
      for (std::size_t lane = 0; lane < lanes().size(); ++lane) {
        auto thread = event("M", process, static_cast<int>(lane), "thread_name");
        thread["args"] = {{"name", lanes()[lane]}};
        events.push_back(std::move(thread));
      }
    }
    auto slice = event("X", process, span.lane, lanes()[span.lane]);
    slice["ts"] = static_cast<double>(span.begin_s) * 1e6;
    slice["dur"] = static_cast<double>(span.end_s - span.begin_s) * 1e6;
    events.push_back(std::move(slice));
  }
  if (!measured.empty()) add_measured(events, measured, origin);
  return Json{{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}}.dump() + "\n";
}

}  // namespace weightcast
