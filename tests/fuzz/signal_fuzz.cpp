// What arrives on the fabric comes from a port that authenticates nobody: it is one of our messages or nothing.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "plugin/signal.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes) {
  using namespace weightcast;
  const std::span bytes(reinterpret_cast<const std::byte*>(input), input_bytes);
  const FabricMessage message = parse_fabric_message(bytes);
  if (const auto* signal = std::get_if<Signal>(&message)) {
    const auto again = parse_fabric_message(encode(*signal));
    if (!std::holds_alternative<Signal>(again) || !(std::get<Signal>(again) == *signal)) std::abort();
  } else if (const auto* amax = std::get_if<AmaxValues>(&message)) {
    std::vector<std::byte> written(kAmaxHeaderBytes);
    encode_amax_header(written, amax->token, amax->from, amax->to);
    written.insert(written.end(), amax->values.begin(), amax->values.end());  // every byte of the view is readable
    if (written.size() != input_bytes) std::abort();
  }
  return 0;
}
