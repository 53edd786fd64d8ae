#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "quant/cast.h"
#include "tests/support/matrices.h"

using namespace weightcast;

namespace {

// The files that tests/golden/make_cast_golden.py writes.
struct Golden {
  nlohmann::json cases;
  std::vector<char> blob;

  Golden() {
    const std::string folder = std::string(std::getenv("WEIGHTCAST_SOURCE_ROOT")) + "/tests/golden/";
    std::ifstream json(folder + "cast.json");
    REQUIRE(json);
    cases = nlohmann::json::parse(json);
    std::ifstream binary(folder + "cast.bin", std::ios::binary);
    blob.assign(std::istreambuf_iterator<char>(binary), {});
    REQUIRE(!cases.empty());
  }

  [[nodiscard]] std::vector<std::byte> bytes(const nlohmann::json& range) const {
    const auto offset = range.at(0).get<std::size_t>();
    const auto size = range.at(1).get<std::size_t>();
    REQUIRE(offset + size <= blob.size());
    std::vector<std::byte> bytes(size);
    std::memcpy(bytes.data(), blob.data() + offset, size);
    return bytes;
  }
  [[nodiscard]] std::vector<float> floats(const nlohmann::json& range) const {
    const auto raw = bytes(range);
    std::vector<float> floats(raw.size() / sizeof(float));
    std::memcpy(floats.data(), raw.data(), raw.size());
    return floats;
  }
};

DigestFrame frame_of(const nlohmann::json& frame) {
  return {frame.at("seed").get<Digest>(), frame.at("words_per_row").get<std::uint64_t>(),
          frame.at("first_row").get<std::uint64_t>(), frame.at("first_byte").get<std::uint64_t>()};
}

void check_scales(const Golden& golden, const nlohmann::json& expected, Recipe recipe, std::span<const float> amax) {
  const auto wanted = golden.bytes(expected.at("scales"));
  std::vector<std::byte> scales(wanted.size());
  const auto blocks = scales.size() / scale_bytes(recipe);
  REQUIRE(blocks + (has_tensor_scale(recipe) ? 1 : 0) == amax.size());
  encode_scales(recipe, amax.first(blocks), amax.back(), scales.data());
  CHECK(scales == wanted);
  if (has_tensor_scale(recipe)) {
    CHECK(scale_of_amax(recipe, amax.back()) == golden.floats(expected.at("tensor_scale")).at(0));
  }
}

}  // namespace

TEST_CASE("every kernel writes what NumPy and ml_dtypes make of the golden matrices, byte for byte") {
  const Golden golden;
  for (const auto& known : golden.cases) {
    CAPTURE(known.at("name").get<std::string>());
    const auto input = golden.bytes(known.at("input"));
    const auto cols = known.at("cols").get<std::int64_t>();
    const SourceMatrix source = {input.data(),
                                 parse_source_type(known.at("source").get<std::string>()).value(),
                                 known.at("rows").get<std::int64_t>(),
                                 cols,
                                 cols,
                                 1};
    const BlockOrigin origin = {known.at("origin").at(0).get<std::int64_t>(),
                                known.at("origin").at(1).get<std::int64_t>()};
    for (const auto& expected : known.at("outputs")) {
      CAPTURE(expected.at("recipe").get<std::string>());
      const auto recipe = parse_recipe(expected.at("recipe").get<std::string>()).value();
      const auto output_row_bytes = static_cast<std::int64_t>(row_bytes(recipe, cols));
      const auto wanted = golden.bytes(expected.at("bytes"));
      const auto wanted_amax = has_scales(recipe) ? golden.floats(expected.at("amax")) : std::vector<float>();
      for (const auto kernel : kernels()) {
        std::vector<float> amax(has_scales(recipe) ? amax_values(source, recipe, origin) : 0, -1);
        if (has_scales(recipe)) CHECK(!block_amax(source, recipe, origin, amax, kernel).found());
        CHECK(amax == wanted_amax);
        std::vector<std::byte> output(wanted.size());
        const auto result =
            cast(source, recipe, origin, amax, output.data(), output_row_bytes, frame_of(expected.at("frame")), kernel);
        CHECK(!result.bad.found());
        CHECK(std::ranges::equal(output, wanted));
        CHECK(result.digest == expected.at("digest").get<Digest>());
      }
      if (has_scales(recipe)) check_scales(golden, expected, recipe, wanted_amax);
    }
  }
}
