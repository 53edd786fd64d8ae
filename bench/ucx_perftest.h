// UCX's own benchmark as a limit: what one-sided puts between two processes reach that know nothing of the fabric.
#pragma once

#include <cstdint>
#include <string>

namespace weightcast {

// `count` puts of one chunk: always the same one, as the tool has no other way. So both ends stay in the caches, and a
// figure is a limit only for puts that do likewise.
struct UcxPuts {
  std::string transports;  // UCX_TLS
  std::string allocation;  // UCX_ALLOC_PRIO: where the memory of both ends comes from
  bool polls = false;      // both ends spin; otherwise they sleep while they have nothing to do
  std::uint64_t chunk_bytes = 0;
  std::uint64_t count = 0;
  std::uint32_t window = 0;  // puts in flight
};

class UcxPerftest {
 public:
  // The ucx_perftest that belongs to this libucp.so, or else the one in PATH.
  explicit UcxPerftest(const std::string& libucp);

  // Empty when the tool is there and runs.
  [[nodiscard]] const std::string& reason_not_to() const { return reason_; }
  // Starts a sender and a receiver, both bounded in time. Loopback only; peer error mode and no emulation, as the
  // fabric has it. Throws Error: unavailable with what the tool said.
  [[nodiscard]] double put_gb_per_s(const UcxPuts& puts) const;

 private:
  std::string program_;
  std::string reason_;
  std::string library_folder_;  // empty: the tool finds its libraries by itself
};

}  // namespace weightcast
