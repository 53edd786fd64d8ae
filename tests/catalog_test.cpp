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
  CHECK(error_of("/entries/2/recipe", "nvfp4_tensor_scale") ==
        "sample: /entries/2/recipe (tensor norm): nvfp4_tensor_scale is of scales only; of values there are "
        "bf16, fp16, fp32, fp8_e4m3_128x128_fp32, fp8_e4m3_128x128_ue8m0, fp8_e4m3_tensor, fp8_e4m3_channel, "
        "mxfp8_e4m3_1x32, nvfp4_e2m1_1x16");
  CHECK(says(error_of("/entries/2/region", "smal"), "/entries/2/region (tensor norm): there is no region smal"));
  CHECK(says(error_of("/format", "weightcast.catalog/2"), "this version reads \"weightcast.catalog/1\" only"));
}

namespace {

// Two experts' halves of a stack under nvfp4_e2m1_1x16.
constexpr auto kHalfBytes = R"({
  "format": "weightcast.catalog/1", "role": "server", "rank": 0,
  "regions": [{"name": "codes", "bytes": 4096}, {"name": "scales", "bytes": 4096}],
  "entries": [{"shape": [2, 8, 96], "recipe": "nvfp4_e2m1_1x16", "region": "codes", "scales": {"region": "scales"},
               "tensor_scale": {"region": "scales", "byte_offset": 1024},
               "parts": [{"tensor": "e0", "shape": [8, 192], "offset": [0, 96], "extent": [8, 96]},
                         {"tensor": "e1", "shape": [8, 192], "offset": [0, 96], "extent": [8, 96], "at": [1, 0, 0]}]}]})";

std::string error_of_half_bytes(const std::string& pointer, const nlohmann::json& value) {
  auto json = nlohmann::json::parse(kHalfBytes);
  json[nlohmann::json::json_pointer(pointer)] = value;
  try {
    static_cast<void>(parse_catalog(json.dump(), "half bytes"));
    return "parsed";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

TEST_CASE("values of half a byte lie two to a byte, with scales of their blocks and of their tensor") {
  const auto catalog = parse_catalog(kHalfBytes, "half bytes");
  REQUIRE(catalog.entries.size() == 6);
  const auto& codes = catalog.entries[3];
  CHECK(codes.tensor == "e1");
  CHECK(codes.byte_offset == 8 * 48);
  CHECK(codes.strides_bytes[0] == 48);
  CHECK(codes.strides_bytes[1] == 1);
  CHECK(byte_at(codes, {1, 48}) == 8 * 48 + 48);  // column 96 of the tensor, the first one here
  const auto& scales = catalog.entries[codes.scales.value()];
  CHECK(to_string(scales.box) == "[0:8, 6:12]");
  CHECK(scales.byte_offset == 8 * 6);
  const auto& of_tensor = catalog.entries[codes.tensor_scale.value()];
  CHECK(of_tensor.recipe == Recipe::nvfp4_tensor_scale);
  CHECK(to_string(of_tensor.box) == "[0:1, 0:1]");
  CHECK(of_tensor.byte_offset == 1024 + 4);
  const auto text = to_json(catalog);
  CHECK(to_json(parse_catalog(text, "written")) == text);
}

TEST_CASE("slices that cut a byte or a block of half bytes are refused by tensor and box") {
  const nlohmann::json cut = {
      {"tensor", "e1"}, {"shape", {8, 192}}, {"offset", {0, 88}}, {"extent", {8, 88}}, {"at", {1, 0, 0}}};
  CHECK(says(error_of_half_bytes("/entries/0/parts/1", cut),
             "(tensor e1): the box [0:8, 88:176] cuts blocks of 1x16; the recipe nvfp4_e2m1_1x16 needs whole ones"));
  CHECK(says(error_of_half_bytes("/entries/0/parts/1/extent", {8, 95}), "the box [0:8, 96:191] cuts blocks of 1x16"));
  CHECK(says(error_of_half_bytes("/entries/0/parts/1/shape", {8, 200}), "[0:8, 96:192] cuts blocks of 1x16"));
  CHECK(says(error_of_half_bytes("/entries/0/recipe", "mxfp8_e4m3_1x32"), "has no \"tensor_scale\""));
}

TEST_CASE("packed scales are found by row and by four blocks of columns, in a region of their own") {
  auto json = nlohmann::json::parse(R"({
    "format": "weightcast.catalog/1", "role": "server", "rank": 0,
    "regions": [{"name": "codes", "bytes": 200000}, {"name": "scales", "bytes": 64}, {"name": "packed", "bytes": 3200}],
    "entries": [{"shape": [400, 300], "recipe": "fp8_e4m3_128x128_ue8m0", "region": "codes",
                 "scales": {"region": "scales", "shape": [4, 3]}, "packed_scales": {"region": "packed", "byte_offset": 16},
                 "parts": [{"tensor": "gate", "shape": [200, 300], "at": [0, 0], "scales_at": [0, 0]},
                           {"tensor": "up", "shape": [200, 300], "at": [200, 0], "scales_at": [2, 0]}]}]})");
  const auto catalog = parse_catalog(json.dump(), "packed");
  CHECK(catalog.entries[2].packed_scales == PackedScales{2, 16 + 4 * 200, 1600});
  const auto text = to_json(catalog);
  CHECK(to_json(parse_catalog(text, "written")) == text);
  const auto error = [&] {
    try {
      static_cast<void>(parse_catalog(json.dump(), "packed"));
      return std::string("parsed");
    } catch (const Error& refused) {
      return std::string(refused.what());
    }
  };
  json["entries"][0]["packed_scales"]["region"] = "codes";
  CHECK(says(error(), "region codes holds packed scales, which a commit writes, and entries"));
  json["entries"][0]["packed_scales"] = {{"region", "packed"}, {"byte_offset", 2400}};
  CHECK(says(error(), "the packed scales do not fit into region packed of 3200 bytes"));
  json["entries"][0]["recipe"] = "fp8_e4m3_128x128_fp32";
  CHECK(says(error(), "are of matrices under fp8_e4m3_128x128_ue8m0"));
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
