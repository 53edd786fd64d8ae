// CBOR to tables, see FORMATS.md. Every number that a rank will use as an index or an address is checked here.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "schedule/blocks.h"
#include "schedule/catalog_check.h"
#include "schedule/cbor.h"
#include "schedule/plan.h"
#include "schedule/table_format.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

using CborJson = nlohmann::json;

constexpr int kMostDepth = 9;
constexpr std::size_t kMostRows = std::size_t{1} << 22;
constexpr std::int64_t kMaxExtent = std::int64_t{1} << 60;

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

  // NUMBERS of FORMATS.md: at least one, none above `most`.
  std::vector<std::uint64_t> numbers(const CborJson& json, std::uint64_t most) {
    std::vector<std::uint64_t> numbers;
    each(json, [&](const CborJson& item) {
      if (!item.is_array()) {
        numbers.push_back(integer(item, most));
        return;
      }
      tuple(item, 3);
      const auto first = integer(item[0], most);
      const auto step = integer(item[1], most);
      const auto count = integer(item[2], kMostRows);
      if (count == 0 || (step > 0 && (most - first) / step < count - 1)) fail(fmt::format("numbers beyond {}", most));
      this->count(count, 1);
      for (std::uint64_t i = 0; i < count; ++i) numbers.push_back(first + i * step);
    });
    if (numbers.empty()) fail("a list of numbers is empty");
    return numbers;
  }
  std::vector<std::uint64_t> numbers(const CborJson& json, std::uint64_t most, std::size_t count) {
    auto found = numbers(json, most);
    if (found.size() != count) fail(fmt::format("{} numbers, but {} are expected", found.size(), count));
    return found;
  }
  // Of a run; calls check(entry) for each.
  template <class Check>
  std::vector<std::uint64_t> own_entries(const CborJson& json, const Check& check) {
    if (own_.entries.empty()) fail("it names an entry, the catalog has none");
    auto entries = numbers(json, own_.entries.size() - 1);
    for (const auto entry : entries) check(own_.entries[entry]);
    return entries;
  }

  Recipe recipe(const CborJson& json) const {
    const Recipe known = any_recipe(json);
    if (!is_of_values(known)) fail(fmt::format("values under {}, which is of scales only", to_string(known)));
    return known;
  }
  Recipe recipe_with_scales(const CborJson& json) const {
    const Recipe known = any_recipe(json);
    if (!has_scales(known)) fail(fmt::format("scales or maxima of {}, which has none", to_string(known)));
    return known;
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
  void require_within(const Box& inner, const Box& outer) const {
    if (inner.axes == outer.axes && contains(outer, inner)) return;
    fail(fmt::format("the box {} is not inside {}", to_string(inner), to_string(outer)));
  }

  // What few bytes can stand for: numbers, targets, pieces, parts.
  void count(std::size_t rows, std::size_t of_each) {
    if (of_each > (kMostRows - rows_) / rows) fail(fmt::format("it is of more than {} rows", kMostRows));
    rows_ += rows * of_each;
  }

  std::array<std::int64_t, kMaxAxes> strides(const CborJson& json, std::size_t axes) const {
    std::array<std::int64_t, kMaxAxes> strides{};
    tuple(json, axes);
    for (std::size_t axis = 0; axis < axes; ++axis) {
      strides[axis] = static_cast<std::int64_t>(integer(json[axis], INT64_MAX));
    }
    return strides;
  }

  // Of each step of a run; `frame` in stored elements.
  std::vector<std::vector<TargetExtent>> targets(const CborJson& json, std::size_t steps, const Box& frame,
                                                 std::uint64_t element_bytes) {
    std::vector<std::vector<TargetExtent>> targets(steps);
    each(json, [&](const CborJson& place) {
      tuple(place, 4);
      Entry extent;  // of the peer, as far as its range goes
      extent.box = frame;
      extent.strides_bytes = strides(place[1], frame.axes);
      const auto region = static_cast<std::uint32_t>(integer(place[0], kMaxRegions));
      const auto byte_offsets = numbers(place[2], INT64_MAX, steps);
      const auto servers = numbers(place[3], kMaxRank);
      count(servers.size(), steps);
      for (std::size_t step = 0; step < steps; ++step) {
        extent.byte_offset = byte_offsets[step];
        if (!bounding_range(extent, element_bytes, INT64_MAX)) fail("a target reaches beyond 2^63 bytes");
        for (const auto server : servers) {
          targets[step].push_back(
              {static_cast<std::uint32_t>(server), region, extent.byte_offset, extent.strides_bytes});
        }
      }
    });
    if (targets.front().empty()) fail("a step has no target");
    return targets;
  }

  const Catalog& own() const { return own_; }

 private:
  Recipe any_recipe(const CborJson& json) const {
    const auto known = static_cast<Recipe>(integer(json, UINT8_MAX));
    if (to_string(known) == "unknown") fail("a recipe that this version does not know");
    return known;
  }

  const Catalog& own_;
  const std::string what_;
  const CborJson document_;
  std::size_t rows_ = 0;
};

