#include "plugin/byte_runs.h"

#include <algorithm>
#include <tuple>

namespace weightcast {

void append_run(std::vector<ByteRun>& runs, const ByteRun& run, std::uint64_t most_bytes) {
  constexpr std::size_t kLookBack = 16;
  for (std::size_t back = 1; back <= std::min(kLookBack, runs.size()); ++back) {
    ByteRun& last = runs[runs.size() - back];
    if (last.server != run.server) continue;
    const bool continues = last.from_region == run.from_region && last.from + last.bytes == run.from &&
                           last.to_region == run.to_region && last.to + last.bytes == run.to &&
                           last.bytes + run.bytes <= most_bytes;
    if (!continues) break;
    last.bytes += run.bytes;
    return;
  }
  runs.push_back(run);
}

Gathering gather_runs(std::vector<ByteRun> rows, std::uint64_t most_bytes) {
  std::sort(rows.begin(), rows.end(), [](const ByteRun& a, const ByteRun& b) {
    return std::tuple(a.server, a.to_region, a.to) < std::tuple(b.server, b.to_region, b.to);
  });
  Gathering gathering;
  gathering.rows.reserve(rows.size());
  for (ByteRun& row : rows) {
    gathering.rows.push_back({row.from, gathering.bytes, row.bytes});
    row.from_region = 0;
    row.from = gathering.bytes;
    gathering.bytes += row.bytes;
    append_run(gathering.runs, row, most_bytes);
  }
  return gathering;
}

PartedRuns part_runs(const std::vector<ByteRun>& runs, const std::function<bool(const ByteRun&)>& is_mapped,
                     bool can_copy) {
  PartedRuns parted;
  for (const ByteRun& run : runs) {
    if (!is_mapped(run)) {
      parted.put.push_back(run);
    } else if (run.bytes < (can_copy ? kShortestCopyBetweenGpus : kShortestPutBetweenGpus)) {
      parted.stored.push_back(run);
    } else {
      (can_copy ? parted.copied : parted.put).push_back(run);
    }
  }
  return parted;
}

}  // namespace weightcast
