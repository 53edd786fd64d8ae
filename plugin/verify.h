// The server's proof that what landed is what was sent: the digest of what each signal covers, recomputed over the
// landed bytes, which are read once.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "plugin/landing.h"
#include "plugin/signal.h"
#include "plugin/team.h"
#include "quant/gpu.h"
#include "schedule/plan.h"

namespace weightcast {

// Threads: adopt(), begin() and verify() on one thread at a time; verify() uses `threads` in all and allocates nothing.
class Verifier {
 public:
  // `catalog` outlives it.
  Verifier(const Catalog& catalog, std::size_t threads) : catalog_(catalog), team_(threads) {}

  void adopt(const ServerTable& table, const LandingMemory& landing);
  void clear();
  // Starts what a GPU digests of it, so that the digests of several signals run side by side; verify() ends it.
  void begin(const LandingMemory& landing, const Signal& signal) noexcept;
  // Code::corrupted: what landed is not what the signal says. Code::invalid_argument: not a signal of the table.
  [[nodiscard]] Status verify(const LandingMemory& landing, const Signal& signal);
  // Of a signal that was verified last: the digest of what each of its Forwards passes on, in the table's order.
  [[nodiscard]] std::span<const Digest> forwarded_digests(const Signal& signal);

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
  [[nodiscard]] bool is_on_gpu(std::size_t part) const;
  [[nodiscard]] Digest digest_of(const Part& part, const LandingMemory& landing, std::uint64_t version) const;
  // Parts that are passed on to the same servers, and so share a digest.
  struct Lot {
    std::size_t first = 0;  // of parts_
    std::size_t end = 0;
    std::vector<std::uint32_t> forwards;  // positions among the signal's
  };
  struct Covered {
    std::vector<Lot> lots;
    std::vector<Digest> forwarded;  // by forward
  };
  // What one lot is to the GPU that holds it.
  struct OnGpu {
    int device = 0;
    GpuDigest digest;
    GpuFindings findings{1};
    const CudaStream* stream = nullptr;
    std::optional<std::uint64_t> begun;  // for this version
  };
  [[nodiscard]] OnGpu& lay_out_on_gpu(const Lot& lot, const LandingMemory& landing);
  [[nodiscard]] OnGpu& begin_on_gpu(const Lot& lot, const LandingMemory& landing, std::uint64_t version);
  void add_signal(const ExpectedSender& sender, std::uint32_t ordinal, std::size_t first_piece);
  void add_parts_of(const Piece& piece);
  [[nodiscard]] Digest digest_of(const Lot& lot, const LandingMemory& landing, std::uint64_t version);
  [[nodiscard]] Covered* find(const Signal& signal);
  [[nodiscard]] Status compared(const Signal& signal, Digest digest) const;

  const Catalog& catalog_;
  std::vector<Part> parts_;
  std::map<RankKey, std::vector<Covered>> signals_;       // by sender and ordinal
  std::map<int, std::vector<CudaStream>> streams_;        // by device
  std::map<std::size_t, std::unique_ptr<OnGpu>> on_gpu_;  // by first part
  Team team_;
};

}  // namespace weightcast
