// The tables as CBOR, see FORMATS.md. Every number that a reader will use as an index or an address is checked here.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "schedule/blocks.h"
#include "schedule/catalog_check.h"
#include "schedule/cbor.h"
#include "schedule/plan.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

using CborJson = nlohmann::json;

constexpr std::string_view kTrainerFormat = "weightcast.trainer_table/2";
constexpr std::string_view kServerFormat = "weightcast.server_table/1";
constexpr int kMostDepth = 6;
constexpr std::int64_t kMaxExtent = std::int64_t{1} << 60;

// ---- values to JSON ----

CborJson json_of(const Box& box) {
  CborJson json = CborJson::array();
  for (std::size_t axis = 0; axis < box.axes; ++axis) json.push_back(box.offset[axis]);
  for (std::size_t axis = 0; axis < box.axes; ++axis) json.push_back(box.extent[axis]);
  return json;
}

CborJson json_of(const std::vector<TargetExtent>& targets, std::size_t axes) {
  CborJson json = CborJson::array();
  for (const auto& target : targets) {
    CborJson one = {target.server, target.region, target.byte_offset};
    for (std::size_t axis = 0; axis < axes; ++axis) one.push_back(target.strides_bytes[axis]);
    json.push_back(std::move(one));
  }
  return json;
}

CborJson json_of(const std::vector<AmaxMessage>& messages, std::uint32_t AmaxMessage::*peer) {
  CborJson json = CborJson::array();
  for (const auto& message : messages) {
    CborJson parts = CborJson::array();
    for (const auto& part : message.parts) {
      parts.push_back({part.from_entry, part.to_entry, static_cast<unsigned>(part.recipe), json_of(part.blocks)});
    }
    json.push_back({message.*peer, std::move(parts)});
  }
  return json;
}

// ---- JSON to values ----

class TableReader {
 public:
  TableReader(const std::vector<std::uint8_t>& bytes, std::string_view format, const Catalog& own)
      : own_(own), what_("the table of " + name_of(own)), document_(parse_cbor(bytes, kMostDepth, what_)) {
    if (!document_.is_object()) fail("is not a map");
    const auto& found = member("format");
    if (!found.is_string() || found.get_ref<const std::string&>() != format)
      fail(fmt::format("its format is not {}", format));
    if (integer(member(own.role == Role::trainer ? "trainer" : "server"), kMaxRank) != own.rank) {
      fail("it is another rank's");
    }
  }

  [[noreturn]] void fail(std::string_view cause) const {
    throw Error(Code::invalid_argument, fmt::format("{} is not valid: {}", what_, cause));
  }

  const CborJson& member(const char* key) const {
    const auto found = document_.find(key);
    if (found == document_.end()) fail(fmt::format("\"{}\" is missing", key));
    return *found;
  }

  // Calls read(item) for every item.
  template <class Read>
  void each(const CborJson& array, const Read& read) const {
    if (!array.is_array()) fail("an array is expected");
    for (const auto& item : array) read(item);
  }

  const CborJson& tuple(const CborJson& json, std::size_t size) const {
    if (!json.is_array() || json.size() != size) fail(fmt::format("an array of {} items is expected", size));
    return json;
  }

  std::uint64_t integer(const CborJson& json, std::uint64_t most) const {
    if (!json.is_number_unsigned() || json.get<std::uint64_t>() > most) {
      fail(fmt::format("an integer from 0 to {} is expected", most));
    }
    return json.get<std::uint64_t>();
  }
  std::uint32_t rank(const CborJson& json) const { return static_cast<std::uint32_t>(integer(json, kMaxRank)); }
  bool boolean(const CborJson& json) const {
    if (!json.is_boolean()) fail("true or false is expected");
    return json.get<bool>();
  }

  std::uint32_t own_entry(const CborJson& json) const {
    if (own_.entries.empty()) fail("it names an entry, the catalog has none");
    return static_cast<std::uint32_t>(integer(json, own_.entries.size() - 1));
  }
  Recipe recipe(const CborJson& json) const {
    const auto number = integer(json, UINT8_MAX);
    if (number >= kRecipeCount || !is_planned(static_cast<Recipe>(number))) {
      fail("a recipe that this version does not know");
    }
    return static_cast<Recipe>(number);
  }
  Recipe recipe_with_scales(const CborJson& json) const {
    const Recipe known = recipe(json);
    if (!has_scales(known)) fail(fmt::format("scales or maxima of {}, which has none", to_string(known)));
    return known;
  }
  std::uint32_t peer_entry(const CborJson& json) const {
    return static_cast<std::uint32_t>(integer(json, kMaxEntries));
  }

