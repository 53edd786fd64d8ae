// The UCX library of this process: found, checked and bound at run time, once, and never unloaded. Calls go through
// the table that ucx() returns: `ucx().ucp_put_nbx(...)`.
#pragma once

#include <ucp/api/ucp.h>

#include <string>

#include "transport/base/status.h"

namespace weightcast {

// Functions that any UCX of kMinimumUcx or newer has.
#define WEIGHTCAST_UCP_FUNCTIONS(X) \
  X(ucp_get_version)                \
  X(ucp_get_version_string)         \
  X(ucp_config_read)                \
  X(ucp_config_modify)              \
  X(ucp_config_release)             \
  X(ucp_init_version)               \
  X(ucp_cleanup)                    \
  X(ucp_context_print_info)         \
  X(ucp_worker_create)              \
  X(ucp_worker_destroy)             \
  X(ucp_worker_progress)            \
  X(ucp_worker_arm)                 \
  X(ucp_worker_get_efd)             \
  X(ucp_worker_query)               \
  X(ucp_worker_release_address)     \
  X(ucp_worker_set_am_recv_handler) \
  X(ucp_ep_create)                  \
  X(ucp_ep_close_nbx)               \
  X(ucp_ep_flush_nbx)               \
  X(ucp_ep_print_info)              \
  X(ucp_ep_rkey_unpack)             \
  X(ucp_rkey_destroy)               \
  X(ucp_rkey_ptr)                   \
  X(ucp_rkey_pack)                  \
  X(ucp_rkey_buffer_release)        \
  X(ucp_mem_map)                    \
  X(ucp_mem_query)                  \
  X(ucp_mem_unmap)                  \
  X(ucp_put_nbx)                    \
  X(ucp_get_nbx)                    \
  X(ucp_am_send_nbx)                \
  X(ucp_request_check_status)       \
  X(ucp_request_free)

struct UcxFunctions {
#define WEIGHTCAST_MEMBER(name) decltype(&::name) name = nullptr;
  WEIGHTCAST_UCP_FUNCTIONS(WEIGHTCAST_MEMBER)
#undef WEIGHTCAST_MEMBER
  decltype(&::ucs_status_string) ucs_status_string = nullptr;
};

inline constexpr unsigned kMinimumUcxMajor = 1;
inline constexpr unsigned kMinimumUcxMinor = 21;

// Finds and binds UCX, the first time; later calls must ask for the same library. Search order: `wanted` if not
// empty; the environment's WEIGHTCAST_UCX_LIBRARY; the wheel libucx beside `library_folder` or in $VIRTUAL_ENV;
// the one this tree was built against; the system's. Throws Error (unavailable, refused).
void bind_ucx(const std::string& wanted, const std::string& library_folder);

// After bind_ucx().
[[nodiscard]] const UcxFunctions& ucx() noexcept;
[[nodiscard]] const std::string& ucx_path() noexcept;  // of the libucp bound

[[nodiscard]] inline std::string ucx_text(ucs_status_t status) { return ucx().ucs_status_string(status); }

}  // namespace weightcast
