// What a scenario file may not say: each is one error that names the file, the place and what is wrong.
#include <doctest/doctest.h>

#include <string>

#include "tests/scenario_files.h"
#include "transport/base/status.h"

using namespace weightcast;
using namespace weightcast::testing;

namespace {

using Json = nlohmann::ordered_json;

std::string error_of(const std::string& text) {
  try {
    static_cast<void>(catalogs_of(parse_scenario(text, "scene.json")));
  } catch (const Error& error) {
    CHECK(error.code() == Code::invalid_argument);
    return error.what();
  }
  return "accepted";
}

// The complaint about `scene` when `value` stands at `pointer`.
std::string refused(Json scene, const char* pointer, const Json& value) {
  scene[Json::json_pointer(pointer)] = value;
  return error_of(scene.dump());
}
std::string refused(const char* pointer, const Json& value) { return refused(small_scene(), pointer, value); }

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("the scene that the others change is accepted") {
  CHECK(error_of(small_scene().dump()) == "accepted");
  CHECK(error_of(small_mixture().dump()) == "accepted");
}

TEST_CASE("a config.json is taken as it is: fields that decide no shape are read over") {
  auto scene = small_mixture();
  scene["model"].update({{"architectures", {"Qwen3MoeForCausalLM"}},
                         {"attention_bias", false},
                         {"rope_theta", 1e6},
                         {"mlp_only_layers", Json::array()},
                         {"num_experts_per_tok", 2},
                         {"sliding_window", nullptr}});
  CHECK(error_of(scene.dump()) == "accepted");
  CHECK(refused(scene, "/model/attention_bias", true) ==
        "scene.json: /model/attention_bias: must be false: only qwen2 has biases here");
}

TEST_CASE("an unknown key is named together with the nearest known one") {
  CHECK(refused("/servers/0/layout/replica", 2) ==
        "scene.json: /servers/0/layout: unknown key \"replica\"; the nearest known one is \"replicas\"");
  CHECK(refused("/model/hiden_size", 2) ==
        "scene.json: /model: unknown key \"hiden_size\"; the nearest known one is \"hidden_size\"");
  CHECK(refused("/trainer", 1) ==
        "scene.json: the document: unknown key \"trainer\"; the nearest known one is \"trainers\"");
}

TEST_CASE("a missing key, a wrong type and a value out of range are named with their place") {
  auto scene = small_scene();
  scene["model"].erase("vocab_size");
  CHECK(error_of(scene.dump()) == "scene.json: /model: the key \"vocab_size\" is missing");
  CHECK(refused("/servers/0/layout/tp", 0) ==
        "scene.json: /servers/0/layout/tp: must be an integer from 1 to 16384, is 0");
  CHECK(refused("/trainers/layout/fsdp", "two") ==
        "scene.json: /trainers/layout/fsdp: must be an integer from 1 to 16384, is \"two\"");
  CHECK(contains(refused("/trainers/hardware/nic_gbs", -1), "/trainers/hardware/nic_gbs: must be a number above 0"));
  CHECK(contains(refused(small_mixture(), "/model/num_experts", 1 << 20),
                 "/model/num_experts: must be an integer from 1"));
  CHECK(contains(refused("/servers", Json::array()), "/servers: must name at least one pool"));
  CHECK(contains(error_of("{\"format\": "), "scene.json: parse error at line 1"));
  CHECK(contains(error_of("[]"), "scene.json: the document: must be an object"));
}

TEST_CASE("another format, model or recipe is refused with those that are known") {
  CHECK(refused("/format", "weightcast.scenario/2") == "scene.json: /format: must be \"weightcast.scenario/1\"");
  CHECK(contains(refused("/model/model_type", "gpt2"), "/model/model_type: \"gpt2\" is not supported; supported are "));
  CHECK(refused("/recipe", "fp8") ==
        "scene.json: /recipe: \"fp8\" is no recipe that plans can carry; there are bf16, fp16, fp32, "
        "fp8_e4m3_128x128_fp32, fp8_e4m3_128x128_ue8m0, fp8_e4m3_tensor, fp8_e4m3_channel, mxfp8_e4m3_1x32, "
        "nvfp4_e2m1_1x16");
  CHECK(contains(refused(small_mixture(), "/model/decoder_sparse_step", 2), "/model/decoder_sparse_step: must be 1"));
}

TEST_CASE("a layout that does not divide the model says which number and which key") {
  CHECK(refused("/servers/0/layout/tp", 3) ==
        "scene.json: /servers/0/layout/tp: 3 ranks do not divide 1024 of intermediate_size");
  CHECK(refused("/servers/0/layout/tp", 16) ==
        "scene.json: /servers/0/layout/tp: 16 ranks do not divide 8 attention heads");
  CHECK(refused("/model/num_key_value_heads", 3) ==
        "scene.json: /model/num_key_value_heads: 3 does not divide the 8 attention heads");
  CHECK(contains(refused("/trainers/layout/pp", 3), "/trainers/layout/pp: 3 stages do not divide 2 layers"));
  CHECK(refused("/trainers/layout/ep", 2) == "scene.json: /trainers/layout/ep: the model has no routed experts");
  CHECK(contains(refused(small_mixture(), "/trainers/layout/ep", 3), "/ep: 3 ranks do not divide 8 routed experts"));
  CHECK(contains(refused(small_mixture(), "/servers/0/layout/ep", 3), "/ep: 3 does not divide the 4 ranks of dp x tp"));
}

TEST_CASE("stages that do not add up to the model, and orders that do not name every axis once, are refused") {
  CHECK(refused("/trainers/layout/layers_per_stage", {1, 1}) ==
        "scene.json: /trainers/layout/layers_per_stage: names 2 stages, pp is 1");
  CHECK(refused("/trainers/layout/layers_per_stage", Json::array({3})) ==
        "scene.json: /trainers/layout/layers_per_stage: adds up to 3 layers, the model has 2");
  CHECK(refused("/trainers/layout/order", {"pp", "tp"}) ==
        "scene.json: /trainers/layout/order: fsdp of 2 ranks is missing");
  CHECK(refused("/trainers/layout/order", {"fsdp", "fsdp"}) ==
        "scene.json: /trainers/layout/order/1: fsdp stands twice");
  CHECK(contains(refused("/trainers/layout/order", {"fsdp", "sp"}), "/order/1: must be one of pp, dp, fsdp"));
}

TEST_CASE("as many GPUs as ranks") {
  CHECK(refused("/servers/0/hardware/nodes", 2) ==
        "scene.json: /servers/0/hardware: there are 8 GPUs, the layout has 4 ranks");
  CHECK(contains(refused("/trainers/layout/dp", 16384), "/trainers/hardware: the layout has more than 16384 ranks"));
}

TEST_CASE("trainers whose key and value heads would overlap are refused") {
  auto scene = small_scene();
  scene["model"].update({{"num_attention_heads", 12}, {"intermediate_size", 768}});
  scene["servers"][0]["layout"]["tp"] = 2;
  scene["servers"][0]["hardware"]["gpus_per_node"] = 2;
  CHECK(contains(refused(scene, "/trainers/layout/tp", 6), "/trainers/layout/tp: shards of 6 ranks overlap"));
}

TEST_CASE("a slice to which the recipe cannot be applied is named with its tensor and server") {
  CHECK(
      refused("/model/intermediate_size", 512 + 256) ==
      "scene.json: /servers/0/layout: the slice [0:192, 0:256] of tensor model.layers.0.mlp.gate_proj.weight on "
      "server 0 (replica 0) cuts blocks of 128x128, and the recipe fp8_e4m3_128x128_fp32 needs whole ones; lower tp or "
      "raise ep");
  auto scene = small_scene();
  scene["model"]["intermediate_size"] = 512 + 256;
  CHECK(refused(scene, "/recipe", "bf16") == "accepted");
}
