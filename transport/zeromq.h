// ZeroMQ's handles and the little of its C interface that control.cpp and doorman.cpp share. Internal to transport/.
#pragma once

#include <zmq.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "transport/base/handle.h"

namespace weightcast::zeromq {

void terminate(void* context) noexcept;
using Context = std::unique_ptr<void, FreeWith<&terminate>>;
using Socket = std::unique_ptr<void, FreeWith<&::zmq_close>>;

[[nodiscard]] std::string reason();  // of the last failed call

// Checks `address`, and that libzmq can work here. Throws Error.
[[nodiscard]] Context open_context(const std::string& address);
[[nodiscard]] Socket open_socket(const Context& context, int type);  // throws Error{unavailable}

// These throw Error{internal}.
void set(const Socket& socket, int option, int value);
void set_text(const Socket& socket, int option, std::string_view text);
void set_limits(const Socket& socket);  // sizes, queues and times: the same at both ends

// One part of a message.
class Part {
 public:
  Part() { ::zmq_msg_init(&part_); }
  Part(const Part&) = delete;
  Part& operator=(const Part&) = delete;
  ~Part() { ::zmq_msg_close(&part_); }

  // False when nothing waits.
  [[nodiscard]] bool take(void* socket) noexcept { return ::zmq_msg_recv(&part_, socket, ZMQ_DONTWAIT) >= 0; }
  [[nodiscard]] bool more() const noexcept { return ::zmq_msg_more(&part_) != 0; }
  [[nodiscard]] std::span<const std::uint8_t> bytes() noexcept {
    return {static_cast<const std::uint8_t*>(::zmq_msg_data(&part_)), ::zmq_msg_size(&part_)};
  }
  [[nodiscard]] std::string text() {
    return {static_cast<const char*>(::zmq_msg_data(&part_)), ::zmq_msg_size(&part_)};
  }

 private:
  zmq_msg_t part_{};
};

// Takes what is left of a message.
void drop_rest(void* socket) noexcept;

inline constexpr int kHandshakeMs = 5000;
inline constexpr int kHandshakeFailures =
    ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;

// What happens to a connection of a watched socket.
struct Event {
  int type = 0;
  std::uint32_t value = 0;
};
// The socket from which the events of `socket` are taken; one per context. Throws Error{unavailable}.
[[nodiscard]] Socket watch(const Context& context, const Socket& socket, int event_types);
// Type 0 when none waits.
[[nodiscard]] Event take_event(void* events) noexcept;

}  // namespace weightcast::zeromq
