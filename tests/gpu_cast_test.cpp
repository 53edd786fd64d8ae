// The kernels against the CPU reference and the golden files, on whatever GPU is there. Exit code 77 without one.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "quant/gpu.h"
#include "tests/cuda_memory.h"
#include "tests/support/matrices.h"
#include "transport/cuda.h"

using namespace weightcast;

namespace {

constexpr auto kFp8 = Recipe::fp8_e4m3_128x128_fp32;
constexpr std::byte kUntouched{0xA5};
constexpr std::uint64_t kVersion = 7;
constexpr std::uint64_t kEntry = 0x1234567;

std::vector<std::byte> read(const std::byte* device, std::uint64_t bytes, const CudaStream& stream) {
  PinnedBuffer host(bytes);
  copy_async(host.get(), device, bytes, stream);
  stream.synchronize();
  return {host.get(), host.get() + bytes};
}

DeviceBuffer on_device(std::span<const std::byte> bytes, const CudaStream& stream) {
  DeviceBuffer device(bytes.size());
  PinnedBuffer host(bytes.size());
  std::memcpy(host.get(), bytes.data(), bytes.size());
  copy_async(device.get(), host.get(), bytes.size(), stream);
  stream.synchronize();
  return device;
}

// A matrix, what the reference makes of it, and its job on the GPU.
struct Trial {
  Trial(Matrix values, Recipe rule, BlockOrigin block_origin, DigestFrame place, const CudaStream& stream)
      : matrix(std::move(values)), recipe(rule), origin(block_origin), frame(place) {
    const SourceMatrix& source = matrix.view;
    out_row_bytes = row_bytes(recipe, source.cols) + 8 * (frame.first_row % 3);
    output_bytes = out_row_bytes * static_cast<std::uint64_t>(source.rows);
    amax.resize(has_scales(recipe) ? amax_values(source, recipe, origin) : 0);
    blocks = has_scales(recipe) ? blocks_touched(source, recipe, origin) : 0;
    bad = has_scales(recipe) ? block_amax(source, recipe, origin, amax) : BadValue{};
    expected.assign(output_bytes, kUntouched);
    DigestFrame seeded = frame;
    seeded.seed = digest_seed(kVersion, frame.seed);
    result = cast(source, recipe, origin, amax, expected.data(), static_cast<std::int64_t>(out_row_bytes), seeded,
                  CastKernel::reference);
    expected_scales.resize(blocks * scale_bytes(recipe));
    if (blocks != 0 && !bad.found()) {
      encode_scales(recipe, std::span(amax).first(blocks), amax.back(), expected_scales.data());
    }
    device_source = on_device(matrix.memory, stream);
    output = DeviceBuffer(output_bytes);
    scales = DeviceBuffer(expected_scales.size());
    device_amax = DeviceBuffer(4 * (amax.size() + 1));
    fill_async(output.get(), kUntouched, output_bytes, stream);
    fill_async(scales.get(), kUntouched, scales.bytes(), stream);
    fill_async(device_amax.get(), std::byte{0}, device_amax.bytes(), stream);
    stream.synchronize();
  }

  [[nodiscard]] std::int64_t block_cols() const {
    SourceMatrix row = matrix.view;
    row.rows = 1;
    return static_cast<std::int64_t>(has_scales(recipe) ? blocks_touched(row, recipe, {0, origin.col}) : 1);
  }
  // `is_measured`: the amax comes from measure().
  [[nodiscard]] GpuCastJob job(std::uint32_t slot, bool is_measured) const {
    GpuCastJob job;
    job.source = matrix.view;
    job.source.data = device_source.get() + (matrix.view.data - matrix.memory.data());
    job.origin = origin;
    job.output = output.get();
    job.output_row_bytes = static_cast<std::int64_t>(out_row_bytes);
    job.scales = scales.get();
    job.scale_row_stride = block_cols();
    const bool needs_amax =
        recipe == Recipe::fp8_e4m3_tensor || recipe == Recipe::fp8_e4m3_channel || recipe == Recipe::nvfp4_e2m1_1x16;
    if (needs_amax || is_measured) job.amax = reinterpret_cast<float*>(device_amax.get());
    job.amax_row_stride = recipe == Recipe::fp8_e4m3_channel ? 1 : block_cols();
    job.frame = frame;
    job.digest_slot = slot;
    return job;
  }