  Box box(const CborJson& json) const {
    if (!json.is_array() || json.empty() || json.size() % 2 != 0 || json.size() > 2 * kMaxAxes) {
      fail("a box is expected: offsets, then extents");
    }
    Box box;
    box.axes = static_cast<std::uint8_t>(json.size() / 2);
    for (std::size_t axis = 0; axis < box.axes; ++axis) {
      box.offset[axis] = static_cast<std::int64_t>(integer(json[axis], kMaxExtent));
      box.extent[axis] = static_cast<std::int64_t>(integer(json[box.axes + axis], kMaxExtent));
      if (box.extent[axis] == 0) fail(fmt::format("the box {} is empty", to_string(box)));
    }
    return box;
  }
  Box box_within(const CborJson& json, const Box& outer) const {
    const auto inner = box(json);
    if (inner.axes != outer.axes || !contains(outer, inner)) {
      fail(fmt::format("the box {} is not inside {}", to_string(inner), to_string(outer)));
    }
    return inner;
  }

  std::vector<TargetExtent> targets(const CborJson& json, const Box& frame, std::uint64_t element_bytes) const {
    std::vector<TargetExtent> targets;
    each(json, [&](const CborJson& item) {
      tuple(item, std::size_t{3} + frame.axes);
      Entry extent;  // of the peer, as far as its range goes
      extent.box = frame;
      extent.byte_offset = integer(item[2], INT64_MAX);
      for (std::size_t axis = 0; axis < frame.axes; ++axis) {
        extent.strides_bytes[axis] = static_cast<std::int64_t>(integer(item[3 + axis], INT64_MAX));
      }
      if (!bounding_range(extent, element_bytes, INT64_MAX)) fail("a target reaches beyond 2^63 bytes");
      const auto region = static_cast<std::uint32_t>(integer(item[1], kMaxRegions));
      targets.push_back({rank(item[0]), region, extent.byte_offset, extent.strides_bytes});
    });
    if (targets.empty()) fail("a step has no target");
    return targets;
  }

  const Catalog& own() const { return own_; }

 private:
  const Catalog& own_;
  const std::string what_;
  const CborJson document_;
};

TrainerStep read_step(const TableReader& reader, const CborJson& json, std::uint64_t chunk_bytes) {
  reader.tuple(json, 8);
  TrainerStep step;
  step.entry = reader.own_entry(json[0]);
  const auto& entry = reader.own().entries[step.entry];
  step.recipe = reader.recipe(json[1]);
  step.frame = reader.box_within(json[3], whole(entry.shape));
  step.box = reader.box_within(json[2], entry.box);
  if (!contains(step.frame, step.box)) reader.fail("a step's box is not inside its frame");
  step.needs_amax = reader.boolean(json[4]);
  step.signal = static_cast<std::uint32_t>(reader.integer(json[5], 0));
  step.chunks = static_cast<std::uint32_t>(reader.integer(json[6], UINT32_MAX));
  if (step.chunks != count_chunks(step.box, step.frame, step.recipe, chunk_bytes)) {
    reader.fail("a step's number of chunks is not that of its box");
  }
  step.targets = reader.targets(json[7], step.frame, element_bytes(step.recipe));
  return step;
}

TrainerScaleStep read_scale_step(const TableReader& reader, const CborJson& json) {
  reader.tuple(json, 5);
  TrainerScaleStep step;
  step.entry = reader.own_entry(json[0]);
  step.recipe = reader.recipe_with_scales(json[1]);
  const auto& entry = reader.own().entries[step.entry];
  step.frame = reader.box_within(json[3], whole(block_grid(entry.shape, step.recipe)));
  step.blocks = reader.box_within(json[2], blocks_touched(entry.box, step.recipe));
  if (!contains(step.frame, step.blocks)) reader.fail("the blocks of a scale step are not inside its frame");
  step.targets = reader.targets(json[4], step.frame, scale_bytes(step.recipe));
  return step;
}

