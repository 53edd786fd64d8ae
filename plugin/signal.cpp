#include "plugin/signal.h"

#include <bit>
#include <cstring>

namespace weightcast {
namespace {

static_assert(std::endian::native == std::endian::little, "the layouts below are the machine's own");

constexpr std::uint32_t kTrainerSignalMagic = 0x33534357;  // "WCS3"
constexpr std::uint32_t kServerSignalMagic = 0x33524357;   // "WCR3"
constexpr std::uint32_t kAmaxMagic = 0x31414357;           // "WCA1"

struct SignalLayout {
  std::uint32_t magic;
  std::uint32_t sender;
  std::uint32_t server;
  std::uint32_t ordinal;
  std::uint64_t token;
  std::uint64_t version;
  std::uint64_t bytes;
  std::uint64_t digest;
};
static_assert(sizeof(SignalLayout) == kSignalBytes);

struct AmaxLayout {
  std::uint32_t magic;
  std::uint32_t from;
  std::uint32_t to;
  std::uint32_t unused;
  std::uint64_t token;
};
static_assert(sizeof(AmaxLayout) == kAmaxHeaderBytes);

}  // namespace

std::array<std::byte, kSignalBytes> encode(const Signal& signal) noexcept {
  const auto magic = signal.role == Role::trainer ? kTrainerSignalMagic : kServerSignalMagic;
  return std::bit_cast<std::array<std::byte, kSignalBytes>>(SignalLayout{
      magic, signal.sender, signal.server, signal.ordinal, signal.token, signal.version, signal.bytes, signal.digest});
}

void encode_amax_header(std::span<std::byte> message, std::uint64_t token, std::uint32_t from,
                        std::uint32_t to) noexcept {
  const AmaxLayout layout{kAmaxMagic, from, to, 0, token};
  std::memcpy(message.data(), &layout, sizeof layout);
}

FabricMessage parse_fabric_message(std::span<const std::byte> bytes) noexcept {
  std::uint32_t magic = 0;
  if (bytes.size() < sizeof magic) return {};
  std::memcpy(&magic, bytes.data(), sizeof magic);
  if ((magic == kTrainerSignalMagic || magic == kServerSignalMagic) && bytes.size() == kSignalBytes) {
    SignalLayout layout{};
    std::memcpy(&layout, bytes.data(), sizeof layout);
    const Role role = magic == kTrainerSignalMagic ? Role::trainer : Role::server;
    return Signal{layout.token,  layout.version, role,         layout.sender,
                  layout.server, layout.ordinal, layout.bytes, layout.digest};
  }
  if (magic == kAmaxMagic && bytes.size() >= kAmaxHeaderBytes && bytes.size() % sizeof(float) == 0) {
    AmaxLayout layout{};
    std::memcpy(&layout, bytes.data(), sizeof layout);
    return AmaxValues{layout.token, layout.from, layout.to, bytes.subspan(kAmaxHeaderBytes)};
  }
  return {};
}

}  // namespace weightcast
