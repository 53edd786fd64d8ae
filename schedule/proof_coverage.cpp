#include <algorithm>
#include <cstddef>
#include <map>
#include <unordered_map>
#include <vector>

#include "schedule/proof_checks.h"
#include "schedule/proof_geometry.h"

namespace weightcast::proof {
namespace {

// What a step, or scale step, writes of the tensors of a column.
struct Write {
  std::uint32_t first = 0;
  std::uint32_t end = 0;
  Box box;
};

class Coverage {
 public:
  Coverage(const Plan& plan, const Catalogs& catalogs, Facts& facts, Proof& proof)
      : plan_(plan), catalogs_(catalogs), facts_(facts), proof_(proof), writers_(catalogs.servers.size()) {}

  void run() {
    for (std::size_t i = 0; i < plan_.steps.size(); ++i) collect(plan_.steps[i].destinations, i);
    for (std::size_t i = 0; i < plan_.scale_steps.size(); ++i) {
      collect(plan_.scale_steps[i].destinations, plan_.steps.size() + i);
    }
    for (std::uint32_t server = 0; server < writers_.size(); ++server) check_server(server);
  }

 private:
  using Writers = std::vector<std::uint32_t>;  // steps, then scale steps, counted on

  void collect(const std::vector<Destination>& destinations, std::size_t writer) {
    for (const auto& to : destinations) {
      auto& columns = writers_[to.server];
      if (columns.empty()) columns.resize(plan_.columns.size());
      columns[to.column].push_back(static_cast<std::uint32_t>(writer));
    }
  }

  void check_server(std::uint32_t server) {
    std::vector<std::uint32_t> columns;
    for (std::uint32_t column = 0; column < writers_[server].size(); ++column) {
      if (writers_[server][column].empty()) continue;
      columns.push_back(column);
      check_column(server, column);
    }
    writers_[server] = {};
    check_entries(server, columns);
  }

  // Servers that are written alike need one look.
  void check_column(std::uint32_t server, std::uint32_t column) {
    const auto& facts = facts_.server(server, column, [] { return "a step"; });
    auto& writers = writers_[server][column];
    const Entry& entry = *facts.entry;
    const auto volume = static_cast<std::uint64_t>(elements(entry.box));
    const auto bytes = entry.is_scales ? volume * scale_bytes(entry.recipe) : bytes_of(entry.box, entry.recipe);
    proof_.destination_bytes += facts.tensors.size() * bytes;
    if (entry.is_scales) proof_.scales += facts.tensors.size() * volume;
    auto& alike = checked_[{column, writers.front(), writers.size()}];
    for (const auto& [known, box] : alike) {
      if (known == writers && box == facts.entry->box) return;
    }
    check_tensors(server, column, facts, writers);
    alike.emplace_back(std::move(writers), facts.entry->box);
  }

  [[nodiscard]] Write write_of(std::uint32_t writer) const {
    if (writer < plan_.steps.size()) {
      const auto& step = plan_.steps[writer];
      return {step.first, step.first + step.count, step.box};
    }
    const auto& step = plan_.scale_steps[writer - plan_.steps.size()];
    return {step.first, step.first + step.count, step.blocks};
  }

  // Between two places where some writer begins or ends, all tensors are written alike.
  void check_tensors(std::uint32_t server, std::uint32_t column, const ColumnFacts& facts, const Writers& writers) {
    std::vector<std::uint32_t> places = {0, static_cast<std::uint32_t>(facts.tensors.size())};
    for (const auto writer : writers) {
      const auto write = write_of(writer);
      places.push_back(write.first);
      places.push_back(write.end);
    }
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    for (std::size_t i = 0; i + 1 < places.size(); ++i) {
      Writers active;
      for (const auto writer : writers) {
        const auto write = write_of(writer);
        if (write.first <= places[i] && places[i] < write.end) active.push_back(writer);
      }
      check_box(server, plan_.columns[column][places[i]], facts.entry->box, std::move(active));
    }
  }

  // The boxes of the writers tile that of the entry.
  void check_box(std::uint32_t server, std::uint32_t entry, const Box& box, Writers active) {
    std::stable_sort(active.begin(), active.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return write_of(a).box < write_of(b).box; });
    std::vector<Box> left = {box};
    std::int64_t open = elements(box);
    for (std::size_t i = 0; i < active.size(); ++i) {
      const auto part = write_of(active[i]).box;
      subtract(left, part);
      std::int64_t rest = 0;
      for (const auto& piece : left) rest += elements(piece);
      if (open - rest != elements(part)) twice(server, entry, active, i);
      open = rest;
    }
    if (left.empty()) return;
    const auto& known = catalogs_.servers[server].entries[entry];
    violated("{} of server {}'s entry {} ({}{} {}) is written by nobody", to_string(left.front()), server, entry,
             known.is_scales ? "scales of " : "", known.tensor, to_string(known.box));
  }

  [[noreturn]] void twice(std::uint32_t server, std::uint32_t entry, const Writers& active, std::size_t second) {
    const auto box = write_of(active[second]).box;
    for (std::size_t first = 0; first < second; ++first) {
      const auto common = intersect(write_of(active[first]).box, box);
      if (!common) continue;
      const auto [low, high] = std::minmax(active[first], active[second]);
      violated("{} of server {}'s entry {} is written twice: by {} and by {}", to_string(*common), server, entry,
               name(low), name(high));
    }
    violated("{} writes outside entry {} of server {}", name(active[second]), entry, server);
  }

  [[nodiscard]] std::string name(std::uint32_t writer) const {
    return writer < plan_.steps.size() ? describe(plan_, catalogs_, writer)
                                       : describe_scales(plan_, catalogs_, writer - plan_.steps.size());
  }

  // Every entry is in one of the columns, and in one only.
  void check_entries(std::uint32_t server, const std::vector<std::uint32_t>& columns) {
    const auto& entries = catalogs_.servers[server].entries;
    auto& known = complete_[facts_.list_of_server(server)];
    if (known == columns && !columns.empty()) return;
    std::vector<std::uint32_t> in(entries.size());  // the column, counted from 1
    for (const auto column : columns) {
      for (const auto entry : plan_.columns[column]) {
        if (in[entry] != 0) {
          violated("entry {} of server {} ({}) is written twice: as one of column {} and of column {}", entry, server,
                   entries[entry].tensor, in[entry] - 1, column);
        }
        in[entry] = column + 1;
      }
    }
    for (std::size_t entry = 0; entry < in.size(); ++entry) {
      if (in[entry] != 0) continue;
      violated("entry {} of server {} ({}{} {}) is written by nobody", entry, server,
               entries[entry].is_scales ? "scales of " : "", entries[entry].tensor, to_string(entries[entry].box));
    }
    known = columns;
  }

  struct Key {
    std::uint32_t column = 0;
    std::uint32_t first_writer = 0;
    std::size_t writers = 0;
    friend auto operator<=>(const Key&, const Key&) = default;
  };

  const Plan& plan_;
  const Catalogs& catalogs_;
  Facts& facts_;
  Proof& proof_;
  std::vector<std::vector<Writers>> writers_;  // by server and column
  std::map<Key, std::vector<std::pair<Writers, Box>>> checked_;
  std::unordered_map<std::size_t, std::vector<std::uint32_t>> complete_;  // by list: columns that have all entries
};

}  // namespace

void check_coverage(const Plan& plan, const Catalogs& catalogs, Facts& facts, Proof& proof) {
  Coverage(plan, catalogs, facts, proof).run();
}

}  // namespace weightcast::proof
