#include "transport/ucx/entry.h"

#include <cstring>

#include "transport/ucx/ucx_fabric.h"

namespace weightcast {
namespace {
LogOfHost host_log;
}  // namespace

// This library has no log of its own: base/log.h forwards to the one that loaded it.
bool log_enabled(LogLevel level) noexcept { return host_log.enabled != nullptr && host_log.enabled(level); }
void write_log_line(LogLevel level, std::string_view line) noexcept { host_log.write_line(level, line); }

}  // namespace weightcast

extern "C" __attribute__((visibility("default"))) weightcast::Fabric* weightcast_open_ucx_fabric(
    const weightcast::UcxEntryArguments& arguments) {
  using namespace weightcast;
  if (std::strcmp(arguments.build_version, WEIGHTCAST_VERSION) != 0) return nullptr;
  host_log = arguments.log;
  bind_ucx(arguments.options->ucx_library, arguments.library_folder);
  return new UcxFabric(*arguments.options, *arguments.listener);
}
