// The one symbol of libweightcast_ucx.so. Both sides come from one build: C++ types cross here, so the version
// text must be equal, and open_fabric() refuses a library of another build.
#pragma once

#include <string_view>

#include "transport/base/log.h"
#include "transport/fabric.h"

namespace weightcast {

// The log of the library that loads this one: two copies of the log's state would disagree about level and name.
struct LogOfHost {
  bool (*enabled)(LogLevel) noexcept = nullptr;
  void (*write_line)(LogLevel, std::string_view) noexcept = nullptr;
};

struct UcxEntryArguments {
  const char* build_version = nullptr;  // both pass WEIGHTCAST_VERSION of their build
  LogOfHost log;
  const char* library_folder = nullptr;  // where the loading library lies; a wheel's UCX is looked for beside it
  const FabricOptions* options = nullptr;
  FabricListener* listener = nullptr;
};

inline constexpr const char* kUcxEntrySymbol = "weightcast_open_ucx_fabric";
// Returns a new Fabric, owned by the caller; null when the versions differ; throws Error.
using OpenUcxFabric = Fabric*(const UcxEntryArguments&);

}  // namespace weightcast
