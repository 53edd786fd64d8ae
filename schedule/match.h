// Who holds and who takes what, family by family: what planner and bound have in common. It reads every entry, which is
// most of the work of either; whoever wants several plans, or a plan and its bound, does it once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "quant/recipe.h"
#include "schedule/box.h"
#include "schedule/plan.h"

namespace weightcast {

// A trainer's entries for the tensors of a family.
struct Holder {
  std::uint32_t trainer = 0;
  std::uint32_t column = 0;
  friend bool operator==(const Holder&, const Holder&) = default;
  friend auto operator<=>(const Holder&, const Holder&) = default;
};

// A box that one trainer, or several replicas of it, hold. The shards of a family are disjoint.
struct Shard {
  Box box;
  std::vector<Holder> holders;  // by rank
};

struct Taker {
  std::uint32_t server = 0;
  std::uint32_t column = 0;
  std::uint32_t scales = 0;        // the column of the scales, where the recipe has some
  std::uint32_t tensor_scale = 0;  // and of the tensor's scale
};

// The same box under the same recipe, wanted by one server or more.
struct Frame {
  Box box;
  Recipe recipe = Recipe::bf16;
  std::vector<Taker> takers;  // by rank
};

// What a shard gives to a frame. The parts of a frame stand together and are its exact cover.
struct Part {
  std::size_t shard = 0;
  std::size_t frame = 0;
  Box box;
};

struct Family {
  std::string_view name;  // of the first tensor; in the catalogs
  std::uint32_t count = 0;
  std::vector<std::int64_t> shape;
  std::vector<Shard> shards;
  std::vector<Frame> frames;
  std::vector<Part> parts;
};

struct Matches {
  std::vector<Column> columns;
  std::vector<Family> families;  // in the order in which trainers list them
  std::size_t trainers = 0;
  std::size_t servers = 0;
  std::uint64_t catalogs_digest = 0;
};

// Borrows from `catalogs`. Trainer tensors that no server takes are an error unless a pattern of `unused_tensors`
// matches; '*' stands for any run of characters. (Typical: "*.rotary_emb.inv_freq".) Throws Error{invalid_argument}
// naming tensor, ranks and boxes when a server's box is not covered exactly, shards overlap without being replicas,
// shapes differ, or a tensor has no taker.
[[nodiscard]] Matches match(const Catalogs& catalogs, const std::vector<std::string>& unused_tensors = {});

}  // namespace weightcast
