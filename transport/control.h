// Control frames: bounded, authenticated, encrypted messages between one controller and its members.
// ZeroMQ ROUTER and DEALER under CURVE; whoever does not hold the secret file gets no frame through.
//
// Threads: an object belongs to the thread that created it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "transport/base/units.h"

namespace weightcast {

// The shared secret: one CURVE key that controller and members hold. Never logged.
class Secret {
 public:
  // Reads a file that make_file() wrote: one line that names it, one with the key. Throws Error: unavailable when it
  // cannot be read, refused when others than the owner may use it, invalid_argument when it is not such a file.
  [[nodiscard]] static Secret load(const std::string& path);
  // Creates `path` (mode 0600) with a new random key; refuses to overwrite. Throws Error.
  static void make_file(const std::string& path);

  [[nodiscard]] const std::string& secret_key() const noexcept { return secret_key_; }
  [[nodiscard]] const std::string& public_key() const noexcept { return public_key_; }

 private:
  std::string secret_key_;  // Z85, 40 characters
  std::string public_key_;
};

using ControlBytes = std::vector<std::uint8_t>;

struct ControlFrame {
  std::string from;  // routing identity of the connection, opaque; empty on a member
  ControlBytes bytes;
};

inline constexpr std::uint64_t kMaxControlBytes = 64 * MiB;

// The controller's end.
class ControlServer {
 public:
  // `address` is "tcp://127.0.0.1:5710"; port 0 takes a free one. Throws Error{unavailable} when the port is
  // taken, naming it.
  ControlServer(const std::string& address, const Secret& secret);
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;
  ~ControlServer();

  [[nodiscard]] const std::string& address() const noexcept;  // with the port that was taken
  // One frame, or nothing once the deadline passes or `wake_fd` becomes readable (-1: none). A frame that already
  // waits comes first.
  [[nodiscard]] std::optional<ControlFrame> receive(Deadline deadline, int wake_fd);
  // Never blocks. False when that connection is gone or does not drain: the member is then as good as lost.
  // More than kMaxControlBytes is the caller's mistake and throws Error{invalid_argument}.
  [[nodiscard]] bool send(const std::string& to, std::span<const std::uint8_t> bytes);
  // Connections refused because they did not prove that they hold the secret, since the start. A member that was
  // refused dials again, and counts again.
  [[nodiscard]] std::uint64_t refused_connections() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A member's end. Dials out, and again whenever the connection breaks.
class ControlClient {
 public:
  ControlClient(const std::string& address, const Secret& secret);
  ControlClient(const ControlClient&) = delete;
  ControlClient& operator=(const ControlClient&) = delete;
  ~ControlClient();

  // As above; also returns nothing, once, when refused() or connections() has changed.
  [[nodiscard]] std::optional<ControlFrame> receive(Deadline deadline, int wake_fd);
  // Never blocks. A frame sent while there is no connection waits for the next one. False when too many wait.
  [[nodiscard]] bool send(std::span<const std::uint8_t> bytes);
  // True once the controller refused this secret: waiting longer is pointless. CURVE gives the refused end no
  // reason, only a closed connection, so this means: several handshakes in a row were broken off by the other end.
  [[nodiscard]] bool refused() const noexcept;
  // Handshakes completed. Each is a new connection, and a new ControlFrame::from, to the controller.
  [[nodiscard]] std::uint64_t connections() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weightcast
