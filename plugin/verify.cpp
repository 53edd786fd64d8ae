#include "plugin/verify.h"

#include <fmt/format.h>

#include "plugin/extent.h"

namespace weightcast {
namespace {

Digest digest_of_piece(const Entry& entry, const Box& box, const std::byte* region, std::uint64_t version) {
  const std::uint64_t element = entry.is_scales ? sizeof(float) : element_bytes(entry.recipe);
  const Digest seed = digest_seed(version, digest_key(entry.tensor, entry.is_scales));
  Digest digest = 0;
  for_each_matrix(box, entry.box, [&](const MatrixView& view) {
    digest +=
        digest_rows(region + byte_at(entry, view.origin), static_cast<std::uint64_t>(view.rows),
                    static_cast<std::uint64_t>(view.cols) * element, row_stride(entry.strides_bytes, entry.box.axes),
                    digest_frame(seed, entry.box, view, element));
  });
  return digest;
}

}  // namespace

Status verify_landed(const Catalog& catalog, const ServerTable& table, const LandingMemory& landing,
                     std::uint64_t version, std::span<const Signal> signals) {
  for (std::size_t index = 0; index < table.senders.size(); ++index) {
    const ExpectedSender& sender = table.senders[index];
    Digest digest = 0;
    for (const Piece& piece : sender.pieces) {
      const Entry& entry = catalog.entries[piece.entry];
      digest += digest_of_piece(entry, piece.box, landing.region_start(entry.region), version);
    }
    if (digest != signals[index].digest) {
      return {Code::corrupted,
              fmt::format("{}, version {}: the {} bytes from trainer {} are not what it sent (digest {:016x}, sent as "
                          "{:016x}): refused; push again, and check memory and network if it repeats",
                          name_of(catalog), version, sender.bytes, sender.trainer, digest, signals[index].digest)};
    }
  }
  return {};
}

}  // namespace weightcast
