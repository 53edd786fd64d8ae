#include "plugin/gpu_ring.h"

#include <thread>

namespace weightcast {

GpuRing::GpuRing(std::size_t slots, std::size_t streams) : streams_(streams), events_(slots) {}

Status GpuRing::run(std::size_t batches, Work& work, Deadline deadline) {
  std::size_t enqueued = 0;
  std::size_t delivered = 0;
  while (delivered < batches) {
    bool progressed = false;
    const std::size_t next = enqueued % slots();
    if (enqueued < batches && enqueued - delivered < slots() && work.is_free(next)) {
      events_[next].record(work.enqueue(enqueued, next, streams_[enqueued % streams_.size()]));
      ++enqueued;
      progressed = true;
    }
    if (delivered < enqueued) {
      bool is_done = false;
      if (const Status status = events_[delivered % slots()].query(is_done); !status.ok()) return status;
      if (is_done) {
        work.deliver(delivered, delivered % slots());
        ++delivered;
        progressed = true;
      }
    }
    if (work.has_to_stop()) return drain(delivered, enqueued);
    if (progressed) continue;
    if (deadline.passed()) {
      if (const Status status = drain(delivered, enqueued); !status.ok()) return status;
      return {Code::timed_out, "the GPU's casts, or the puts of their scratch, did not end in time"};
    }
    std::this_thread::yield();
  }
  return {};
}

Status GpuRing::drain(std::size_t delivered, std::size_t enqueued) {
  for (; delivered < enqueued; ++delivered) {
    for (bool is_done = false; !is_done; std::this_thread::yield()) {
      if (const Status status = events_[delivered % slots()].query(is_done); !status.ok()) return status;
    }
  }
  return {};
}

}  // namespace weightcast
