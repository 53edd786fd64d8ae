// The fabric between the GPU memories of two processes. Exit code 77 where there is no GPU.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "tests/cuda_memory.h"
#include "tests/fabric_process.h"
#include "transport/cuda.h"

using namespace weightcast;

namespace {

std::vector<std::byte> pattern(unsigned seed) {
  std::vector<std::byte> bytes(kRegionBytes);
  fill({bytes.data(), bytes.size()}, seed);
  return bytes;
}

// A process with device memory, connected to one whose region 0 is device memory.
struct CudaPair {
  CudaPair() {
    source = fabric->register_memory(memory.span());
    peer = fabric->connect("server 2", process.card, soon());
  }
  PeerProcess process{"cuda"};
  CudaMemory memory{kRegionBytes};
  Listener listener;
  std::unique_ptr<Fabric> fabric = open_fabric(options_for(false), listener);
  RegionId source = 0;
  PeerId peer = 0;
};

}  // namespace

TEST_CASE("bytes go from one process's GPU memory to another's, in chunks that no page fits, before the signal") {
  CudaPair pair;
  CHECK(pair.fabric->peer_facts(pair.peer).path.find("cuda_ipc") != std::string::npos);
  unsigned seed = 0;
  for (const std::uint64_t chunk_bytes : {300 * KiB + 8, kRegionBytes}) {
    const auto sent = pattern(++seed);
    pair.memory.write(sent);
    Tally tally;
    for (std::uint64_t at = 0; at < kRegionBytes; at += chunk_bytes) {
      const Put put{pair.peer, pair.source, at, 0, at, std::min(chunk_bytes, kRegionBytes - at), &tally};
      REQUIRE(pair.fabric->put(put, soon()).ok());
    }
    REQUIRE(pair.fabric->signal(pair.peer, Bytes(1), &tally, soon()).ok());
    CHECK(tally.wait(soon(), "the puts").ok());
    CHECK(pair.process.next_message() == "00");
    CHECK(pair.process.sum(0, 0, kRegionBytes) == weighted_sum(sent));
  }
  CHECK(pair.listener.failures == 0);
}

TEST_CASE("another process's GPU memory stands in this one, where kernels reach it; its plain memory does not") {
  CudaPair pair;
  const MemorySpan there = pair.fabric->mapped(pair.peer, 0);
  REQUIRE(there.address != nullptr);
  CHECK(there.bytes == kRegionBytes);
  CHECK(there.kind == MemoryKind::cuda);
  CHECK(is_cuda_memory(there.address));
  CHECK(pair.fabric->mapped(pair.peer, 1).address == nullptr);
  pair.fabric->disconnect(pair.peer);
  CHECK(pair.fabric->mapped(pair.peer, 0).address == nullptr);
}

TEST_CASE("first contact changes no byte of GPU memory") {
  PeerProcess process("cuda");
  const auto before = process.sum(0, 0, kRegionBytes);
  CudaMemory memory(kRegionBytes);
  Listener listener;
  const auto fabric = open_fabric(options_for(false), listener);
  (void)fabric->register_memory(memory.span());
  (void)fabric->connect("server 2", process.card, soon());
  CHECK(process.sum(0, 0, kRegionBytes) == before);
}

TEST_CASE("a span that leaves its CUDA allocation is refused") {
  const CudaMemory memory(kRegionBytes);
  Listener listener;
  const auto fabric = open_fabric(options_for(false), listener);
  auto span = memory.span();
  span.address += 1 * MiB;
  CHECK_THROWS_WITH_AS((void)fabric->register_memory(span), doctest::Contains("leave their CUDA allocation"), Error);
}

TEST_CASE("what would be copied through messages into a GPU is refused at first contact, with what to do") {
  PeerProcess process("cuda");
  Listener listener;
  const auto fabric = open_fabric(options_for(true), listener);  // the network alone: tcp reaches no GPU
  CHECK_THROWS_WITH_AS((void)fabric->connect("server 2", process.card, soon()), doctest::Contains("allow_emulation"),
                       Error);
}

int main(int argc, char** argv) {
  if (!cuda_is_there()) {
    std::puts("SKIPPED: no CUDA driver, or no GPU");
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
