// Control frames over real sockets on the loopback interface.
#include "transport/control.h"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <zmq.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "transport/base/handle.h"
#include "transport/base/status.h"

using namespace weightcast;
using namespace std::chrono_literals;

namespace {

constexpr const char* kAnyPort = "tcp://127.0.0.1:0";

// A folder of its own, removed with everything in it.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "weightcast-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }
  [[nodiscard]] std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

Secret new_secret() {
  const Folder folder;
  Secret::make_file(folder.file("secret"));
  return Secret::load(folder.file("secret"));
}

ControlBytes bytes_of(std::string_view text) { return {text.begin(), text.end()}; }

Deadline soon() { return Deadline::after(5s); }

template <class Condition>
bool within(Milliseconds wait, Condition condition) {
  const Deadline deadline = Deadline::after(wait);
  while (!condition()) {
    if (deadline.passed()) return false;
    std::this_thread::sleep_for(5ms);
  }
  return true;
}

template <class Action>
Error error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  FAIL("no error");
  return {Code::internal, ""};
}

bool names(const Error& error, std::string_view word) {
  return std::string_view(error.what()).find(word) != std::string_view::npos;
}

// One frame from the client to the server and its answer back; true when both arrive unchanged.
bool round_trip(ControlServer& server, ControlClient& client, const ControlBytes& bytes) {
  if (!client.send(bytes)) return false;
  const auto question = server.receive(soon(), -1);
  if (!question || question->bytes != bytes || !server.send(question->from, question->bytes)) return false;
  const Deadline deadline = soon();
  while (!deadline.passed()) {
    if (const auto answer = client.receive(deadline, -1)) return answer->bytes == bytes;
  }
  return false;
}

int port_of(const std::string& address) { return std::stoi(address.substr(address.rfind(':') + 1)); }

FileDescriptor dial(const std::string& address) {
  FileDescriptor connection(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(port_of(address)));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::connect(connection.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) == 0);
  return connection;
}

// A DEALER with the right keys that keeps none of our limits.
struct RawDealer {
  RawDealer(const std::string& address, const Secret& secret)
      : context(::zmq_ctx_new()), socket(::zmq_socket(context, ZMQ_DEALER)) {
    const int linger = 0;
    ::zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    ::zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, secret.public_key().c_str(), 41);
    ::zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, secret.public_key().c_str(), 41);
    ::zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret.secret_key().c_str(), 41);
    REQUIRE(::zmq_connect(socket, address.c_str()) == 0);
  }
  RawDealer(const RawDealer&) = delete;
  RawDealer& operator=(const RawDealer&) = delete;
  ~RawDealer() {
    ::zmq_close(socket);
    ::zmq_ctx_term(context);
  }
  void send(const ControlBytes& part, int flags) const {
    CHECK(::zmq_send(socket, part.data(), part.size(), flags) == static_cast<int>(part.size()));
  }
  void* context;
  void* socket;
};

}  // namespace

TEST_CASE("frames of every size go there and back unchanged") {
  const Secret secret = new_secret();
  ControlServer server(kAnyPort, secret);
  ControlClient client(server.address(), secret);
  CHECK(round_trip(server, client, {}));
  CHECK(round_trip(server, client, bytes_of("join")));
  ControlBytes mebibyte(MiB);
  std::mt19937 random(1);
  for (auto& byte : mebibyte) byte = static_cast<std::uint8_t>(random());
  CHECK(round_trip(server, client, mebibyte));
  CHECK(server.refused_connections() == 0);
  CHECK_FALSE(client.refused());
  CHECK(client.connections() == 1);
}

TEST_CASE("each member is answered on its own connection") {
  const Secret secret = new_secret();
  ControlServer server(kAnyPort, secret);
  ControlClient one(server.address(), secret);
  ControlClient two(server.address(), secret);
  CHECK(round_trip(server, one, bytes_of("one")));
  CHECK(round_trip(server, two, bytes_of("two")));
}