// Sums of bytes are exact then, and no row is empty.
void require_whole_bytes(const TableReader& reader, const Box& box, Recipe recipe) {
  if (values_of_element(recipe) == 1) return;
  const auto last = static_cast<std::size_t>(box.axes - 1);
  const auto edge = block_shape(recipe).cols;
  if (box.offset[last] % edge == 0 && box.extent[last] % edge == 0) return;
  reader.fail(fmt::format("the box {} cuts bytes of {}", to_string(box), to_string(recipe)));
}

void read_steps(TableReader& reader, const CborJson& json, TrainerTable& table) {
  reader.tuple(json, 8);
  TrainerStep step;
  step.recipe = reader.recipe(json[1]);
  step.box = reader.box(json[2]);
  step.frame = reader.box(json[3]);
  reader.require_within(step.box, step.frame);
  require_whole_bytes(reader, step.box, step.recipe);
  require_whole_bytes(reader, step.frame, step.recipe);
  const auto entries = reader.own_entries(json[0], [&](const Entry& own) {
    reader.require_within(step.box, own.box);
    reader.require_within(step.frame, whole(own.shape));
  });
  step.needs_amax = reader.boolean(json[4]);
  step.signal = static_cast<std::uint32_t>(reader.integer(json[5], 0));
  step.chunks = static_cast<std::uint32_t>(reader.integer(json[6], UINT32_MAX));
  if (step.chunks != count_chunks(step.box, step.frame, step.recipe, table.chunk_bytes)) {
    reader.fail("a step's number of chunks is not that of its box");
  }
  auto targets =
      reader.targets(json[7], entries.size(), stored_box(step.frame, step.recipe), element_bytes(step.recipe));
  for (std::size_t i = 0; i < entries.size(); ++i) {
    step.entry = static_cast<std::uint32_t>(entries[i]);
    step.targets = std::move(targets[i]);
    table.steps.push_back(step);
  }
}

void read_scale_steps(TableReader& reader, const CborJson& json, TrainerTable& table) {
  reader.tuple(json, 5);
  TrainerScaleStep step;
  step.recipe = reader.recipe_with_scales(json[1]);
  step.blocks = reader.box(json[2]);
  step.frame = reader.box(json[3]);
  reader.require_within(step.blocks, step.frame);
  const auto entries = reader.own_entries(json[0], [&](const Entry& own) {
    reader.require_within(step.blocks, blocks_touched(own.box, step.recipe));
    reader.require_within(step.frame, whole(block_grid(own.shape, step.recipe)));
  });
  auto targets = reader.targets(json[4], entries.size(), step.frame, scale_bytes(step.recipe));
  for (std::size_t i = 0; i < entries.size(); ++i) {
    step.entry = static_cast<std::uint32_t>(entries[i]);
    step.targets = std::move(targets[i]);
    table.scale_steps.push_back(step);
  }
}

