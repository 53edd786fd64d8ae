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
constexpr std::size_t kStreams = 4;            // of a GPU: a digest of few bytes leaves most of it idle

}  // namespace

void Verifier::clear() {
  parts_.clear();
  signals_.clear();
  on_gpu_.clear();
  streams_.clear();
}

void Verifier::adopt(const ServerTable& table, const LandingMemory& landing) {
  clear();
  for (const ExpectedSender& sender : table.senders) {
    std::size_t first_piece = 0;
    for (std::uint32_t ordinal = 0; ordinal < sender.signals.size(); ++ordinal) {
      add_signal(sender, ordinal, first_piece);
      first_piece += sender.signals[ordinal].pieces;
    }
  }
  try {
    for (const auto& [sender, signals] : signals_) {
      for (const Covered& covered : signals) {
        for (const Lot& lot : covered.lots) {
          if (lot.first != lot.end && is_on_gpu(lot.first)) (void)lay_out_on_gpu(lot, landing);
        }
      }
    }
  } catch (const std::exception&) {  // verify() tries again, and says what fails
  }
}

void Verifier::add_signal(const ExpectedSender& sender, std::uint32_t ordinal, std::size_t first_piece) {
  std::vector<std::vector<std::uint32_t>> forwards_of(sender.signals[ordinal].pieces);
  std::uint32_t forwards = 0;
  for (const Forward& forward : sender.forwards) {
    if (forward.signal != ordinal) continue;
    for (const ForwardedPiece& piece : forward.pieces) forwards_of[piece.piece - first_piece].push_back(forwards);
    ++forwards;
  }
  std::map<std::vector<std::uint32_t>, std::vector<std::size_t>> alike;  // pieces
  for (std::size_t i = 0; i < forwards_of.size(); ++i) alike[std::move(forwards_of[i])].push_back(first_piece + i);
  Covered covered;
  covered.forwarded.resize(forwards);
  for (const auto& [passed_on, pieces] : alike) {
    Lot lot{parts_.size(), 0, passed_on};  // to a server that keeps a piece twice: counted twice, as there
    for (const std::size_t piece : pieces) add_parts_of(sender.pieces[piece]);
    lot.end = parts_.size();
    covered.lots.push_back(std::move(lot));
  }
  signals_[{sender.role, sender.rank}].push_back(std::move(covered));
}

