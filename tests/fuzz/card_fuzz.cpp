// A card from a peer: any bytes end in a card whose parts lie in them, or in Error invalid_argument.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "transport/card.h"

using namespace weightcast;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t bytes) {
  const std::span card_bytes(reinterpret_cast<const std::byte*>(input), bytes);
  try {
    const Card card = parse_card(card_bytes);
    const Bytes again = write_card(card);
    if (again.size() != bytes || !std::equal(again.begin(), again.end(), card_bytes.begin())) std::abort();
  } catch (const Error& error) {
    if (error.code() != Code::invalid_argument) std::abort();
  }
  return 0;
}
