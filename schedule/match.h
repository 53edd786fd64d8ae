// Who holds and who takes what, tensor by tensor: the planner's first half. For the .cpp files of this folder.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "quant/recipe.h"
#include "schedule/box.h"
#include "schedule/plan.h"

namespace weightcast {

// An entry of a trainer.
struct Holder {
  std::uint32_t trainer = 0;
  std::uint32_t entry = 0;
  friend bool operator==(const Holder&, const Holder&) = default;
  friend auto operator<=>(const Holder&, const Holder&) = default;
};

// A box that one trainer, or several replicas of it, hold. The shards of a tensor are disjoint.
struct Shard {
  Box box;
  std::vector<Holder> holders;  // by rank
};

// The same box under the same recipe, wanted by one server or more.
struct Frame {
  Box box;
  Recipe recipe = Recipe::bf16;
  std::vector<Destination> destinations;  // by rank; `column` is the entry
};

// What a shard gives to a frame. The parts of a frame are its exact cover.
struct Part {
  std::size_t shard = 0;
  std::size_t frame = 0;
  Box box;
  Holder caster;  // one of the shard's holders, chosen by the planner
};

struct Tensor {
  std::string_view name;  // in the catalogs
  const std::vector<std::int64_t>* shape = nullptr;
  std::vector<Shard> shards;
  std::vector<Frame> frames;
  std::vector<Part> parts;
};

// The tensors that a server takes, in the order in which trainers list them. Borrows from `catalogs`.
// Throws what make_plan() promises.
[[nodiscard]] std::vector<Tensor> match(const Catalogs& catalogs, const std::vector<std::string>& unused_tensors);

}  // namespace weightcast