  Matrix matrix;
  Recipe recipe;
  BlockOrigin origin;
  DigestFrame frame;
  std::uint64_t out_row_bytes = 0;
  std::uint64_t output_bytes = 0;
  std::uint64_t blocks = 0;
  std::vector<float> amax;
  BadValue bad;
  std::vector<std::byte> expected;
  std::vector<std::byte> expected_scales;
  CastResult result;
  DeviceBuffer device_source, output, scales, device_amax;
};

// Casts all trials as one batch and compares bytes, scales and digests.
void check_batch(std::vector<Trial>& trials, Recipe recipe, bool is_measured, int multiprocessors,
                 const CudaStream& stream) {
  std::vector<GpuCastJob> jobs;
  jobs.reserve(trials.size());
  for (const Trial& trial : trials) jobs.push_back(trial.job(static_cast<std::uint32_t>(jobs.size()), is_measured));
  const GpuCast batch(recipe, jobs);
  GpuFindings findings(static_cast<std::uint32_t>(jobs.size()));
  findings.clear(stream);
  batch.measure(stream, findings);
  batch.launch(stream, kVersion, findings, multiprocessors);
  findings.fetch(stream);
  stream.synchronize();
  CHECK(!findings.found_bad());
  for (std::uint32_t at = 0; at < trials.size(); ++at) {
    const Trial& trial = trials[at];
    CAPTURE(to_string(recipe));
    CAPTURE(to_string(trial.matrix.view.type));
    CAPTURE(trial.matrix.view.rows);
    CAPTURE(trial.matrix.view.cols);
    CAPTURE(trial.origin.row);
    CAPTURE(trial.origin.col);
    CHECK((read(trial.output.get(), trial.output_bytes, stream) == trial.expected));
    CHECK((read(trial.scales.get(), trial.expected_scales.size(), stream) == trial.expected_scales));
    CHECK(findings.digest(at) == trial.result.digest);
  }
}

// Values that every recipe can hold.
Matrix finite_matrix(SourceType type, std::int64_t rows, std::int64_t cols, Random& random, Layout layout,
                     Recipe recipe) {
  while (true) {
    auto matrix = random_matrix(type, rows, cols, random, layout);
    if (recipe != Recipe::fp16 || type == SourceType::fp16) return matrix;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < cols; ++col) {
        matrix.set(row, col, type == SourceType::bf16 ? 0x3F80 + random() % 16 : 0x3F800000 + random() % 99999);
      }
    }
    return matrix;
  }
}

}  // namespace

TEST_CASE("a batch of matrices of every layout, type, size and place casts to the bytes of the reference") {
  use_primary_cuda_context(0);
  const CudaStream stream;
  Random random(1);
  for (const Recipe recipe : kRecipes) {
    for (const int multiprocessors : {0, 3}) {
      std::vector<Trial> trials;
      for (int round = 0; round < 42; ++round) {
        const auto layout = kLayouts[static_cast<std::size_t>(round) % kLayouts.size()];
        const auto type = kSources[static_cast<std::size_t>(round / 7) % 3];
        // Every other one fits the fast path: whole groups of 8 columns, aligned rows.
        const bool even = round % 2 == 0;
        const std::int64_t step = even ? 8 : 1;
        const auto rows = pick(random, 1, 300);
        const auto cols = pick(random, 1, 300 / step) * step;
        const BlockOrigin origin = {pick(random, 0, 300), pick(random, 0, 40) * (even ? 8 : 2)};
        const DigestFrame frame = {random(), 4000, random() % 100, even ? 8 * (random() % 9) : 2 * (random() % 40)};
        trials.emplace_back(finite_matrix(type, rows, cols, random, even ? Layout::packed : layout, recipe), recipe,
                            origin, frame, stream);
      }
      check_batch(trials, recipe, false, multiprocessors, stream);
    }
  }
}

