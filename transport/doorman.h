// Decides who may connect to the controller: admits connections that hold the secret and counts the others.
// Internal to transport/.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <thread>

#include "transport/zeromq.h"

namespace weightcast {

// Answers libzmq's ZAP questions on a thread of its own. A wrong secret fails before ZAP is asked, because it gives
// a wrong server key too: hence the events. Stands before `router` is bound; ends the context's work when it leaves.
class Doorman {
 public:
  // `context` and `router` are borrowed. Admits the one member key `public_key` (Z85). Throws Error.
  Doorman(const zeromq::Context& context, const zeromq::Socket& router, const std::string& public_key);
  Doorman(const Doorman&) = delete;
  Doorman& operator=(const Doorman&) = delete;
  ~Doorman();

  [[nodiscard]] std::uint64_t refused() const noexcept { return refused_.load(std::memory_order_relaxed); }

 private:
  void run() noexcept;
  void count(int event_type) noexcept;
  void answer();

  void* const context_;
  // Used by the thread alone once it runs.
  zeromq::Socket zap_;
  zeromq::Socket events_;
  std::array<std::uint8_t, 32> admitted_{};
  std::atomic<std::uint64_t> refused_{0};
  std::thread thread_;
};

}  // namespace weightcast
