// RAII around UCX's handles, and what it says about itself. Progress thread only.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "transport/fabric.h"
#include "transport/ucx/library.h"
#include "transport/ucx/settings.h"

namespace weightcast {

struct CleanUpContext {
  void operator()(ucp_context_h context) const noexcept { ucx().ucp_cleanup(context); }
};
struct DestroyWorker {
  void operator()(ucp_worker_h worker) const noexcept { ucx().ucp_worker_destroy(worker); }
};
struct DestroyRkey {
  void operator()(ucp_rkey_h rkey) const noexcept { ucx().ucp_rkey_destroy(rkey); }
};
using UcxContext = std::unique_ptr<ucp_context, CleanUpContext>;
using UcxWorker = std::unique_ptr<ucp_worker, DestroyWorker>;
using UcxRkey = std::unique_ptr<ucp_rkey, DestroyRkey>;

// Throws Error unavailable: a required setting is unknown, or no transport remains on the named interfaces.
[[nodiscard]] UcxContext open_context(const FabricOptions& options);
[[nodiscard]] UcxWorker open_worker(ucp_context_h context);
[[nodiscard]] Bytes worker_address(ucp_worker_h worker);

// What the context's printed description says.
[[nodiscard]] std::vector<std::string> transports_of(ucp_context_h context);

// A mapping: memory of somebody else, or memory that UCX allocated. Owner of the registration, and of allocated
// memory.
class MemoryMapping {
 public:
  // span.address null: allocate span.bytes. Throws Error unavailable.
  MemoryMapping(ucp_context_h context, MemorySpan span);
  MemoryMapping(const MemoryMapping&) = delete;
  MemoryMapping& operator=(const MemoryMapping&) = delete;
  ~MemoryMapping();

  [[nodiscard]] ucp_mem_h handle() const noexcept { return handle_; }
  [[nodiscard]] MemorySpan span() const noexcept { return span_; }
  [[nodiscard]] Bytes packed_rkey() const;

 private:
  ucp_context_h context_;
  ucp_mem_h handle_ = nullptr;
  MemorySpan span_;
};

[[nodiscard]] constexpr ucs_memory_type_t ucx_memory_type(MemoryKind kind) {
  return kind == MemoryKind::cuda ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
}

}  // namespace weightcast
