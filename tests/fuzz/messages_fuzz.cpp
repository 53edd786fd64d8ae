// A message is what a peer sent: it is read or refused, and what was read is written and read again as the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "plugin/messages.h"
#include "transport/base/status.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes) {
  using namespace weightcast;
  try {
    const Message message = decode_message({input, input_bytes});
    const ControlBytes written = encode(message);
    if (encode(decode_message(written)) != written) std::abort();
  } catch (const Error& error) {
    if (error.code() != Code::invalid_argument && error.code() != Code::refused) std::abort();
  }
  return 0;
}
