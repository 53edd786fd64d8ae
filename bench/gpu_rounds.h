// Cases on one GPU, timed by its own events, in rounds that run every case once, so that all see the same machine.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "bench/spread.h"
#include "transport/cuda_stream.h"

namespace weightcast {

struct GpuCase {
  std::string name;
  std::function<void(const CudaStream&)> run;  // enqueues
  std::vector<double> seconds = {};
};

inline void run_rounds(std::vector<GpuCase>& cases, int rounds, const CudaStream& stream) {
  const CudaEvent start(CudaEvent::Kind::timed);
  const CudaEvent end(CudaEvent::Kind::timed);
  for (int round = -2; round < rounds; ++round) {  // two to warm up
    for (GpuCase& one : cases) {
      start.record(stream);
      one.run(stream);
      end.record(stream);
      stream.synchronize();
      if (round >= 0) one.seconds.push_back(end.seconds_since(start));
    }
  }
}

[[nodiscard]] inline const GpuCase& case_of(const std::vector<GpuCase>& cases, const std::string& name) {
  return *std::find_if(cases.begin(), cases.end(), [&](const GpuCase& one) { return one.name == name; });
}

}  // namespace weightcast