TEST_CASE("a wait ends at its deadline, and at once when the wake descriptor is readable") {
  const Secret secret = new_secret();
  ControlServer server(kAnyPort, secret);
  ControlClient client(server.address(), secret);
  CHECK(round_trip(server, client, bytes_of("connected")));
  auto start = Clock::now();
  CHECK_FALSE(server.receive(Deadline::after(30ms), -1).has_value());
  CHECK(seconds_since(start) >= 0.03);
  const FileDescriptor wake(::eventfd(1, EFD_CLOEXEC));
  start = Clock::now();
  CHECK_FALSE(server.receive(Deadline::after(20s), wake.get()).has_value());
  while (client.receive(Deadline::after(20s), wake.get()).has_value()) FAIL("a frame from nowhere");
  CHECK(seconds_since(start) < 5);
}

TEST_CASE("a member with another secret is refused within two seconds, counted, and disturbs nobody") {
  const Secret secret = new_secret();
  ControlServer server(kAnyPort, secret);
  ControlClient member(server.address(), secret);
  ControlClient stranger(server.address(), new_secret());
  CHECK(stranger.send(bytes_of("let me in")));
  CHECK(within(2s, [&] { return stranger.refused(); }));
  CHECK(server.refused_connections() >= 3);
  CHECK(stranger.connections() == 0);
  CHECK(round_trip(server, member, bytes_of("still here")));
  CHECK_FALSE(member.refused());
  CHECK_FALSE(server.receive(Deadline::after(50ms), -1).has_value());
}

TEST_CASE("who knows only the public key is refused by the doorman") {
  const Secret secret = new_secret();
  const Secret other = new_secret();
  ControlServer server(kAnyPort, secret);
  void* context = ::zmq_ctx_new();
  void* socket = ::zmq_socket(context, ZMQ_DEALER);
  const int linger = 0;
  ::zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
  ::zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, secret.public_key().c_str(), 41);
  ::zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, other.public_key().c_str(), 41);
  ::zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, other.secret_key().c_str(), 41);
  CHECK(::zmq_connect(socket, server.address().c_str()) == 0);
  ::zmq_send(socket, "hello", 5, ZMQ_DONTWAIT);
  CHECK(within(2s, [&] { return server.refused_connections() >= 1; }));
  CHECK_FALSE(server.receive(Deadline::after(50ms), -1).has_value());
  ::zmq_close(socket);
  ::zmq_ctx_term(context);
}

TEST_CASE("garbage at the port disturbs no member") {
  const Secret secret = new_secret();
  ControlServer server(kAnyPort, secret);
  ControlClient client(server.address(), secret);
  CHECK(round_trip(server, client, bytes_of("before")));
  std::mt19937 random(7);
  std::string noise(4096, '\0');
  for (auto& byte : noise) byte = static_cast<char>(random());
  const std::string signature("\xff\0\0\0\0\0\0\0\1\x7f", 10);
  // The whole greeting: signature, version 3.0, mechanism, as-server, filler.
  const std::string greeting = signature + std::string("\3\0CURVE", 7) + std::string(47, '\0');
  const std::string huge_command("\6\xff\xff\xff\xff\xff\xff\xff\xff", 9);
  const std::vector<std::string> garbage = {"GET / HTTP/1.1\r\nHost: weights\r\n\r\n",
                                            noise,
                                            signature.substr(0, 5),
                                            signature + "\3",
                                            greeting,
                                            greeting + huge_command,
                                            greeting + std::string("\4\x05HELLO", 7),
                                            greeting + noise,
                                            std::string("\1\0", 2)};
  std::vector<FileDescriptor> open;
  for (const auto& text : garbage) {
    open.push_back(dial(server.address()));
    CHECK(::send(open.back().get(), text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()));
  }
  CHECK(round_trip(server, client, bytes_of("during")));
  open.clear();
  CHECK(round_trip(server, client, bytes_of("after")));
  CHECK_FALSE(server.receive(Deadline::after(50ms), -1).has_value());
  CHECK(client.connections() == 1);
}