TEST_CASE("whole and ragged tiles of row shards and of column shards take the fast path") {
  use_primary_cuda_context(0);
  const CudaStream stream;
  Random random(2);
  for (const auto type : {SourceType::bf16, SourceType::fp32}) {
    std::vector<Trial> trials;
    for (const auto& [rows, cols] :
         {std::pair<std::int64_t, std::int64_t>{576, 256}, {130, 136}, {1, 8}, {128, 128}, {384, 576}, {127, 1024}}) {
      const DigestFrame frame = {random(), 4000, random() % 100, 8 * (random() % 9)};
      trials.emplace_back(random_matrix(type, rows, cols, random), kFp8, BlockOrigin{}, frame, stream);
      auto shard = random_matrix(type, rows, 2 * cols, random);  // the right half of each row
      shard.view.cols = cols;
      shard.view.data += cols * static_cast<std::int64_t>(element_bytes(type));
      trials.emplace_back(std::move(shard), kFp8, BlockOrigin{0, 128}, frame, stream);
    }
    std::vector<GpuCastJob> jobs;
    jobs.reserve(trials.size());
    for (const Trial& trial : trials) jobs.push_back(trial.job(0, false));
    CHECK(GpuCast(kFp8, jobs).is_fast());
    check_batch(trials, kFp8, false, 0, stream);
    check_batch(trials, kFp8, true, 0, stream);
  }
}

TEST_CASE("shards that cut every block, measured, exchanged and cast, give the bytes of the whole") {
  use_primary_cuda_context(0);
  const CudaStream stream;
  Random random(3);
  for (const Recipe recipe : kRecipes) {
    if (!has_scales(recipe)) continue;
    constexpr std::int64_t kRows = 512, kCols = 320, kShards = 8;  // 64 rows each, as FSDP cuts dimension 0
    const DigestFrame frame = {kEntry, row_bytes(recipe, kCols) / 8, 0, 0};
    const Trial whole(random_matrix(SourceType::bf16, kRows, kCols, random), recipe, {}, frame, stream);
    std::vector<GpuCastJob> jobs;
    for (std::int64_t shard = 0; shard < kShards; ++shard) {
      GpuCastJob job = whole.job(0, true);
      const std::int64_t first = shard * (kRows / kShards);
      job.source.rows = kRows / kShards;
      job.source.data += first * kCols * 2;
      job.origin.row = first;
      job.output += first * job.output_row_bytes;
      job.frame.first_row += static_cast<std::uint64_t>(first);
      const auto block_row = first / block_shape(recipe).rows;
      job.scales += block_row * job.scale_row_stride * static_cast<std::int64_t>(scale_bytes(recipe));
      if (recipe != Recipe::nvfp4_e2m1_1x16) job.amax += block_row * job.amax_row_stride;
      jobs.push_back(job);
    }
    const GpuCast batch(recipe, jobs);
    GpuFindings findings(1);
    findings.clear(stream);
    batch.measure(stream, findings);  // all shards into the same maxima: the exchange
    batch.launch(stream, kVersion, findings);
    findings.fetch(stream);
    stream.synchronize();
    CAPTURE(to_string(recipe));
    CHECK((read(whole.output.get(), whole.output_bytes, stream) == whole.expected));
    CHECK((read(whole.scales.get(), whole.expected_scales.size(), stream) == whole.expected_scales));
    CHECK(findings.digest(0) == whole.result.digest);
  }
}

TEST_CASE("scales go where the engine wants them: transposed") {
  use_primary_cuda_context(0);
  const CudaStream stream;
  Random random(4);
  const Trial trial(random_matrix(SourceType::bf16, 384, 576, random), kFp8, {}, {kEntry, 72, 0, 0}, stream);
  GpuCastJob job = trial.job(0, false);
  job.scale_row_stride = 1;
  job.scale_col_stride = 3;
  GpuFindings findings(1);
  findings.clear(stream);
  GpuCast(kFp8, {&job, 1}).launch(stream, kVersion, findings);
  const auto scales = read(trial.scales.get(), trial.expected_scales.size(), stream);
  for (std::size_t row = 0; row < 3; ++row) {
    for (std::size_t col = 0; col < 5; ++col) {
      CHECK(std::memcmp(scales.data() + 4 * (col * 3 + row), trial.expected_scales.data() + 4 * (row * 5 + col), 4) ==
            0);
    }
  }
}

