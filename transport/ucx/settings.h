// Which UCX settings a fabric runs with: a pure function of its options. See transport/ucx/README.md for the reasons.
#pragma once

#include <string>
#include <vector>

#include "transport/fabric.h"

namespace weightcast {

struct UcxSetting {
  std::string name;  // without the prefix UCX_
  std::string value;
  bool required = true;  // false: an older or smaller UCX may not know it
};

[[nodiscard]] std::vector<UcxSetting> ucx_settings(const FabricOptions& options);

}  // namespace weightcast
