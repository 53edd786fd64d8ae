#include "transport/control.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <zmq.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <string_view>
#include <thread>
#include <utility>

#include "transport/base/handle.h"
#include "transport/base/log.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

constexpr int kLingerMs = 500;
constexpr int kHandshakeMs = 5000;
constexpr int kReconnectMs = 100;
constexpr int kReconnectMaxMs = 1000;
// These only find dead TCP connections; who is alive is for the roles to decide. The patience covers the largest
// frame on a slow link, because ZeroMQ counts whole frames as signs of life.
constexpr int kHeartbeatMs = 5000;
constexpr int kHeartbeatPatienceMs = 30000;
constexpr int kQueuedFrames = 256;  // per connection and direction
constexpr int kBacklog = 1024;
constexpr int kRefusalsInARow = 3;  // one or two can be a controller that is just going away
// CURVE wraps a frame in a command: name, nonce, flags and authenticator take 33 bytes.
constexpr std::int64_t kCurveBytes = 64;
constexpr const char* kZapAddress = "inproc://zeromq.zap.01";  // https://rfc.zeromq.org/spec/27
constexpr const char* kEventsAddress = "inproc://events";
constexpr int kHandshakeFailures =
    ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;

void terminate(void* context) noexcept {
  while (::zmq_ctx_term(context) != 0 && ::zmq_errno() == EINTR) {
  }
}
using Context = std::unique_ptr<void, FreeWith<&terminate>>;
using Socket = std::unique_ptr<void, FreeWith<&::zmq_close>>;

std::string reason() { return ::zmq_strerror(::zmq_errno()); }

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

template <class T>
void set(const Socket& socket, int option, T value) {
  if (::zmq_setsockopt(socket.get(), option, &value, sizeof value) != 0) {
    throw Error(Code::internal, fmt::format("control port: ZeroMQ option {}: {}", option, reason()));
  }
}

void set_text(const Socket& socket, int option, std::string_view text) {
  if (::zmq_setsockopt(socket.get(), option, text.data(), text.size()) != 0) {
    throw Error(Code::internal, fmt::format("control port: ZeroMQ option {}: {}", option, reason()));
  }
}

void set_limits(const Socket& socket) {
  set(socket, ZMQ_MAXMSGSIZE, static_cast<std::int64_t>(kMaxControlBytes) + kCurveBytes);
  set(socket, ZMQ_LINGER, kLingerMs);
  set(socket, ZMQ_HANDSHAKE_IVL, kHandshakeMs);
  set(socket, ZMQ_HEARTBEAT_IVL, kHeartbeatMs);
  set(socket, ZMQ_HEARTBEAT_TIMEOUT, kHeartbeatPatienceMs);
  set(socket, ZMQ_HEARTBEAT_TTL, kHeartbeatPatienceMs);
  set(socket, ZMQ_SNDHWM, kQueuedFrames);
  set(socket, ZMQ_RCVHWM, kQueuedFrames);
}

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

void drop_rest(void* socket) noexcept {
  Part rest;
  while (rest.take(socket) && rest.more()) {
  }
}

enum class Taken { nothing, dropped, frame };

// A frame has exactly one part (after the sender's identity, on a router); anything else is dropped.
Taken take_frame(void* socket, bool routed, ControlFrame& frame) {
  Part part;
  if (!part.take(socket)) return Taken::nothing;
  if (routed) {
    frame.from = part.text();
    if (!part.more() || !part.take(socket)) return Taken::dropped;
  }
  if (part.more()) {
    drop_rest(socket);
    return Taken::dropped;
  }
  const auto bytes = part.bytes();
  if (bytes.size() > kMaxControlBytes) return Taken::dropped;
  frame.bytes.assign(bytes.begin(), bytes.end());
  return Taken::frame;
}

void require_size(std::span<const std::uint8_t> bytes) {
  if (bytes.size() > kMaxControlBytes) {
    throw Error(Code::invalid_argument, fmt::format("control frame of {} bytes; at most {} are sent; fewer tensors per "
                                                    "rank make it smaller",
                                                    bytes.size(), kMaxControlBytes));
  }
}

struct Event {
  int type = 0;
  std::uint32_t value = 0;
};