TEST_CASE("a frame of several parts and one beyond the limit are dropped, what follows is received") {
  const Secret secret = new_secret();
  ControlServer server(kAnyPort, secret);
  ControlClient client(server.address(), secret);
  const RawDealer raw(server.address(), secret);
  raw.send(bytes_of("two"), ZMQ_SNDMORE);
  raw.send(bytes_of("parts"), 0);
  raw.send(bytes_of("one part"), 0);
  const auto frame = server.receive(soon(), -1);
  REQUIRE(frame.has_value());
  CHECK(frame->bytes == bytes_of("one part"));
  raw.send(ControlBytes(kMaxControlBytes + 1), 0);  // just beyond: received, then dropped
  raw.send(bytes_of("small again"), 0);
  const auto next = server.receive(soon(), -1);
  REQUIRE(next.has_value());
  CHECK(next->bytes == bytes_of("small again"));
  raw.send(ControlBytes(kMaxControlBytes + 4096), 0);  // well beyond: its connection is closed
  CHECK_FALSE(server.receive(Deadline::after(300ms), -1).has_value());
  CHECK(round_trip(server, client, bytes_of("undisturbed")));
  CHECK(error_of([&] { (void)client.send(ControlBytes(kMaxControlBytes + 1)); }).code() == Code::invalid_argument);
}

TEST_CASE("sending never blocks: an unknown connection and one that does not drain are reported") {
  const Secret secret = new_secret();
  ControlServer server(kAnyPort, secret);
  CHECK_FALSE(server.send("nobody", bytes_of("hello")));
  CHECK_FALSE(server.send("", bytes_of("hello")));
  ControlClient client(server.address(), secret);
  CHECK(round_trip(server, client, bytes_of("hello")));
  CHECK(client.send(bytes_of("who am I")));
  const auto frame = server.receive(soon(), -1);
  REQUIRE(frame.has_value());
  // The client does not read: after its queue and the sockets' buffers are full, a send fails instead of waiting.
  const ControlBytes block(256 * KiB);
  int sent = 0;
  while (sent < 4000 && server.send(frame->from, block)) ++sent;
  CHECK(sent > 0);
  CHECK(sent < 4000);
}

TEST_CASE("a taken port is named, with what to do") {
  const Secret secret = new_secret();
  const ControlServer first(kAnyPort, secret);
  const Error error = error_of([&] { const ControlServer second(first.address(), secret); });
  CHECK(error.code() == Code::unavailable);
  CHECK(names(error, std::to_string(port_of(first.address()))));
  CHECK(names(error, "another controller"));
}

TEST_CASE("too few file descriptors are an error, not an abort") {
  const Secret secret = new_secret();
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  const rlimit few{16, before.rlim_max};
  ::setrlimit(RLIMIT_NOFILE, &few);
  const Error error = error_of([&] { const ControlServer server(kAnyPort, secret); });
  ::setrlimit(RLIMIT_NOFILE, &before);
  CHECK(error.code() == Code::unavailable);
  CHECK(names(error, "ulimit -n"));
}

TEST_CASE("an address that cannot be is refused") {
  const Secret secret = new_secret();
  for (const char* address : {"", "127.0.0.1:5710", "ipc:///tmp/x", "tcp://127.0.0.1:99999", "tcp://127.0.0.1:",
                              "tcp://:7", "tcp://127.0.0.1:-1", "tcp://127.0.0.1:57x", "tcp://nonsense"}) {
    CAPTURE(std::string(address));
    CHECK(error_of([&] { const ControlServer server(address, secret); }).code() != Code::internal);
    CHECK(error_of([&] { const ControlClient client(address, secret); }).code() == Code::invalid_argument);
  }
}

TEST_CASE("a member finds a restarted controller at the same port, and knows that the connection is new") {
  const Secret secret = new_secret();
  auto server = std::make_unique<ControlServer>(kAnyPort, secret);
  const std::string address = server->address();
  ControlClient client(address, secret);
  CHECK(round_trip(*server, client, bytes_of("first")));
  server.reset();
  server = std::make_unique<ControlServer>(address, secret);
  CHECK(within(5s, [&] { return client.connections() == 2; }));
  CHECK(round_trip(*server, client, bytes_of("second")));
  CHECK_FALSE(client.refused());
}

