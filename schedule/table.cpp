// Tables to CBOR, see FORMATS.md. Neighbours that differ only in the tensor are a run, written once with a list of
// entries: layers repeat.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "schedule/plan.h"
#include "schedule/table_format.h"

namespace weightcast {
namespace {

using CborJson = nlohmann::json;

CborJson json_of(const Box& box) {
  CborJson json = CborJson::array();
  for (std::size_t axis = 0; axis < box.axes; ++axis) json.push_back(box.offset[axis]);
  for (std::size_t axis = 0; axis < box.axes; ++axis) json.push_back(box.extent[axis]);
  return json;
}

// Calls visit(run) for each longest run of neighbours that are alike.
template <class Item, class Alike, class Visit>
void for_each_run(const std::vector<Item>& items, const Alike& alike, const Visit& visit) {
  for (std::size_t first = 0, end = 0; first < items.size(); first = end) {
    for (end = first + 1; end < items.size() && alike(items[first], items[end]);) ++end;
    visit(std::span(items).subspan(first, end - first));
  }
}

// NUMBERS of FORMATS.md: three and more that rise by the same step are one item.
CborJson json_of(const std::vector<std::uint64_t>& numbers) {
  CborJson json = CborJson::array();
  for (std::size_t first = 0, end = 0; first < numbers.size(); first = end) {
    end = first + 1;
    const auto step = end < numbers.size() ? numbers[end] - numbers[first] : 0;
    const bool rises = end < numbers.size() && numbers[end] >= numbers[first];
    while (rises && end < numbers.size() && numbers[end - 1] <= numbers[end] && numbers[end] - numbers[end - 1] == step)
      ++end;
    if (end - first < 3) {
      end = first + 1;
      json.push_back(numbers[first]);
    } else {
      json.push_back({numbers[first], step, end - first});
    }
  }
  return json;
}

template <class Item, class Number>
CborJson numbers_of(std::span<const Item> run, const Number& number) {
  std::vector<std::uint64_t> numbers;
  numbers.reserve(run.size());
  for (const auto& item : run) numbers.push_back(number(item));
  return json_of(numbers);
}
template <class Item>
CborJson members_of(std::span<const Item> run, std::uint32_t Item::*member) {
  return numbers_of(run, [&](const Item& item) { return item.*member; });
}

bool go_alike(const std::vector<TargetExtent>& a, const std::vector<TargetExtent>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const TargetExtent& x, const TargetExtent& y) {
    return x.server == y.server && x.region == y.region && x.strides_bytes == y.strides_bytes;
  });
}

// Servers next to one another that keep every tensor of the run at the same place.
template <class AnyStep>
CborJson places_of(std::span<const AnyStep> run) {
  const auto is_same_place = [&](std::size_t a, std::size_t b) {
    const auto& targets = run.front().targets;
    return targets[a].region == targets[b].region && targets[a].strides_bytes == targets[b].strides_bytes &&
           std::all_of(run.begin(), run.end(),
                       [&](const AnyStep& step) { return step.targets[a].byte_offset == step.targets[b].byte_offset; });
  };
  CborJson places = CborJson::array();
  const auto& targets = run.front().targets;
  for (std::size_t first = 0, end = 0; first < targets.size(); first = end) {
    CborJson strides = CborJson::array();
    for (std::size_t axis = 0; axis < run.front().frame.axes; ++axis) {
      strides.push_back(targets[first].strides_bytes[axis]);
    }
    for (end = first + 1; end < targets.size() && is_same_place(first, end);) ++end;
    places.push_back({targets[first].region, std::move(strides),
                      numbers_of(run, [&](const AnyStep& step) { return step.targets[first].byte_offset; }),
                      members_of(std::span(targets).subspan(first, end - first), &TargetExtent::server)});
  }
  return places;
}

CborJson json_of(const std::vector<TrainerStep>& steps) {
  const auto are_alike_but_for_tensor = [](const TrainerStep& a, const TrainerStep& b) {
    return a.box == b.box && a.frame == b.frame && a.recipe == b.recipe && a.needs_amax == b.needs_amax &&
           a.signal == b.signal && a.chunks == b.chunks && go_alike(a.targets, b.targets);
  };
  CborJson json = CborJson::array();
  for_each_run(steps, are_alike_but_for_tensor, [&](std::span<const TrainerStep> run) {
    const auto& step = run.front();
    json.push_back({members_of(run, &TrainerStep::entry), static_cast<unsigned>(step.recipe), json_of(step.box),
                    json_of(step.frame), step.needs_amax, step.signal, step.chunks, places_of(run)});
  });
  return json;
}

