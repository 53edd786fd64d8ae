// What senders say over the fabric itself: "these bytes of this version are with you" and the amax values of
// blocks that straddle shards. Fixed little-endian layouts. They arrive from a port that authenticates nobody:
// parse() checks lengths, the token that came over the control plane says whether they belong here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <variant>

#include "quant/digest.h"
#include "schedule/catalog.h"

namespace weightcast {

// From a trainer, or from a server that passes on, to a server, after a flush: some of what the table says that this
// pair moves has arrived. See ExpectedSender::signals.
struct Signal {
  std::uint64_t token = 0;  // of the attempt, see Begin
  std::uint64_t version = 0;
  Role role = Role::trainer;  // of the sender
  std::uint32_t sender = 0;   // its rank
  std::uint32_t server = 0;
  std::uint32_t ordinal = 0;  // of this signal among those of its pair, from 0; they arrive in any order
  std::uint64_t bytes = 0;    // that it covers
  Digest digest = 0;          // of these bytes
  friend bool operator==(const Signal&, const Signal&) = default;
};

// Trainer to trainer: the values of one AmaxMessage, in its order.
struct AmaxValues {
  std::uint64_t token = 0;
  std::uint32_t from = 0;
  std::uint32_t to = 0;
  std::span<const std::byte> values;  // float32, unaligned; a view into the parsed message
};

inline constexpr std::size_t kSignalBytes = 48;
inline constexpr std::size_t kAmaxHeaderBytes = 24;

[[nodiscard]] std::array<std::byte, kSignalBytes> encode(const Signal& signal) noexcept;
// Writes the header of a message whose values follow it; `message` has at least kAmaxHeaderBytes.
void encode_amax_header(std::span<std::byte> message, std::uint64_t token, std::uint32_t from,
                        std::uint32_t to) noexcept;

using FabricMessage = std::variant<std::monostate, Signal, AmaxValues>;
// std::monostate: not a message of ours.
[[nodiscard]] FabricMessage parse_fabric_message(std::span<const std::byte> bytes) noexcept;

}  // namespace weightcast
