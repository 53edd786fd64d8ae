#include <cstddef>
#include <cstdint>
#include <set>
#include <tuple>
#include <vector>

#include "schedule/proof_checks.h"
#include "schedule/proof_geometry.h"

namespace weightcast::proof {
namespace {

// Where digests add up: at words of the frame's rows, or at blocks of the tensor (which no piece may hold a part of,
// but of blocks that span an axis).
bool is_cut_well(const Step& step, const Box& piece) {
  const bool blocked = has_scales(step.recipe) && block_shape(step.recipe).cols != kWholeAxis;
  const auto last = static_cast<std::size_t>(step.box.axes - 1);
  for (std::size_t axis = blocked && last > 0 ? last - 1 : last; axis <= last; ++axis) {
    const auto unit = blocked ? edge_of(step.recipe, step.box.axes, static_cast<int>(axis))
                              : static_cast<std::int64_t>(8 / element_bytes(step.recipe));
    const auto anchor = blocked ? 0 : step.frame.offset[axis];
    const auto end = piece.offset[axis] + piece.extent[axis];
    const auto step_end = step.box.offset[axis] + step.box.extent[axis];
    if (piece.offset[axis] != step.box.offset[axis] && (piece.offset[axis] - anchor) % unit != 0) return false;
    if (end != step_end && (end - anchor) % unit != 0) return false;
  }
  return true;
}

// No larger than it must be: chunk_bytes, or one row of blocks, or one word.
bool is_small_enough(const Step& step, const Box& piece, std::uint64_t chunk_bytes) {
  const auto bytes = bytes_of(piece, step.recipe);
  if (bytes <= chunk_bytes || bytes <= 8) return true;
  if (!has_scales(step.recipe) || block_shape(step.recipe).cols == kWholeAxis) return false;
  const Box blocks = blocks_meeting(piece, step.recipe);
  for (int axis = 0; axis < blocks.axes - 1; ++axis) {
    if (blocks.extent[static_cast<std::size_t>(axis)] > 1) return false;
  }
  return blocks.axes > 1 || blocks.extent[0] == 1;
}

}  // namespace

void check_chunks(const Plan& plan, const Catalogs& catalogs) {
  if (plan.chunk_bytes == 0) violated("chunk_bytes is 0");
  std::set<std::tuple<Box, Box, Recipe>> checked;
  for (std::size_t index = 0; index < plan.steps.size(); ++index) {
    const auto& step = plan.steps[index];
    const auto who = [&] { return describe(plan, catalogs, index); };
    const auto pieces = chunks_of(step.box, step.frame, step.recipe, plan.chunk_bytes);
    if (pieces.size() != step.chunks)
      violated("{} in {} pieces, but is cut into {}", who(), step.chunks, pieces.size());
    if (!checked.insert({step.box, step.frame, step.recipe}).second) continue;
    std::vector<Box> left = {step.box};
    std::int64_t taken = 0;
    for (const auto& piece : pieces) {
      if (!is_cut_well(step, piece) || !is_small_enough(step, piece, plan.chunk_bytes)) {
        violated("{}: its piece {} is too large or cut inside a block or word", who(), to_string(piece));
      }
      subtract(left, piece);
      taken += elements(piece);
    }
    // As many elements as the box has, and none of the box left over: each was in one piece.
    if (!left.empty() || taken != elements(step.box)) violated("{}: its pieces are not its box", who());
  }
}

}  // namespace weightcast::proof
