// Changes of a scenario as they come from a command line, one a line: "--set KEY=VALUE", "--drop ROLE:RANK",
// "--add-replica COUNT". Any of them give another scenario or are refused with a reason.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "schedule/what_if.h"
#include "tests/fuzz/small_scenario.h"
#include "transport/base/status.h"

namespace {

using namespace weightcast;

constexpr std::string_view kScenario = R"({
  "format": "weightcast.scenario/1",
  "model": {"model_type": "qwen3_moe", "hidden_size": 256, "num_hidden_layers": 2, "vocab_size": 512, "head_dim": 128,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512, "num_experts": 4,
            "moe_intermediate_size": 256, "tie_word_embeddings": false},
  "recipe": "fp8_e4m3_128x128_fp32",
  "trainers": {"layout": {"fsdp": 2, "pp": 2}, "hardware": {"nodes": 1, "gpus_per_node": 4, "nic_gbs": 50}},
  "servers": [{"layout": {"replicas": 2, "tp": 2},
               "hardware": {"nodes": 2, "gpus_per_node": 2, "nic_gbs": 50, "nvlink_gbs": 450}}]
})";

WhatIf changes_of(std::string_view text) {
  WhatIf changes;
  const auto after = [](std::string_view line, std::string_view flag) { return std::string(line.substr(flag.size())); };
  while (!text.empty()) {
    const auto line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.starts_with("--set ")) changes.settings.push_back(after(line, "--set "));
    if (line.starts_with("--drop ")) changes.dropped.push_back(after(line, "--drop "));
    // As many as the command line takes: other numbers are refused before this is called.
    if (line.starts_with("--add-replica ")) {
      changes.added_replicas = static_cast<std::uint32_t>(std::strtoul(line.data() + 14, nullptr, 10) % (1U << 14));
    }
  }
  return changes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes) {
  const std::string text(reinterpret_cast<const char*>(input), input_bytes);
  const auto changes = changes_of(text);
  try {
    const auto scenario = parse_scenario(kScenario, "fuzz", changes);
    if (!fuzz::is_small(scenario)) return 0;
    auto catalogs = catalogs_of(scenario);
    if (catalogs.trainers.empty() || catalogs.servers.empty()) std::abort();
    drop_ranks(changes, catalogs);
  } catch (const Error& error) {
    if (error.code() != Code::invalid_argument) std::abort();
  }
  return 0;
}
