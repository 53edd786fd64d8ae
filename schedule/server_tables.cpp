#include "schedule/server_tables.h"

#include <algorithm>
#include <utility>

#include "schedule/blocks.h"

namespace weightcast {

ServerTables::ServerTables(const Plan& plan, const Catalogs& catalogs)
    : plan_(plan), catalogs_(catalogs), signals_(catalogs.servers.size()) {
  add_direct();
  add_onward();
}

const std::vector<Destination>& ServerTables::destinations_of(const Taken& taken) const {
  const auto steps = plan_.steps.size();
  return taken.step < steps ? plan_.steps[taken.step].destinations : plan_.scale_steps[taken.step - steps].destinations;
}

const Box& ServerTables::box_of(const Taken& taken) const {
  const auto steps = plan_.steps.size();
  return taken.step < steps ? plan_.steps[taken.step].box : plan_.scale_steps[taken.step - steps].blocks;
}

std::uint64_t ServerTables::bytes_of(const Taken& taken) const {
  const auto steps = plan_.steps.size();
  if (taken.step < steps) return value_bytes(box_of(taken), plan_.steps[taken.step].recipe);
  return static_cast<std::uint64_t>(elements(box_of(taken))) *
         scale_bytes(plan_.scale_steps[taken.step - steps].recipe);
}

std::uint32_t ServerTables::entry_of(const Taken& taken) const {
  const auto steps = plan_.steps.size();
  const auto first = taken.step < steps ? plan_.steps[taken.step].first : plan_.scale_steps[taken.step - steps].first;
  return plan_.columns[destinations_of(taken)[taken.destination].column][first + taken.tensor];
}

// What trainers put, tensor by tensor, as they send it.
void ServerTables::add_direct() {
  std::vector<std::map<std::uint32_t, std::vector<Taken>>> pieces(signals_.size());  // by server and trainer
  std::uint32_t number = 0;
  const auto add = [&](const auto& step) {
    for (std::uint32_t tensor = 0; tensor < step.count; ++tensor) {
      for (std::uint32_t i = 0; i < step.destinations.size(); ++i) {
        const auto& to = step.destinations[i];
        if (!to.relay) pieces[to.server][step.trainer].push_back({number, tensor, i});
      }
    }
    for (const auto& to : step.destinations) {
      if (to.relay) feeds_[*to.relay].insert(to.server);
    }
    ++number;
  };
  for (const auto& step : plan_.steps) add(step);
  for (const auto& step : plan_.scale_steps) add(step);
  std::vector<std::uint64_t> bytes;
  for (std::uint32_t server = 0; server < signals_.size(); ++server) {
    for (const auto& [trainer, all] : pieces[server]) {
      bytes.clear();
      for (const auto& piece : all) bytes.push_back(bytes_of(piece));
      auto next = all.begin();
      for (const auto& extent : signals_of(bytes)) {
        const auto end = next + static_cast<std::ptrdiff_t>(extent.pieces);
        signals_[server].push_back({Role::trainer, trainer, extent.bytes, {next, end}, {}});
        next = end;
      }
    }
  }
}

void ServerTables::add_onward() {
  for (const auto& [server, fed] : feeds_) {
    for (std::size_t signal = 0; signal < signals_[server].size(); ++signal) wave_.emplace_back(server, signal);
  }
  while (!wave_.empty()) {
    for (const auto& [server, signal] : std::exchange(wave_, {})) pass_on(server, signal);
  }
}

void ServerTables::pass_on(std::uint32_t server, std::size_t signal) {
  std::map<std::uint32_t, Sent> made;  // by who gets it
  std::map<std::uint32_t, std::vector<Passed>> passed;
  const auto& pieces = signals_[server][signal].pieces;
  for (std::uint32_t piece = 0; piece < pieces.size(); ++piece) {
    const auto& taken = pieces[piece];
    const auto& destinations = destinations_of(taken);
    // A server that keeps the bytes twice passes them on once.
    const auto own = std::find_if(destinations.begin(), destinations.end(),
                                  [&](const Destination& to) { return to.server == server; });
    if (own - destinations.begin() != taken.destination) continue;
    for (std::uint32_t i = 0; i < destinations.size(); ++i) {
      const auto& to = destinations[i];
      if (to.relay != server) continue;
      const Taken onward{taken.step, taken.tensor, i};
      made[to.server].pieces.push_back(onward);
      made[to.server].bytes += bytes_of(onward);
      passed[to.server].push_back({piece, onward});
    }
  }
  for (auto& [to, sent] : made) {
    sent.role = Role::server;
    sent.rank = server;
    const auto ordinal = ordinals_[{server, to}]++;
    signals_[server][signal].onward.push_back({to, ordinal, std::move(passed[to])});
    wave_.emplace_back(to, signals_[to].size());
    signals_[to].push_back(std::move(sent));
  }
}

ServerTable ServerTables::of(std::uint32_t server) const {
  std::map<std::pair<Role, std::uint32_t>, ExpectedSender> senders;
  for (const auto& signal : signals_[server]) {
    auto& sender = senders[{signal.role, signal.rank}];
    sender.role = signal.role;
    sender.rank = signal.rank;
    const auto first = static_cast<std::uint32_t>(sender.pieces.size());
    const auto ordinal = static_cast<std::uint32_t>(sender.signals.size());
    for (const auto& piece : signal.pieces) sender.pieces.push_back({entry_of(piece), box_of(piece)});
    sender.signals.push_back({signal.pieces.size(), signal.bytes});
    sender.bytes += signal.bytes;
    for (const auto& onward : signal.onward) {
      Forward forward{ordinal, onward.server, onward.ordinal, {}};
      forward.pieces.reserve(onward.pieces.size());
      for (const auto& [piece, to] : onward.pieces) {
        const auto& entry = catalogs_.servers[onward.server].entries[entry_of(to)];
        forward.pieces.push_back(
            {first + piece, {onward.server, entry.region, entry.byte_offset, entry.strides_bytes}});
      }
      sender.forwards.push_back(std::move(forward));
    }
  }
  ServerTable table;
  table.server = server;
  table.senders.reserve(senders.size());
  for (auto& [from, sender] : senders) table.senders.push_back(std::move(sender));
  return table;
}

ServerTable server_table(const Plan& plan, const Catalogs& catalogs, std::uint32_t server) {
  return ServerTables(plan, catalogs).of(server);
}

}  // namespace weightcast
