// How this folder refuses what it was given. For its .cpp files.
#pragma once

#include <string>

#include "transport/base/status.h"

namespace weightcast {

// `what` names who, what and why.
[[noreturn]] inline void refuse(const std::string& what) { throw Error(Code::invalid_argument, what); }

}  // namespace weightcast
