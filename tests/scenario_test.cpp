#include "schedule/scenario.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "schedule/bound.h"
#include "schedule/planner.h"
#include "schedule/proof.h"
#include "tests/scenario_files.h"

using namespace weightcast;
using namespace weightcast::testing;

namespace {

std::string gigabytes(std::uint64_t bytes) { return fmt::format("{:.3f}", static_cast<double>(bytes) / 1e9); }

std::uint64_t sum(const std::vector<std::uint64_t>& bytes) {
  return std::accumulate(bytes.begin(), bytes.end(), std::uint64_t{0});
}

// The published table: what a trainer of a stage sends, in GB.
std::string published(std::size_t stage) { return stage == 0 ? "11.476" : stage == 7 ? "9.978" : "8.987"; }

// The boxes of a tensor by server: "[0:256, 0:256]".
std::vector<std::string> slices(const Catalogs& catalogs, const std::string& tensor) {
  std::vector<std::string> boxes;
  for (const auto& server : catalogs.servers) {
    const auto found = std::find_if(server.entries.begin(), server.entries.end(),
                                    [&](const Entry& e) { return e.tensor == tensor && !e.is_scales; });
    boxes.push_back(found == server.entries.end() ? "" : to_string(found->box));
  }
  return boxes;
}

Plan proved_plan(const Catalogs& catalogs) {
  auto plan = make_plan(catalogs, {});
  CHECK(prove(plan, catalogs).destination_bytes == sum(plan.server_bytes));
  return plan;
}

std::int64_t parameters_of(const std::string& name) {
  std::int64_t count = 0;
  for (const auto& tensor : tensors_of(parsed(shipped(name)).model)) count += elements(whole(tensor.shape));
  return count;
}

using Boxes = std::vector<std::string>;
constexpr auto kKeys = "model.layers.0.self_attn.k_proj.weight";

}  // namespace

