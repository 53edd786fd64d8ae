// A plan after ranks have left or joined: only the steps that this concerns change.
#pragma once

#include <cstdint>

#include "schedule/plan.h"
#include "schedule/topology.h"

namespace weightcast {

// `plan` is that of the catalogs `before`. In `after` a rank that has left has no entries, one that has joined has some
// where there were none or stands behind the last; all others are as they were. What a lost server passed on is passed
// on by the next one of its node; a lost trainer's steps go, each as it stands, to the least busy one that holds the
// same; a server that has joined is sent what one with the same entries is. The other steps stay, bit for bit and in
// their order, so the tables of ranks that share no pair with the change stay too. Pure; linear in the steps, and in
// the entries of the ranks that have changed. Not balanced anew: bound.h says what a new plan would gain. Throws
// Error{invalid_argument} when somebody alone held what a lost trainer sent, when a rank that stayed has other entries,
// or when a server joins whose entries no other has: these need a new plan.
[[nodiscard]] Plan replan(Plan plan, const Catalogs& before, const Catalogs& after, const Topology& topology = {});

}  // namespace weightcast
