/* weightcast's C interface: what inference engines (server), trainers and launchers (controller) call.
 *
 *   const weightcast_api* wc = weightcast_get(WEIGHTCAST_ABI_VERSION);   // NULL: this library is older
 *   weightcast_trainer* trainer;
 *   if (wc->trainer_open(config_json, catalog_json, &trainer)) puts(wc->last_error());
 *
 * Conventions
 *   Results      0 (WEIGHTCAST_OK) or a weightcast_code; the text is last_error() of the same thread. Out-parameters
 *                are written on success only.
 *   Text in      JSON, UTF-8, zero-terminated, copied during the call. Configuration: schedule/config.schema.json.
 *                Catalog: schedule/FORMATS.md, with the addresses of its regions.
 *   Text out     `char**` receives JSON that the caller gives back with free_text().
 *   Memory       The regions a catalog names stay valid and in place until the handle is closed.
 *   Threads      Any thread may call; calls on one handle may overlap. Nothing ever calls back into the host: a
 *                server's event descriptor and bounded waits are all that it sees.
 *   Waits        `wait_ms` bounds the call; WEIGHTCAST_TIMED_OUT says what was waited for and changes nothing.
 *   Processes    One trainer or server handle per process. Fork before opening, not after. Never dlclose().
 *   Growth       Later versions append to weightcast_api; check struct_size before using what a newer header adds.
 */
#ifndef WEIGHTCAST_H
#define WEIGHTCAST_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WEIGHTCAST_ABI_VERSION 1u

typedef enum weightcast_code {
  WEIGHTCAST_OK = 0,
  WEIGHTCAST_INVALID_ARGUMENT = 1, /* the caller's input: configuration, catalog, call order */
  WEIGHTCAST_REFUSED = 2,          /* a rule says no: secret, role, protocol version, lease, emulation */
  WEIGHTCAST_UNAVAILABLE = 3,      /* something on this machine is missing: library, permission, space */
  WEIGHTCAST_UNREACHABLE = 4,      /* a peer is dead, stopped, or was never there */
  WEIGHTCAST_TIMED_OUT = 5,        /* a bounded wait ended; the text says what it waited for */
  WEIGHTCAST_CORRUPTED = 6,        /* bytes are not what they must be: digest, plan proof, NaN or Inf */
  WEIGHTCAST_ABORTED = 7,          /* the update was given up; servers keep their committed version */
  WEIGHTCAST_INTERNAL = 8          /* a defect of weightcast */
} weightcast_code;

/* What a server rank is doing. */
typedef enum weightcast_phase {
  WEIGHTCAST_CONNECTING = 0, /* joining, or waiting for other ranks or for a controller */
  WEIGHTCAST_IDLE = 1,       /* serving; no update under way */
  WEIGHTCAST_ALLOW_DUE = 2,  /* in_place only: pause the engine, then call server_allow() */
  WEIGHTCAST_RECEIVING = 3,  /* trainers are putting, or landed bytes are being verified */
  WEIGHTCAST_READY = 4,      /* verified; waiting for the other ranks of the replica */
  WEIGHTCAST_COMMIT_DUE = 5, /* decided: call server_commit() between two forward passes */
  WEIGHTCAST_FAILED = 6      /* this handle does nothing any more; server_state() gave the reason as an error */
} weightcast_phase;

typedef struct weightcast_server_state {
  uint32_t struct_size;       /* set by the caller to sizeof(weightcast_server_state) */
  uint32_t phase;             /* weightcast_phase */
  uint64_t committed_version; /* what the live weights are; 0: what the engine loaded itself */
  uint64_t next_version;      /* the version that phases 2 to 5 are about; else 0 */
  uint32_t torn;              /* 1: live weights are a mix (in_place, update not finished): do not serve */
} weightcast_server_state;

typedef struct weightcast_controller weightcast_controller;
typedef struct weightcast_trainer weightcast_trainer;
typedef struct weightcast_server weightcast_server;

