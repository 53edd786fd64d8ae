#include "transport/card.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <limits>
#include <string_view>
#include <type_traits>

namespace weightcast {
namespace {

static_assert(std::endian::native == std::endian::little, "cards are little-endian and copied as they stand");

constexpr std::uint32_t kMagic = 0x43464357;  // "WCFC"
constexpr std::uint64_t kHeaderBytes = 24;
constexpr std::uint64_t kRegionHeaderBytes = 24;

template <class T>
void append(Bytes& out, T value) {
  static_assert(std::is_integral_v<T>);
  const auto* first = reinterpret_cast<const std::byte*>(&value);
  out.insert(out.end(), first, first + sizeof value);
}

// Takes fields off the front; every read is checked against what is left.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}

  template <class T>
  T take(std::string_view field) {
    T value;
    std::memcpy(&value, run(sizeof value, field).data(), sizeof value);
    return value;
  }
  std::span<const std::byte> run(std::uint64_t bytes, std::string_view field) {
    if (bytes > left_.size()) {
      throw Error(Code::invalid_argument,
                  fmt::format("card: cut off: {} needs {} bytes, {} are left", field, bytes, left_.size()));
    }
    const auto front = left_.first(bytes);
    left_ = left_.subspan(bytes);
    return front;
  }
  [[nodiscard]] std::uint64_t left() const { return left_.size(); }

 private:
  std::span<const std::byte> left_;
};

CardRegion parse_region(Reader& reader, std::uint32_t index) {
  CardRegion region;
  region.bytes = reader.take<std::uint64_t>("region bytes");
  region.base_address = reader.take<std::uint64_t>("region address");
  const auto kind = reader.take<std::uint32_t>("region kind");
  region.rkey = reader.run(reader.take<std::uint32_t>("rkey length"), "rkey");
  if (kind > static_cast<std::uint32_t>(MemoryKind::cuda)) {
    throw Error(Code::invalid_argument, fmt::format("card: region {} has unknown memory kind {}", index, kind));
  }
  region.kind = static_cast<MemoryKind>(kind);
  if (region.bytes == 0 || region.base_address == 0 || region.rkey.empty() ||
      region.bytes > std::numeric_limits<std::uint64_t>::max() - region.base_address) {
    throw Error(Code::invalid_argument, fmt::format("card: region {} of {} bytes at {:#x} with a key of {} bytes is "
                                                    "no memory region",
                                                    index, region.bytes, region.base_address, region.rkey.size()));
  }
  return region;
}

}  // namespace

Bytes write_card(const Card& card) {
  std::uint64_t total = kHeaderBytes + card.worker_address.size();
  for (const auto& region : card.regions) total += kRegionHeaderBytes + region.rkey.size();
  Bytes out;
  out.reserve(total);
  append(out, kMagic);
  append(out, kCardVersion);
  append(out, total);
  append(out, static_cast<std::uint32_t>(card.worker_address.size()));
  append(out, static_cast<std::uint32_t>(card.regions.size()));
  out.insert(out.end(), card.worker_address.begin(), card.worker_address.end());
  for (const auto& region : card.regions) {
    append(out, region.bytes);
    append(out, region.base_address);
    append(out, static_cast<std::uint32_t>(region.kind));
    append(out, static_cast<std::uint32_t>(region.rkey.size()));
    out.insert(out.end(), region.rkey.begin(), region.rkey.end());
  }
  return out;
}

Card parse_card(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  if (reader.take<std::uint32_t>("magic") != kMagic) {
    throw Error(Code::invalid_argument, "card: these bytes are no card of a fabric");
  }
  if (const auto version = reader.take<std::uint32_t>("version"); version != kCardVersion) {
    throw Error(Code::invalid_argument, fmt::format("card: version {}, this weightcast reads version {}: use one "
                                                    "version of weightcast on both sides",
                                                    version, kCardVersion));
  }
  if (const auto total = reader.take<std::uint64_t>("total bytes"); total != bytes.size()) {
    throw Error(Code::invalid_argument, fmt::format("card: says {} bytes, has {}", total, bytes.size()));
  }
  const auto address_bytes = reader.take<std::uint32_t>("worker address length");
  const auto regions = reader.take<std::uint32_t>("region count");
  Card card;
  card.worker_address = reader.run(address_bytes, "worker address");
  if (card.worker_address.empty()) throw Error(Code::invalid_argument, "card: empty worker address");
  if (regions > kMaxCardRegions || regions > reader.left() / kRegionHeaderBytes) {
    throw Error(Code::invalid_argument, fmt::format("card: {} regions do not fit in {} bytes", regions, reader.left()));
  }
  card.regions.reserve(regions);
  for (std::uint32_t i = 0; i < regions; ++i) card.regions.push_back(parse_region(reader, i));
  if (reader.left() != 0) {
    throw Error(Code::invalid_argument, fmt::format("card: {} bytes after its last region", reader.left()));
  }
  return card;
}

}  // namespace weightcast
