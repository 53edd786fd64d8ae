#include "transport/ucx/context.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "transport/base/log.h"
#include "transport/ucx/inspect.h"

namespace weightcast {
namespace {

struct ReleaseConfig {
  void operator()(ucp_config_t* config) const noexcept { ucx().ucp_config_release(config); }
};

[[noreturn]] void throw_unavailable(const std::string& what, ucs_status_t status) {
  throw Error(Code::unavailable, fmt::format("UCX {}: {} ({})", what, ucx_text(status), ucx_path()));
}

void apply(ucp_config_t* config, const FabricOptions& options) {
  for (const auto& setting : ucx_settings(options)) {
    const auto status = ucx().ucp_config_modify(config, setting.name.c_str(), setting.value.c_str());
    if (status == UCS_OK) continue;
    if (setting.required) throw_unavailable(fmt::format("refuses {}={}", setting.name, setting.value), status);
    log_debug("UCX does not know {}={}: {}", setting.name, setting.value, ucx_text(status));
  }
}

}  // namespace

UcxContext open_context(const FabricOptions& options) {
  ucp_config_t* raw = nullptr;
  if (const auto status = ucx().ucp_config_read(nullptr, nullptr, &raw); status != UCS_OK) {
    throw_unavailable("cannot read its configuration", status);
  }
  const std::unique_ptr<ucp_config_t, ReleaseConfig> config(raw);
  apply(raw, options);
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
  params.features = UCP_FEATURE_RMA | UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.name = "weightcast";
  params.mt_workers_shared = 1;  // the last owner of a mapping may be a thread that submits
  ucp_context_h context = nullptr;
  const auto status = ucx().ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, raw, &context);
  if (status != UCS_OK) {
    throw_unavailable(fmt::format("cannot start on interfaces [{}]", fmt::join(options.interfaces, ", ")), status);
  }
  return UcxContext(context);
}

UcxWorker open_worker(ucp_context_h context) {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SINGLE;
  ucp_worker_h worker = nullptr;
  const auto status = ucx().ucp_worker_create(context, &params, &worker);
  if (status != UCS_OK) throw_unavailable("cannot create a worker", status);
  return UcxWorker(worker);
}

Bytes worker_address(ucp_worker_h worker) {
  ucp_worker_attr_t attributes{};
  attributes.field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS;
  if (const auto status = ucx().ucp_worker_query(worker, &attributes); status != UCS_OK) {
    throw_unavailable("cannot name its worker's address", status);
  }
  Bytes address(attributes.address_length);
  std::memcpy(address.data(), attributes.address, address.size());
  ucx().ucp_worker_release_address(worker, attributes.address);
  return address;
}

std::vector<std::string> transports_of(ucp_context_h context) {
  return parse_transports(printed([context](std::FILE* out) { ucx().ucp_context_print_info(context, out); }));
}

MemoryMapping::MemoryMapping(ucp_context_h context, MemorySpan span) : context_(context), span_(span) {
  const bool allocates = span.address == nullptr;
  ucp_mem_map_params_t params{};
  params.field_mask =
      UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
  params.address = span.address;
  params.length = span.bytes;
  params.memory_type = ucx_memory_type(span.kind);
  if (allocates) {
    params.field_mask |= UCP_MEM_MAP_PARAM_FIELD_FLAGS;
    params.flags = UCP_MEM_MAP_ALLOCATE;
  }
  if (const auto status = ucx().ucp_mem_map(context, &params, &handle_); status != UCS_OK) {
    throw_unavailable(
        fmt::format("cannot {} {} bytes of {} memory (locked-memory limit, /dev/shm?)",
                    allocates ? "allocate" : "register", span.bytes, span.kind == MemoryKind::cuda ? "CUDA" : "host"),
        status);
  }
  if (!allocates) return;
  ucp_mem_attr_t attributes{};
  attributes.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS;
  if (const auto status = ucx().ucp_mem_query(handle_, &attributes); status != UCS_OK) {
    ucx().ucp_mem_unmap(context_, handle_);
    throw_unavailable("cannot name the address of memory that it allocated", status);
  }
  span_.address = static_cast<std::byte*>(attributes.address);
}

MemoryMapping::~MemoryMapping() { ucx().ucp_mem_unmap(context_, handle_); }

Bytes MemoryMapping::packed_rkey() const {
  void* buffer = nullptr;
  std::size_t bytes = 0;
  if (const auto status = ucx().ucp_rkey_pack(context_, handle_, &buffer, &bytes); status != UCS_OK) {
    throw_unavailable("cannot pack a remote key", status);
  }
  const auto* first = static_cast<const std::byte*>(buffer);
  Bytes packed(first, first + bytes);
  ucx().ucp_rkey_buffer_release(buffer);
  return packed;
}

}  // namespace weightcast
