#include "plugin/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <utility>

#include "plugin/extent.h"
#include "transport/cuda.h"

namespace weightcast {
namespace {

constexpr std::uint64_t kPartBytes = 1 * MiB;  // enough to share evenly, and to read in long runs

}  // namespace

void Verifier::adopt(const ServerTable& table) {
  parts_.clear();
  signals_.clear();
  on_gpu_.clear();
  for (const ExpectedSender& sender : table.senders) {
    auto piece = sender.pieces.begin();
    for (const SignalExtent& signal : signals_of(sender, catalog_)) {
      const std::size_t first = parts_.size();
      for (const auto end = piece + static_cast<std::ptrdiff_t>(signal.pieces); piece != end; ++piece) {
        add_parts_of(*piece);
      }
      signals_[sender.trainer].push_back({first, parts_.size()});
    }
  }
}

void Verifier::add_parts_of(const Piece& piece) {
  const Entry& entry = catalog_.entries[piece.entry];
  const std::uint64_t element = stored_bytes(entry);
  const std::uint64_t key = digest_key(entry.tensor, entry.is_scales);
  for_each_matrix(piece.box, entry.box, [&](const MatrixView& view) {
    const auto rows = static_cast<std::uint64_t>(view.rows);
    Part part{piece.entry,
              byte_at(entry, view.origin),
              0,
              static_cast<std::uint64_t>(view.cols) * element,
              row_stride(entry.strides_bytes, entry.box.axes),
              digest_frame(key, entry.box, view, element)};
    const std::uint64_t rows_of_part = std::max<std::uint64_t>(1, kPartBytes / part.row_bytes);
    for (std::uint64_t row = 0; row < rows; row += part.rows) {
      part.rows = std::min(rows_of_part, rows - row);
      parts_.push_back(part);
      part.byte_offset += static_cast<std::uint64_t>(static_cast<std::int64_t>(part.rows) * part.row_stride);
      part.frame.first_row += part.rows;
    }
  });
}

Digest Verifier::digest_of(const Part& part, const LandingMemory& landing, std::uint64_t version) const {
  DigestFrame frame = part.frame;
  frame.seed = digest_seed(version, part.frame.seed);
  const std::byte* start = landing.region_start(catalog_.entries[part.entry].region) + part.byte_offset;
  return digest_rows(start, part.rows, part.row_bytes, part.row_stride, frame);
}

bool Verifier::is_on_gpu(std::size_t part) const {
  return catalog_.regions[catalog_.entries[parts_[part].entry].region].kind == MemoryKind::cuda;
}

Digest Verifier::digest_on_gpu(std::size_t first, std::size_t end, const LandingMemory& landing,
                               std::uint64_t version) {
  const auto address_of = [&](const Part& part) {
    return landing.region_start(catalog_.entries[part.entry].region) + part.byte_offset;
  };
  const Region& region = catalog_.regions[catalog_.entries[parts_[first].entry].region];
  const int device = check_cuda_memory({reinterpret_cast<std::byte*>(region.address), region.bytes, MemoryKind::cuda});
  const CudaContextScope current(device);
  auto& known = on_gpu_[first];
  if (!known) {
    std::vector<GpuDigestJob> jobs;
    for (std::size_t index = first; index < end; ++index) {
      const Part& part = parts_[index];
      jobs.push_back({address_of(part), part.rows, part.row_bytes, part.row_stride, part.frame, 0, false});
    }
    known = std::make_unique<OnGpu>(OnGpu{device, GpuDigest(jobs), GpuFindings(1), CudaStream()});
  }
  known->findings.clear(known->stream);
  known->digest.launch(known->stream, version, known->findings);
  known->findings.fetch(known->stream);
  known->stream.synchronize();
  return known->findings.digest(0);
}

Status Verifier::verify(const LandingMemory& landing, const Signal& signal) {
  const auto planned = signals_.find(signal.trainer);
  if (planned == signals_.end() || signal.ordinal >= planned->second.size()) {
    return {Code::invalid_argument, fmt::format("{}, version {}: no signal {} of trainer {} is planned",
                                                name_of(catalog_), signal.version, signal.ordinal, signal.trainer)};
  }
  const auto [first, end] = planned->second[signal.ordinal];
  std::atomic<Digest> digest{0};
  if (first != end && is_on_gpu(first)) {
    try {
      return compared(signal, digest_on_gpu(first, end, landing, signal.version));
    } catch (const Error& error) {
      return {error.code(), fmt::format("{}, version {}: {}", name_of(catalog_), signal.version, error.what())};
    }
  }
  std::atomic<std::size_t> next{first};
  const auto work = [&, last = end](std::size_t) {
    for (std::size_t index = next++; index < last; index = next++) {
      digest += digest_of(parts_[index], landing, signal.version);
    }
  };
  team_.run(std::cref(work));  // by reference: nothing is allocated
  return compared(signal, digest);
}

Status Verifier::compared(const Signal& signal, Digest digest) const {
  if (digest == signal.digest) return {};
  return {Code::corrupted,
          fmt::format("{}, version {}: the {} bytes from trainer {} are not what it sent (digest {:016x}, sent as "
                      "{:016x}): refused; push again, and check memory and network if it repeats",
                      name_of(catalog_), signal.version, signal.bytes, signal.trainer, digest, signal.digest)};
}

}  // namespace weightcast