TEST_CASE("the first NaN or Inf of a batch is named by matrix, row and column, whoever looks") {
  use_primary_cuda_context(0);
  const CudaStream stream;
  Random random(5);
  constexpr std::array<std::uint32_t, 3> kInf = {0x7F80, 0x7C00, 0x7F800000};
  constexpr std::array<std::uint32_t, 3> kNan = {0xFFC1, 0xFE01, 0x7FC00001};
  for (const Recipe recipe : kRecipes) {
    for (int round = 0; round < 12; ++round) {
      const auto type = kSources[static_cast<std::size_t>(round) % 3];
      const auto layout = round % 2 == 0 ? Layout::packed : Layout::column_major;
      std::vector<Trial> trials;
      const std::uint32_t wrong = static_cast<std::uint32_t>(random() % 3);
      std::int64_t first = 0, cols = 0;
      for (std::uint32_t at = 0; at < 3; ++at) {
        const auto rows = pick(random, 1, 200);
        cols = round < 6 ? 8 * pick(random, 1, 30) : pick(random, 1, 200);
        auto matrix = finite_matrix(type, rows, cols, random, layout, recipe);
        if (at >= wrong) {
          const auto place = pick(random, 0, rows * cols - 1);
          const auto later = pick(random, place, rows * cols - 1);
          matrix.set(later / cols, later % cols, kInf[static_cast<std::size_t>(type)]);
          matrix.set(place / cols, place % cols, kNan[static_cast<std::size_t>(type)]);
          if (at == wrong) first = place;
        }
        trials.emplace_back(std::move(matrix), recipe, BlockOrigin{}, DigestFrame{kEntry, 400, 0, 0}, stream);
      }
      std::vector<GpuCastJob> jobs;
      jobs.reserve(trials.size());
      for (const Trial& trial : trials) jobs.push_back(trial.job(0, true));
      const GpuCast batch(recipe, jobs);
      GpuFindings findings(1);
      for (const bool measures : {true, false}) {
        if (measures && !has_scales(recipe)) continue;
        findings.clear(stream);
        if (measures) batch.measure(stream, findings);
        if (!measures) batch.launch(stream, kVersion, findings);
        findings.fetch(stream);
        stream.synchronize();
        REQUIRE(findings.found_bad());
        CHECK(findings.bad_job() == wrong);
        const BadValue bad = findings.bad_value(trials[wrong].matrix.view.cols);
        const auto width = trials[wrong].matrix.view.cols;
        CHECK(bad.row == first / width);
        CHECK(bad.col == first % width);
      }
    }
  }
}

