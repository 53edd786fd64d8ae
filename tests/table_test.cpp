#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "schedule/blocks.h"
#include "schedule/planner.h"
#include "schedule/server_tables.h"
#include "schedule/strict_json.h"
#include "tests/made_catalog.h"
#include "tests/scenario_files.h"
#include "transport/base/status.h"

using namespace weightcast;
using namespace weightcast::testing;

namespace {

using TableBytes = std::vector<std::uint8_t>;

Catalogs two_by_two(Recipe recipe = kFp8) {
  const Box upper{2, {0, 0}, {144, 256}};
  const Box lower{2, {144, 0}, {144, 256}};
  const Box left{2, {0, 0}, {288, 128}};
  const Box right{2, {0, 128}, {288, 128}};
  return {{trainer(0).holds("w", {288, 256}, upper).holds("norm", {256}, {1, {0}, {256}}),
           trainer(1).holds("w", {288, 256}, lower).holds("norm", {256}, {1, {0}, {256}})},
          {server(0).takes("w", {288, 256}, left, recipe).takes("norm", {256}, {1, {0}, {256}}),
           server(1).takes("w", {288, 256}, right, recipe).takes("norm", {256}, {1, {0}, {256}})}};
}

std::string golden(const std::string& name) {
  return read_text_file(std::string(std::getenv("WEIGHTCAST_SOURCE_ROOT")) + "/tests/golden/" + name);
}

std::string text_of(const TableBytes& bytes) { return {bytes.begin(), bytes.end()}; }

// Decodes; what it does not refuse with Error it must understand.
template <class Decode>
bool is_refused(const TableBytes& bytes, const Decode& decode) {
  try {
    static_cast<void>(decode(bytes));
    return false;
  } catch (const Error& error) {
    CHECK(error.code() == Code::invalid_argument);
    return true;
  }
}

template <class Decode>
void damage(const TableBytes& good, const Decode& decode) {
  for (std::size_t bytes = 0; bytes < good.size(); ++bytes) {
    CHECK(is_refused(TableBytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(bytes)), decode));
  }
  auto longer = good;
  longer.push_back(0);
  CHECK(is_refused(longer, decode));
  for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
    auto flipped = good;
    flipped[bit / 8] ^= static_cast<std::uint8_t>(1U << (bit % 8));
    static_cast<void>(is_refused(flipped, decode));
  }
}

}  // namespace

TEST_CASE("a table that was encoded is decoded as it was, and looks as documented") {
  const auto catalogs = two_by_two();
  const auto plan = make_plan(catalogs, {4096, {}});
  for (std::uint32_t rank = 0; rank < 2; ++rank) {
    const auto sends = trainer_table(plan, catalogs, rank);
    CHECK(sends.amax_in.size() == 1);
    CHECK(decode_trainer_table(encode(sends), catalogs.trainers[rank]) == sends);
    const auto receives = server_table(plan, catalogs, rank);
    CHECK(decode_server_table(encode(receives), catalogs.servers[rank]) == receives);
  }
  CHECK(to_json(plan) == golden("plan.json"));
  CHECK(text_of(encode(trainer_table(plan, catalogs, 1))) == golden("trainer_table.cbor"));
  CHECK(text_of(encode(server_table(plan, catalogs, 1))) == golden("server_table.cbor"));
}

TEST_CASE("tables carry every recipe whose blocks have scales, of four bytes or of one") {
  for (const Recipe recipe :
       {kFp8, Recipe::fp8_e4m3_tensor, Recipe::fp8_e4m3_channel, Recipe::mxfp8_e4m3_1x32, Recipe::nvfp4_e2m1_1x16}) {
    CAPTURE(to_string(recipe));
    const auto catalogs = two_by_two(recipe);
    const auto plan = make_plan(catalogs, {4096, {}});
    std::size_t scale_steps = 0;
    for (std::uint32_t rank = 0; rank < 2; ++rank) {
      const auto sends = trainer_table(plan, catalogs, rank);
      scale_steps += sends.scale_steps.size();
      CHECK(decode_trainer_table(encode(sends), catalogs.trainers[rank]) == sends);
      const auto receives = server_table(plan, catalogs, rank);
      CHECK(decode_server_table(encode(receives), catalogs.servers[rank]) == receives);
    }
    CHECK(scale_steps >= 2);  // each server takes some
  }
}

