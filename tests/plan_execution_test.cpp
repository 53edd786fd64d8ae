// Plans of random layouts, executed on real bytes with the real cast by way of the tables that ranks receive, and
// compared with a cast of the whole tensors.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <random>

#include "quant/cast.h"
#include "schedule/planner.h"
#include "schedule/proof.h"
#include "tests/made_catalog.h"

using namespace weightcast;
using namespace weightcast::testing;

namespace {

using Random = std::mt19937;
using Coordinates = std::array<std::int64_t, kMaxAxes>;
using Bytes = std::vector<std::byte>;

std::int64_t pick(Random& random, std::int64_t least, std::int64_t most) {
  return std::uniform_int_distribution<std::int64_t>(least, most)(random);
}

struct Weights {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<std::uint16_t> bf16;  // row-major
  Recipe recipe = Recipe::bf16;
};

// Cuts `all` at random places that are multiples of `unit` on the last two axes.
std::vector<Box> cut(const Box& all, std::int64_t cuts, std::int64_t unit, Random& random) {
  std::vector<Box> boxes = {all};
  for (; cuts > 0; --cuts) {
    auto& box = boxes[static_cast<std::size_t>(pick(random, 0, static_cast<std::int64_t>(boxes.size()) - 1))];
    const auto axis = static_cast<std::size_t>(pick(random, 0, box.axes - 1));
    auto at = pick(random, box.offset[axis], box.offset[axis] + box.extent[axis]);
    if (axis + 2 >= box.axes) at = at / unit * unit;
    if (at <= box.offset[axis] || at >= box.offset[axis] + box.extent[axis]) continue;
    Box right = box;
    right.offset[axis] = at;
    right.extent[axis] = box.offset[axis] + box.extent[axis] - at;
    box.extent[axis] = at - box.offset[axis];
    boxes.push_back(right);
  }
  return boxes;
}

// Gives every entry another place and another order of its axes in memory, with gaps.
void scatter(Catalog& catalog, Random& random) {
  auto& region = catalog.regions.front();
  region.bytes = 8;  // a rank may hold nothing
  for (auto& entry : catalog.entries.edit()) {
    const auto element = catalog.role == Role::server ? stored_bytes(entry) : element_bytes(entry.source_type);
    std::vector<std::size_t> order;
    for (std::size_t axis = entry.box.axes; axis-- > 0;) order.push_back(axis);
    if (pick(random, 0, 3) == 0) std::shuffle(order.begin(), order.end(), random);
    entry.byte_offset = region.bytes;
    auto stride = static_cast<std::int64_t>(element);
    for (const auto axis : order) {
      entry.strides_bytes[axis] = stride;
      stride *= entry.box.extent[axis] + (pick(random, 0, 3) == 0 ? pick(random, 0, 5) : 0);
    }
    region.bytes += (static_cast<std::uint64_t>(stride) + 7) / 8 * 8;
  }
}

Catalogs random_catalogs(const std::vector<Weights>& model, Random& random) {
  const auto trainers = pick(random, 1, 5);
  const auto replicas = pick(random, 1, 2);
  const auto ranks = pick(random, 1, 3);
  std::vector<Rank> sources, takers;
  for (std::uint32_t i = 0; i < trainers; ++i) sources.push_back(trainer(i));
  for (std::uint32_t i = 0; i < replicas * ranks; ++i)
    takers.push_back(server(i, i / static_cast<std::uint32_t>(ranks)));
  for (const auto& tensor : model) {
    for (const auto& box : cut(whole(tensor.shape), pick(random, 0, 7), 1, random)) {
      const auto holders = pick(random, 0, 2) == 0 ? pick(random, 1, trainers) : 1;
      const auto first = pick(random, 0, trainers - 1);
      for (std::int64_t i = 0; i < holders; ++i) {
        sources[static_cast<std::size_t>((first + i) % trainers)].holds(tensor.name, tensor.shape, box);
      }
    }
    for (std::int64_t replica = 0; replica < replicas; ++replica) {
      const auto unit = has_scales(tensor.recipe) ? kBlock : 1;
      const bool everywhere = pick(random, 0, 3) == 0;
      for (const auto& box : cut(whole(tensor.shape), everywhere ? 0 : pick(random, 0, 3), unit, random)) {
        const auto owner = pick(random, 0, ranks - 1);
        for (std::int64_t rank = 0; rank < ranks; ++rank) {
          if (!everywhere && rank != owner) continue;
          takers[static_cast<std::size_t>(replica * ranks + rank)].takes(tensor.name, tensor.shape, box, tensor.recipe);
        }
      }
    }
  }
  Catalogs catalogs;
  for (const auto& source : sources) scatter(catalogs.trainers.emplace_back(source), random);
  for (const auto& taker : takers) scatter(catalogs.servers.emplace_back(taker), random);
  for (auto* side : {&catalogs.trainers, &catalogs.servers}) {
    for (auto& catalog : *side) catalog = parse_catalog(to_json(catalog), name_of(catalog));
  }
  return catalogs;
}

std::vector<Weights> random_model(Random& random) {
  std::vector<Weights> model;
  std::normal_distribution<float> normal;
  for (int i = 0; i < 4; ++i) {
    Weights tensor;
    tensor.name = "tensor" + std::to_string(i);
    const auto axes = pick(random, 1, 3);
    if (axes == 3) tensor.shape.push_back(pick(random, 1, 4));
    if (axes >= 2) tensor.shape.push_back(pick(random, 1, 400));
    tensor.shape.push_back(pick(random, 1, 300));
    constexpr std::array kRecipes = {Recipe::bf16, Recipe::fp32, kFp8, kFp8, kFp8};
    tensor.recipe = kRecipes[static_cast<std::size_t>(pick(random, 0, 4))];
    tensor.bf16.resize(static_cast<std::size_t>(elements(whole(tensor.shape))));
    for (auto& value : tensor.bf16)
      value = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(normal(random)) >> 16);
    model.push_back(std::move(tensor));
  }
  return model;
}

