#include "transport/ucx/settings.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace weightcast {

std::vector<UcxSetting> ucx_settings(const FabricOptions& options) {
  // sysv leaves segments behind after a kill; knem and xpmem need modules that nobody tested with this.
  const char* transports = options.same_host_shortcuts ? "^sysv,knem,xpmem" : "^sysv,knem,xpmem,posix,cma,cuda_ipc";
  return {
      {"TLS", transports},
      {"NET_DEVICES", options.interfaces.empty() ? "all" : fmt::format("{}", fmt::join(options.interfaces, ","))},
      // With rendezvous on, error mode PEER asks for lanes whose rights can be revoked: tcp has none, and puts
      // would silently become messages.
      {"RNDV_THRESH", "inf"},
      {"PROTO_EMULATION_ENABLE", options.allow_emulation ? "y" : "n"},
      // Without it posix offers no peer-failure handler and drops out under error mode PEER.
      {"POSIX_ERROR_HANDLING", "y", false},
      {"ALLOC_PRIO", options.same_host_shortcuts ? "md:posix,md:*" : "mmap,md:*"},
      {"KEEPALIVE_INTERVAL", "1s"},
      // A cable pulled is noticed in about three seconds instead of minutes.
      {"TCP_USER_TIMEOUT", "3s", false},
      {"TCP_KEEPIDLE", "1s", false},
      {"TCP_KEEPINTVL", "1s", false},
      {"TCP_KEEPCNT", "3", false},
      // UCX rates cma above posix and would copy through the kernel, at half the speed, into memory it can store to.
      {"CMA_BW", "3000MBps", false},
      {"MAX_RMA_RAILS", "2", false},
      // The start of a put that arrives with its header is copied once more: as little of it as UCX admits.
      {"TCP_RX_SEG_SIZE", "8k", false},
  };
}

}  // namespace weightcast
