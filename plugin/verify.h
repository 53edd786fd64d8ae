// The server's proof that what landed is what was sent: the digest of each sender's pieces, recomputed over the
// landed bytes. Pure; reads the landing memory once.
#pragma once

#include <cstdint>
#include <span>

#include "plugin/landing.h"
#include "plugin/signal.h"
#include "schedule/plan.h"

namespace weightcast {

// `signals` are those of `table.senders`, in that order. Code::corrupted names the first sender that does not match.
[[nodiscard]] Status verify_landed(const Catalog& catalog, const ServerTable& table, const LandingMemory& landing,
                                   std::uint64_t version, std::span<const Signal> signals);

}  // namespace weightcast
