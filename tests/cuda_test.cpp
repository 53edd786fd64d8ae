#include "transport/cuda.h"

#include <doctest/doctest.h>

#include <array>

#include "transport/base/status.h"

using namespace weightcast;

TEST_CASE("host memory given as CUDA memory is refused, with a driver and without one") {
  std::array<std::byte, 64> host{};
  CHECK_THROWS_WITH_AS(static_cast<void>(check_cuda_memory({host.data(), host.size(), MemoryKind::cuda})),
                       doctest::Contains("CUDA"), Error);
}
