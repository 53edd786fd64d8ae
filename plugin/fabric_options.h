// The fabric's options from the configuration.
#pragma once

#include <thread>

#include "schedule/config.h"
#include "transport/fabric.h"

namespace weightcast {

[[nodiscard]] inline FabricOptions fabric_options(const Config& config) {
  FabricOptions options;
  options.ucx_library = config.fabric.ucx_library;
  options.interfaces = config.fabric.interfaces;
  options.allow_emulation = config.fabric.allow_emulation;
  options.same_host_shortcuts = config.fabric.same_host_shortcuts;
  options.window = config.performance.window;
  // A spinning progress thread takes a core of its own: only where cast and host threads keep theirs.
  constexpr unsigned kCoresToSpin = 8;
  options.spin = config.performance.spin == "always" ||
                 (config.performance.spin == "auto" && std::thread::hardware_concurrency() >= kCoresToSpin);
  return options;
}

}  // namespace weightcast
