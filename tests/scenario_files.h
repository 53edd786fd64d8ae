// The scenarios of bench/scenarios, as they are shipped and with changes.
#pragma once

#include <doctest/doctest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

#include "schedule/scenario.h"
#include "schedule/strict_json.h"

namespace weightcast::testing {

inline nlohmann::ordered_json shipped(const std::string& name) {
  const char* root = std::getenv("WEIGHTCAST_SOURCE_ROOT");
  REQUIRE_MESSAGE(root != nullptr, "run by meson test, which sets WEIGHTCAST_SOURCE_ROOT");
  return nlohmann::ordered_json::parse(read_text_file(std::string(root) + "/bench/scenarios/" + name + ".json"));
}

inline Scenario parsed(const nlohmann::ordered_json& document) { return parse_scenario(document.dump(), "scene.json"); }

// A model of two layers with eight query heads on four key and value heads, from two trainers to four servers.
inline nlohmann::ordered_json small_scene() {
  return nlohmann::ordered_json::parse(R"({
    "format": "weightcast.scenario/1",
    "model": {"model_type": "qwen3", "hidden_size": 256, "num_hidden_layers": 2, "vocab_size": 1000, "head_dim": 128,
              "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 1024},
    "recipe": "fp8_e4m3_128x128_fp32",
    "trainers": {"layout": {"fsdp": 2}, "hardware": {"nodes": 1, "gpus_per_node": 2, "nic_gbs": 50}},
    "servers": [{"layout": {"tp": 4}, "hardware": {"nodes": 1, "gpus_per_node": 4, "nic_gbs": 50}}]})");
}

// small_scene() with routed experts.
inline nlohmann::ordered_json small_mixture() {
  auto scene = small_scene();
  scene["model"].update({{"model_type", "qwen3_moe"}, {"num_experts", 8}, {"moe_intermediate_size", 256}});
  scene["servers"][0]["layout"]["ep"] = 4;
  return scene;
}

}  // namespace weightcast::testing
