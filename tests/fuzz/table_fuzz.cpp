// A table is what a controller sent: it is accepted or refused with a reason, never more.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "schedule/plan.h"
#include "tests/made_catalog.h"
#include "transport/base/status.h"

namespace {

template <class Decode>
void decode_twice(const std::vector<std::uint8_t>& bytes, const weightcast::Catalog& own, const Decode& decode) {
  try {
    const auto table = decode(bytes, own);
    if (!(decode(weightcast::encode(table), own) == table)) std::abort();
  } catch (const weightcast::Error& error) {
    if (error.code() != weightcast::Code::invalid_argument) std::abort();
  }
}

}  // namespace

// The corpus is the golden tables of tests/table_test.cpp, whose rank 1 holds and takes these.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes) {
  using namespace weightcast;
  static const Catalog sends =
      testing::trainer(1).holds("w", {288, 256}, {2, {144, 0}, {144, 256}}).holds("norm", {256}, {1, {0}, {256}});
  static const Catalog receives = testing::server(1)
                                      .takes("w", {288, 256}, {2, {0, 128}, {288, 128}}, testing::kFp8)
                                      .takes("norm", {256}, {1, {0}, {256}});
  const std::vector<std::uint8_t> bytes(input, input + input_bytes);
  decode_twice(bytes, sends, decode_trainer_table);
  decode_twice(bytes, receives, decode_server_table);
  return 0;
}
