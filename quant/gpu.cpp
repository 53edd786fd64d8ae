#include "quant/gpu.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "quant/gpu_launch.h"
#include "quant/gpu_tables.h"

namespace weightcast {
namespace {

using namespace gpu;

constexpr unsigned kTilesOfCappedBlock = 4;  // kTilesOfBlock in kernels.cu

const unsigned char* device(const std::byte* memory) { return reinterpret_cast<const unsigned char*>(memory); }
unsigned char* device(std::byte* memory) { return reinterpret_cast<unsigned char*>(memory); }

bool divides(std::int64_t divisor, std::int64_t value) { return value % divisor == 0; }
bool is_at_multiple(const void* memory, std::uintptr_t bytes) {
  return reinterpret_cast<std::uintptr_t>(memory) % bytes == 0;
}

bool is_square(Recipe recipe) {
  return recipe == Recipe::fp8_e4m3_128x128_fp32 || recipe == Recipe::fp8_e4m3_128x128_ue8m0;
}

bool fits(std::int64_t value) { return static_cast<std::int32_t>(value) == value; }

bool is_aligned(const GpuCastJob& job, const CastMatrix& matrix) {
  const std::int64_t values = job.source.type == SourceType::fp32 ? 4 : 8;  // in 16 bytes
  return job.source.type != SourceType::fp16 && job.source.col_stride == 1 && divides(8, job.source.cols) &&
         divides(8, matrix.col_in_tile) && divides(values, job.source.row_stride) &&
         is_at_multiple(job.source.data, 16) && is_at_multiple(job.output, 8) && divides(8, job.output_row_bytes) &&
         job.frame.first_byte % 8 == 0 && fits(job.source.row_stride) && fits(job.output_row_bytes) &&
         fits(static_cast<std::int64_t>(job.frame.words_per_row));
}

CastMatrix matrix_of(const GpuCastJob& job, Recipe recipe) {
  CastMatrix matrix{};
  matrix.source = device(job.source.data);
  matrix.row_stride = job.source.row_stride;
  matrix.col_stride = job.source.col_stride;
  matrix.rows = static_cast<std::int32_t>(job.source.rows);
  matrix.cols = static_cast<std::int32_t>(job.source.cols);
  matrix.row_in_tile = static_cast<std::int32_t>(job.origin.row % kTile);
  matrix.col_in_tile = static_cast<std::int32_t>(job.origin.col % kTile);
  matrix.output = device(job.output);
  matrix.output_row_bytes = job.output_row_bytes;
  matrix.scales = device(job.scales);
  matrix.scale_row_stride = job.scale_row_stride;
  matrix.scale_col_stride = job.scale_col_stride;
  matrix.amax = job.amax;
  matrix.amax_row_stride = job.amax_row_stride;
  matrix.digest_key = job.frame.seed;
  matrix.words_per_row = job.frame.words_per_row;
  matrix.first_word = job.frame.first_row * job.frame.words_per_row + job.frame.first_byte / 8;
  matrix.slot = job.digest_slot;
  matrix.type = job.source.type;
  matrix.recipe = recipe;
  matrix.is_aligned = is_aligned(job, matrix);
  return matrix;
}

template <class Visit>
void for_each_tile(const CastMatrix& matrix, Visit&& visit) {
  for (std::int32_t row = -matrix.row_in_tile; row < matrix.rows; row += kTile) {
    for (std::int32_t col = -matrix.col_in_tile; col < matrix.cols; col += kTile) visit(row, col);
  }
}

void append_tiles(const CastMatrix& matrix, std::uint32_t number, std::vector<Tile>& tiles) {
  for_each_tile(matrix, [&](std::int32_t row, std::int32_t col) { tiles.push_back({number, row, col}); });
}

void append_tiles(const CastMatrix& matrix, std::uint32_t number, std::vector<FastTile>& tiles) {
  const auto element = static_cast<std::int64_t>(element_bytes(matrix.type));
  const auto within = [](std::int64_t place) {
    return static_cast<std::uint8_t>(std::clamp<std::int64_t>(place, 0, kTile));
  };
  for_each_tile(matrix, [&](std::int32_t row, std::int32_t col) {
    const std::int64_t block_row = (row + matrix.row_in_tile) / kTile;
    const std::int64_t block_col = (col + matrix.col_in_tile) / kTile;
    FastTile tile{};
    tile.source = matrix.source + (row * matrix.row_stride + col) * element;
    tile.output = matrix.output + row * matrix.output_row_bytes + col;
    if (matrix.scales != nullptr) {
      tile.scale = reinterpret_cast<unsigned*>(matrix.scales) + block_row * matrix.scale_row_stride +
                   block_col * matrix.scale_col_stride;
    }
    if (matrix.amax != nullptr) tile.amax = matrix.amax + block_row * matrix.amax_row_stride + block_col;
    tile.digest_key = matrix.digest_key;
    tile.first_word = matrix.first_word + static_cast<std::uint64_t>(row) * matrix.words_per_row +
                      static_cast<std::uint64_t>(col / 8);
    tile.row_stride = static_cast<std::int32_t>(matrix.row_stride);
    tile.output_row_bytes = static_cast<std::int32_t>(matrix.output_row_bytes);
    tile.words_per_row = static_cast<std::uint32_t>(matrix.words_per_row);
    tile.slot = matrix.slot;
    tile.matrix = number;
    tile.first_row = within(-row);
    tile.end_row = within(std::int64_t{matrix.rows} - row);
    tile.first_col = within(-col);
    tile.end_col = within(std::int64_t{matrix.cols} - col);
    tile.row = row;
    tile.col = col;
    tiles.push_back(tile);
  });
}

// Cut so that the device's multiprocessors share them evenly; words stay whole.
void append_parts(const GpuDigestJob& job, std::uint32_t number, std::vector<DigestPart>& parts) {
  if (job.rows == 0 || job.row_bytes == 0) return;
  DigestPart part{};
  part.memory = device(job.memory);
  part.row_bytes = job.row_bytes;
  part.row_stride = job.row_stride;
  part.key = job.frame.seed;
  part.words_per_row = job.frame.words_per_row;
  part.first_row = job.frame.first_row;
  part.first_byte = job.frame.first_byte;
  part.values_per_row = job.row_bytes / 2;
  part.slot = job.digest_slot;
  part.matrix = number;
  part.is_bf16 = job.is_bf16;
  const bool gapless = job.rows == 1 || (job.row_stride == static_cast<std::int64_t>(job.row_bytes) &&
                                         job.frame.words_per_row * 8 == job.row_bytes);
  const std::uint64_t all = job.rows * job.row_bytes;
  part.is_flat = gapless && job.frame.first_byte % 8 == 0 && all % 16 == 0 && is_at_multiple(job.memory, 16);
  if (!part.is_flat) {
    const std::uint64_t rows_of_part = std::max<std::uint64_t>(8, kDigestPartBytes / job.row_bytes);
    for (std::uint64_t row = 0; row < job.rows; row += part.rows) {
      part.rows = std::min(rows_of_part, job.rows - row);
      parts.push_back(part);
      part.memory += static_cast<std::int64_t>(part.rows) * part.row_stride;
      part.first_row += part.rows;
      part.first_value += part.rows * part.values_per_row;
    }
    return;
  }
  part.rows = 1;
  for (std::uint64_t byte = 0; byte < all; byte += part.row_bytes) {
    part.row_bytes = std::min(kDigestPartBytes, all - byte);
    parts.push_back(part);
    part.memory += part.row_bytes;
    part.first_byte += part.row_bytes;  // beyond the row: the words go on counting, as rows without gaps do
    part.first_value += part.row_bytes / 2;
  }
}

// Each group's tiles in their order, spread evenly over the whole.
void interleave_groups(std::vector<CopyTile>& tiles) {
  std::array<std::uint64_t, GpuCopy::kGroups> of_group{};
  for (const CopyTile& tile : tiles) ++of_group[tile.group];
  if (tiles.empty() || of_group[tiles.front().group] == tiles.size()) return;
  std::array<std::uint64_t, GpuCopy::kGroups> placed{};
  std::vector<std::pair<double, CopyTile>> order;
  order.reserve(tiles.size());
  for (const CopyTile& tile : tiles) {
    const auto ordinal = static_cast<double>(placed[tile.group]++);
    order.emplace_back(ordinal / static_cast<double>(of_group[tile.group]), tile);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (std::size_t index = 0; index < tiles.size(); ++index) tiles[index] = order[index].second;
}

}  // namespace

// ---- GpuFindings ----

GpuFindings::GpuFindings(std::uint32_t slots)
    : bytes_((1 + std::uint64_t{slots}) * sizeof(std::uint64_t)), device_(bytes_), host_(bytes_) {}

void GpuFindings::clear(const CudaStream& stream) {
  constexpr std::uint64_t kFirst = sizeof kNoneBad;
  fill_async(device_.get(), std::byte{0xFF}, kFirst, stream);
  fill_async(device_.get() + kFirst, std::byte{0}, bytes_ - kFirst, stream);
}
void GpuFindings::fetch(const CudaStream& stream) { copy_async(host_.get(), device_.get(), bytes_, stream); }

namespace {

std::uint64_t word_at(const PinnedBuffer& memory, std::uint64_t index) noexcept {
  std::uint64_t word = 0;
  std::memcpy(&word, memory.get() + index * sizeof word, sizeof word);
  return word;
}

Findings findings_in(const DeviceBuffer& memory) {
  auto* const words = reinterpret_cast<unsigned long long*>(memory.get());
  return {words, words + 1};
}

}  // namespace

bool GpuFindings::found_bad() const noexcept { return word_at(host_, 0) != kNoneBad; }
std::uint32_t GpuFindings::bad_job() const noexcept {
  return static_cast<std::uint32_t>(word_at(host_, 0) >> kBadValueBits);
}
BadValue GpuFindings::bad_value(std::int64_t cols) const noexcept {
  if (!found_bad()) return {};
  const auto value = static_cast<std::int64_t>(word_at(host_, 0) & ((std::uint64_t{1} << kBadValueBits) - 1));
  return {value / cols, value % cols};
}
Digest GpuFindings::digest(std::uint32_t slot) const noexcept { return word_at(host_, 1 + std::uint64_t{slot}); }

// ---- GpuCast ----

GpuCast::GpuCast(Recipe recipe, std::span<const GpuCastJob> jobs) : recipe_(recipe) {
  std::vector<CastMatrix> matrices;
  std::vector<FastTile> bf16, fp32;
  std::vector<Tile> any, all;
  std::vector<DigestPart> unfused;
  for (const GpuCastJob& job : jobs) {
    const auto number = static_cast<std::uint32_t>(matrices.size());
    const CastMatrix matrix = matrix_of(job, recipe);
    matrices.push_back(matrix);
    if (matrix.amax != nullptr) append_tiles(matrix, number, all);
    if (is_square(recipe) && matrix.is_aligned) {
      append_tiles(matrix, number, matrix.type == SourceType::fp32 ? fp32 : bf16);
      continue;
    }
    append_tiles(matrix, number, any);
    append_parts({job.output, static_cast<std::uint64_t>(job.source.rows), row_bytes(recipe, job.source.cols),
                  job.output_row_bytes, job.frame, job.digest_slot, false},
                 number, unfused);
  }
  matrices_ = upload(matrices);
  const auto table_of = [](const auto& rows) { return Table{upload(rows), static_cast<std::uint32_t>(rows.size())}; };
  bf16_ = table_of(bf16);
  fp32_ = table_of(fp32);
  any_ = table_of(any);
  all_ = table_of(all);
  unfused_ = table_of(unfused);
}

void GpuCast::cast_fast(const char* kernel, const Table& tiles, const CudaStream& stream, std::uint64_t version,
                        GpuFindings& findings, int multiprocessors) const {
  const bool capped = multiprocessors != 0;
  const unsigned blocks = capped ? std::min(static_cast<std::uint32_t>(multiprocessors), tiles.count) : tiles.count;
  launch_kernel(kernel, blocks, capped ? kTilesOfCappedBlock * kTileThreads : kTileThreads, stream.get(),
                matrices_.get(), tiles.memory.get(), tiles.count, recipe_, version, findings_in(findings.device_));
}

void GpuCast::measure(const CudaStream& stream, GpuFindings& findings) const {
  launch_kernel("measure", all_.count, kTileThreads, stream.get(), matrices_.get(), all_.memory.get(),
                findings_in(findings.device_));
}

void GpuCast::launch(const CudaStream& stream, std::uint64_t version, GpuFindings& findings,
                     int multiprocessors) const {
  const bool capped = multiprocessors != 0;
  cast_fast(capped ? "cast_bf16_digest_capped" : "cast_bf16_digest", bf16_, stream, version, findings, multiprocessors);
  cast_fast(capped ? "cast_fp32_digest_capped" : "cast_fp32_digest", fp32_, stream, version, findings, multiprocessors);
  cast_any(stream, findings);
  launch_kernel("digest", unfused_.count, kTileThreads, stream.get(), unfused_.memory.get(), version,
                findings_in(findings.device_));
}

void GpuCast::launch_without_digest(const CudaStream& stream, GpuFindings& findings) const {
  cast_fast("cast_bf16", bf16_, stream, 0, findings, 0);
  cast_fast("cast_fp32_digest", fp32_, stream, 0, findings, 0);
  cast_any(stream, findings);
}

void GpuCast::cast_any(const CudaStream& stream, GpuFindings& findings) const {
  launch_kernel("cast_any", any_.count, kTileThreads, stream.get(), matrices_.get(), any_.memory.get(),
                findings_in(findings.device_));
}

// ---- GpuDigest ----

GpuDigest::GpuDigest(std::span<const GpuDigestJob> jobs) {
  std::vector<DigestPart> parts;
  for (std::size_t job = 0; job < jobs.size(); ++job) append_parts(jobs[job], static_cast<std::uint32_t>(job), parts);
  parts_ = upload(parts);
  count_ = static_cast<std::uint32_t>(parts.size());
}

void GpuDigest::launch(const CudaStream& stream, std::uint64_t version, GpuFindings& findings) const {
  launch_kernel("digest", count_, kTileThreads, stream.get(), parts_.get(), version, findings_in(findings.device_));
}

// ---- GpuCopy ----

GpuCopy::GpuCopy(std::span<const GpuCopyJob> jobs) {
  std::vector<CopyTile> tiles;
  for (const GpuCopyJob& job : jobs) {
    for (std::uint64_t first = 0; first < job.bytes; first += kCopyTileBytes) {
      const auto bytes = static_cast<std::uint32_t>(std::min<std::uint64_t>(kCopyTileBytes, job.bytes - first));
      tiles.push_back({device(job.from + first), device(job.to + first), bytes, job.group, 0});
    }
  }
  interleave_groups(tiles);
  tiles_ = upload(tiles);
  count_ = static_cast<std::uint32_t>(tiles.size());
}

void spin_on_gpu(const CudaStream& stream, std::uint64_t microseconds) {
  launch_kernel("spin", 1, 1, stream.get(), 1000 * microseconds);
}

void GpuRead::launch(const CudaStream& stream) const {
  const auto tiles = static_cast<unsigned>((bytes_ + kDigestPartBytes - 1) / kDigestPartBytes);
  launch_kernel("read_only", tiles, kTileThreads, stream.get(), memory_, bytes_);
}

void GpuCopy::launch(const CudaStream& stream, unsigned blocks, std::uint64_t left_out) const {
  launch_kernel("copy", blocks == 0 ? count_ : std::min(blocks, count_), kTileThreads, stream.get(), tiles_.get(),
                count_, left_out);
}

}  // namespace weightcast