// Calls visit(coordinates) for every element.
template <class Visit>
void each_element(const Box& box, const Visit& visit) {
  for_each_matrix(box, box, [&](const MatrixView& view) {
    const auto last = static_cast<std::size_t>(box.axes - 1);
    for (std::int64_t row = 0; row < view.rows; ++row) {
      for (std::int64_t col = 0; col < view.cols; ++col) {
        auto at = view.origin;
        if (last > 0) at[last - 1] += row;
        at[last] += col;
        visit(at);
      }
    }
  });
}

std::size_t row_major(const Coordinates& at, const std::vector<std::int64_t>& shape) {
  std::int64_t index = 0;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) index = index * shape[axis] + at[axis];
  return static_cast<std::size_t>(index);
}

BlockOrigin origin_of(const MatrixView& view, const Box& box) {
  const auto last = static_cast<std::size_t>(box.axes - 1);
  return {last > 0 ? view.origin[last - 1] : 0, view.origin[last]};
}

SourceMatrix matrix_of(const MatrixView& view, const Entry& entry, const Bytes& memory) {
  const auto last = static_cast<std::size_t>(entry.box.axes - 1);
  return {memory.data() + byte_at(entry, view.origin),
          SourceType::bf16,
          view.rows,
          view.cols,
          last > 0 ? entry.strides_bytes[last - 1] / 2 : 0,
          entry.strides_bytes[last] / 2};
}

// Calls visit(block, index) for every block of the matrix, in the order of block_amax().
template <class Visit>
void each_block(const MatrixView& view, const Box& box, const Visit& visit) {
  const auto last = static_cast<std::size_t>(box.axes - 1);
  const auto [row, col] = origin_of(view, box);
  std::size_t index = 0;
  for (auto r = row / kBlock; r < blocks_of(row + view.rows); ++r) {
    for (auto c = col / kBlock; c < blocks_of(col + view.cols); ++c) {
      auto block = view.origin;
      if (last > 0) block[last - 1] = r;
      block[last] = c;
      visit(block, index++);
    }
  }
}

