#include "transport/base/mailbox.h"

#include <doctest/doctest.h>

#include <thread>

using namespace weightcast;

namespace {
bool is_readable(int fd) {
  pollfd waiting{fd, POLLIN, 0};
  return ::poll(&waiting, 1, 0) == 1;
}
}  // namespace

TEST_CASE("a mailbox is readable while something waits in it, keeps the order and refuses what does not fit") {
  Mailbox<int> box(2);
  CHECK_FALSE(is_readable(box.descriptor()));
  CHECK(box.post(1));
  CHECK(box.post(2));
  CHECK_FALSE(box.post(3));
  CHECK(is_readable(box.descriptor()));
  CHECK(box.take() == 1);
  CHECK(box.take() == 2);
  CHECK_FALSE(box.take().has_value());
  CHECK_FALSE(is_readable(box.descriptor()));
}

TEST_CASE("nothing posted by two threads is lost") {
  Mailbox<int> box(20000);
  auto poster = [&box] {
    for (int i = 1; i <= 10000; ++i) {
      if (!box.post(i)) throw Error(Code::internal, "mailbox full");
    }
  };
  std::thread first(poster);
  std::thread second(poster);
  first.join();
  second.join();
  long sum = 0;
  while (const auto item = box.take()) sum += *item;
  CHECK(sum == 2L * 10000 * 10001 / 2);
}
