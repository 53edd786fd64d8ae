// Staged landing in the memory of a GPU, on a fabric that is only memory. Exit code 77 without a GPU.
#define DOCTEST_CONFIG_IMPLEMENT
#include "plugin/gpu_landing.h"

#include <doctest/doctest.h>

#include <cstdio>

#include "quant/gpu.h"
#include "tests/cuda_memory.h"
#include "tests/support/memory_fabric.h"
#include "transport/cuda.h"

using namespace weightcast;

namespace {

constexpr std::int64_t kColumns = 2048;
constexpr std::uint64_t kPitch = 2 * kColumns + 16;  // the engine keeps 16 bytes between the rows

Catalog catalog_of(const CudaMemory& memory, Landing landing = Landing::direct) {
  Catalog catalog;
  catalog.role = Role::server;
  catalog.regions.push_back(
      {"weights", memory.span().bytes, MemoryKind::cuda, reinterpret_cast<std::uint64_t>(memory.span().address)});
  Entry entry;
  entry.tensor = "w";
  entry.shape = {3, kColumns};
  entry.box = whole(entry.shape);
  entry.byte_offset = 48;
  entry.strides_bytes = {static_cast<std::int64_t>(kPitch), 2};
  entry.landing = landing;
  catalog.entries.push_back(entry);
  return catalog;
}

}  // namespace

TEST_CASE("commit copies what landed over the live weights, and nothing beside them") {
  CudaMemory live(64 * 1024);
  const std::vector<std::byte> old(live.span().bytes, std::byte{1});
  live.write(old);
  const Catalog catalog = catalog_of(live);
  MemoryFabric fabric;
  const auto landing = make_landing("staged", catalog);
  landing->prepare(fabric);
  REQUIRE(landing->regions().size() == 1);
  REQUIRE(fabric.memory(landing->regions()[0]).kind == MemoryKind::cuda);
  CHECK(landing->region_start(0) == fabric.memory(landing->regions()[0]).address);
  {
    use_primary_cuda_context(0);
    const CudaStream stream;
    fill_async(landing->region_start(0), std::byte{2}, live.span().bytes, stream);
    stream.synchronize();
  }
  CHECK(live.read() == old);
  landing->commit();
  const auto now = live.read();
  std::uint64_t wrong = 0;
  for (std::uint64_t at = 0; at < now.size(); ++at) {
    const bool landed = at >= 48 && at < 48 + 2 * kPitch + 2 * kColumns && (at - 48) % kPitch < 2 * kColumns;
    wrong += now[at] == (landed ? std::byte{2} : std::byte{1}) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("entries that the host repairs are left to it") {
  CudaMemory live(64 * 1024);
  live.write(std::vector<std::byte>(live.span().bytes, std::byte{1}));
  const auto before = live.read();
  const Catalog catalog = catalog_of(live, Landing::staged_repair);
  MemoryFabric fabric;
  const auto landing = make_landing("staged", catalog);
  landing->prepare(fabric);
  landing->commit();
  CHECK(live.read() == before);
}

TEST_CASE("host memory and CUDA memory in one catalog are refused, with what to do") {
  CudaMemory live(64 * 1024);
  Catalog catalog = catalog_of(live);
  catalog.regions.push_back({"small", 64, MemoryKind::host, 4096});
  CHECK_THROWS_WITH_AS((void)make_landing("staged", catalog), doctest::Contains("give them to two ranks"), Error);
}

int main(int argc, char** argv) {
  if (!cuda_is_there() || !has_gpu_kernels()) {
    std::puts(has_gpu_kernels() ? "SKIPPED: no CUDA driver, or no GPU" : "SKIPPED: this build has no CUDA kernels");
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