using Amax = std::map<std::pair<std::uint32_t, Coordinates>, float>;  // entry, block

struct TrainerRank {
  const Catalog& catalog;
  TrainerTable table;
  Bytes memory;
  Amax own, merged;
};

struct ServerRank {
  const Catalog& catalog;
  Bytes memory;
  std::vector<int> writes;
};

class Execution {
 public:
  Execution(const std::vector<Weights>& model, const Catalogs& catalogs, const Plan& plan) {
    for (const auto& catalog : catalogs.servers) {
      const auto bytes = catalog.regions.front().bytes;
      servers_.push_back({catalog, Bytes(bytes), std::vector<int>(bytes)});
    }
    for (const auto& catalog : catalogs.trainers) {
      const auto table = decode_trainer_table(encode(trainer_table(plan, catalogs, catalog.rank)), catalog);
      trainers_.push_back({catalog, table, Bytes(catalog.regions.front().bytes), {}, {}});
      fill(trainers_.back(), model);
    }
    exchange();
    for (auto& trainer : trainers_) {
      for (const auto& step : trainer.table.steps) run(trainer, step);
      for (const auto& step : trainer.table.scale_steps) run(trainer, step);
    }
  }

  const std::vector<ServerRank>& servers() const { return servers_; }
  // Of what a trainer sent to a server.
  Digest sent(std::uint32_t trainer, std::uint32_t server) { return sent_[{trainer, server}]; }

 private:
  static void fill(TrainerRank& trainer, const std::vector<Weights>& model) {
    for (std::uint32_t i = 0; i < trainer.catalog.entries.size(); ++i) {
      const auto& entry = trainer.catalog.entries[i];
      const auto& tensor =
          *std::find_if(model.begin(), model.end(), [&](const auto& t) { return t.name == entry.tensor; });
      each_element(entry.box, [&](const Coordinates& at) {
        std::memcpy(trainer.memory.data() + byte_at(entry, at), &tensor.bf16[row_major(at, entry.shape)], 2);
      });
      for_each_matrix(entry.box, entry.box, [&](const MatrixView& view) {
        const auto matrix = matrix_of(view, entry, trainer.memory);
        std::vector<float> amax(blocks_touched(matrix, kFp8, origin_of(view, entry.box)));
        CHECK_FALSE(block_amax(matrix, kFp8, origin_of(view, entry.box), amax).found());
        each_block(view, entry.box, [&](const Coordinates& block, std::size_t index) {
          trainer.own[{i, block}] = amax[index];
        });
      });
    }
    trainer.merged = trainer.own;
  }

  // As the sender would: the outgoing table of one rank meets the incoming one of the other.
  void exchange() {
    for (const auto& receiver : trainers_) {
      for (const auto& in : receiver.table.amax_in) {
        const auto& out = trainers_[in.from].table.amax_out;
        REQUIRE(std::find(out.begin(), out.end(), in) != out.end());
      }
    }
    for (const auto& sender : trainers_) {
      for (const auto& out : sender.table.amax_out) {
        for (const auto& run : out.parts) {
          each_element(run.blocks, [&](const Coordinates& block) {
            auto& amax = trainers_[out.to].merged.at({run.to_entry, block});
            amax = std::max(amax, sender.own.at({run.from_entry, block}));
          });
        }
      }
    }
  }