typedef struct weightcast_api {
  uint32_t struct_size;
  uint32_t abi_version;
  const char* version; /* of the library, "0.1.0" */

  /* ---- texts ---- */
  const char* (*last_error)(void); /* of this thread's last failed call; valid until its next call */
  void (*free_text)(char* text);   /* NULL is allowed */
  /* Log lines go to `fd` (borrowed; 2 by default). level: "error", "warning", "info", "debug". */
  int (*set_log)(int fd, const char* level);

  /* ---- controller: a process of its own; by default trainer 0 runs one inside (controller.embedded) ---- */
  int (*controller_open)(const char* config_json, weightcast_controller** controller);
  /* {"state", "version", "address", "members": [...], "update": {...}}; see plugin/PROTOCOL.md. */
  int (*controller_status)(weightcast_controller* controller, char** status_json);
  void (*controller_close)(weightcast_controller* controller); /* NULL is allowed, as for every close */

  /* ---- trainer ---- */
  /* Joins the controller and returns; connecting goes on in the background. */
  int (*trainer_open)(const char* config_json, const char* catalog_json, weightcast_trainer** trainer);
  /* Until every rank has joined, the plan is proved and this rank is connected: the end of first contact. */
  int (*trainer_wait_connected)(weightcast_trainer* trainer, uint32_t wait_ms);
  /* Offers the weights that stand in the catalog's regions as `version` (above every earlier one). Every trainer
   * pushes the same version. Returns when the source may change again: all its bytes have left or the update has
   * ended; the servers may still be verifying. Bounded by times.update_ms. */
  int (*trainer_push)(weightcast_trainer* trainer, uint64_t version);
  /* Until `version` is committed everywhere it can be, or given up (WEIGHTCAST_ABORTED). The report is one JSON
   * object: bytes, first_contact_s, transfer_s, stall_ms, control_bytes, servers, ...; see plugin/PROTOCOL.md. */
  int (*trainer_wait)(weightcast_trainer* trainer, uint64_t version, uint32_t wait_ms, char** report_json);
  int (*trainer_status)(weightcast_trainer* trainer, char** status_json);
  void (*trainer_close)(weightcast_trainer* trainer);

  /* ---- server: one rank of an inference engine ---- */
  /* Takes the shadow memory (landing "staged"), joins and returns. Call it before the engine sizes its KV cache. */
  int (*server_open)(const char* config_json, const char* catalog_json, weightcast_server** server);
  int (*server_wait_connected)(weightcast_server* server, uint32_t wait_ms);
  /* Readable when the phase has changed since the last server_state(). Owned by the handle; poll, do not read. */
  int (*server_event_fd)(weightcast_server* server, int* fd);
  /* Never waits: cheap enough for every engine step. In WEIGHTCAST_FAILED, returns the reason instead. */
  int (*server_state)(weightcast_server* server, weightcast_server_state* state);
  /* Until the phase is `phase`, or `next_version` ended without it (WEIGHTCAST_ABORTED). */
  int (*server_wait)(weightcast_server* server, uint32_t phase, uint32_t wait_ms, weightcast_server_state* state);
  /* in_place: the engine is paused and the live weights may be overwritten with `version`. */
  int (*server_allow)(weightcast_server* server, uint64_t version);
  /* Between ready and commit: where the new bytes stand, one object per catalog entry {"tensor", "parameter",
   * "entry", "address", "shape", "strides_bytes", "dtype", "landing"}, for an engine's own post-processing.
   * Entries of landing class staged_repair are copied by the host, all others by server_commit(). */
  int (*server_staged)(weightcast_server* server, uint64_t version, char** extents_json);
  /* Switches the live weights to `version`; call it in WEIGHTCAST_COMMIT_DUE, between two forward passes. When it
   * returns the switch is done. `stall_ms` (may be NULL): how long it took. */
  int (*server_commit)(weightcast_server* server, uint64_t version, double* stall_ms);
  int (*server_status)(weightcast_server* server, char** status_json);
  void (*server_close)(weightcast_server* server);
} weightcast_api;

#if defined(_WIN32)
#error "weightcast runs on Linux"
#endif
/* The only exported symbol. NULL when this library does not speak `abi_version`. Never fails otherwise. */
__attribute__((visibility("default"))) const weightcast_api* weightcast_get(uint32_t abi_version);

#ifdef __cplusplus
}
#endif

#endif
