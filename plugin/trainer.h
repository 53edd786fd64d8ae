// A trainer: the loop, the fabric and the pipeline around TrainerCore. The C ABI's trainer calls end here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "schedule/config.h"
#include "transport/base/status.h"
#include "transport/base/units.h"

namespace weightcast {

// Thread-safe.
class Trainer {
 public:
  // Reads the secret, runs the controller if it is this rank's to run, joins in the background. Throws Error.
  Trainer(const Config& config, std::string_view catalog_json);
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;
  ~Trainer();  // stops an update that runs; bounded by times.death_busy_ms and the connections' ends

  [[nodiscard]] Status wait_connected(Deadline deadline) const;
  // Until the source may change again.
  [[nodiscard]] Status push(std::uint64_t version);
  // Until the version has ended; `report` is written on success.
  [[nodiscard]] Status wait(std::uint64_t version, Deadline deadline, std::string& report) const;
  [[nodiscard]] std::string status_json() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weightcast
