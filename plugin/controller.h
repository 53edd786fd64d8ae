// The controller: the loop around ControllerCore, in a thread of its own, inside trainer 0 or a process of its own.
#pragma once

#include <memory>
#include <string>

#include "schedule/config.h"

namespace weightcast {

// Thread-safe.
class Controller {
 public:
  // Binds the control port. Throws Error: unavailable when it is taken, refused for the secret file's mode.
  explicit Controller(const Config& config);
  Controller(const Controller&) = delete;
  Controller& operator=(const Controller&) = delete;
  ~Controller();

  [[nodiscard]] const std::string& address() const noexcept;
  // As plugin/PROTOCOL.md says. Takes one turn of the loop, some milliseconds.
  [[nodiscard]] std::string status_json() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weightcast
