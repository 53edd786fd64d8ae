/* Speaks plugin/weightcast.h without moving anything, so that the Python binding can be tested against the header:
 * results come from the arguments, and last_error() says what was called. Not thread-safe. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin/weightcast.h"

static char error[4096];
static int waits = 0;
static struct weightcast_trainer { int unused; } trainer;
static struct weightcast_server { int unused; } server;

static const char* last_error(void) { return error; }
static int set_log(int fd, const char* level) { return fd == 2 && strcmp(level, "debug") == 0 ? 0 : 1; }

/* Fails with the texts it was given when the configuration has "refuse". */
static int opened(const char* config, const char* catalog) {
  snprintf(error, sizeof error, "%s|%.200s", config, catalog);
  return strstr(config, "refuse") ? WEIGHTCAST_REFUSED : WEIGHTCAST_OK;
}
static int trainer_open(const char* config, const char* catalog, weightcast_trainer** out) {
  *out = &trainer;
  waits = 0;
  return opened(config, catalog);
}
static int server_open(const char* config, const char* catalog, weightcast_server** out) {
  *out = &server;
  return opened(config, catalog);
}
/* The third wait succeeds. */
static int trainer_wait_connected(weightcast_trainer* t, uint32_t wait_ms) {
  snprintf(error, sizeof error, "server 1 has not joined within %u ms", wait_ms);
  return t == &trainer && ++waits >= 3 ? WEIGHTCAST_OK : WEIGHTCAST_TIMED_OUT;
}
/* Versions 1 to 8 fail with that code. */
static int trainer_push(weightcast_trainer* t, uint64_t version) {
  snprintf(error, sizeof error, "version %llu", (unsigned long long)version);
  return t == &trainer && version > 8 ? WEIGHTCAST_OK : (int)version;
}
static int trainer_wait(weightcast_trainer* t, uint64_t version, uint32_t wait_ms, char** report) {
  if (t != &trainer || wait_ms == 0) return WEIGHTCAST_INTERNAL;
  if (asprintf(report, "{\"version\": %llu}", (unsigned long long)version) < 0) return WEIGHTCAST_INTERNAL;
  return WEIGHTCAST_OK;
}
static void trainer_close(weightcast_trainer* t) { snprintf(error, sizeof error, t == &trainer ? "closed" : "wrong"); }
/* Slow, to see who else runs meanwhile. */
static int server_wait_connected(weightcast_server* s, uint32_t wait_ms) {
  usleep(wait_ms * 1000);
  return s == &server ? WEIGHTCAST_OK : WEIGHTCAST_INTERNAL;
}
static int server_state(weightcast_server* s, weightcast_server_state* state) {
  if (s != &server || state->struct_size != sizeof *state) return WEIGHTCAST_INTERNAL;
  state->phase = WEIGHTCAST_COMMIT_DUE;
  state->committed_version = 1ull << 40;
  state->next_version = (1ull << 40) + 1;
  state->torn = 1;
  return WEIGHTCAST_OK;
}
static int server_commit(weightcast_server* s, uint64_t version, double* stall_ms) {
  *stall_ms = 1.5;
  return s == &server && version == (1ull << 40) + 1 ? WEIGHTCAST_OK : WEIGHTCAST_INVALID_ARGUMENT;
}
static void server_close(weightcast_server* s) { (void)s; }

static const weightcast_api api = {
    .struct_size = sizeof(weightcast_api),
    .abi_version = WEIGHTCAST_ABI_VERSION,
    .version = "9.8.7",
    .last_error = last_error,
    .free_text = (void (*)(char*))free,
    .set_log = set_log,
    .trainer_open = trainer_open,
    .trainer_wait_connected = trainer_wait_connected,
    .trainer_push = trainer_push,
    .trainer_wait = trainer_wait,
    .trainer_close = trainer_close,
    .server_open = server_open,
    .server_wait_connected = server_wait_connected,
    .server_state = server_state,
    .server_commit = server_commit,
    .server_close = server_close,
};

const weightcast_api* weightcast_get(uint32_t abi_version) {
  return abi_version == WEIGHTCAST_ABI_VERSION ? &api : NULL;
}

/* "field offset" lines of both structures, in the order of the header. */
#define OFFSET(type, field) n += snprintf(text + n, sizeof text - n, #field " %zu\n", __builtin_offsetof(type, field));
__attribute__((visibility("default"))) const char* offsets(void) {
  static char text[4096];
  size_t n = 0;
  OFFSET(weightcast_server_state, struct_size)
  OFFSET(weightcast_server_state, phase)
  OFFSET(weightcast_server_state, committed_version)
  OFFSET(weightcast_server_state, next_version)
  OFFSET(weightcast_server_state, torn)
  OFFSET(weightcast_api, struct_size)
  OFFSET(weightcast_api, abi_version)
  OFFSET(weightcast_api, version)
  OFFSET(weightcast_api, last_error)
  OFFSET(weightcast_api, free_text)
  OFFSET(weightcast_api, set_log)
  OFFSET(weightcast_api, controller_open)
  OFFSET(weightcast_api, controller_status)
  OFFSET(weightcast_api, controller_close)
  OFFSET(weightcast_api, trainer_open)
  OFFSET(weightcast_api, trainer_wait_connected)
  OFFSET(weightcast_api, trainer_push)
  OFFSET(weightcast_api, trainer_wait)
  OFFSET(weightcast_api, trainer_status)
  OFFSET(weightcast_api, trainer_close)
  OFFSET(weightcast_api, server_open)
  OFFSET(weightcast_api, server_wait_connected)
  OFFSET(weightcast_api, server_event_fd)
  OFFSET(weightcast_api, server_state)
  OFFSET(weightcast_api, server_wait)
  OFFSET(weightcast_api, server_allow)
  OFFSET(weightcast_api, server_staged)
  OFFSET(weightcast_api, server_commit)
  OFFSET(weightcast_api, server_status)
  OFFSET(weightcast_api, server_close)
  n += snprintf(text + n, sizeof text - n, "sizes %zu %zu\n", sizeof(weightcast_server_state), sizeof(weightcast_api));
  return text;
}