// `outgoing`: this rank is `from`, the peer is `to`.
std::vector<AmaxMessage> read_messages(TableReader& reader, const CborJson& json, bool outgoing) {
  std::vector<AmaxMessage> messages;
  const auto own_rank = reader.own().rank;
  reader.each(json, [&](const CborJson& item) {
    reader.tuple(item, 2);
    const auto peer = reader.rank(item[0]);
    AmaxMessage message{outgoing ? own_rank : peer, outgoing ? peer : own_rank, {}};
    reader.each(item[1], [&](const CborJson& run) {
      reader.tuple(run, 4);
      AmaxPart part;
      part.recipe = reader.recipe_with_scales(run[2]);
      if (has_tensor_scale(part.recipe)) reader.fail("maxima of blocks that are scaled by their tensor");
      part.blocks = reader.box(run[3]);
      const auto own = reader.own_entries(run[outgoing ? 0 : 1], [&](const Entry& entry) {
        reader.require_within(part.blocks, blocks_touched(entry.box, part.recipe));
      });
      const auto peers = reader.numbers(run[outgoing ? 1 : 0], kMaxEntries, own.size());
      reader.count(own.size(), 1);
      for (std::size_t i = 0; i < own.size(); ++i) {
        part.from_entry = static_cast<std::uint32_t>(outgoing ? own[i] : peers[i]);
        part.to_entry = static_cast<std::uint32_t>(outgoing ? peers[i] : own[i]);
        message.parts.push_back(part);
      }
    });
    messages.push_back(std::move(message));
  });
  return messages;
}

void read_pieces(TableReader& reader, const CborJson& json, ExpectedSender& sender) {
  reader.each(json, [&](const CborJson& run) {
    reader.tuple(run, 2);
    const auto box = reader.box(run[1]);
    const auto entries = reader.own_entries(run[0], [&](const Entry& entry) {
      reader.require_within(box, entry.box);
      if (!entry.is_scales) require_whole_bytes(reader, box, entry.recipe);
    });
    reader.count(entries.size(), 1);
    for (const auto index : entries) sender.pieces.push_back({static_cast<std::uint32_t>(index), box});
  });
}

void read_signals(TableReader& reader, const CborJson& json, ExpectedSender& sender) {
  std::size_t next = 0;
  for (const auto pieces : reader.numbers(json, kMaxEntries)) {
    if (pieces == 0 || pieces > sender.pieces.size() - next) reader.fail("a signal covers no pieces of its sender");
    SignalExtent signal{pieces, 0};
    for (const auto end = next + pieces; next < end; ++next) {
      const auto& [entry, box] = sender.pieces[next];
      const auto& own = reader.own().entries[entry];
      signal.bytes += static_cast<std::uint64_t>(elements(stored_box(own, box))) * stored_bytes(own);
    }
    sender.signals.push_back(signal);
  }
  if (next != sender.pieces.size()) reader.fail("a piece is covered by no signal");
}

// To servers that are not set yet. `first` and `end` are the pieces that the signal covers.
std::vector<ForwardedPiece> forwarded_pieces(TableReader& reader, const CborJson& json, const ExpectedSender& sender,
                                             std::size_t first, std::size_t end) {
  std::vector<ForwardedPiece> forwarded;
  reader.each(json, [&](const CborJson& run) {
    reader.tuple(run, 4);
    const auto pieces = reader.numbers(run[0], kMaxEntries);
    ForwardedPiece piece;
    piece.to.region = static_cast<std::uint32_t>(reader.integer(run[1], kMaxRegions));
    const auto byte_offsets = reader.numbers(run[3], INT64_MAX, pieces.size());
    reader.count(pieces.size(), 1);
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (pieces[i] < first || pieces[i] >= end) reader.fail("a piece is passed on that its signal does not cover");
      piece.piece = static_cast<std::uint32_t>(pieces[i]);
      const auto& entry = reader.own().entries[sender.pieces[piece.piece].entry];
      Entry extent;  // of the peer, as far as its range goes
      extent.box = stored_box(entry, entry.box);
      extent.byte_offset = piece.to.byte_offset = byte_offsets[i];
      extent.strides_bytes = piece.to.strides_bytes = reader.strides(run[2], entry.box.axes);
      if (!bounding_range(extent, stored_bytes(entry), INT64_MAX)) {
        reader.fail("a target reaches beyond 2^63 bytes");
      }
      forwarded.push_back(piece);
    }
  });
  if (forwarded.empty()) reader.fail("nothing is passed on to a server that is named");
  return forwarded;
}