CborJson json_of(const std::vector<TrainerScaleStep>& steps) {
  const auto are_alike_but_for_tensor = [](const TrainerScaleStep& a, const TrainerScaleStep& b) {
    return a.recipe == b.recipe && a.blocks == b.blocks && a.frame == b.frame && go_alike(a.targets, b.targets);
  };
  CborJson json = CborJson::array();
  for_each_run(steps, are_alike_but_for_tensor, [&](std::span<const TrainerScaleStep> run) {
    const auto& step = run.front();
    json.push_back({members_of(run, &TrainerScaleStep::entry), static_cast<unsigned>(step.recipe), json_of(step.blocks),
                    json_of(step.frame), places_of(run)});
  });
  return json;
}

CborJson json_of(const std::vector<AmaxMessage>& messages, std::uint32_t AmaxMessage::*peer) {
  CborJson json = CborJson::array();
  for (const auto& message : messages) {
    CborJson parts = CborJson::array();
    for_each_run(
        message.parts,
        [](const AmaxPart& a, const AmaxPart& b) { return a.recipe == b.recipe && a.blocks == b.blocks; },
        [&](std::span<const AmaxPart> run) {
          parts.push_back({members_of(run, &AmaxPart::from_entry), members_of(run, &AmaxPart::to_entry),
                           static_cast<unsigned>(run.front().recipe), json_of(run.front().blocks)});
        });
    json.push_back({message.*peer, std::move(parts)});
  }
  return json;
}

CborJson json_of(const std::vector<Piece>& pieces) {
  CborJson json = CborJson::array();
  for_each_run(
      pieces, [](const Piece& a, const Piece& b) { return a.box == b.box; },
      [&](std::span<const Piece> run) {
        json.push_back({members_of(run, &Piece::entry), json_of(run.front().box)});
      });
  return json;
}

CborJson json_of(const std::vector<SignalExtent>& signals) {
  std::vector<std::uint64_t> pieces;
  pieces.reserve(signals.size());
  for (const auto& signal : signals) pieces.push_back(signal.pieces);
  return json_of(pieces);
}

CborJson json_of(const std::vector<ForwardedPiece>& pieces, const ExpectedSender& sender) {
  const auto go_to_alike = [&](const ForwardedPiece& a, const ForwardedPiece& b) {
    return sender.pieces[a.piece].box.axes == sender.pieces[b.piece].box.axes && a.to.region == b.to.region &&
           a.to.strides_bytes == b.to.strides_bytes;
  };
  CborJson json = CborJson::array();
  for_each_run(pieces, go_to_alike, [&](std::span<const ForwardedPiece> run) {
    const auto& to = run.front().to;
    CborJson strides = CborJson::array();
    for (std::size_t axis = 0; axis < sender.pieces[run.front().piece].box.axes; ++axis) {
      strides.push_back(to.strides_bytes[axis]);
    }
    json.push_back({members_of(run, &ForwardedPiece::piece), to.region, std::move(strides),
                    numbers_of(run, [](const ForwardedPiece& piece) { return piece.to.byte_offset; })});
  });
  return json;
}

// The servers of a node mostly keep the same pieces at the same places.
CborJson json_of(const std::vector<Forward>& forwards, const ExpectedSender& sender) {
  const auto is_same_place = [](const ForwardedPiece& a, const ForwardedPiece& b) {
    return a.piece == b.piece && a.to.region == b.to.region && a.to.byte_offset == b.to.byte_offset &&
           a.to.strides_bytes == b.to.strides_bytes;
  };
  const auto are_alike_but_for_server = [&](const Forward& a, const Forward& b) {
    return a.signal == b.signal &&
           std::equal(a.pieces.begin(), a.pieces.end(), b.pieces.begin(), b.pieces.end(), is_same_place);
  };
  CborJson json = CborJson::array();
  for_each_run(forwards, are_alike_but_for_server, [&](std::span<const Forward> run) {
    json.push_back({run.front().signal, members_of(run, &Forward::server), members_of(run, &Forward::ordinal),
                    json_of(run.front().pieces, sender)});
  });
  return json;
}

}  // namespace

std::vector<std::uint8_t> encode(const TrainerTable& table) {
  const CborJson document = {{"format", kTrainerTableFormat},
                             {"trainer", table.trainer},
                             {"chunk_bytes", table.chunk_bytes},
                             {"steps", json_of(table.steps)},
                             {"scale_steps", json_of(table.scale_steps)},
                             {"amax_out", json_of(table.amax_out, &AmaxMessage::to)},
                             {"amax_in", json_of(table.amax_in, &AmaxMessage::from)}};
  return CborJson::to_cbor(document);
}

std::vector<std::uint8_t> encode(const ServerTable& table) {
  CborJson senders = CborJson::array();
  for (const auto& sender : table.senders) {
    senders.push_back({sender.role == Role::server, sender.rank, sender.bytes, json_of(sender.pieces),
                       json_of(sender.signals), json_of(sender.forwards, sender)});
  }
  const CborJson document = {{"format", kServerTableFormat}, {"server", table.server}, {"senders", std::move(senders)}};
  return CborJson::to_cbor(document);
}

}  // namespace weightcast