TEST_CASE("tables whose boxes cut bytes of half values are refused, by trainer and by server") {
  const auto catalogs = two_by_two(Recipe::nvfp4_e2m1_1x16);
  const auto plan = make_plan(catalogs, {});
  const auto refusal = [](const auto& decode) {
    try {
      decode();
      return std::string("read");
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  auto sends = trainer_table(plan, catalogs, 0);
  const auto step = std::find_if(sends.steps.begin(), sends.steps.end(),
                                 [](const TrainerStep& one) { return one.recipe == Recipe::nvfp4_e2m1_1x16; });
  REQUIRE(step != sends.steps.end());
  --step->box.extent[1];
  const auto trainers = refusal([&] { static_cast<void>(decode_trainer_table(encode(sends), catalogs.trainers[0])); });
  CHECK(trainers.find("[0:144, 0:127] cuts bytes of nvfp4_e2m1_1x16") != std::string::npos);
  auto receives = server_table(plan, catalogs, 0);
  auto& pieces = receives.senders.front().pieces;
  const auto piece = std::find_if(pieces.begin(), pieces.end(), [&](const Piece& one) {
    const Entry& entry = catalogs.servers[0].entries[one.entry];
    return entry.recipe == Recipe::nvfp4_e2m1_1x16 && !entry.is_scales;
  });
  REQUIRE(piece != pieces.end());
  piece->box.extent[1] = 1;
  const auto servers = refusal([&] { static_cast<void>(decode_server_table(encode(receives), catalogs.servers[0])); });
  CHECK(servers.find("cuts bytes of nvfp4_e2m1_1x16") != std::string::npos);
}

TEST_CASE("a truncated table is refused, a damaged one refused or understood, never more") {
  const auto catalogs = two_by_two();
  const auto plan = make_plan(catalogs, {4096, {}});
  damage(encode(trainer_table(plan, catalogs, 0)),
         [&](const TableBytes& bytes) { return decode_trainer_table(bytes, catalogs.trainers[0]); });
  damage(encode(server_table(plan, catalogs, 0)),
         [&](const TableBytes& bytes) { return decode_server_table(bytes, catalogs.servers[0]); });
}

TEST_CASE("a table of another rank or version, with foreign boxes or deep nesting, is refused") {
  const auto catalogs = two_by_two();
  const auto plan = make_plan(catalogs, {4096, {}});
  const auto good = encode(trainer_table(plan, catalogs, 0));
  const auto decode = [&](const TableBytes& bytes) { return decode_trainer_table(bytes, catalogs.trainers[0]); };
  CHECK_FALSE(is_refused(good, decode));
  CHECK(is_refused(encode(trainer_table(plan, catalogs, 1)), decode));
  CHECK(is_refused(encode(server_table(plan, catalogs, 0)), decode));
  const auto changed = [&](const char* pointer, const nlohmann::json& value) {
    auto json = nlohmann::json::from_cbor(good);
    json.at(nlohmann::json::json_pointer(pointer)) = value;
    return is_refused(nlohmann::json::to_cbor(json), decode);
  };
  CHECK(changed("/format", "weightcast.trainer_table/2"));
  CHECK(changed("/steps/0/0", {99}));
  CHECK(changed("/steps/0/0", nlohmann::json::array()));
  CHECK(changed("/steps/0/2/0", 1000));
  CHECK(changed("/steps/0/6", 1000));
  CHECK(changed("/steps/0/7", nlohmann::json::array()));
  CHECK(changed("/steps/0/7/0/2/0", std::uint64_t{1} << 63));
  CHECK(changed("/scale_steps/0/1", static_cast<unsigned>(Recipe::bf16)));
  CHECK(changed("/amax_in/0/1/0/1", {99}));
  CHECK(changed("/amax_in/0/1/0/2", static_cast<unsigned>(Recipe::bf16)));
  const auto servers = [](std::uint64_t first, std::uint64_t step, std::uint64_t count) {
    return nlohmann::json::array({nlohmann::json::array({first, step, count})});
  };
  CHECK_FALSE(changed("/steps/0/7/0/3", servers(0, 1, 1000)));
  CHECK(changed("/steps/0/7/0/3", servers(0, 1, 0)));
  CHECK(changed("/steps/0/7/0/3", servers(0, 1U << 20, 3)));
  CHECK(changed("/steps/0/7/0/3", servers(0, UINT64_MAX, 3)));
  CHECK(changed("/steps/0/7/0/3", servers(0, 0, 1U << 22)));  // few bytes, much memory
  CHECK(is_refused(TableBytes(100000, 0x81), decode));        // arrays in arrays
}

TEST_CASE("tensors that repeat are written once: no table of Kimi-K2 takes more than half a mebibyte") {
  const auto scenario = parsed(shipped("kimi-k2_256to128"));
  const auto catalogs = catalogs_of(scenario);
  constexpr std::size_t kMostBytes = std::size_t{512} << 10;
  for (const bool relay : {false, true}) {
    const auto plan = make_plan(catalogs, topology_of(scenario), {.relay = relay});
    const ServerTables servers(plan, catalogs);
    for (const std::uint32_t rank : {0, 15, 52, 127}) {  // of both stages; 52 passes most on
      CAPTURE(rank);
      const auto sends = trainer_table(plan, catalogs, rank);
      CHECK(encode(sends).size() <= kMostBytes);
      CHECK(decode_trainer_table(encode(sends), catalogs.trainers[rank]) == sends);
      const auto receives = servers.of(rank);
      CHECK(encode(receives).size() <= kMostBytes);
      CHECK(decode_server_table(encode(receives), catalogs.servers[rank]) == receives);
    }
  }
}

TEST_CASE("a pair signals after every MiB, or after a thirty-second of its bytes where that is more") {
  const std::uint64_t mib = 1ULL << 20;
  CHECK(signals_of(std::span<const std::uint64_t>{}).empty());
  CHECK(signals_of(std::vector{mib / 2, mib}) == std::vector<SignalExtent>{{2, mib + mib / 2}});
  CHECK(signals_of(std::vector{5 * mib, 4 * mib, mib, 90 * mib, mib}) ==
        std::vector<SignalExtent>{{1, 5 * mib}, {1, 4 * mib}, {2, 91 * mib}, {1, mib}});
  CHECK(signals_of(std::vector<std::uint64_t>(1000, mib)).size() == 32);
}

TEST_CASE("a trainer and a server derive the same signals, each from its own table") {
  for (const Recipe recipe :
       {Recipe::mxfp8_e4m3_1x32, Recipe::nvfp4_e2m1_1x16}) {  // scales are bytes, values half ones
    const Catalogs catalogs = two_by_two(recipe);
    const Plan plan = make_plan(catalogs, {});
    for (std::uint32_t rank = 0; rank < 2; ++rank) {
      const TrainerTable table = trainer_table(plan, catalogs, rank);
      for (const std::uint32_t to : {0, 1}) {
        std::vector<std::uint64_t> sent;
        const auto add = [&](const auto& targets, std::uint64_t bytes) {
          for (const TargetExtent& target : targets) {
            if (target.server == to) sent.push_back(bytes);
          }
        };
        for (const auto& step : table.steps) add(step.targets, value_bytes(step.box, step.recipe));
        for (const auto& step : table.scale_steps) {
          add(step.targets, static_cast<std::uint64_t>(elements(step.blocks)) * scale_bytes(step.recipe));
        }
        for (const ExpectedSender& sender : server_table(plan, catalogs, to).senders) {
          if (sender.rank == rank) CHECK(sender.signals == signals_of(sent));
        }
      }
    }
  }
}
