// Landing memory: where it is and what commit copies. On a fabric that is only memory.
#include "plugin/landing.h"

#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "tests/support/memory_fabric.h"

namespace weightcast {
namespace {

constexpr std::int64_t kColumns = 2048;  // a region of two rows in BF16 is two pages: regions touch in the shadow

// Two regions of two rows each; the engine keeps 16 bytes between the rows of the second one.
struct Engine {
  std::vector<std::byte> first{2 * 2 * kColumns};
  std::vector<std::byte> between{64};
  std::vector<std::byte> second{2 * (2 * kColumns + 16)};

  [[nodiscard]] Catalog catalog(Landing second_lands = Landing::direct) {
    Catalog catalog;
    catalog.role = Role::server;
    std::vector<std::byte>* memory[] = {&first, &second};
    for (std::uint32_t region = 0; region < 2; ++region) {
      catalog.regions.push_back({region == 0 ? "first" : "second", memory[region]->size(), MemoryKind::host,
                                 reinterpret_cast<std::uint64_t>(memory[region]->data())});
      Entry entry;
      entry.tensor = catalog.regions.back().name;
      entry.shape = {2, kColumns};
      entry.box = whole(entry.shape);
      entry.region = region;
      entry.strides_bytes = {2 * kColumns + (region == 1 ? 16 : 0), 2};
      entry.landing = region == 1 ? second_lands : Landing::direct;
      catalog.entries.push_back(entry);
    }
    return catalog;
  }
};

bool all_are(const std::vector<std::byte>& bytes, std::size_t from, std::size_t count, int value) {
  for (std::size_t index = from; index < from + count; ++index) {
    if (bytes[index] != static_cast<std::byte>(value)) return false;
  }
  return true;
}

TEST_CASE("a commit copies every extent of every region, and no byte beside them") {
  Engine engine;
  MemoryFabric fabric;
  const Catalog catalog = engine.catalog();
  const auto landing = make_landing("staged", catalog);
  landing->prepare(fabric);
  std::memset(landing->region_start(0), 1, engine.first.size());
  std::memset(landing->region_start(1), 2, engine.second.size());
  CHECK(all_are(engine.first, 0, engine.first.size(), 0));
  landing->commit();
  CHECK(all_are(engine.first, 0, engine.first.size(), 1));
  CHECK(all_are(engine.second, 0, 2 * kColumns, 2));
  CHECK(all_are(engine.second, 2 * kColumns, 16, 0));
  CHECK(all_are(engine.second, 2 * kColumns + 16, 2 * kColumns, 2));
  CHECK(all_are(engine.second, 4 * kColumns + 16, 16, 0));
}

TEST_CASE("several threads share the copy of a large extent") {
  constexpr std::int64_t kBytes = 9 * 1000 * 1000;
  std::vector<std::byte> live(kBytes + 1, std::byte{0});
  Catalog catalog;
  catalog.role = Role::server;
  catalog.regions = {{"large", live.size(), MemoryKind::host, reinterpret_cast<std::uintptr_t>(live.data())}};
  Entry entry;
  entry.tensor = "large";
  entry.shape = {kBytes / 2};
  entry.box = whole(entry.shape);
  entry.strides_bytes = {2};
  catalog.entries = {entry};
  MemoryFabric fabric;
  const auto landing = make_landing("staged", catalog, 3);
  landing->prepare(fabric);
  for (const int version : {1, 2}) {
    std::memset(landing->region_start(0), version, live.size());
    landing->commit();
    CHECK(all_are(live, 0, kBytes, version));
    CHECK(live.back() == std::byte{0});
  }
}

TEST_CASE("entries that the engine repairs itself are left to it") {
  Engine engine;
  MemoryFabric fabric;
  const Catalog catalog = engine.catalog(Landing::staged_repair);
  const auto landing = make_landing("staged", catalog);
  landing->prepare(fabric);
  std::memset(landing->region_start(1), 2, engine.second.size());
  landing->commit();
  CHECK(all_are(engine.second, 0, engine.second.size(), 0));
}

TEST_CASE("in another fabric the shadow is another one") {
  Engine engine;
  const Catalog catalog = engine.catalog();
  const auto landing = make_landing("staged", catalog);
  MemoryFabric first;
  landing->prepare(first);
  const std::byte* before = landing->region_start(0);
  MemoryFabric second;
  landing->prepare(second);
  CHECK(landing->region_start(0) != before);
  CHECK(landing->regions().size() == 1);
  CHECK(second.memory(landing->regions()[0]).address == landing->region_start(0));
}

TEST_CASE("landing in place puts into the live regions themselves") {
  Engine engine;
  MemoryFabric fabric;
  const Catalog catalog = engine.catalog();
  const auto landing = make_landing("in_place", catalog);
  landing->prepare(fabric);
  CHECK(landing->regions().size() == 2);
  CHECK(landing->region_start(1) == engine.second.data());
  landing->commit();
  CHECK(all_are(engine.first, 0, engine.first.size(), 0));
}

TEST_CASE("a commit packs the scales that it makes live, whichever way they land") {
  for (const char* kind : {"staged", "in_place"}) {
    CAPTURE(kind);
    constexpr std::int64_t kRows = 130, kBlockCols = 5;  // two rows of blocks, two groups of columns
    std::vector<std::byte> values(kRows * kBlockCols * 128);
    std::vector<float> scales(2 * kBlockCols);
    std::vector<std::uint32_t> packed(2 * 132 + 1, 0xABABABAB);
    Catalog catalog;
    catalog.role = Role::server;
    const auto add_region = [&](const char* name, auto& memory) {
      const auto bytes = memory.size() * sizeof memory[0];
      catalog.regions.push_back({name, bytes, MemoryKind::host, reinterpret_cast<std::uint64_t>(memory.data())});
    };
    add_region("values", values);
    add_region("scales", scales);
    add_region("packed", packed);
    Entry entry;
    entry.tensor = "w";
    entry.shape = {kRows, kBlockCols * 128};
    entry.box = whole(entry.shape);
    entry.recipe = Recipe::fp8_e4m3_128x128_ue8m0;
    entry.strides_bytes = {kBlockCols * 128, 1};
    entry.scales = 1;
    entry.packed_scales = PackedScales{2, 0, 4 * 132};
    Entry of_blocks = entry;
    of_blocks.scales = std::nullopt;
    of_blocks.packed_scales = std::nullopt;
    of_blocks.is_scales = true;
    of_blocks.shape = {2, kBlockCols};
    of_blocks.box = whole(of_blocks.shape);
    of_blocks.region = 1;
    of_blocks.strides_bytes = {4 * kBlockCols, 4};
    catalog.entries.push_back(entry);
    catalog.entries.push_back(of_blocks);
    MemoryFabric fabric;
    const auto landing = make_landing(kind, catalog);
    landing->prepare(fabric);
    const std::vector<float> landed = {1, 2, 4, 8, 16, 0.5, 0.25, 0.125, 1, 2};
    std::memcpy(landing->region_start(1), landed.data(), landed.size() * sizeof(float));
    CHECK(packed.front() == 0xABABABAB);
    landing->commit();
    CHECK(packed[0] == 0x8281807F);
    CHECK(packed[127] == 0x8281807F);
    CHECK(packed[128] == 0x7F7C7D7E);
    CHECK(packed[129] == 0x7F7C7D7E);
    CHECK(packed[130] == 0xABABABAB);  // beyond the rows
    CHECK(packed[132] == 0x83);
    CHECK(packed[132 + 129] == 0x80);
    CHECK(packed.back() == 0xABABABAB);
  }
}

}  // namespace
}  // namespace weightcast
