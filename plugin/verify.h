// The server's proof that what landed is what was sent: the digest of what each signal covers, recomputed over the
// landed bytes, which are read once.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "plugin/landing.h"
#include "plugin/signal.h"
#include "plugin/team.h"
#include "schedule/plan.h"

namespace weightcast {

// Threads: adopt() and verify() on one thread at a time; verify() uses `threads` in all and allocates nothing.
class Verifier {
 public:
  // `catalog` outlives it.
  Verifier(const Catalog& catalog, std::size_t threads) : catalog_(catalog), team_(threads) {}

  void adopt(const ServerTable& table);
  // Code::corrupted: what landed is not what the signal says. Code::invalid_argument: not a signal of the table.
  [[nodiscard]] Status verify(const LandingMemory& landing, const Signal& signal);

 private:
  // Some rows of a piece.
  struct Part {
    std::uint32_t entry = 0;
    std::uint64_t byte_offset = 0;  // in the entry's region
    std::uint64_t rows = 0;
    std::uint64_t row_bytes = 0;
    std::int64_t row_stride = 0;
    DigestFrame frame;  // its seed is the entry's digest_key()
  };
  [[nodiscard]] Digest digest_of(const Part& part, const LandingMemory& landing, std::uint64_t version) const;
  void add_parts_of(const Piece& piece);

  const Catalog& catalog_;
  std::vector<Part> parts_;
  struct Range {
    std::size_t first = 0;
    std::size_t end = 0;
  };
  std::map<std::uint32_t, std::vector<Range>> signals_;  // by trainer and ordinal: what of parts_ a signal covers
  Team team_;
};

}  // namespace weightcast
