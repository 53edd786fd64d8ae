#include "schedule/box.h"

#include <doctest/doctest.h>

#include <vector>

using namespace weightcast;

TEST_CASE("two row shards meet a column slice in the rows and columns they share") {
  const Box shard{2, {144, 0}, {144, 576}};
  const Box slice{2, {0, 288}, {256, 288}};
  const auto common = intersect(shard, slice);
  REQUIRE(common.has_value());
  CHECK(to_string(*common) == "[144:256, 288:576]");
  CHECK(contains(shard, *common));
  CHECK_FALSE(contains(slice, shard));
}

TEST_CASE("boxes that only touch share nothing") {
  CHECK_FALSE(intersect(Box{1, {0}, {4}}, Box{1, {4}, {4}}).has_value());
}

TEST_CASE("a three-axis box is walked as one matrix for each outer index") {
  const Box frame{3, {2, 0, 0}, {4, 10, 8}};
  const Box box{3, {3, 5, 4}, {2, 3, 4}};
  std::vector<std::int64_t> rows;
  for_each_matrix(box, frame, [&](const MatrixView& view) {
    rows.push_back(view.row);
    CHECK(view.rows == 3);
    CHECK(view.cols == 4);
    CHECK(view.col == 4);
  });
  CHECK(rows == std::vector<std::int64_t>{15, 25});
}

TEST_CASE("a vector is one row") {
  int visits = 0;
  for_each_matrix(Box{1, {6}, {3}}, Box{1, {4}, {8}}, [&](const MatrixView& view) {
    ++visits;
    CHECK(view.rows == 1);
    CHECK(view.cols == 3);
    CHECK(view.col == 2);
  });
  CHECK(visits == 1);
}