TEST_CASE("digests of rows at any place, pitch and width are those of the CPU, with NaN and Inf on the way") {
  use_primary_cuda_context(0);
  const CudaStream stream;
  Random random(6);
  std::vector<std::byte> memory(6 << 20);
  for (auto& byte : memory) byte = static_cast<std::byte>(random() % 0x7F);  // no BF16 of these is NaN or Inf
  const DeviceBuffer device = on_device(memory, stream);
  std::vector<GpuDigestJob> jobs;
  std::vector<Digest> expected;
  for (std::uint32_t at = 0; at < 200; ++at) {
    const std::uint64_t unit = std::array<std::uint64_t, 4>{1, 2, 8, 16}[at % 4];
    const auto row_bytes = (1 + random() % 6000) / unit * unit;
    const auto rows = 1 + random() % 60;
    const auto gap = at % 3 == 0 ? 0 : random() % 100 / unit * unit;
    const auto offset = random() % 4000 / unit * unit;
    const bool gapless = gap == 0 && row_bytes % 8 == 0;
    GpuDigestJob job;
    job.memory = device.get() + offset;
    job.rows = rows;
    job.row_bytes = row_bytes;
    job.row_stride = static_cast<std::int64_t>(row_bytes + gap);
    job.frame = {random(), gapless ? row_bytes / 8 : 3000, random() % 50, gapless ? 0 : random() % 900 / unit * unit};
    job.digest_slot = at;
    job.is_bf16 = unit > 1;
    jobs.push_back(job);
    DigestFrame seeded = job.frame;
    seeded.seed = digest_seed(kVersion, job.frame.seed);
    expected.push_back(digest_rows(memory.data() + offset, rows, row_bytes, job.row_stride, seeded));
  }
  GpuFindings findings(200);
  findings.clear(stream);
  const GpuDigest batch(jobs);
  batch.launch(stream, kVersion, findings);
  findings.fetch(stream);
  stream.synchronize();
  CHECK(!findings.found_bad());
  for (std::uint32_t at = 0; at < 200; ++at) CHECK(findings.digest(at) == expected[at]);

  jobs.resize(1);
  for (const bool flat : {true, false}) {
    jobs[0] = {device.get(), 100, 4096, flat ? 4096 : 5000, {kEntry, 512, 3, 0}, 0, true};
    const std::uint64_t place = 41 * static_cast<std::uint64_t>(jobs[0].row_stride) + 2 * 1001;
    fill_async(device.get() + place, std::byte{0xFF}, 2, stream);
    fill_async(device.get() + place + 5000, std::byte{0xFF}, 2, stream);
    findings.clear(stream);
    GpuDigest(jobs).launch(stream, kVersion, findings);
    findings.fetch(stream);
    stream.synchronize();
    REQUIRE(findings.found_bad());
    CHECK(findings.bad_value(2048).row == 41);
    CHECK(findings.bad_value(2048).col == 1001);
    fill_async(device.get() + place, std::byte{1}, 2, stream);
    fill_async(device.get() + place + 5000, std::byte{1}, 2, stream);
  }
}

TEST_CASE(
    "a batch of copies of any length and alignment copies every byte, but what is left out, and touches no other") {
  use_primary_cuda_context(0);
  const CudaStream stream;
  Random random(7);
  std::vector<std::byte> memory(4 << 20);
  for (auto& byte : memory) byte = static_cast<std::byte>(random());
  const DeviceBuffer from = on_device(memory, stream);
  const DeviceBuffer to(memory.size());
  std::vector<GpuCopyJob> jobs;
  std::uint64_t at = 0;
  while (at + 300'000 < memory.size()) {
    const std::uint64_t unit = std::array<std::uint64_t, 3>{16, 4, 1}[random() % 3];
    at = (at + random() % 40 + unit - 1) / unit * unit;
    const std::uint64_t bytes = random() % (jobs.size() % 3 == 0 ? 200'000 : 500);
    const std::uint64_t source = random() % (memory.size() - bytes) / unit * unit;
    const auto group = static_cast<std::uint32_t>(random() % 3 == 0 ? GpuCopy::kGroups - 1 : random() % 2);
    jobs.push_back({from.get() + source, to.get() + at, bytes, group});
    at += bytes;
  }
  const GpuCopy copies(jobs);
  struct Launch {
    unsigned blocks;
    std::uint64_t left_out;
  };
  for (const Launch& how : {Launch{0, 0}, {1, 0}, {7, 0}, {0, 2}, {7, 1 | std::uint64_t{1} << 63}}) {
    CAPTURE(how.blocks);
    CAPTURE(how.left_out);
    std::vector<std::byte> expected(memory.size(), kUntouched);
    for (const GpuCopyJob& job : jobs) {
      if ((how.left_out >> job.group & 1) != 0) continue;
      std::memcpy(expected.data() + (job.to - to.get()), memory.data() + (job.from - from.get()), job.bytes);
    }
    fill_async(to.get(), kUntouched, memory.size(), stream);
    copies.launch(stream, how.blocks, how.left_out);
    CHECK((read(to.get(), memory.size(), stream) == expected));
  }
}

TEST_CASE("copies in a batch move every run once, behind what was submitted before them") {
  use_primary_cuda_context(0);
  if (!CudaCopies::are_supported()) {
    MESSAGE("SKIPPED: the driver is older than CUDA 12.8");
    return;
  }
  constexpr std::uint64_t kBytes = 24 << 20;
  constexpr std::byte kCopied{0x3C};
  const CudaStream stream;
  const DeviceBuffer from(kBytes);
  const DeviceBuffer to(kBytes);
  Random random(11);
  CudaCopies copies;
  std::vector<std::byte> expected(kBytes, kUntouched);
  for (std::uint64_t at = 0; at + (3 << 20) < kBytes; at += 1 << 20) {
    const std::uint64_t bytes = 1 + random() % (3 << 20);
    at += random() % 1000;
    copies.add(to.get() + at, from.get() + random() % (kBytes - bytes), bytes);
    std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(at), bytes, kCopied);
    at += bytes;
  }
  for (int round = 0; round < 2; ++round) {
    fill_async(from.get(), kUntouched, kBytes, stream);
    fill_async(to.get(), kUntouched, kBytes, stream);
    spin_on_gpu(stream, 2000);
    fill_async(from.get(), kCopied, kBytes, stream);
    copies.launch(stream);
    CHECK((read(to.get(), kBytes, stream) == expected));
  }
  CudaCopies().launch(stream);  // nothing
}

