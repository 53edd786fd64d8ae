// The C interface: translates, checks pointers, and lets no exception out. Decides nothing.
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "plugin/controller.h"
#include "plugin/server.h"
#include "plugin/trainer.h"
#include "plugin/weightcast.h"
#include "schedule/config.h"
#include "transport/base/log.h"

using namespace weightcast;

struct weightcast_controller {
  Controller controller;
};
struct weightcast_trainer {
  Trainer trainer;
};
struct weightcast_server {
  Server server;
};

static_assert(static_cast<int>(Code::internal) == WEIGHTCAST_INTERNAL);
static_assert(static_cast<int>(ServerPhase::failed) == WEIGHTCAST_FAILED);

namespace {

thread_local std::string last_error_text;

int failed(Code code, const char* text) noexcept {
  try {
    last_error_text = text;
  } catch (...) {  // out of memory: an empty text is all that is left
    last_error_text.clear();
  }
  return static_cast<int>(code);
}

// Runs `call`, which returns a Status, and turns every outcome into a code and a text.
template <class Call>
int guarded(Call&& call) noexcept {
  try {
    const Status status = call();
    return status.ok() ? WEIGHTCAST_OK : failed(status.code(), status.message().c_str());
  } catch (const Error& error) {
    return failed(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return failed(Code::unavailable, "out of memory");
  } catch (const std::exception& error) {
    return failed(Code::internal, error.what());
  }
}

template <class... Pointers>
void require(const Pointers*... pointers) {
  if ((!pointers || ...)) throw Error(Code::invalid_argument, "a pointer argument is NULL");
}

void give_text(const std::string& text, char** out) {
  auto* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy == nullptr) throw std::bad_alloc();
  std::memcpy(copy, text.c_str(), text.size() + 1);
  *out = copy;
}

Config config_of(const char* json) {
  Config config = parse_config(json, "configuration");
  set_log_level(config.log_level == "error"     ? LogLevel::error
                : config.log_level == "warning" ? LogLevel::warning
                : config.log_level == "debug"   ? LogLevel::debug
                                                : LogLevel::info);
  return config;
}

void write_state(const ServerView& view, weightcast_server_state* state) {
  state->phase = static_cast<std::uint32_t>(view.phase);
  state->committed_version = view.committed_version;
  state->next_version = view.next_version;
  state->torn = view.torn ? 1 : 0;
}

void check_state(const weightcast_server_state* state) {
  if (state->struct_size < sizeof(weightcast_server_state)) {
    throw Error(Code::invalid_argument, "struct_size of weightcast_server_state is not set, or of an older header");
  }
}

Deadline within(std::uint32_t wait_ms) { return Deadline::after(Milliseconds(wait_ms)); }

const char* last_error() { return last_error_text.c_str(); }
void free_text(char* text) { std::free(text); }

int set_log(int fd, const char* level) {
  return guarded([&] {
    require(level);
    const std::string name = level;
    for (const LogLevel candidate : {LogLevel::error, LogLevel::warning, LogLevel::info, LogLevel::debug}) {
      constexpr const char* kNames[] = {"error", "warning", "info", "debug"};
      if (name != kNames[static_cast<int>(candidate)]) continue;
      set_log_level(candidate);
      set_log_descriptor(fd);
      return Status();
    }
    return Status(Code::invalid_argument, "unknown log level '" + name + "': error, warning, info or debug");
  });
}

int controller_open(const char* config_json, weightcast_controller** controller) {
  return guarded([&] {
    require(config_json, controller);
    *controller = new weightcast_controller{Controller(config_of(config_json))};
    return Status();
  });
}
int controller_status(weightcast_controller* controller, char** status_json) {
  return guarded([&] {
    require(controller, status_json);
    give_text(controller->controller.status_json(), status_json);
    return Status();
  });
}
void controller_close(weightcast_controller* controller) { delete controller; }

int trainer_open(const char* config_json, const char* catalog_json, weightcast_trainer** trainer) {
  return guarded([&] {
    require(config_json, catalog_json, trainer);
    *trainer = new weightcast_trainer{Trainer(config_of(config_json), catalog_json)};
    return Status();
  });
}
int trainer_wait_connected(weightcast_trainer* trainer, uint32_t wait_ms) {
  return guarded([&] {
    require(trainer);
    return trainer->trainer.wait_connected(within(wait_ms));
  });
}
int trainer_push(weightcast_trainer* trainer, uint64_t version) {
  return guarded([&] {
    require(trainer);
    return trainer->trainer.push(version);
  });
}
int trainer_wait(weightcast_trainer* trainer, uint64_t version, uint32_t wait_ms, char** report_json) {
  return guarded([&] {
    require(trainer, report_json);
    std::string report;
    Status status = trainer->trainer.wait(version, within(wait_ms), report);
    if (status.ok()) give_text(report, report_json);
    return status;
  });
}
int trainer_status(weightcast_trainer* trainer, char** status_json) {
  return guarded([&] {
    require(trainer, status_json);
    give_text(trainer->trainer.status_json(), status_json);
    return Status();
  });
}
void trainer_close(weightcast_trainer* trainer) { delete trainer; }

int server_open(const char* config_json, const char* catalog_json, weightcast_server** server) {
  return guarded([&] {
    require(config_json, catalog_json, server);
    *server = new weightcast_server{Server(config_of(config_json), catalog_json)};
    return Status();
  });
}
int server_wait_connected(weightcast_server* server, uint32_t wait_ms) {
  return guarded([&] {
    require(server);
    return server->server.wait_connected(within(wait_ms));
  });
}
int server_event_fd(weightcast_server* server, int* fd) {
  return guarded([&] {
    require(server, fd);
    *fd = server->server.event_descriptor();
    return Status();
  });
}
int server_state(weightcast_server* server, weightcast_server_state* state) {
  return guarded([&] {
    require(server, state);
    check_state(state);
    const ServerView view = server->server.state();
    write_state(view, state);
    return view.fatal;
  });
}
int server_wait(weightcast_server* server, uint32_t phase, uint32_t wait_ms, weightcast_server_state* state) {
  return guarded([&] {
    require(server, state);
    check_state(state);
    if (phase > WEIGHTCAST_FAILED) throw Error(Code::invalid_argument, "no such phase");
    ServerView view;
    Status status = server->server.wait(static_cast<ServerPhase>(phase), within(wait_ms), view);
    if (status.ok()) write_state(view, state);
    return status;
  });
}
int server_allow(weightcast_server* server, uint64_t version) {
  return guarded([&] {
    require(server);
    return server->server.allow(version);
  });
}
int server_staged(weightcast_server* server, uint64_t version, char** extents_json) {
  return guarded([&] {
    require(server, extents_json);
    std::string extents;
    Status status = server->server.staged(version, extents);
    if (status.ok()) give_text(extents, extents_json);
    return status;
  });
}
int server_commit(weightcast_server* server, uint64_t version, double* stall_ms) {
  return guarded([&] {
    require(server);
    double stall = 0;
    Status status = server->server.commit(version, stall);
    if (status.ok() && stall_ms != nullptr) *stall_ms = stall;
    return status;
  });
}
int server_status(weightcast_server* server, char** status_json) {
  return guarded([&] {
    require(server, status_json);
    give_text(server->server.status_json(), status_json);
    return Status();
  });
}
void server_close(weightcast_server* server) { delete server; }

constexpr weightcast_api kApi{sizeof(weightcast_api),
                              WEIGHTCAST_ABI_VERSION,
                              WEIGHTCAST_VERSION,
                              last_error,
                              free_text,
                              set_log,
                              controller_open,
                              controller_status,
                              controller_close,
                              trainer_open,
                              trainer_wait_connected,
                              trainer_push,
                              trainer_wait,
                              trainer_status,
                              trainer_close,
                              server_open,
                              server_wait_connected,
                              server_event_fd,
                              server_state,
                              server_wait,
                              server_allow,
                              server_staged,
                              server_commit,
                              server_status,
                              server_close};

}  // namespace

extern "C" const weightcast_api* weightcast_get(uint32_t abi_version) {
  return abi_version == WEIGHTCAST_ABI_VERSION ? &kApi : nullptr;
}
