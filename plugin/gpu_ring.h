// The ring of scratch slots through which a GPU's batches go: cast into one slot while others are on the wire.
//
// - enqueue(batch, slot, stream) copies and casts into the slot: it only enqueues, and returns the stream it ends on.
// - The event that is recorded behind it is polled by the one thread that runs run().
// - deliver(batch, slot) puts what the slot holds then.
//
// UCX does not order itself behind a CUDA stream, so a put may only be made once the event says that the cast has
// ended. No stream is synchronised. Batch i uses slot i modulo slots, so what a batch needs can be laid out beforehand.
#pragma once

#include <cstddef>
#include <vector>

#include "transport/base/status.h"
#include "transport/base/units.h"
#include "transport/cuda_stream.h"

namespace weightcast {

class GpuRing {
 public:
  class Work {
   public:
    Work() = default;
    Work(const Work&) = delete;
    Work& operator=(const Work&) = delete;
    virtual ~Work() = default;
    [[nodiscard]] virtual bool is_free(std::size_t slot) = 0;  // whatever deliver() began with it is complete
    virtual const CudaStream& enqueue(std::size_t batch, std::size_t slot, const CudaStream& stream) = 0;
    virtual void deliver(std::size_t batch, std::size_t slot) = 0;
    [[nodiscard]] virtual bool has_to_stop() = 0;
  };

  // On the thread that will call run(), or before any does. Batches alternate between the streams, so that one's last
  // tiles overlap with the next one's first.
  explicit GpuRing(std::size_t slots, std::size_t streams = 2);

  // Batches 0, 1, ... in order; returns when all are delivered, or the work has to stop, or the deadline has passed.
  // Whatever it returns, nothing of it still runs on the device. Throws Error when CUDA refuses to enqueue.
  [[nodiscard]] Status run(std::size_t batches, Work& work, Deadline deadline);
  [[nodiscard]] std::size_t slots() const noexcept { return events_.size(); }

 private:
  [[nodiscard]] Status drain(std::size_t delivered, std::size_t enqueued);

  std::vector<CudaStream> streams_;
  std::vector<CudaEvent> events_;  // by slot
};

}  // namespace weightcast
