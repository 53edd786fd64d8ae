/* The C interface from C: the header is C11, the library answers, and bad arguments are refused in words. */
#include <stdio.h>
#include <string.h>

#include "plugin/weightcast.h"

static int failures = 0;

#define CHECK(claim)                                              \
  do {                                                            \
    if (!(claim)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #claim); \
      ++failures;                                                 \
    }                                                             \
  } while (0)

static void check_refused(const weightcast_api* api, int code, const char* word) {
  CHECK(code == WEIGHTCAST_INVALID_ARGUMENT);
  CHECK(strstr(api->last_error(), word) != NULL);
}

int main(void) {
  const weightcast_api* api = weightcast_get(WEIGHTCAST_ABI_VERSION);
  CHECK(weightcast_get(WEIGHTCAST_ABI_VERSION + 1) == NULL);
  CHECK(api != NULL);
  if (api == NULL) return 1;
  CHECK(api->struct_size == sizeof(weightcast_api));
  CHECK(api->abi_version == WEIGHTCAST_ABI_VERSION);
  CHECK(strcmp(api->version, WEIGHTCAST_VERSION) == 0);

  weightcast_trainer* trainer = NULL;
  weightcast_server* server = NULL;
  char* text = NULL;
  check_refused(api, api->trainer_open(NULL, "{}", &trainer), "NULL");
  check_refused(api, api->trainer_open("{\"chunk\": 1}", "{}", &trainer), "chunk");
  check_refused(api, api->server_open("{}", "not JSON", &server), "catalog");
  check_refused(api, api->server_status(NULL, &text), "NULL");
  CHECK(trainer == NULL && server == NULL && text == NULL);

  api->free_text(NULL);
  api->controller_close(NULL);
  api->trainer_close(NULL);
  api->server_close(NULL);
  return failures != 0;
}
