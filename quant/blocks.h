// Which quantisation block an element of a matrix belongs to. Internal to quant/.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/cast.h"

namespace weightcast {

// The blocks that a matrix touches, numbered row-major from 0; rows and columns count within the matrix.
class BlockGrid {
 public:
  BlockGrid(const SourceMatrix& source, BlockOrigin origin, BlockShape shape = {}) noexcept
      : shape_(shape),
        row_in_block_(origin.row % shape.rows),
        col_in_block_(origin.col % shape.cols),
        block_rows_(source.rows == 0 ? 0 : (row_in_block_ + source.rows - 1) / shape.rows + 1),
        block_cols_(source.cols == 0 ? 0 : (col_in_block_ + source.cols - 1) / shape.cols + 1) {}

  [[nodiscard]] std::uint64_t size() const noexcept { return static_cast<std::uint64_t>(block_rows_ * block_cols_); }
  [[nodiscard]] std::size_t index(std::int64_t row, std::int64_t col) const noexcept {
    return static_cast<std::size_t>((row_in_block_ + row) / shape_.rows * block_cols_ +
                                    (col_in_block_ + col) / shape_.cols);
  }
  // True at the first column of the matrix in each block.
  [[nodiscard]] bool starts_block(std::int64_t col) const noexcept {
    return col == 0 || (col_in_block_ + col) % shape_.cols == 0;
  }
  [[nodiscard]] bool starts_block_row(std::int64_t row) const noexcept {
    return row == 0 || (row_in_block_ + row) % shape_.rows == 0;
  }
  // How many columns the first block has in the matrix, if the matrix is wide enough.
  [[nodiscard]] std::int64_t first_width() const noexcept { return shape_.cols - col_in_block_; }

 private:
  BlockShape shape_;
  std::int64_t row_in_block_;
  std::int64_t col_in_block_;
  std::int64_t block_rows_;
  std::int64_t block_cols_;
};

}  // namespace weightcast