  void run(TrainerRank& trainer, const TrainerStep& step) {
    const auto& entry = trainer.catalog.entries[step.entry];
    const auto& amax_of = step.needs_amax ? trainer.merged : trainer.own;
    const auto element = element_bytes(step.recipe);
    const auto row_bytes = static_cast<std::uint64_t>(step.frame.extent[step.frame.axes - 1U]) * element;
    const auto chunks = chunks_of(step.box, step.frame, step.recipe, trainer.table.chunk_bytes);
    CHECK(chunks.size() == step.chunks);
    for (const auto& chunk : chunks) {
      for_each_matrix(chunk, step.frame, [&](const MatrixView& view) {
        std::vector<float> amax;
        if (has_scales(step.recipe)) {
          each_block(view, chunk, [&](const Coordinates& block, std::size_t) {
            amax.push_back(amax_of.at({step.entry, block}));
          });
        }
        const auto width = view.cols * static_cast<std::int64_t>(element);
        Bytes output(static_cast<std::size_t>(view.rows * width));
        const DigestFrame frame{digest_key(entry.tensor, false), (row_bytes + 7) / 8,
                                static_cast<std::uint64_t>(view.row), static_cast<std::uint64_t>(view.col) * element};
        const auto cast_result = cast(matrix_of(view, entry, trainer.memory), step.recipe, origin_of(view, chunk), amax,
                                      output.data(), width, frame);
        REQUIRE_FALSE(cast_result.bad.found());
        Box matrix = chunk;
        matrix.offset = view.origin;
        for (std::size_t axis = 0; axis + 2 < matrix.axes; ++axis) matrix.extent[axis] = 1;
        for (const auto& target : step.targets) {
          put(target, step.frame, matrix, element, output);
          sent_[{trainer.catalog.rank, target.server}] += cast_result.digest;
        }
      });
    }
  }

  void run(TrainerRank& trainer, const TrainerScaleStep& step) {
    Bytes scales;
    each_element(step.blocks, [&](const Coordinates& block) {
      const auto scale =
          std::bit_cast<std::array<std::byte, 4>>(scale_of_amax(kFp8, trainer.merged.at({step.entry, block})));
      scales.insert(scales.end(), scale.begin(), scale.end());
    });
    for (const auto& target : step.targets) put(target, step.frame, step.blocks, 4, scales);
  }

  void put(const TargetExtent& target, const Box& frame, const Box& box, std::uint64_t element, const Bytes& bytes) {
    auto& server = servers_[target.server];
    Entry extent;
    extent.box = frame;
    extent.byte_offset = target.byte_offset;
    extent.strides_bytes = target.strides_bytes;
    std::size_t from = 0;
    each_element(box, [&](const Coordinates& at) {
      const auto to = byte_at(extent, at);
      std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(from), element,
                  server.memory.begin() + static_cast<std::ptrdiff_t>(to));
      for (std::uint64_t i = 0; i < element; ++i) ++server.writes[to + i];
      from += element;
    });
  }

  std::vector<TrainerRank> trainers_;
  std::vector<ServerRank> servers_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Digest> sent_;
};

// A tensor's values and scales as one rank that holds all of it would make them.
struct Cast {
  Bytes values, scales;
};

Cast cast_whole(const Weights& tensor) {
  Entry entry;
  entry.box = whole(tensor.shape);
  auto stride = std::int64_t{2};
  for (std::size_t axis = tensor.shape.size(); axis-- > 0; stride *= tensor.shape[axis])
    entry.strides_bytes[axis] = stride;
  Bytes memory(tensor.bf16.size() * 2);
  std::memcpy(memory.data(), tensor.bf16.data(), memory.size());
  Cast result;
  for_each_matrix(entry.box, entry.box, [&](const MatrixView& view) {
    const auto matrix = matrix_of(view, entry, memory);
    std::vector<float> amax(has_scales(tensor.recipe) ? blocks_touched(matrix, kFp8, {0, 0}) : 0);
    if (!amax.empty()) CHECK_FALSE(block_amax(matrix, kFp8, {0, 0}, amax).found());
    const auto width = view.cols * static_cast<std::int64_t>(element_bytes(tensor.recipe));
    Bytes output(static_cast<std::size_t>(view.rows * width));
    CHECK_FALSE(cast(matrix, tensor.recipe, {0, 0}, amax, output.data(), width, {}).bad.found());
    result.values.insert(result.values.end(), output.begin(), output.end());
    for (const auto value : amax) {
      const auto scale = std::bit_cast<std::array<std::byte, 4>>(scale_of_amax(kFp8, value));
      result.scales.insert(result.scales.end(), scale.begin(), scale.end());
    }
  });
  return result;
}

