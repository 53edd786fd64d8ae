// A server rank: the loop, the fabric, the landing memory and the verification around ServerCore. The C ABI's server
// calls end here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "plugin/server_core.h"
#include "schedule/config.h"
#include "transport/base/status.h"
#include "transport/base/units.h"

namespace weightcast {

// Thread-safe.
class Server {
 public:
  // Reads the secret, joins in the background. Throws Error.
  Server(const Config& config, std::string_view catalog_json);
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  ~Server();

  [[nodiscard]] Status wait_connected(Deadline deadline) const;
  [[nodiscard]] int event_descriptor() const noexcept;
  // Clears the event.
  [[nodiscard]] ServerView state();
  // Until the phase is `phase`, or the version that was under way has ended without it.
  [[nodiscard]] Status wait(ServerPhase phase, Deadline deadline, ServerView& view);
  [[nodiscard]] Status allow(std::uint64_t version);
  // Valid in the phases ready and commit_due: JSON, see weightcast.h.
  [[nodiscard]] Status staged(std::uint64_t version, std::string& extents) const;
  // On the caller's thread; at most one call at a time.
  [[nodiscard]] Status commit(std::uint64_t version, double& stall_ms);
  [[nodiscard]] std::string status_json() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weightcast