TEST_CASE("Qwen3-235B from 128 trainers to 32 servers gives the published table, to every digit") {
  const auto catalogs = catalogs_of(parsed(shipped("qwen3-235b_128to32")));
  const auto plan = make_plan(catalogs, {});
  REQUIRE(plan.trainer_bytes.size() == 128);
  for (std::size_t row = 0; row < 16; ++row) {  // a row of the table is a node; a stage has rows n and n + 8
    for (std::size_t gpu = 0; gpu < 8; ++gpu) {
      CHECK(gigabytes(plan.trainer_bytes[row * 8 + gpu]) == published(row % 8));
    }
  }
  CHECK(plan.server_bytes == std::vector<std::uint64_t>(32, 37'687'596'032));
  CHECK(sum(plan.server_bytes) == 1'206'003'073'024);
  CHECK(sum(plan.trainer_bytes) == sum(plan.server_bytes));
}

TEST_CASE("a stage's GPUs send alike also where every block straddles them: the owners of scales take turns") {
  auto scene = shipped("qwen3-235b_128to32");  // the first, one of the middle and the last of its stages
  scene["model"]["num_hidden_layers"] = 34;
  scene["trainers"]["layout"] = {{"pp", 3}, {"fsdp", 16}, {"layers_per_stage", {12, 12, 10}}};
  scene["trainers"]["hardware"]["nodes"] = 6;
  const auto plan = make_plan(catalogs_of(parsed(scene)), {});
  for (std::size_t rank = 0; rank < 48; ++rank) {
    CHECK(gigabytes(plan.trainer_bytes[rank]) == published(rank < 32 ? rank / 16 : 7));
  }
}

TEST_CASE("the models of the shipped scenarios have the published number of parameters") {
  CHECK(parameters_of("qwen3-235b_128to32") == 235'093'634'560);
  CHECK(parameters_of("qwen3-30b_8to8") == 30'532'122'624);
  CHECK(parameters_of("deepseek-v3_256to128") == 671'026'419'200);
  CHECK(parameters_of("smollm2-135m_2to2") == 134'515'008);
  CHECK(gigabytes(static_cast<std::uint64_t>(parameters_of("kimi-k2_256to128"))) == "1026.408");
}

TEST_CASE("the catalogs of a scenario are those that ranks send: they are read back and mean the same") {
  const auto catalogs = catalogs_of(parsed(shipped("smollm2-135m_2to2")));
  for (const auto* side : {&catalogs.trainers, &catalogs.servers}) {
    for (const auto& catalog : *side)
      CHECK(digest_of(parse_catalog(to_json(catalog), "written")) == digest_of(catalog));
  }
}

TEST_CASE("a shipped scenario is planned with relay and without, proved, and within 2 % of its bound") {
  for (const auto* name : {"smollm2-135m_2to2", "demo_4to4", "qwen3-30b_8to8", "qwen3-235b_128to32"}) {
    CAPTURE(name);
    const auto scenario = parsed(shipped(name));
    const auto catalogs = catalogs_of(scenario);
    const auto topology = topology_of(scenario);
    for (const bool relay : {false, true}) {
      CAPTURE(relay);
      PlanOptions options;
      options.relay = relay;
      const auto plan = make_plan(catalogs, topology, options);
      const auto proof = prove(plan, catalogs, topology);
      CHECK(proof.destination_bytes == sum(plan.server_bytes));
      CHECK((proof.relayed_bytes > 0) == relay);
      const auto bound = lower_bound(match(catalogs), topology, relay);
      CHECK(bound.seconds > 0);
      CHECK(makespan_s(plan, topology) <= bound.seconds * 1.02);
      CHECK(makespan_s(plan, topology) >= bound.seconds * (1 - 1e-9));
    }
  }
}

TEST_CASE("key and value heads are replicated where there are more ranks than heads") {
  auto scene = small_scene();
  scene["servers"][0]["layout"]["tp"] = 8;
  scene["servers"][0]["hardware"]["gpus_per_node"] = 8;
  const auto catalogs = catalogs_of(parsed(scene));
  CHECK(slices(catalogs, kKeys) == Boxes{"[0:128, 0:256]", "[0:128, 0:256]", "[128:256, 0:256]", "[128:256, 0:256]",
                                         "[256:384, 0:256]", "[256:384, 0:256]", "[384:512, 0:256]",
                                         "[384:512, 0:256]"});
  static_cast<void>(proved_plan(catalogs));
}

TEST_CASE("a rank has all key and value heads that its query heads use, also where ranks do not divide them") {
  auto scene = small_scene();
  scene["model"].update({{"num_attention_heads", 12}, {"intermediate_size", 768}});
  scene["servers"][0]["layout"]["tp"] = 6;  // two query heads a rank, three to a key head
  scene["servers"][0]["hardware"]["gpus_per_node"] = 6;
  const auto catalogs = catalogs_of(parsed(scene));
  CHECK(slices(catalogs, kKeys) == Boxes{"[0:128, 0:256]", "[0:256, 0:256]", "[128:256, 0:256]", "[256:384, 0:256]",
                                         "[256:512, 0:256]", "[384:512, 0:256]"});
  static_cast<void>(proved_plan(catalogs));
}

TEST_CASE("experts are dealt out over ep and divided over what dp x tp leaves") {
  auto scene = small_mixture();
  scene["servers"][0]["layout"] = {{"dp", 2}, {"tp", 2}, {"ep", 2}};
  const auto catalogs = catalogs_of(parsed(scene));
  CHECK(slices(catalogs, "model.layers.1.mlp.experts.3.up_proj.weight") ==
        Boxes{"[0:128, 0:256]", "[128:256, 0:256]", "", ""});
  CHECK(slices(catalogs, "model.layers.1.mlp.experts.4.down_proj.weight") ==
        Boxes{"", "", "[0:256, 0:128]", "[0:256, 128:256]"});
  CHECK(slices(catalogs, "model.layers.1.mlp.gate.weight") == Boxes(4, "[0:8, 0:256]"));
  static_cast<void>(proved_plan(catalogs));
}

TEST_CASE("uneven stages on both sides: each holds its layers, tied embeddings stand on the last one too") {
  auto scene = small_scene();
  scene["model"].update({{"num_hidden_layers", 3}, {"tie_word_embeddings", true}});
  scene["trainers"]["layout"] = {{"pp", 2}, {"layers_per_stage", {1, 2}}};
  scene["servers"][0]["layout"] = {{"pp", 2}, {"tp", 2}, {"layers_per_stage", {2, 1}}};
  const auto catalogs = catalogs_of(parsed(scene));
  CHECK(slices(catalogs, "model.embed_tokens.weight") ==
        Boxes{"[0:500, 0:256]", "[500:1000, 0:256]", "[0:500, 0:256]", "[500:1000, 0:256]"});
  CHECK(slices(catalogs, "model.layers.1.input_layernorm.weight") == Boxes{"[0:256]", "[0:256]", "", ""});
  CHECK(slices(catalogs, "model.norm.weight") == Boxes{"", "", "[0:256]", "[0:256]"});
  CHECK(slices(catalogs, "lm_head.weight") == Boxes(4, ""));
  static_cast<void>(proved_plan(catalogs));
}

TEST_CASE("any product of trainer axes holds every byte, and replicas share the sending") {
  auto scene = small_mixture();
  for (const bool shard_over_ep : {true, false}) {
    scene["trainers"]["layout"] = {
        {"pp", 2}, {"dp", 2}, {"fsdp", 2}, {"cp", 2}, {"ep", 2}, {"tp", 2}, {"shard_over_ep", shard_over_ep}};
    scene["trainers"]["hardware"] = {{"nodes", 8}, {"gpus_per_node", 8}, {"nic_gbs", 50}};
    const auto plan = proved_plan(catalogs_of(parsed(scene)));
    CHECK(plan.trainer_bytes.size() == 64);
    CHECK(*std::min_element(plan.trainer_bytes.begin(), plan.trainer_bytes.end()) > 0);
  }
}

TEST_CASE("pools of servers may differ in layout and links; the bound names the slow one") {
  auto scene = small_scene();
  scene["trainers"]["hardware"]["nic_gbs"] = 400;
  auto pool = scene["servers"][0];
  pool["layout"] = {{"replicas", 2}, {"tp", 2}, {"attention", "replicated"}};
  pool["hardware"]["nic_gbs"] = 12.5;
  pool["hardware"]["nics_per_gpu"] = 2;
  scene["servers"].push_back(pool);
  const auto scenario = parsed(scene);
  const auto catalogs = catalogs_of(scenario);
  CHECK(catalogs.servers.size() == 8);
  CHECK(catalogs.servers[3].replica == 0);
  CHECK(catalogs.servers[5].replica == 1);
  CHECK(catalogs.servers[6].replica == 2);
  const auto plan = proved_plan(catalogs);
  const auto bound = lower_bound(match(catalogs), topology_of(scenario), false);
  CHECK(bound.binding.find("server 4 in") == 0);
  CHECK(bound.seconds == doctest::Approx(static_cast<double>(plan.server_bytes[4]) / 25e9));
}