TEST_CASE("a frame sent before there is a controller arrives when it comes") {
  const Secret secret = new_secret();
  auto server = std::make_unique<ControlServer>(kAnyPort, secret);
  const std::string address = server->address();
  server.reset();
  ControlClient client(address, secret);
  CHECK(client.send(bytes_of("early")));
  CHECK_FALSE(client.receive(Deadline::after(50ms), -1).has_value());
  CHECK_FALSE(client.refused());
  server = std::make_unique<ControlServer>(address, secret);
  const auto frame = server->receive(soon(), -1);
  REQUIRE(frame.has_value());
  CHECK(frame->bytes == bytes_of("early"));
}

TEST_CASE("a secret file belongs to its owner alone and is never overwritten") {
  const Folder folder;
  const std::string path = folder.file("secret");
  Secret::make_file(path);
  struct stat facts {};
  REQUIRE(::stat(path.c_str(), &facts) == 0);
  CHECK((facts.st_mode & 07777U) == 0600);
  const Secret secret = Secret::load(path);
  CHECK(secret.secret_key().size() == 40);
  CHECK(secret.public_key().size() == 40);
  CHECK(secret.secret_key() != secret.public_key());
  CHECK(error_of([&] { Secret::make_file(path); }).code() == Code::refused);
  CHECK(Secret::load(path).secret_key() == secret.secret_key());
  for (const unsigned mode : {0604U, 0640U, 0620U}) {
    ::chmod(path.c_str(), mode);
    const Error error = error_of([&] { (void)Secret::load(path); });
    CHECK(error.code() == Code::refused);
    CHECK(names(error, "chmod 600"));
    CHECK_FALSE(names(error, secret.secret_key()));
  }
}

TEST_CASE("a file that is no secret is refused with its name and the reason") {
  const Folder folder;
  const std::string good = folder.file("good");
  Secret::make_file(good);
  std::ifstream stream(good);
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  std::string damaged = text;
  damaged[damaged.size() - 3] = '~';  // not in the alphabet of Z85
  const std::vector<std::string> others = {"",
                                           "hello\n",
                                           text.substr(0, text.size() / 2),
                                           text + "more",
                                           damaged,
                                           std::string(100000, 'x'),
                                           text.substr(text.find('\n') + 1)};
  for (const auto& content : others) {
    const std::string path = folder.file("other");
    std::filesystem::remove(path);
    std::ofstream(path) << content;
    ::chmod(path.c_str(), 0600);
    CAPTURE(content.substr(0, 60));
    const Error error = error_of([&] { (void)Secret::load(path); });
    CHECK(error.code() == Code::invalid_argument);
    CHECK(names(error, path));
  }
  CHECK(error_of([&] { (void)Secret::load(folder.file("absent")); }).code() == Code::unavailable);
  CHECK(error_of([&] { (void)Secret::load(folder.file("")); }).code() == Code::invalid_argument);
  const std::string pipe = folder.file("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(error_of([&] { (void)Secret::load(pipe); }).code() == Code::invalid_argument);
}

TEST_CASE("a secret that cannot be written leaves no file behind") {
  const Folder folder;
  CHECK(error_of([&] { Secret::make_file(folder.file("no/such/folder")); }).code() == Code::unavailable);
  CHECK(error_of([] { Secret::make_file("/dev/full"); }).code() == Code::refused);
  // A file-size limit stands for the full disk: the write stops in the middle.
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const rlimit small{20, before.rlim_max};
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &small);
  const Error error = error_of([&] { Secret::make_file(folder.file("cut")); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  CHECK(error.code() == Code::unavailable);
  CHECK(names(error, "cut"));
  CHECK_FALSE(std::filesystem::exists(folder.file("cut")));
}
