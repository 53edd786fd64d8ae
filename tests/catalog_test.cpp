#include "schedule/catalog.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

#include "schedule/strict_json.h"
#include "transport/base/status.h"

using namespace weightcast;

namespace {

using Json = nlohmann::ordered_json;

// A server with a fused, quantised parameter, an expert stack whose gate and up columns interleave, and a norm.
Json sample_catalog() {
  return Json::parse(R"({
    "format": "weightcast.catalog/1", "role": "server", "rank": 1, "replica": 1,
    "regions": [{"name": "weights", "bytes": 1048576, "kind": "cuda", "address": 4096}, {"name": "small", "bytes": 4096}],
    "entries": [
      {"parameter": "qkv", "shape": [640, 128], "recipe": "fp8_e4m3_128x128_fp32", "region": "weights",
       "scales": {"shape": [6, 1], "region": "small"}, "parts": [
         {"tensor": "q", "shape": [320, 128], "scales_at": [0, 0]},
         {"tensor": "k", "shape": [320, 128], "at": [320, 0], "scales_at": [3, 0]}]},
      {"parameter": "experts", "shape": [2, 4, 16], "recipe": "bf16", "region": 0, "byte_offset": 131072, "parts": [
         {"tensor": "e0.gate", "shape": [4, 8], "at": [0, 0, 0]}, {"tensor": "e0.up", "shape": [4, 8], "at": [0, 0, 8]},
         {"tensor": "e1.gate", "shape": [4, 8], "at": [1, 0, 0]}, {"tensor": "e1.up", "shape": [4, 8], "at": [1, 0, 8]}]},
      {"tensor": "norm", "shape": [64], "offset": [32], "recipe": "bf16", "region": "small", "byte_offset": 1024}]})");
}

Catalog parsed(const Json& json) { return parse_catalog(json.dump(), "sample"); }

// What is said of the sample with the value at `pointer` replaced (or added).
std::string error_of(const char* pointer, const Json& value) {
  auto json = sample_catalog();
  json[Json::json_pointer(pointer)] = value;
  try {
    static_cast<void>(parsed(json));
    return "accepted";
  } catch (const Error& error) {
    CHECK(error.code() == Code::invalid_argument);
    return error.what();
  }
}

bool says(const std::string& text, const char* part) {
  CAPTURE(text);
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("fused parameters and expert stacks are expanded into entries") {
  const auto catalog = parsed(sample_catalog());
  REQUIRE(catalog.entries.size() == 9);
  const auto& k = catalog.entries[2];
  CHECK(k.tensor == "k");
  CHECK(k.parameter == "qkv");
  CHECK(k.byte_offset == 320 * 128);
  REQUIRE(k.scales == 3U);
  CHECK(catalog.entries[3].byte_offset == 12);
  CHECK(to_string(catalog.entries[3].box) == "[0:3, 0:1]");
  const auto& up = catalog.entries[7];
  CHECK(up.tensor == "e1.up");
  CHECK(up.byte_offset == 131072 + 4 * 16 * 2 + 16);
  CHECK(up.strides_bytes[0] == 32);
  CHECK(byte_at(up, {1, 2}) == up.byte_offset + 36);
  CHECK(to_string(catalog.entries[8].box) == "[32:64]");
}

TEST_CASE("a catalog that is written and read again is the same; its digest leaves out addresses only") {
  auto catalog = parsed(sample_catalog());
  const auto text = to_json(catalog);
  const auto again = parse_catalog(text, "written");
  CHECK(to_json(again) == text);
  CHECK(digest_of(again) == digest_of(catalog));
  CHECK(text == read_text_file(std::string(std::getenv("WEIGHTCAST_SOURCE_ROOT")) + "/tests/golden/catalog.json"));
  catalog.regions[0].address = 8192;
  CHECK(digest_of(again) == digest_of(catalog));
  catalog.entries.edit()[8].byte_offset += 2;
  CHECK(digest_of(again) != digest_of(catalog));
}

TEST_CASE("errors name the document, the place, the tensor and what is known instead") {
  CHECK(error_of("/entries/2/byte_ofset", 4) ==
        "sample: /entries/2: unknown key \"byte_ofset\"; the nearest known one is \"byte_offset\"");
  CHECK(error_of("/entries/2/recipe", "bf61") ==
        "sample: /entries/2/recipe: \"bf61\" is not known; the nearest known one is \"bf16\"");
  CHECK(error_of("/entries/2/recipe", "nvfp4_e2m1_1x16") ==
        "sample: /entries/2/recipe: plans do not carry nvfp4_e2m1_1x16 yet; there are "
        "bf16, fp16, fp32, fp8_e4m3_128x128_fp32, fp8_e4m3_128x128_ue8m0, fp8_e4m3_tensor, fp8_e4m3_channel, "
        "mxfp8_e4m3_1x32");
  CHECK(says(error_of("/entries/2/region", "smal"), "/entries/2/region (tensor norm): there is no region smal"));
  CHECK(says(error_of("/format", "weightcast.catalog/2"), "this version reads \"weightcast.catalog/1\" only"));
}

TEST_CASE("boxes, extents and names that cannot be are refused") {
  CHECK(says(error_of("/entries/2/extent", {33}), "not inside the shape's 64"));
  CHECK(says(error_of("/entries/2/offset", {1, 2}), "has 2 axes, the shape has 1"));
  CHECK(says(error_of("/entries/2/shape", {1LL << 40, 1LL << 40}), "elements"));
  CHECK(says(error_of("/entries/2/byte_offset", 4094), "does not fit into region small of 4096 bytes"));
  CHECK(says(error_of("/entries/2/strides_bytes", {INT64_MAX - 1}), "does not fit"));
  CHECK(says(error_of("/entries/2/strides_bytes", {-2}), "a server's are positive"));
  CHECK(says(error_of("/entries/2/strides_bytes", {3}), "no multiple of 2-byte elements"));
  CHECK(says(error_of("/entries/1/parts/1/tensor", "e0.gate"), "two tensors of one name?"));
  CHECK(says(error_of("/entries/0/parts/1/at", {384, 0}),
             "stands at 384 with 320 elements on axis 0, the memory has 640"));
  CHECK(says(error_of("/entries/0/parts/0/extent", {100, 128}), "cuts blocks of 128x128"));
  CHECK(says(error_of("/entries/2/scales", 0), "the recipe bf16 has no scales"));
}

TEST_CASE("two entries of a server may interleave, but not share a byte") {
  CHECK(says(error_of("/entries/1/parts/1/at", {0, 0, 7}), "also belongs to tensor e0.gate"));
  CHECK(says(error_of("/entries/1/byte_offset", 81918), "also belongs to tensor k"));
  CHECK(says(error_of("/entries/2/byte_offset", 22), "also belongs to the scales of k"));
  CHECK(says(error_of("/entries/1/strides_bytes", {128, 14, 2}), "put two of its elements on the same bytes"));
}
