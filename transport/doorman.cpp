#include "transport/doorman.h"

#include <csignal>
#include <cstring>

#include "transport/base/log.h"
#include "transport/base/status.h"

namespace weightcast {

using zeromq::open_socket;
using zeromq::Part;
using zeromq::reason;

namespace {
constexpr const char* kZapAddress = "inproc://zeromq.zap.01";  // https://rfc.zeromq.org/spec/27
}

Doorman::Doorman(const zeromq::Context& context, const zeromq::Socket& router, const std::string& public_key)
    : context_(context.get()),
      zap_(open_socket(context, ZMQ_REP)),
      events_(zeromq::watch(context, router, zeromq::kHandshakeFailures)) {
  ::zmq_z85_decode(admitted_.data(), public_key.c_str());
  zeromq::set(zap_, ZMQ_LINGER, 0);
  if (::zmq_bind(zap_.get(), kZapAddress) != 0) throw Error(Code::internal, "control port: no ZAP: " + reason());
  // The host's signals are for the host's threads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Doorman::~Doorman() {
  ::zmq_ctx_shutdown(context_);  // the thread's next call into ZeroMQ fails, and it returns
  thread_.join();
}

void Doorman::run() noexcept {
  std::array<zmq_pollitem_t, 2> items{{{zap_.get(), 0, ZMQ_POLLIN, 0}, {events_.get(), 0, ZMQ_POLLIN, 0}}};
  while (true) {
    if (::zmq_poll(items.data(), static_cast<int>(items.size()), -1) < 0 && ::zmq_errno() != EINTR) return;
    try {
      answer();
      while (const int type = zeromq::take_event(events_.get()).type) count(type);
    } catch (const std::exception& error) {
      log_error("control port: a connection was not admitted: {}", error.what());
    }
  }
}

void Doorman::count(int event_type) noexcept {
  // Without detail are: a half-open port scan, a connection that broke. They proved nothing either way.
  if (event_type != ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) refused_.fetch_add(1, std::memory_order_relaxed);
}

// A request has these parts: version, request id, domain, address, identity, mechanism, credentials.
void Doorman::answer() {
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

}  // namespace weightcast