// Every byte of every entry is as expected and was written once; nothing else was written.
void check_server(const ServerRank& server, const std::map<std::string, Cast>& expected) {
  std::vector<int> due(server.writes.size());
  std::size_t wrong = 0;
  for (const auto& entry : server.catalog.entries) {
    const auto& cast = expected.at(entry.tensor);
    const auto& bytes = entry.is_scales ? cast.scales : cast.values;
    const auto element = stored_bytes(entry);
    each_element(entry.box, [&](const Coordinates& at) {
      const auto byte = byte_at(entry, at);
      for (std::uint64_t i = 0; i < element; ++i) {
        if (server.memory[byte + i] != bytes[row_major(at, entry.shape) * element + i]) ++wrong;
        ++due[byte + i];
      }
    });
  }
  CHECK(wrong == 0);
  CHECK(server.writes == due);
}

// What a receiver computes over the landed pieces of values of one sender.
Digest digest_of(const ExpectedSender& sender, const ServerRank& server) {
  Digest sum = 0;
  for (const auto& piece : sender.pieces) {
    const auto& entry = server.catalog.entries[piece.entry];
    if (entry.is_scales) continue;
    const auto element = element_bytes(entry.recipe);
    for_each_matrix(piece.box, entry.box, [&](const MatrixView& view) {
      Bytes packed;
      Box matrix = piece.box;
      matrix.offset = view.origin;
      for (std::size_t axis = 0; axis + 2 < matrix.axes; ++axis) matrix.extent[axis] = 1;
      each_element(matrix, [&](const Coordinates& at) {
        const auto* from = server.memory.data() + byte_at(entry, at);
        packed.insert(packed.end(), from, from + element);
      });
      const auto frame_row = static_cast<std::uint64_t>(entry.box.extent[entry.box.axes - 1U]) * element;
      const auto row = static_cast<std::uint64_t>(view.cols) * element;
      sum += digest_rows(packed.data(), static_cast<std::uint64_t>(view.rows), row, static_cast<std::int64_t>(row),
                         {digest_key(entry.tensor, false), (frame_row + 7) / 8, static_cast<std::uint64_t>(view.row),
                          static_cast<std::uint64_t>(view.col) * element});
    });
  }
  return sum;
}

}  // namespace

TEST_CASE("whatever the shards and slices: executing the plan equals casting whole tensors, every byte written once") {
  for (unsigned seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    const auto model = random_model(random);
    const auto catalogs = random_catalogs(model, random);
    const auto plan = make_plan(catalogs, {static_cast<std::uint64_t>(pick(random, 1, 1 << pick(random, 1, 20))), {}});
    CHECK(make_plan(catalogs, {plan.chunk_bytes, {}}) == plan);
    CHECK_NOTHROW(static_cast<void>(prove(plan, catalogs)));
    Execution execution(model, catalogs, plan);
    std::map<std::string, Cast> expected;
    for (const auto& tensor : model) expected[tensor.name] = cast_whole(tensor);
    for (const auto& server : execution.servers()) {
      check_server(server, expected);
      const auto bytes = encode(server_table(plan, catalogs, server.catalog.rank));
      std::uint64_t received = 0;
      for (const auto& sender : decode_server_table(bytes, server.catalog).senders) {
        CHECK(digest_of(sender, server) == execution.sent(sender.rank, server.catalog.rank));
        received += sender.bytes;
      }
      CHECK(received == plan.server_bytes[server.catalog.rank]);
    }
  }
}
