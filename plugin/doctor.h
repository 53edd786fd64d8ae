// Looks at this machine the way an update would use it, and says what stands in the way. For `weightcast doctor`.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "schedule/config.h"
#include "transport/fabric.h"

namespace weightcast {

enum class FindingState : std::uint8_t { ok, note, problem };
[[nodiscard]] std::string_view to_string(FindingState state) noexcept;

struct Finding {
  std::string name;  // "ucx", "memory_lock", ...
  FindingState state = FindingState::ok;
  std::string text;
  std::string what_to_do;  // empty when nothing
};

// Opens UCX in this process and forks a child for a moment; takes about a second. Never throws: what fails is a
// finding.
[[nodiscard]] std::vector<Finding> examine(const Config& config);

// ---- the judgements, apart from the looking ----
[[nodiscard]] Finding judge_ucx(const FabricFacts& facts, bool has_gpu, bool has_rdma_port);
[[nodiscard]] Finding judge_shared_memory(std::uint64_t free_bytes, std::uint64_t total_bytes);
// RLIM_INFINITY stands for no limit.
[[nodiscard]] Finding judge_memory_lock(std::uint64_t limit_bytes, bool has_rdma_port);
// `errno_of_read`: what process_vm_readv on a process of the same user gave, 0 for success. `ptrace_scope`: -1 when
// this kernel has none.
[[nodiscard]] Finding judge_cma(int errno_of_read, int ptrace_scope);
[[nodiscard]] Finding judge_cores(std::uint32_t cores, const std::string& spin);

// "ok       ucx: ...", one line each, what to do below it.
[[nodiscard]] std::string to_text(std::span<const Finding> findings);
// {"problems": N, "findings": [{"name", "state", "text", "what_to_do"}]}
[[nodiscard]] std::string to_json(std::span<const Finding> findings);

}  // namespace weightcast