void read_forwards(TableReader& reader, const CborJson& json, ExpectedSender& sender) {
  std::size_t signal = 0;
  std::size_t first = 0;  // piece of the signal
  reader.each(json, [&](const CborJson& item) {
    reader.tuple(item, 4);
    Forward forward;
    forward.signal = static_cast<std::uint32_t>(reader.integer(item[0], sender.signals.size() - 1));
    if (forward.signal < signal) reader.fail("what is passed on is not in the order of the signals");
    for (; signal < forward.signal; ++signal) first += sender.signals[signal].pieces;
    const auto servers = reader.numbers(item[1], kMaxRank);
    const auto ordinals = reader.numbers(item[2], UINT32_MAX, servers.size());
    forward.pieces = forwarded_pieces(reader, item[3], sender, first, first + sender.signals[signal].pieces);
    reader.count(servers.size(), forward.pieces.size());
    for (std::size_t i = 0; i < servers.size(); ++i) {
      forward.server = static_cast<std::uint32_t>(servers[i]);
      forward.ordinal = static_cast<std::uint32_t>(ordinals[i]);
      if (forward.server == reader.own().rank) reader.fail("it passes on to itself");
      for (auto& piece : forward.pieces) piece.to.server = forward.server;
      sender.forwards.push_back(forward);
    }
  });
}

}  // namespace

TrainerTable decode_trainer_table(const std::vector<std::uint8_t>& bytes, const Catalog& own) {
  TableReader reader(bytes, kTrainerTableFormat, own);
  TrainerTable table;
  table.trainer = own.rank;
  table.chunk_bytes = reader.integer(reader.member("chunk_bytes"), UINT64_MAX);
  if (table.chunk_bytes == 0) reader.fail("chunk_bytes is 0");
  reader.each(reader.member("steps"), [&](const CborJson& json) { read_steps(reader, json, table); });
  reader.each(reader.member("scale_steps"), [&](const CborJson& json) { read_scale_steps(reader, json, table); });
  table.amax_out = read_messages(reader, reader.member("amax_out"), true);
  table.amax_in = read_messages(reader, reader.member("amax_in"), false);
  return table;
}

ServerTable decode_server_table(const std::vector<std::uint8_t>& bytes, const Catalog& own) {
  TableReader reader(bytes, kServerTableFormat, own);
  ServerTable table;
  table.server = own.rank;
  reader.each(reader.member("senders"), [&](const CborJson& json) {
    reader.tuple(json, 6);
    ExpectedSender sender;
    sender.role = reader.boolean(json[0]) ? Role::server : Role::trainer;
    sender.rank = reader.rank(json[1]);
    sender.bytes = reader.integer(json[2], UINT64_MAX);
    read_pieces(reader, json[3], sender);
    read_signals(reader, json[4], sender);
    read_forwards(reader, json[5], sender);
    std::uint64_t bytes = 0;
    for (const auto& signal : sender.signals) bytes += signal.bytes;
    if (bytes != sender.bytes) reader.fail("a sender's bytes are not those of its pieces");
    const auto key = [](const ExpectedSender& one) { return std::pair(one.role, one.rank); };
    if (!table.senders.empty() && key(table.senders.back()) >= key(sender)) {
      reader.fail("the senders are not in the order of their roles and ranks");
    }
    table.senders.push_back(std::move(sender));
  });
  return table;
}

}  // namespace weightcast
