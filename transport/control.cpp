#include "transport/control.h"

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <utility>

#include "transport/base/status.h"
#include "transport/doorman.h"
#include "transport/zeromq.h"

namespace weightcast {

using zeromq::Context;
using zeromq::Event;
using zeromq::open_context;
using zeromq::open_socket;
using zeromq::Part;
using zeromq::reason;
using zeromq::set;
using zeromq::set_text;
using zeromq::Socket;

namespace {

constexpr int kReconnectMs = 100;
constexpr int kReconnectMaxMs = 1000;
constexpr int kBacklog = 1024;
constexpr int kRefusalsInARow = 3;  // one or two can be a controller that is just going away

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
    zeromq::drop_rest(socket);
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
    zeromq::set_limits(router);
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
        events(zeromq::watch(context, dealer, ZMQ_EVENT_HANDSHAKE_SUCCEEDED | zeromq::kHandshakeFailures)) {
    zeromq::set_limits(dealer);
    set(dealer, ZMQ_IPV6, address.find('[') != std::string::npos ? 1 : 0);
    set(dealer, ZMQ_CONNECT_TIMEOUT, zeromq::kHandshakeMs);
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
      const Event event = zeromq::take_event(events.get());
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