void Verifier::add_parts_of(const Piece& piece) {
  const Entry& entry = catalog_.entries[piece.entry];
  const std::uint64_t element = stored_bytes(entry);
  const std::uint64_t key = digest_key(entry.tensor, entry.is_scales);
  const Box frame = stored_box(entry, entry.box);
  for_each_matrix(stored_box(entry, piece.box), frame, [&](const MatrixView& view) {
    const auto rows = static_cast<std::uint64_t>(view.rows);
    Part part{piece.entry,
              byte_at(entry, view.origin),
              0,
              static_cast<std::uint64_t>(view.cols) * element,
              row_stride(entry.strides_bytes, entry.box.axes),
              digest_frame(key, frame, view, element)};
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

Verifier::OnGpu& Verifier::lay_out_on_gpu(const Lot& lot, const LandingMemory& landing) {
  if (const auto known = on_gpu_.find(lot.first); known != on_gpu_.end()) return *known->second;
  const Region& region = catalog_.regions[catalog_.entries[parts_[lot.first].entry].region];
  const int device = check_cuda_memory({reinterpret_cast<std::byte*>(region.address), region.bytes, MemoryKind::cuda});
  const CudaContextScope current(device);
  std::vector<CudaStream>& streams = streams_[device];
  if (streams.empty()) streams = std::vector<CudaStream>(kStreams);
  std::vector<GpuDigestJob> jobs;
  for (std::size_t index = lot.first; index < lot.end; ++index) {
    const Part& part = parts_[index];
    jobs.push_back({landing.region_start(catalog_.entries[part.entry].region) + part.byte_offset, part.rows,
                    part.row_bytes, part.row_stride, part.frame, 0, false});
  }
  const CudaStream& stream = streams[on_gpu_.size() % streams.size()];
  auto made = std::make_unique<OnGpu>(OnGpu{device, GpuDigest(jobs), GpuFindings(1), &stream, std::nullopt});
  return *on_gpu_.emplace(lot.first, std::move(made)).first->second;
}

Verifier::OnGpu& Verifier::begin_on_gpu(const Lot& lot, const LandingMemory& landing, std::uint64_t version) {
  OnGpu& on_gpu = lay_out_on_gpu(lot, landing);
  if (on_gpu.begun == version) return on_gpu;
  const CudaContextScope current(on_gpu.device);
  on_gpu.findings.clear(*on_gpu.stream);
  on_gpu.digest.launch(*on_gpu.stream, version, on_gpu.findings);
  on_gpu.findings.fetch(*on_gpu.stream);
  on_gpu.begun = version;
  return on_gpu;
}

Digest Verifier::digest_of(const Lot& lot, const LandingMemory& landing, std::uint64_t version) {
  if (lot.first == lot.end) return 0;
  if (is_on_gpu(lot.first)) {
    OnGpu& on_gpu = begin_on_gpu(lot, landing, version);
    on_gpu.begun.reset();
    const CudaContextScope current(on_gpu.device);
    on_gpu.stream->synchronize();
    return on_gpu.findings.digest(0);
  }
  std::atomic<Digest> digest{0};
  std::atomic<std::size_t> next{lot.first};
  const auto work = [&](std::size_t) {
    for (std::size_t index = next++; index < lot.end; index = next++) {
      digest += digest_of(parts_[index], landing, version);
    }
  };
  team_.run(std::cref(work));  // by reference: nothing is allocated
  return digest;
}

Verifier::Covered* Verifier::find(const Signal& signal) {
  const auto known = signals_.find({signal.role, signal.sender});
  return known == signals_.end() || signal.ordinal >= known->second.size() ? nullptr : &known->second[signal.ordinal];
}

void Verifier::begin(const LandingMemory& landing, const Signal& signal) noexcept {
  try {
    const Covered* covered = find(signal);
    if (covered == nullptr) return;
    for (const Lot& lot : covered->lots) {
      if (lot.first != lot.end && is_on_gpu(lot.first)) (void)begin_on_gpu(lot, landing, signal.version);
    }
  } catch (const std::exception&) {  // verify() tries again, and says what fails
  }
}

Status Verifier::verify(const LandingMemory& landing, const Signal& signal) {
  Covered* covered = find(signal);
  if (covered == nullptr) {
    return {Code::invalid_argument, fmt::format("{}, version {}: no signal {} of {} {} is planned", name_of(catalog_),
                                                signal.version, signal.ordinal, to_string(signal.role), signal.sender)};
  }
  std::fill(covered->forwarded.begin(), covered->forwarded.end(), 0);
  Digest whole = 0;
  try {
    for (const Lot& lot : covered->lots) {
      const Digest digest = digest_of(lot, landing, signal.version);
      whole += digest;
      for (const std::uint32_t forward : lot.forwards) covered->forwarded[forward] += digest;
    }
  } catch (const Error& error) {
    return {error.code(), fmt::format("{}, version {}: {}", name_of(catalog_), signal.version, error.what())};
  }
  return compared(signal, whole);
}

std::span<const Digest> Verifier::forwarded_digests(const Signal& signal) {
  const Covered* covered = find(signal);
  return covered == nullptr ? std::span<const Digest>() : covered->forwarded;
}

Status Verifier::compared(const Signal& signal, Digest digest) const {
  if (digest == signal.digest) return {};
  return {Code::corrupted,
          fmt::format("{}, version {}: the {} bytes from {} {} are not what it sent (digest {:016x}, sent as "
                      "{:016x}): refused; push again, and check memory and network if it repeats",
                      name_of(catalog_), signal.version, signal.bytes, to_string(signal.role), signal.sender, digest,
                      signal.digest)};
}

}  // namespace weightcast
