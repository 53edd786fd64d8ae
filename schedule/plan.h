// The plan: the routing table of every update, computed once. Values only.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "quant/recipe.h"
#include "schedule/box.h"
#include "schedule/catalog.h"

namespace weightcast {

// Experts and layers repeat, so most tensors are held, taken and sent exactly as many others are. Such tensors are a
// family, and the plan speaks of families: a step is the same box of several tensors. A column says where one rank
// keeps them: its entry for the first tensor, for the second, and so on. Columns of one family list its tensors in one
// order.
using Column = std::vector<std::uint32_t>;  // indexes into the catalog of the rank that names the column

// A server that passes a destination on has received the bytes itself: it is a destination of the same step, and stands
// before those whom it serves. Within a node bytes are passed on over NVLink, else over the NICs.
struct Destination {
  std::uint32_t server = 0;            // rank
  std::uint32_t column = 0;            // of Plan::columns, in that server's catalog
  std::optional<std::uint32_t> relay;  // the server rank that passes it on; none: the trainer puts it there
  friend bool operator==(const Destination&, const Destination&) = default;
};

// One box of `count` tensors of a family, one after the other, each read and cast once by one trainer and put to every
// destination. All destinations share tensor, recipe and `frame` (their entries' common box, against which the digest
// counts), so one digest serves all. Tensor i of the step is at position first + i of the columns.
struct Step {
  std::uint32_t trainer = 0;
  std::uint32_t column = 0;  // of Plan::columns, in that trainer's catalog
  std::uint32_t first = 0;
  std::uint32_t count = 1;
  Box box;  // tensor coordinates, inside the entries' box
  Recipe recipe = Recipe::bf16;
  Box frame;
  std::vector<Destination> destinations;
  std::uint32_t chunks = 1;  // of each tensor: number of pieces of at most chunk_bytes; see chunks_of()
  bool needs_amax = false;   // some block straddles shards: waits for the exchange
  std::uint32_t signal = 0;  // always 0: what each signal covers is derived, see signals_of()
  friend bool operator==(const Step&, const Step&) = default;
};

// One trainer writes the scales of a box of blocks of `count` tensors. Exactly one owner writes each scale.
struct ScaleStep {
  std::uint32_t trainer = 0;
  std::uint32_t column = 0;  // the trainer's entries whose blocks these are
  std::uint32_t first = 0;
  std::uint32_t count = 1;
  Recipe recipe = Recipe::bf16;           // whose scales
  Box blocks;                             // block coordinates of the tensor
  Box frame;                              // the scale entries' common box, in blocks
  std::vector<Destination> destinations;  // their columns name entries that hold scales
  friend bool operator==(const ScaleStep&, const ScaleStep&) = default;
};

// Partial amax values of blocks that straddle shards, from one trainer to another, one message per pair: runs in
// order, row-major over each run's blocks. Exact, because a maximum is. `from` may equal `to`, when one trainer
// holds both parts in two entries: nothing is sent, the values are merged all the same.
struct AmaxRun {
  std::uint32_t from_column = 0;  // in the sender's catalog
  std::uint32_t to_column = 0;    // in the receiver's catalog: the entries whose cast needs it
  std::uint32_t first = 0;        // of the columns
  std::uint32_t count = 1;
  Recipe recipe = Recipe::bf16;  // whose blocks
  Box blocks;                    // block coordinates of the tensor
  friend bool operator==(const AmaxRun&, const AmaxRun&) = default;
};
struct AmaxExchange {
  std::uint32_t from = 0;  // trainer ranks
  std::uint32_t to = 0;
  std::vector<AmaxRun> runs;
  friend bool operator==(const AmaxExchange&, const AmaxExchange&) = default;
};

// Bytes of an update through the links of one server, scales included.
struct ServerLoad {
  std::uint64_t nic_in = 0;
  std::uint64_t nic_out = 0;     // passed on to other nodes
  std::uint64_t nvlink_in = 0;   // from servers of its node
  std::uint64_t nvlink_out = 0;  // passed on to servers of its node
  friend bool operator==(const ServerLoad&, const ServerLoad&) = default;
};

struct Plan {
  std::uint64_t catalogs_digest = 0;  // of all catalogs
  std::uint64_t chunk_bytes = 0;
  std::uint32_t receiver_credits = 0;  // how many senders may put to one server at a time; 0: any number
  std::vector<Column> columns;
  std::vector<Step> steps;  // each trainer's in the order of execution
  std::vector<ScaleStep> scale_steps;
  std::vector<AmaxExchange> amax;
  std::vector<std::uint64_t> trainer_bytes;  // out of each trainer, scales included
  std::vector<std::uint64_t> server_bytes;   // that each server takes: nic_in + nvlink_in
  std::vector<ServerLoad> server_loads;      // by rank
  friend bool operator==(const Plan&, const Plan&) = default;
};

struct Catalogs {
  std::vector<Catalog> trainers;  // by rank, without gaps
  std::vector<Catalog> servers;
};
// The sum of the digests of all: a rank that changes costs only its own.
[[nodiscard]] std::uint64_t digest_of(const Catalogs& catalogs);

// The pieces of a step's box, in the order of execution: whole rows where they fit, cut at blocks for recipes with
// scales and at 8-byte words of the frame's rows otherwise (and where blocks span an axis), so that their digests add
// up to the step's. Each is at most chunk_bytes of output unless one block row (one word) is more. chunk_bytes is not
// 0.
[[nodiscard]] std::vector<Box> chunks_of(const Box& box, const Box& frame, Recipe recipe, std::uint64_t chunk_bytes);
// chunks_of(...).size(), without making them.
[[nodiscard]] std::uint64_t count_chunks(const Box& box, const Box& frame, Recipe recipe, std::uint64_t chunk_bytes);

// ---- what one rank needs of it: the tables that the controller hands out ----

// Where a destination's box lies in the peer's card.
struct TargetExtent {
  std::uint32_t server = 0;
  std::uint32_t region = 0;
  std::uint64_t byte_offset = 0;  // of the first element of `frame`
  std::array<std::int64_t, kMaxAxes> strides_bytes{};
  friend bool operator==(const TargetExtent&, const TargetExtent&) = default;
};
// A step of one tensor, with its destinations as targets.
struct TrainerStep {
  std::uint32_t entry = 0;  // in the trainer's catalog
  Box box;
  Recipe recipe = Recipe::bf16;
  Box frame;
  std::uint32_t chunks = 1;
  bool needs_amax = false;
  std::uint32_t signal = 0;
  std::vector<TargetExtent> targets;
  friend bool operator==(const TrainerStep&, const TrainerStep&) = default;
};
struct TrainerScaleStep {
  std::uint32_t entry = 0;
  Recipe recipe = Recipe::bf16;
  Box blocks;
  Box frame;
  std::vector<TargetExtent> targets;
  friend bool operator==(const TrainerScaleStep&, const TrainerScaleStep&) = default;
};
// An exchange, tensor by tensor: the values of each part in order, row-major over its blocks.
struct AmaxPart {
  std::uint32_t from_entry = 0;  // in the sender's catalog
  std::uint32_t to_entry = 0;    // in the receiver's catalog
  Recipe recipe = Recipe::bf16;
  Box blocks;
  friend bool operator==(const AmaxPart&, const AmaxPart&) = default;
};
struct AmaxMessage {
  std::uint32_t from = 0;  // trainer ranks
  std::uint32_t to = 0;
  std::vector<AmaxPart> parts;
  friend bool operator==(const AmaxMessage&, const AmaxMessage&) = default;
};
struct TrainerTable {
  std::uint32_t trainer = 0;
  std::uint64_t chunk_bytes = 0;
  std::vector<TrainerStep> steps;
  std::vector<TrainerScaleStep> scale_steps;  // run after the steps of the same entry
  std::vector<AmaxMessage> amax_out;          // from == trainer
  std::vector<AmaxMessage> amax_in;           // to == trainer
  friend bool operator==(const TrainerTable&, const TrainerTable&) = default;
};

// A sender signals to each of its servers several times, so that a server verifies what has come, and passes it on,
// while the rest is on its way. What each signal of a trainer covers derives from the bytes of its pieces, in the order
// of the table (steps, then scale steps); a server's signals cover what it passes on of one signal that it got.
struct SignalExtent {
  std::size_t pieces = 0;
  std::uint64_t bytes = 0;
  friend bool operator==(const SignalExtent&, const SignalExtent&) = default;
};
[[nodiscard]] std::vector<SignalExtent> signals_of(std::span<const std::uint64_t> piece_bytes);

// What one sender writes to a server.
struct Piece {
  std::uint32_t entry = 0;  // in the server's catalog
  Box box;                  // tensor (or block) coordinates
  friend bool operator==(const Piece&, const Piece&) = default;
};
// A piece that is passed on, as it stands: to the same box of an entry with the same frame.
struct ForwardedPiece {
  std::uint32_t piece = 0;  // of the sender's
  TargetExtent to;
  friend bool operator==(const ForwardedPiece&, const ForwardedPiece&) = default;
};
// What a server passes on to another one as soon as it has verified a signal, with one signal of its own behind it.
struct Forward {
  std::uint32_t signal = 0;   // that is verified: ordinal among its sender's
  std::uint32_t server = 0;   // to whom
  std::uint32_t ordinal = 0;  // of the signal to that server, among those that this server sends it
  std::vector<ForwardedPiece> pieces;
  friend bool operator==(const Forward&, const Forward&) = default;
};
struct ExpectedSender {
  Role role = Role::trainer;
  std::uint32_t rank = 0;
  std::uint64_t bytes = 0;
  std::vector<Piece> pieces;          // signal by signal
  std::vector<SignalExtent> signals;  // by ordinal
  std::vector<Forward> forwards;      // by signal
  friend bool operator==(const ExpectedSender&, const ExpectedSender&) = default;
};
struct ServerTable {
  std::uint32_t server = 0;
  std::vector<ExpectedSender> senders;  // only those that send something; by role and rank
  friend bool operator==(const ServerTable&, const ServerTable&) = default;
};
[[nodiscard]] bool passes_on(const ServerTable& table);

[[nodiscard]] TrainerTable trainer_table(const Plan& plan, const Catalogs& catalogs, std::uint32_t trainer);
// Of all servers at once, see server_tables.h.
[[nodiscard]] ServerTable server_table(const Plan& plan, const Catalogs& catalogs, std::uint32_t server);

// CBOR, versioned (FORMATS.md). Parsers throw Error{invalid_argument}; indexes and boxes are checked against
// `own`, the catalog of the rank that reads the table.
[[nodiscard]] std::vector<std::uint8_t> encode(const TrainerTable& table);
[[nodiscard]] std::vector<std::uint8_t> encode(const ServerTable& table);
[[nodiscard]] TrainerTable decode_trainer_table(const std::vector<std::uint8_t>& bytes, const Catalog& own);
[[nodiscard]] ServerTable decode_server_table(const std::vector<std::uint8_t>& bytes, const Catalog& own);

// The whole plan as JSON, for `weightcast plan --json` and golden files.
[[nodiscard]] std::string to_json(const Plan& plan);

}  // namespace weightcast
