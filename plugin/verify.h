// The server's proof that what landed is what was sent: the digest of each sender's pieces, recomputed over the
// landed bytes, which are read once.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
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

  void adopt(ServerTable table);
  // `signals` are those of the table's senders, in that order. Code::corrupted names the first that does not match.
  [[nodiscard]] Status verify(const LandingMemory& landing, std::uint64_t version, std::span<const Signal> signals);

 private:
  // Some rows of a piece.
  struct Part {
    std::size_t sender = 0;  // index into table_.senders
    std::uint32_t entry = 0;
    std::uint64_t byte_offset = 0;  // in the entry's region
    std::uint64_t rows = 0;
    std::uint64_t row_bytes = 0;
    std::int64_t row_stride = 0;
    DigestFrame frame;  // its seed is the entry's digest_key()
  };
  [[nodiscard]] Digest digest_of(const Part& part, const LandingMemory& landing, std::uint64_t version) const;

  const Catalog& catalog_;
  ServerTable table_;
  std::vector<Part> parts_;
  std::vector<std::atomic<Digest>> digests_;  // by sender
  Team team_;
};

}  // namespace weightcast
