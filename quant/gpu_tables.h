// What the host lays out in device memory and the kernels read: both sides compile this. Plain values, no CUDA, device
// addresses throughout. Internal to quant/.
#pragma once

#include <cstdint>

#include "quant/recipe.h"

namespace weightcast::gpu {

inline constexpr int kTile = 128;  // edge of what one group of threads casts; the block of fp8_e4m3_128x128_*
inline constexpr int kTileThreads = 256;
inline constexpr int kCopyTileBytes = 16 * 1024;
inline constexpr std::uint64_t kDigestPartBytes = 256 * 1024;

// One matrix to be cast; quant/gpu.h has the meaning of the fields.
struct CastMatrix {
  const unsigned char* source;
  std::int64_t row_stride;  // elements
  std::int64_t col_stride;
  std::int32_t rows;
  std::int32_t cols;
  std::int32_t row_in_tile;  // where the matrix begins in its first tile, which is a block of the tensor's
  std::int32_t col_in_tile;
  unsigned char* output;
  std::int64_t output_row_bytes;
  unsigned char* scales;
  std::int64_t scale_row_stride;  // scales
  std::int64_t scale_col_stride;
  float* amax;
  std::int64_t amax_row_stride;  // values; one per block row of the matrix
  std::uint64_t digest_key;
  std::uint64_t words_per_row;
  std::uint64_t first_word;  // of the matrix's first row
  std::uint32_t slot;
  SourceType type;
  Recipe recipe;
  bool is_aligned;  // 8 values are one load, and their codes one store and one word of the digest
};

struct Tile {
  std::uint32_t matrix;
  std::int32_t row;  // of the tile's corner in the matrix; negative where the matrix begins inside the tile
  std::int32_t col;
};

// A tile of an aligned matrix with all that casting it takes, so that a group of threads waits for one load before it
// asks for its values.
struct FastTile {
  const unsigned char* source;  // of the tile's corner, which may lie before the matrix
  unsigned char* output;
  unsigned* scale;    // or nullptr
  const float* amax;  // others' part of the block, or nullptr
  std::uint64_t digest_key;
  std::uint64_t first_word;  // of the corner
  std::int32_t row_stride;   // elements
  std::int32_t output_row_bytes;
  std::uint32_t words_per_row;
  std::uint32_t slot;
  std::uint32_t matrix;
  std::uint8_t first_row;  // what of the tile is in the matrix; columns are multiples of 8
  std::uint8_t end_row;
  std::uint8_t first_col;
  std::uint8_t end_col;
  std::int32_t row;  // of the corner in the matrix, for reports
  std::int32_t col;
};
static_assert(sizeof(FastTile) == 80);

// Rows of bytes to be digested, and looked through for NaN and Inf of BF16 where `is_bf16`.
struct DigestPart {
  const unsigned char* memory;
  std::uint64_t rows;
  std::uint64_t row_bytes;
  std::int64_t row_stride;  // bytes
  std::uint64_t key;
  std::uint64_t words_per_row;
  std::uint64_t first_row;
  std::uint64_t first_byte;
  std::uint64_t first_value;  // number of the first BF16 value in its matrix
  std::uint64_t values_per_row;
  std::uint32_t slot;
  std::uint32_t matrix;
  bool is_bf16;
  bool is_flat;  // the words follow each other in memory and in the digest: one row, however many there are
};

struct CopyTile {
  const unsigned char* from;
  unsigned char* to;
  std::uint32_t bytes;  // at most kCopyTileBytes
  std::uint32_t group;
  std::uint64_t unused;
};
static_assert(sizeof(CopyTile) == 32);

// Four columns of blocks whose exponents become one word for each row of values.
struct PackGroup {
  const unsigned* scales;
  unsigned* words;
  std::int64_t row_stride;  // scales, from one row of blocks to the next
  std::int64_t col_stride;
  std::int64_t rows;
  std::int32_t cols;  // 1 to 4
};

inline constexpr std::uint64_t kDeltaChunk = 65536;  // kDeltaChunkBytes of quant/delta.h

// What the kernels found: the place of the first bad value, or kNoneBad, then one digest per slot.
inline constexpr std::uint64_t kNoneBad = ~std::uint64_t{0};
inline constexpr int kBadValueBits = 40;  // matrix << kBadValueBits | row * cols + col
struct Findings {
  unsigned long long* first_bad;
  unsigned long long* digests;
};

}  // namespace weightcast::gpu
