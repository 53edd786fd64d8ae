#include <algorithm>
#include <cstddef>
#include <vector>

#include "schedule/proof_checks.h"
#include "schedule/proof_geometry.h"

namespace weightcast::proof {
namespace {

constexpr std::uint64_t kScaleBytes = sizeof(float);

std::uint64_t element_bytes_of(const Entry& entry) {
  return entry.is_scales ? kScaleBytes : element_bytes(entry.recipe);
}

// Who writes to one server: a step or a scale step, and which of its destinations.
struct Write {
  bool is_scales = false;
  std::size_t step = 0;
  std::uint32_t entry = 0;  // of the server
};

struct Extent {
  Run bytes;
  std::size_t owner = 0;  // an entry, or a write
};

void sort_by_begin(std::vector<Extent>& extents) {
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return a.bytes.begin != b.bytes.begin ? a.bytes.begin < b.bytes.begin : a.owner < b.owner;
  });
}

// One server's sweep. Written extents and entries are kept by region.
class Sweep {
 public:
  Sweep(const Plan& plan, const Catalogs& catalogs, std::uint32_t server)
      : plan_(plan),
        catalogs_(catalogs),
        catalog_(catalogs.servers[server]),
        server_(server),
        held_(catalog_.regions.size()),
        written_(catalog_.regions.size()) {}

  void add_entries() {
    for (std::size_t index = 0; index < catalog_.entries.size(); ++index) {
      const auto& entry = catalog_.entries[index];
      check_entry(index);
      for (const auto& run : runs_of(entry, entry.box, element_bytes_of(entry))) {
        held_[entry.region].push_back({run, index});
      }
    }
  }

  void add(const Write& write, const Box& box) {
    const auto& entry = catalog_.entries[write.entry];
    for (const auto& run : runs_of(entry, box, element_bytes_of(entry))) {
      written_[entry.region].push_back({run, writes_.size()});
    }
    writes_.push_back(write);
  }

  // Compares what is written with what is held, region by region, byte by byte.
  void run(Proof& proof) {
    for (std::size_t region = 0; region < held_.size(); ++region) {
      auto& held = held_[region];
      auto& written = written_[region];
      sort_by_begin(held);
      sort_by_begin(written);
      check_disjoint(region);
      check_equal(region);
      for (const auto& extent : written) proof.destination_bytes += extent.bytes.end - extent.bytes.begin;
      proof.put_extents += written.size();
    }
    for (const auto& entry : catalog_.entries) {
      if (entry.is_scales) proof.scales += static_cast<std::uint64_t>(elements(entry.box));
    }
  }

 private:
  void check_entry(std::size_t index) const {
    const auto& entry = catalog_.entries[index];
    for (std::size_t axis = 0; axis < entry.box.axes; ++axis) {
      if (entry.box.extent[axis] > 1 && entry.strides_bytes[axis] < 1) {
        violated("entry {} of server {} ({}) has a stride of {} bytes on axis {}; a server's are positive", index,
                 server_, entry.tensor, entry.strides_bytes[axis], axis);
      }
    }
    if (entry.is_scales || !has_scales(entry.recipe)) return;
    const bool has_them = entry.scales && *entry.scales < catalog_.entries.size() &&
                          catalog_.entries[*entry.scales].is_scales &&
                          catalog_.entries[*entry.scales].tensor == entry.tensor &&
                          catalog_.entries[*entry.scales].box == blocks_touched(entry.box);
    if (!has_them) {
      violated("entry {} of server {} ({} {}, {}) has no entry with the scales of exactly its blocks", index, server_,
               entry.tensor, to_string(entry.box), to_string(entry.recipe));
    }
  }

  void check_disjoint(std::size_t region) const {
    for (std::size_t i = 1; i < held_[region].size(); ++i) {
      const auto& [before, first] = held_[region][i - 1];
      const auto& [bytes, second] = held_[region][i];
      if (bytes.begin >= before.end) continue;
      violated("entries {} ({}) and {} ({}) of server {} share {}", first, catalog_.entries[first].tensor, second,
               catalog_.entries[second].tensor, server_, place(region, bytes.begin, std::min(before.end, bytes.end)));
    }
    for (std::size_t i = 1; i < written_[region].size(); ++i) {
      const auto& [before, first] = written_[region][i - 1];
      const auto& [bytes, second] = written_[region][i];
      if (bytes.begin >= before.end) continue;
      violated("{} of server {}, in its entry {}, are written twice: by {} and by {}",
               place(region, bytes.begin, std::min(before.end, bytes.end)), server_, writes_[second].entry,
               name(writes_[first]), name(writes_[second]));
    }
  }

  // Both lists are sorted and disjoint.
  void check_equal(std::size_t region) const {
    auto next = written_[region].begin();
    std::uint64_t covered = 0;  // bytes before it are settled
    for (const auto& [bytes, entry] : held_[region]) {
      covered = std::max(covered, bytes.begin);
      while (covered < bytes.end) {
        if (next == written_[region].end() || next->bytes.begin > covered) {
          const auto end = next == written_[region].end() ? bytes.end : std::min(bytes.end, next->bytes.begin);
          violated("{} of server {} are written by nobody; they belong to its entry {} ({}{} {})",
                   place(region, covered, end), server_, entry, catalog_.entries[entry].is_scales ? "scales of " : "",
                   catalog_.entries[entry].tensor, to_string(catalog_.entries[entry].box));
        }
        if (next->bytes.begin < covered && next->bytes.begin < bytes.begin) outside(region, *next, bytes.begin);
        covered = std::min(bytes.end, next->bytes.end);
        if (next->bytes.end <= covered) ++next;
      }
    }
    if (next != written_[region].end()) outside(region, *next, next->bytes.end);
  }

  [[noreturn]] void outside(std::size_t region, const Extent& extent, std::uint64_t end) const {
    violated("{} writes {} of server {}, where no entry is", name(writes_[extent.owner]),
             place(region, extent.bytes.begin, end), server_);
  }

  [[nodiscard]] std::string place(std::size_t region, std::uint64_t begin, std::uint64_t end) const {
    return fmt::format("bytes {} to {} of region \"{}\"", begin, end, catalog_.regions[region].name);
  }
  [[nodiscard]] std::string name(const Write& write) const {
    return write.is_scales ? describe_scales(plan_, catalogs_, write.step) : describe(plan_, catalogs_, write.step);
  }

  const Plan& plan_;
  const Catalogs& catalogs_;
  const Catalog& catalog_;
  std::uint32_t server_;
  std::vector<std::vector<Extent>> held_;
  std::vector<std::vector<Extent>> written_;
  std::vector<Write> writes_;
};

}  // namespace

void check_coverage(const Plan& plan, const Catalogs& catalogs, Proof& proof) {
  std::vector<std::vector<Write>> by_server(catalogs.servers.size());
  for (std::size_t step = 0; step < plan.steps.size(); ++step) {
    for (const auto& to : plan.steps[step].destinations) by_server[to.server].push_back({false, step, to.column});
  }
  for (std::size_t step = 0; step < plan.scale_steps.size(); ++step) {
    for (const auto& to : plan.scale_steps[step].destinations) by_server[to.server].push_back({true, step, to.column});
  }
  for (std::uint32_t server = 0; server < catalogs.servers.size(); ++server) {
    Sweep sweep(plan, catalogs, server);
    sweep.add_entries();
    for (const auto& write : by_server[server]) {
      sweep.add(write, write.is_scales ? plan.scale_steps[write.step].blocks : plan.steps[write.step].box);
    }
    sweep.run(proof);
  }
}

}  // namespace weightcast::proof
