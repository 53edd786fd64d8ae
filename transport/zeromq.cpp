#include "transport/zeromq.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "transport/base/status.h"
#include "transport/control.h"

namespace weightcast::zeromq {
namespace {

constexpr int kLingerMs = 500;
// These only find dead TCP connections; who is alive is for the roles to decide. The patience covers the largest
// frame on a slow link, because ZeroMQ counts whole frames as signs of life.
constexpr int kHeartbeatMs = 5000;
constexpr int kHeartbeatPatienceMs = 30000;
constexpr int kQueuedFrames = 256;  // per connection and direction
// CURVE wraps a frame in a command: name, nonce, flags and authenticator take 33 bytes.
constexpr std::int64_t kCurveBytes = 64;
constexpr const char* kEventsAddress = "inproc://events";

// libzmq aborts the process when it finds no descriptor for its threads, so we look first.
void require_descriptors() {
  constexpr std::size_t kNeeded = 24;
  std::array<FileDescriptor, kNeeded> probes;
  for (auto& probe : probes) {
    probe = FileDescriptor(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (probe.get() < 0) {
      throw Error(Code::unavailable,
                  fmt::format("control port: fewer than {} free file descriptors; raise `ulimit -n`", kNeeded));
    }
  }
}

// libzmq takes any digits for a port, modulo 65536.
void require_address(const std::string& address) {
  constexpr std::string_view kScheme = "tcp://";
  const std::size_t colon = address.rfind(':');
  int port = -1;
  if (address.starts_with(kScheme) && colon > kScheme.size()) {
    const char* const end = address.data() + address.size();
    const auto parsed = std::from_chars(address.data() + colon + 1, end, port);
    if (parsed.ec != std::errc() || parsed.ptr != end) port = -1;
  }
  if (port < 0 || port > 65535) {
    throw Error(Code::invalid_argument,
                fmt::format("control address \"{}\": it must look like tcp://127.0.0.1:5710", address));
  }
}

void set_bytes(const Socket& socket, int option, const void* value, std::size_t bytes) {
  if (::zmq_setsockopt(socket.get(), option, value, bytes) != 0) {
    throw Error(Code::internal, fmt::format("control port: ZeroMQ option {}: {}", option, reason()));
  }
}

}  // namespace

void terminate(void* context) noexcept {
  while (::zmq_ctx_term(context) != 0 && ::zmq_errno() == EINTR) {
  }
}

std::string reason() { return ::zmq_strerror(::zmq_errno()); }

Context open_context(const std::string& address) {
  require_address(address);
  require_descriptors();
  if (::zmq_has("curve") == 0) {
    throw Error(Code::unavailable, "libzmq has no CURVE; install one built with libsodium");
  }
  Context context(::zmq_ctx_new());
  if (!context) throw Error(Code::unavailable, "control port: " + reason());
  return context;
}

Socket open_socket(const Context& context, int type) {
  Socket socket(::zmq_socket(context.get(), type));
  if (!socket) throw Error(Code::unavailable, "control port: no socket: " + reason());
  return socket;
}

void set(const Socket& socket, int option, int value) { set_bytes(socket, option, &value, sizeof value); }

void set_text(const Socket& socket, int option, std::string_view text) {
  set_bytes(socket, option, text.data(), text.size());
}

void set_limits(const Socket& socket) {
  const auto limit_bytes = static_cast<std::int64_t>(kMaxControlBytes) + kCurveBytes;
  set_bytes(socket, ZMQ_MAXMSGSIZE, &limit_bytes, sizeof limit_bytes);
  set(socket, ZMQ_LINGER, kLingerMs);
  set(socket, ZMQ_HANDSHAKE_IVL, kHandshakeMs);
  set(socket, ZMQ_HEARTBEAT_IVL, kHeartbeatMs);
  set(socket, ZMQ_HEARTBEAT_TIMEOUT, kHeartbeatPatienceMs);
  set(socket, ZMQ_HEARTBEAT_TTL, kHeartbeatPatienceMs);
  set(socket, ZMQ_SNDHWM, kQueuedFrames);
  set(socket, ZMQ_RCVHWM, kQueuedFrames);
}

void drop_rest(void* socket) noexcept {
  Part rest;
  while (rest.take(socket) && rest.more()) {
  }
}

Event take_event(void* events) noexcept {
  Event event;
  Part part;
  if (!part.take(events)) return event;
  const auto bytes = part.bytes();
  std::uint16_t type = 0;
  if (bytes.size() == sizeof type + sizeof event.value) {
    std::memcpy(&type, bytes.data(), sizeof type);
    std::memcpy(&event.value, bytes.data() + sizeof type, sizeof event.value);
  }
  if (part.more()) drop_rest(events);
  event.type = type;
  return event;
}

Socket watch(const Context& context, const Socket& socket, int event_types) {
  Socket events = open_socket(context, ZMQ_PAIR);
  set(events, ZMQ_LINGER, 0);
  if (::zmq_socket_monitor(socket.get(), kEventsAddress, event_types) != 0 ||
      ::zmq_connect(events.get(), kEventsAddress) != 0) {
    throw Error(Code::unavailable, "control port: no monitor: " + reason());
  }
  return events;
}

}  // namespace weightcast::zeromq