// Reads one event of a monitored socket; type 0 when none waits.
Event take_event(void* events) {
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

// Admits connections that hold the secret and counts the others, on a thread of its own. A wrong secret fails
// before ZAP is asked, because it gives a wrong server key too: hence the monitor.
class Doorman {
 public:
  Doorman(const Context& context, const Socket& router, const std::string& public_key)
      : context_(context.get()),
        zap_(open_socket(context, ZMQ_REP)),
        events_(watch(context, router, kHandshakeFailures)) {
    ::zmq_z85_decode(admitted_.data(), public_key.c_str());
    set(zap_, ZMQ_LINGER, 0);
    if (::zmq_bind(zap_.get(), kZapAddress) != 0) throw Error(Code::internal, "control port: no ZAP: " + reason());
    // The host's signals are for the host's threads.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { run(); });
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  Doorman(const Doorman&) = delete;
  Doorman& operator=(const Doorman&) = delete;
  ~Doorman() {
    ::zmq_ctx_shutdown(context_);  // the thread's next call into ZeroMQ fails, and it returns
    thread_.join();
  }

  [[nodiscard]] std::uint64_t refused() const noexcept { return refused_.load(std::memory_order_relaxed); }

 private:
  void run() noexcept {
    std::array<zmq_pollitem_t, 2> items{{{zap_.get(), 0, ZMQ_POLLIN, 0}, {events_.get(), 0, ZMQ_POLLIN, 0}}};
    while (true) {
      if (::zmq_poll(items.data(), static_cast<int>(items.size()), -1) < 0 && ::zmq_errno() != EINTR) return;
      try {
        answer();
        while (const int type = take_event(events_.get()).type) count(type);
      } catch (const std::exception& error) {
        log_error("control port: a connection was not admitted: {}", error.what());
      }
    }
  }

  void count(int type) noexcept {
    // Without detail are: a half-open port scan, a connection that broke. They proved nothing either way.
    if (type != ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) refused_.fetch_add(1, std::memory_order_relaxed);
  }

  // A request has these parts: version, request id, domain, address, identity, mechanism, credentials.
  void answer() {
    std::array<std::string, 7> parts;
    std::size_t count = 0;
    Part part;
    if (!part.take(zap_.get())) return;
    for (bool more = true; more; ++count) {
      if (count < parts.size()) parts[count] = part.text();
      more = part.more() && part.take(zap_.get());
    }
    const bool admitted = count == parts.size() && parts[5] == "CURVE" && parts[6].size() == admitted_.size() &&
                          std::memcmp(parts[6].data(), admitted_.data(), admitted_.size()) == 0;
    const std::array<std::string, 6> reply = {"1.0", parts[1], admitted ? "200" : "400", admitted ? "" : "wrong secret",
                                              "",    ""};
    for (std::size_t i = 0; i < reply.size(); ++i) {
      ::zmq_send(zap_.get(), reply[i].data(), reply[i].size(), ZMQ_DONTWAIT | (i + 1 < reply.size() ? ZMQ_SNDMORE : 0));
    }
  }

  void* const context_;  // borrowed
  // Used by the thread alone once it runs.
  Socket zap_;
  Socket events_;
  std::array<std::uint8_t, 32> admitted_{};
  std::atomic<std::uint64_t> refused_{0};
  std::thread thread_;
};

std::string last_endpoint(const Socket& socket) {
  std::array<char, 256> text{};
  std::size_t length = text.size();
  if (::zmq_getsockopt(socket.get(), ZMQ_LAST_ENDPOINT, text.data(), &length) != 0) {
    throw Error(Code::internal, "control port: which port: " + reason());
  }
  return text.data();
}

[[noreturn]] void bind_failed(const std::string& address) {
  const int error = ::zmq_errno();
  if (error == EADDRINUSE) {
    throw Error(Code::unavailable,
                fmt::format("control port {} is taken: another controller, or another program, listens there; stop it "
                            "(`ss -ltnp` names it) or set another \"controller\": {{\"address\"}}",
                            address));
  }
  const Code code = error == EINVAL ? Code::invalid_argument : Code::unavailable;
  throw Error(code, fmt::format("control port: cannot listen on {}: {}; the address must be one of this host, like "
                                "tcp://127.0.0.1:5710",
                                address, ::zmq_strerror(error)));
}

bool is_readable(const zmq_pollitem_t& item) { return item.revents != 0; }

}  // namespace

struct ControlServer::State {
  State(const std::string& wanted, const Secret& secret)
      : context(open_context(wanted)),
        router(open_socket(context, ZMQ_ROUTER)),
        doorman(context, router, secret.public_key()) {
    set_limits(router);
    set(router, ZMQ_IPV6, wanted.find('[') != std::string::npos ? 1 : 0);
    set(router, ZMQ_BACKLOG, kBacklog);
    set(router, ZMQ_ROUTER_MANDATORY, 1);  // a lost connection is an error, not silence
    set(router, ZMQ_ROUTER_HANDOVER, 0);   // nobody takes over the identity of a living connection
    set(router, ZMQ_CURVE_SERVER, 1);
    set_text(router, ZMQ_CURVE_SECRETKEY, secret.secret_key());
    set_text(router, ZMQ_ZAP_DOMAIN, "weightcast");
    if (::zmq_bind(router.get(), wanted.c_str()) != 0) bind_failed(wanted);
    address = last_endpoint(router);
  }

  // Members in lifetime order. Without a ZAP handler libzmq would admit whoever knows the public key: the doorman
  // stands before the port opens, and when he leaves, nobody reads or sends any more.
  Context context;
  Socket router;
  Doorman doorman;
  std::string address;
};

ControlServer::ControlServer(const std::string& address, const Secret& secret)
    : state_(std::make_unique<State>(address, secret)) {}
ControlServer::~ControlServer() = default;

const std::string& ControlServer::address() const noexcept { return state_->address; }

std::optional<ControlFrame> ControlServer::receive(Deadline deadline, int wake_fd) {
  std::array<zmq_pollitem_t, 2> items{{{state_->router.get(), 0, ZMQ_POLLIN, 0}, {nullptr, wake_fd, ZMQ_POLLIN, 0}}};
  while (true) {
    ControlFrame frame;
    const Taken taken = take_frame(state_->router.get(), true, frame);
    if (taken == Taken::frame) return frame;
    if (deadline.passed()) return std::nullopt;
    if (taken == Taken::dropped) continue;
    ::zmq_poll(items.data(), wake_fd >= 0 ? 2 : 1, deadline.left_ms());  // a signal only makes it look again
    if (wake_fd >= 0 && is_readable(items[1]) && !is_readable(items[0])) return std::nullopt;
  }
}

bool ControlServer::send(const std::string& to, std::span<const std::uint8_t> bytes) {
  require_size(bytes);
  void* router = state_->router.get();
  if (::zmq_send(router, to.data(), to.size(), ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) return false;
  return ::zmq_send(router, bytes.data(), bytes.size(), ZMQ_DONTWAIT) >= 0;
}

std::uint64_t ControlServer::refused_connections() const noexcept { return state_->doorman.refused(); }

struct ControlClient::State {
  State(const std::string& address, const Secret& secret)
      : context(open_context(address)),
        dealer(open_socket(context, ZMQ_DEALER)),
        events(watch(context, dealer, ZMQ_EVENT_HANDSHAKE_SUCCEEDED | kHandshakeFailures)) {
    set_limits(dealer);
    set(dealer, ZMQ_IPV6, address.find('[') != std::string::npos ? 1 : 0);
    set(dealer, ZMQ_CONNECT_TIMEOUT, kHandshakeMs);
    set(dealer, ZMQ_RECONNECT_IVL, kReconnectMs);
    set(dealer, ZMQ_RECONNECT_IVL_MAX, kReconnectMaxMs);
    set_text(dealer, ZMQ_CURVE_SERVERKEY, secret.public_key());
    set_text(dealer, ZMQ_CURVE_PUBLICKEY, secret.public_key());
    set_text(dealer, ZMQ_CURVE_SECRETKEY, secret.secret_key());
    if (::zmq_connect(dealer.get(), address.c_str()) != 0) {
      throw Error(Code::invalid_argument, fmt::format("control address \"{}\": {}; it must look like "
                                                      "tcp://127.0.0.1:5710",
                                                      address, reason()));
    }
  }

  void take_events() noexcept {
    while (true) {
      const Event event = take_event(events.get());
      if (event.type == 0) return;
      if (event.type == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) {
        ++connections;
        refusals_in_a_row = 0;
      } else if (event.type != ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL || event.value == EPIPE ||
                 event.value == ECONNRESET) {  // closed by the other end; a stopped controller gives a time-out
        ++refusals_in_a_row;
      }
    }
  }

  [[nodiscard]] bool refused() const noexcept { return refusals_in_a_row >= kRefusalsInARow; }

  // True once after refused() or connections have changed.
  [[nodiscard]] bool take_change() noexcept {
    const std::pair now(refused(), connections);
    return std::exchange(reported, now) != now;
  }

  Context context;
  Socket dealer;
  Socket events;
  int refusals_in_a_row = 0;
  std::uint64_t connections = 0;
  std::pair<bool, std::uint64_t> reported{false, 0};
};

ControlClient::ControlClient(const std::string& address, const Secret& secret)
    : state_(std::make_unique<State>(address, secret)) {}
ControlClient::~ControlClient() = default;

std::optional<ControlFrame> ControlClient::receive(Deadline deadline, int wake_fd) {
  std::array<zmq_pollitem_t, 3> items{{{state_->dealer.get(), 0, ZMQ_POLLIN, 0},
                                       {state_->events.get(), 0, ZMQ_POLLIN, 0},
                                       {nullptr, wake_fd, ZMQ_POLLIN, 0}}};
  while (true) {
    ControlFrame frame;
    const Taken taken = take_frame(state_->dealer.get(), false, frame);
    if (taken == Taken::frame) return frame;
    state_->take_events();
    if (state_->take_change() || deadline.passed()) return std::nullopt;
    if (taken == Taken::dropped) continue;
    ::zmq_poll(items.data(), wake_fd >= 0 ? 3 : 2, deadline.left_ms());  // a signal only makes it look again
    if (wake_fd >= 0 && is_readable(items[2]) && !is_readable(items[0])) return std::nullopt;
  }
}

bool ControlClient::send(std::span<const std::uint8_t> bytes) {
  require_size(bytes);
  state_->take_events();  // libzmq blocks when nobody reads its events
  return ::zmq_send(state_->dealer.get(), bytes.data(), bytes.size(), ZMQ_DONTWAIT) >= 0;
}

bool ControlClient::refused() const noexcept {
  state_->take_events();
  return state_->refused();
}

std::uint64_t ControlClient::connections() const noexcept {
  state_->take_events();
  return state_->connections;
}

}  // namespace weightcast
