// Which fields each message has and what each may hold: one description, read by the encoder and by the decoder.
// For messages.cpp alone.
//
// A visitor has these functions, each with the field's name and the field itself:
//   natural(name, value, least, most), seconds(name, value), flag(name, value), role(name, value), code(name, value),
//   token(name, text, allowed): a word of the program's own, one of `allowed`
//   run(name, text): the name of a run
//   document(name, text): JSON; checked by whoever parses it
//   words(name, text): for people; shortened by the encoder where it is too long
//   octets(name, bytes, most_bytes)
//   list(name, items, most_items): of words, ranks, incarnations, placements, or of objects that have fields themselves
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string_view>

#include "plugin/messages.h"

namespace weightcast {

inline constexpr std::uint64_t kMaxNumber = std::numeric_limits<std::uint64_t>::max();
inline constexpr std::uint64_t kMaxRank = (1U << 20U) - 1;
inline constexpr std::uint64_t kMaxRegions = 1U << 20U;
inline constexpr std::uint64_t kMaxPeers = 1U << 16U;
inline constexpr std::uint64_t kMaxCardBytes = 16 * MiB;
inline constexpr std::uint64_t kMaxBytes = 1ULL << 60U;  // of an update, or an offset
inline constexpr std::size_t kMaxWordsBytes = 16 * KiB;
inline constexpr std::array<std::string_view, 3> kLandings = {"", "staged", "in_place"};

// M is the type named, const for the encoder.
template <class M, class Named>
concept Is = std::same_as<std::remove_const_t<M>, Named>;

template <class V, Is<Join> M>
void fields(V& v, M& join) {
  v.run("run", join.run);
  v.role("role", join.role);
  v.natural("rank", join.rank, 0, kMaxRank);
  v.natural("incarnation", join.incarnation, 1, kMaxNumber);
  v.document("catalog", join.catalog);
  v.natural("catalog_digest", join.catalog_digest, 0, kMaxNumber);
  v.token("landing", join.landing, kLandings);
  v.words("node", join.node);
  v.natural("nic_mbs", join.nic_mbs, 0, kMaxBytes);
  v.natural("nvlink_mbs", join.nvlink_mbs, 0, kMaxBytes);
  v.natural("committed_version", join.committed_version, 0, kMaxNumber);
  v.natural("ready_version", join.ready_version, 0, kMaxNumber);
  v.natural("decided_version", join.decided_version, 0, kMaxNumber);
  v.flag("torn", join.torn);
}
template <class V, Is<CardOffer> M>
void fields(V& v, M& offer) {
  v.octets("card", offer.card, kMaxCardBytes);
  v.list("placements", offer.placements, kMaxRegions);
}
template <class V, Is<Connected> M>
void fields(V& v, M& connected) {
  v.natural("generation", connected.generation, 1, kMaxNumber);
  v.seconds("first_contact_s", connected.first_contact_s);
  v.list("paths", connected.paths, kMaxPeers);
}
template <class V, Is<Heartbeat> M>
void fields(V& v, M& heartbeat) {
  v.natural("sent_ms", heartbeat.sent_ms, 0, kMaxNumber);
  v.natural("bytes_done", heartbeat.bytes_done, 0, kMaxBytes);
}
template <class V, Is<Sent> M>
void fields(V& v, M& sent) {
  v.natural("version", sent.version, 1, kMaxNumber);
  v.natural("token", sent.token, 1, kMaxNumber);
  v.natural("bytes", sent.bytes, 0, kMaxBytes);
  v.seconds("seconds", sent.seconds);
  v.seconds("cast_seconds", sent.cast_seconds);
}
template <class V, Is<Ready> M>
void fields(V& v, M& ready) {
  v.natural("version", ready.version, 1, kMaxNumber);
  v.natural("token", ready.token, 1, kMaxNumber);
  v.natural("bytes", ready.bytes, 0, kMaxBytes);
  v.seconds("verify_seconds", ready.verify_seconds);
}
template <class V, Is<Committed> M>
void fields(V& v, M& committed) {
  v.natural("version", committed.version, 1, kMaxNumber);
  v.seconds("stall_ms", committed.stall_ms);
}
// Nothing but the version that they speak of.
template <class M>
concept VersionOnly = Is<M, Pushed> || Is<M, Commit>;
template <class V, VersionOnly M>
void fields(V& v, M& message) {
  v.natural("version", message.version, 1, kMaxNumber);
}
template <class M>
concept Empty = Is<M, Leave> || Is<M, Rejoin>;
template <class V, Empty M>
void fields(V& /*v*/, M& /*message*/) {}
template <class V, Is<PeerLost> M>
void fields(V& v, M& lost) {
  v.role("role", lost.role);
  v.natural("rank", lost.rank, 0, kMaxRank);
  v.words("cause", lost.cause);
}
template <class V, Is<Failed> M>
void fields(V& v, M& failed) {
  v.natural("version", failed.version, 0, kMaxNumber);
  v.natural("token", failed.token, 0, kMaxNumber);
  v.code("code", failed.code);
  v.words("text", failed.text);
}
template <class V, Is<Refused> M>
void fields(V& v, M& refused) {
  v.code("code", refused.code);
  v.words("text", refused.text);
}
template <class V, Is<Welcome> M>
void fields(V& v, M& welcome) {
  v.natural("controller", welcome.controller, 1, kMaxNumber);
}
template <class V, Is<PeerCard> M>
void fields(V& v, M& peer) {
  v.role("role", peer.role);
  v.natural("rank", peer.rank, 0, kMaxRank);
  v.natural("incarnation", peer.incarnation, 1, kMaxNumber);
  v.octets("card", peer.card, kMaxCardBytes);
  v.list("placements", peer.placements, kMaxRegions);
}
template <class V, Is<TableOffer> M>
void fields(V& v, M& offer) {
  v.natural("generation", offer.generation, 1, kMaxNumber);
  v.octets("table", offer.table, kMaxControlBytes);
  v.list("peers", offer.peers, kMaxPeers);
  v.list("quiet", offer.quiet, kMaxPeers);
}
template <class M>
concept Attempt = Is<M, Armed> || Is<M, Begin> || Is<M, Go>;
template <class V, Attempt M>
void fields(V& v, M& attempt) {
  v.natural("version", attempt.version, 1, kMaxNumber);
  v.natural("token", attempt.token, 1, kMaxNumber);
}
template <class V, Is<Quiesced> M>
void fields(V& v, M& quiesced) {
  v.natural("version", quiesced.version, 1, kMaxNumber);
  v.natural("token", quiesced.token, 0, kMaxNumber);
}
template <class V, Is<Echo> M>
void fields(V& v, M& echo) {
  v.natural("sent_ms", echo.sent_ms, 0, kMaxNumber);
}
template <class V, Is<Abort> M>
void fields(V& v, M& abort) {
  v.natural("version", abort.version, 1, kMaxNumber);
  v.natural("token", abort.token, 0, kMaxNumber);
  v.code("code", abort.code);
  v.words("text", abort.text);
  v.flag("again", abort.again);
}
template <class V, Is<Drop> M>
void fields(V& v, M& drop) {
  v.list("servers", drop.servers, kMaxRank + 1);
}
template <class V, Is<Done> M>
void fields(V& v, M& done) {
  v.natural("version", done.version, 1, kMaxNumber);
  v.document("report", done.report);
}

}  // namespace weightcast