TEST_CASE("the amax of a whole tensor is measured alone, for scales that are made elsewhere") {
  use_primary_cuda_context(0);
  const CudaStream stream;
  Random random(8);
  const Trial whole(random_matrix(SourceType::fp32, 300, 272, random), Recipe::nvfp4_e2m1_1x16, {}, {}, stream);
  std::vector<GpuCastJob> jobs;
  for (const std::int64_t first : {0, 96}) {  // two shards of columns
    GpuCastJob job = whole.job(0, true);
    job.source.cols = first == 0 ? 96 : 272 - 96;
    job.source.data += first * job.source.col_stride * 4;
    job.origin.col = first;
    jobs.push_back(job);
  }
  GpuFindings findings(1);
  findings.clear(stream);
  GpuCast(Recipe::nvfp4_tensor_scale, jobs).measure(stream, findings);
  const auto amax = read(whole.device_amax.get(), sizeof(float), stream);
  CHECK(std::memcmp(amax.data(), &whole.amax.back(), sizeof(float)) == 0);
}

TEST_CASE("packed scales are what the CPU packs, and nothing beside them") {
  use_primary_cuda_context(0);
  const CudaStream stream;
  Random random(9);
  std::vector<std::byte> scales(64 * 64 * 4);
  for (std::size_t at = 0; at < scales.size(); at += 4) {
    const std::uint32_t bits = static_cast<std::uint32_t>(random() % 255) << 23;
    std::memcpy(scales.data() + at, &bits, sizeof bits);
  }
  std::vector<std::byte> expected(1 << 20, kUntouched);
  const DeviceBuffer device_scales = on_device(scales, stream);
  const DeviceBuffer device_packed(expected.size());
  std::vector<PackedScalesJob> jobs;
  std::uint64_t place = 0;
  for (const auto& [rows, cols] :
       {std::pair<std::int64_t, std::int64_t>{1, 1}, {128, 4}, {130, 5}, {2048, 56}, {393, 11}}) {
    PackedScalesJob job{scales.data(), 64, 1, rows, cols, expected.data() + place, packed_group_bytes(rows) + 32};
    if (rows == 130) std::swap(job.row_stride, job.col_stride);  // transposed
    pack_scales(job);
    job.scales = device_scales.get();
    job.packed = device_packed.get() + place;
    jobs.push_back(job);
    place += 4096 + job.group_stride_bytes * static_cast<std::uint64_t>((cols + 3) / 4);
  }
  fill_async(device_packed.get(), kUntouched, expected.size(), stream);
  GpuPackScales(jobs).launch(stream);
  CHECK((read(device_packed.get(), expected.size(), stream) == expected));
}

