// The messages of the control plane: what they carry and how they look as bytes. Values and pure functions.
// States and orders are in plugin/PROTOCOL.md; who may send what is may_send().
//
// On the wire a message is a CBOR map {"protocol": 2, "type": "...", fields...}, at most kMaxControlBytes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "schedule/catalog.h"
#include "transport/base/status.h"
#include "transport/control.h"

namespace weightcast {

inline constexpr std::uint32_t kProtocolVersion = 2;

struct RankKey {
  Role role = Role::trainer;
  std::uint32_t rank = 0;
  friend auto operator<=>(const RankKey&, const RankKey&) = default;
};
[[nodiscard]] std::string to_string(const RankKey& key);  // "trainer 2"

// ---- member to controller ----

// First of all, and again whenever a controller asks (Rejoin). Sent only when no put of the sender is in flight, so a
// join is also a proof of quiescence.
struct Join {
  std::string run;
  Role role = Role::trainer;
  std::uint32_t rank = 0;
  std::uint64_t incarnation = 0;     // random, of this process; never 0
  std::string catalog;               // JSON, without addresses
  std::uint64_t catalog_digest = 0;  // as the sender computed it: both sides must understand the same
  std::string landing;               // a server's: "staged" or "in_place"
  std::string node;                  // ranks that name the same one share a host
  std::uint64_t nic_mbs = 0;         // MB/s of this rank's NICs; 0: unknown
  std::uint64_t nvlink_mbs = 0;      // MB/s to the other ranks of its node; 0: there is none
  std::uint64_t committed_version = 0;
  std::uint64_t ready_version = 0;    // a server's that is verified but not committed; 0: none
  std::uint64_t decided_version = 0;  // a server's that it was told to commit, which nothing takes back; 0: none
  bool torn = false;
};
// Where region i of the catalog lies in the card: its landing memory (a shadow, or the live regions).
struct Placement {
  std::uint32_t card_region = 0;
  std::uint64_t byte_offset = 0;
};
// The fabric is up. Sent after Welcome, and again when a server has taken a new shadow.
struct CardOffer {
  std::vector<std::uint8_t> card;
  std::vector<Placement> placements;  // one per region of the catalog; empty on a trainer
};
struct Connected {
  std::uint64_t generation = 0;
  double first_contact_s = 0;
  std::vector<std::string> paths;  // "server 1 over posix"
};
struct Heartbeat {
  std::uint64_t sent_ms = 0;     // the member's own clock; echoed
  std::uint64_t bytes_done = 0;  // of the update under way
};
struct Pushed {
  std::uint64_t version = 0;
};
// What concerns one attempt at a version carries the attempt's token (of Begin and Go), so that a late answer to an
// attempt that has ended never counts for the next one, which may be of the same version.
struct Armed {  // a server: the landing memory is free for this version
  std::uint64_t version = 0;
  std::uint64_t token = 0;
};
struct Sent {  // a trainer: every byte and signal is out, none in flight
  std::uint64_t version = 0;
  std::uint64_t token = 0;
  std::uint64_t bytes = 0;
  double seconds = 0;       // go to last flush
  double cast_seconds = 0;  // summed over the cast threads
};
struct Ready {  // a server: every byte landed and matched, and what it passes on is passed on
  std::uint64_t version = 0;
  std::uint64_t token = 0;
  std::uint64_t bytes = 0;
  double verify_seconds = 0;
};
struct Committed {
  std::uint64_t version = 0;
  double stall_ms = 0;
};
struct Quiesced {  // a sender, after Abort: none of its puts of this attempt is in flight
  std::uint64_t version = 0;
  std::uint64_t token = 0;
};
struct PeerLost {  // a sender: its endpoint to this rank failed
  Role role = Role::server;
  std::uint32_t rank = 0;
  std::string cause;
};
struct Failed {               // this update cannot go on; `text` is worded by the one who decided
  std::uint64_t version = 0;  // 0: not about an update
  std::uint64_t token = 0;
  Code code = Code::internal;
  std::string text;
};
struct Leave {};

// ---- controller to member ----

struct Refused {  // a join, and the member gives up; once welcomed the whole run, which a server outlives
  Code code = Code::refused;
  std::string text;
};
struct Welcome {
  std::uint64_t controller = 0;  // its incarnation
};
struct Rejoin {};  // this controller does not know you, or has counted you dead
struct PeerCard {
  Role role = Role::server;
  std::uint32_t rank = 0;
  std::uint64_t incarnation = 0;
  std::vector<std::uint8_t> card;
  std::vector<Placement> placements;
};
struct TableOffer {
  std::uint64_t generation = 0;     // of the plan
  std::vector<std::uint8_t> table;  // of this rank, see schedule/plan.h
  std::vector<PeerCard> peers;      // whom this rank puts or sends to; to a server also, without cards, who puts to it
  // To servers: the incarnations of senders that are known to have no put in flight. A server into which another one
  // may have been putting opens another fabric.
  std::vector<std::uint64_t> quiet;
};
struct Begin {  // to servers: prepare to receive
  std::uint64_t version = 0;
  std::uint64_t token = 0;  // names this attempt; signals and amax messages on the fabric must carry it
};
struct Go {  // to trainers: every server is armed
  std::uint64_t version = 0;
  std::uint64_t token = 0;
};
struct Echo {
  std::uint64_t sent_ms = 0;  // of the heartbeat that it answers
};
struct Commit {
  std::uint64_t version = 0;
};
struct Abort {
  std::uint64_t version = 0;
  std::uint64_t token = 0;  // 0: no attempt had begun, or this controller does not know which
  Code code = Code::aborted;
  std::string text;
  bool again = false;  // to trainers: keep the source as it is, the version is tried again by another plan
};
struct Drop {  // to senders: stop putting to these servers; the update goes on without them
  std::vector<std::uint32_t> servers;
};
struct Done {
  std::uint64_t version = 0;
  std::string report;  // JSON
};

using Message =
    std::variant<Join, CardOffer, Connected, Heartbeat, Pushed, Armed, Sent, Ready, Committed, Quiesced, PeerLost,
                 Failed, Leave, Refused, Welcome, Rejoin, TableOffer, Begin, Go, Echo, Commit, Abort, Drop, Done>;

[[nodiscard]] std::string_view type_of(const Message& message) noexcept;  // "join", "card_offer", ...

enum class Party : std::uint8_t { trainer, server, controller };
[[nodiscard]] bool may_send(Party party, const Message& message);

[[nodiscard]] ControlBytes encode(const Message& message);
// Every field is checked for type, size and range before use; unknown fields are refused; nesting is bounded.
// Throws Error: refused for another protocol version, invalid_argument otherwise; the text names the field.
[[nodiscard]] Message decode_message(std::span<const std::uint8_t> bytes);

}  // namespace weightcast