// `outgoing`: this rank is `from`, the peer is `to`.
std::vector<AmaxMessage> read_messages(const TableReader& reader, const CborJson& json, bool outgoing) {
  std::vector<AmaxMessage> messages;
  const auto own_rank = reader.own().rank;
  reader.each(json, [&](const CborJson& item) {
    reader.tuple(item, 2);
    const auto peer = reader.rank(item[0]);
    AmaxMessage message{outgoing ? own_rank : peer, outgoing ? peer : own_rank, {}};
    reader.each(item[1], [&](const CborJson& part_json) {
      reader.tuple(part_json, 4);
      AmaxPart part;
      part.from_entry = outgoing ? reader.own_entry(part_json[0]) : reader.peer_entry(part_json[0]);
      part.to_entry = outgoing ? reader.peer_entry(part_json[1]) : reader.own_entry(part_json[1]);
      const auto& entry = reader.own().entries[outgoing ? part.from_entry : part.to_entry];
      part.recipe = reader.recipe_with_scales(part_json[2]);
      part.blocks = reader.box_within(part_json[3], blocks_touched(entry.box, part.recipe));
      message.parts.push_back(part);
    });
    messages.push_back(std::move(message));
  });
  return messages;
}

}  // namespace

std::vector<std::uint8_t> encode(const TrainerTable& table) {
  CborJson steps = CborJson::array();
  for (const auto& step : table.steps) {
    steps.push_back({step.entry, static_cast<unsigned>(step.recipe), json_of(step.box), json_of(step.frame),
                     step.needs_amax, step.signal, step.chunks, json_of(step.targets, step.frame.axes)});
  }
  CborJson scale_steps = CborJson::array();
  for (const auto& step : table.scale_steps) {
    scale_steps.push_back({step.entry, static_cast<unsigned>(step.recipe), json_of(step.blocks), json_of(step.frame),
                           json_of(step.targets, step.frame.axes)});
  }
  const CborJson document = {{"format", kTrainerFormat},
                             {"trainer", table.trainer},
                             {"chunk_bytes", table.chunk_bytes},
                             {"steps", std::move(steps)},
                             {"scale_steps", std::move(scale_steps)},
                             {"amax_out", json_of(table.amax_out, &AmaxMessage::to)},
                             {"amax_in", json_of(table.amax_in, &AmaxMessage::from)}};
  return CborJson::to_cbor(document);
}

std::vector<std::uint8_t> encode(const ServerTable& table) {
  CborJson senders = CborJson::array();
  for (const auto& sender : table.senders) {
    CborJson pieces = CborJson::array();
    for (const auto& piece : sender.pieces) pieces.push_back({piece.entry, json_of(piece.box)});
    senders.push_back({sender.trainer, sender.bytes, std::move(pieces)});
  }
  const CborJson document = {{"format", kServerFormat}, {"server", table.server}, {"senders", std::move(senders)}};
  return CborJson::to_cbor(document);
}

TrainerTable decode_trainer_table(const std::vector<std::uint8_t>& bytes, const Catalog& own) {
  const TableReader reader(bytes, kTrainerFormat, own);
  TrainerTable table;
  table.trainer = own.rank;
  table.chunk_bytes = reader.integer(reader.member("chunk_bytes"), UINT64_MAX);
  if (table.chunk_bytes == 0) reader.fail("chunk_bytes is 0");
  reader.each(reader.member("steps"),
              [&](const CborJson& json) { table.steps.push_back(read_step(reader, json, table.chunk_bytes)); });
  reader.each(reader.member("scale_steps"),
              [&](const CborJson& json) { table.scale_steps.push_back(read_scale_step(reader, json)); });
  table.amax_out = read_messages(reader, reader.member("amax_out"), true);
  table.amax_in = read_messages(reader, reader.member("amax_in"), false);
  return table;
}

ServerTable decode_server_table(const std::vector<std::uint8_t>& bytes, const Catalog& own) {
  const TableReader reader(bytes, kServerFormat, own);
  ServerTable table;
  table.server = own.rank;
  reader.each(reader.member("senders"), [&](const CborJson& json) {
    reader.tuple(json, 3);
    ExpectedSender sender;
    sender.trainer = reader.rank(json[0]);
    sender.bytes = reader.integer(json[1], UINT64_MAX);
    std::uint64_t bytes_of_pieces = 0;
    reader.each(json[2], [&](const CborJson& item) {
      reader.tuple(item, 2);
      const auto index = reader.own_entry(item[0]);
      const auto& entry = own.entries[index];
      sender.pieces.push_back({index, reader.box_within(item[1], entry.box)});
      bytes_of_pieces += static_cast<std::uint64_t>(elements(sender.pieces.back().box)) * stored_bytes(entry);
    });
    if (bytes_of_pieces != sender.bytes) reader.fail("a sender's bytes are not those of its pieces");
    if (!table.senders.empty() && table.senders.back().trainer >= sender.trainer) {
      reader.fail("the senders are not in the order of their ranks");
    }
    table.senders.push_back(std::move(sender));
  });
  return table;
}

}  // namespace weightcast