TEST_CASE("a delta applied on the GPU gives the bytes and the digest of the new version") {
  use_primary_cuda_context(0);
  const CudaStream stream;
  Random random(10);
  for (const std::uint64_t bytes : {std::uint64_t{13}, std::uint64_t{65536}, std::uint64_t{1'000'003}}) {
    CAPTURE(bytes);
    std::vector<std::byte> before(bytes);
    for (auto& byte : before) byte = static_cast<std::byte>(random());
    auto after = before;
    for (auto& byte : after) {
      if (random() % 40 == 0) byte ^= std::byte{0x10};
    }
    const DigestFrame frame = {kEntry, (bytes + 7) / 8, 0, 0};
    const auto encoded = encode_delta(before, after, digest_seed(kVersion, kEntry));
    DeltaView delta;
    REQUIRE(read_delta(encoded, bytes, delta).ok());
    const DeviceBuffer live = on_device(before, stream);
    const DeviceBuffer on_gpu = on_device(encoded, stream);
    apply_delta_on_gpu(delta, encoded.data(), on_gpu.get(), live.get(), stream);
    GpuFindings findings(1);
    findings.clear(stream);
    const GpuDigestJob job = {live.get(), 1, bytes, 0, frame, 0, false};
    const GpuDigest digest({&job, 1});
    digest.launch(stream, kVersion, findings);
    findings.fetch(stream);
    CHECK((read(live.get(), bytes, stream) == after));
    CHECK(findings.digest(0) == delta.after);
  }
}

TEST_CASE("the kernels write what NumPy and ml_dtypes make of the golden matrices, byte for byte") {
  use_primary_cuda_context(0);
  const CudaStream stream;
  const std::string folder = std::string(std::getenv("WEIGHTCAST_SOURCE_ROOT")) + "/tests/golden/";
  std::ifstream json(folder + "cast.json");
  REQUIRE(json);
  std::ifstream binary(folder + "cast.bin", std::ios::binary);
  const std::vector<char> blob{std::istreambuf_iterator<char>(binary), {}};
  const auto bytes_of = [&](const nlohmann::json& range) {
    const auto* first = reinterpret_cast<const std::byte*>(blob.data()) + range.at(0).get<std::size_t>();
    return std::vector<std::byte>(first, first + range.at(1).get<std::size_t>());
  };
  for (const auto& known : nlohmann::json::parse(json)) {
    for (const auto& expected : known.at("outputs")) {
      Matrix matrix;
      const auto cols = known.at("cols").get<std::int64_t>();
      matrix.memory = bytes_of(known.at("input"));
      matrix.view = {matrix.memory.data(),
                     parse_source_type(known.at("source").get<std::string>()).value(),
                     known.at("rows").get<std::int64_t>(),
                     cols,
                     cols,
                     1};
      const auto recipe = parse_recipe(expected.at("recipe").get<std::string>()).value();
      const auto& place = expected.at("frame");
      const DigestFrame frame = {kEntry, place.at("words_per_row").get<std::uint64_t>(), 0,
                                 place.at("first_byte").get<std::uint64_t>()};
      const BlockOrigin origin = {known.at("origin").at(0).get<std::int64_t>(),
                                  known.at("origin").at(1).get<std::int64_t>()};
      std::vector<Trial> trials;
      trials.emplace_back(std::move(matrix), recipe, origin, frame, stream);
      trials[0].expected = bytes_of(expected.at("bytes"));  // not the reference's
      if (has_scales(recipe)) trials[0].expected_scales = bytes_of(expected.at("scales"));
      check_batch(trials, recipe, false, 0, stream);
    }
  }
}

int main(int argc, char** argv) {
  if (!cuda_is_there() || !has_gpu_kernels()) {
    std::puts(has_gpu_kernels() ? "SKIPPED: no CUDA driver, or no GPU" : "SKIPPED: this build has no CUDA kernels");
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
