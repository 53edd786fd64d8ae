// A process for fabric_test to put into, signal, stop and kill. It opens a fabric, offers two regions, and obeys one
// command per line on standard input; every answer is one line on standard output:
//   fabric_peer network|shortcuts|cuda BYTES   -> "card HEX": region 0 allocated (cuda: GPU memory), region 1 plain
//   memory "message"          -> "message HEX", the oldest that has not been told; "none" after 5 s "message_sum" ->
//   the same, told as "message BYTES N", N the weighted_sum() "sum REGION OFFSET BYTES" -> "sum N", weighted_sum() of
//   the bytes there "connect HEX"      -> "connected PATH" "send HEX"         -> "sent": a message to the process
//   connected to last "quit" or end of input: closes the fabric and ends
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <iostream>
#include <mutex>
#include <numeric>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "tests/cuda_memory.h"
#include "tests/fabric_peer.h"
#include "transport/fabric.h"

using namespace weightcast;

namespace {

class Inbox : public FabricListener {
 public:
  void on_message(std::span<const std::byte> bytes) override {
    const std::scoped_lock lock(mutex_);
    messages_.emplace_back(bytes.begin(), bytes.end());
    arrived_.notify_all();
  }
  void on_peer_failure(PeerId, const Status&) override {}

  std::string next(bool summed) {
    std::unique_lock lock(mutex_);
    if (!arrived_.wait_for(lock, std::chrono::seconds(5), [this] { return !messages_.empty(); })) return "none";
    const Bytes bytes = messages_.front();
    messages_.pop_front();
    return "message " +
           (summed ? std::to_string(bytes.size()) + " " + std::to_string(weighted_sum(bytes)) : to_hex(bytes));
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Bytes> messages_;
};

void serve(const std::string& kind, std::uint64_t bytes) {
  Inbox inbox;
  FabricOptions options;
  options.interfaces = {"lo"};
  options.same_host_shortcuts = kind != "network";
  std::optional<CudaMemory> device;
  if (kind == "cuda") device.emplace(bytes);
  const auto fabric = open_fabric(options, inbox);
  std::vector<std::byte> plain(bytes, std::byte{3});
  const std::vector<RegionId> regions = {device ? fabric->register_memory(device->span()) : fabric->allocate(bytes),
                                         fabric->register_memory({plain.data(), bytes})};
  std::cout << "card " << to_hex(fabric->card(regions)) << std::endl;
  PeerId other = 0;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    if (command == "quit") break;
    if (command == "message") std::cout << inbox.next(false) << std::endl;
    if (command == "message_sum") std::cout << inbox.next(true) << std::endl;
    if (command == "sum") {
      std::uint64_t region = 0, offset = 0, length = 0;
      words >> region >> offset >> length;
      const auto copy = device && region == 0 ? device->read() : std::vector<std::byte>();
      const std::byte* start = copy.empty() ? fabric->memory(regions.at(region)).address : copy.data();
      std::cout << "sum " << weighted_sum({start + offset, length}) << std::endl;
    }
    if (command == "connect") {
      std::string hex;
      words >> hex;
      other = fabric->connect("the test", from_hex(hex), Deadline::after(Milliseconds(5000)));
      std::cout << "connected " << fabric->peer_facts(other).path << std::endl;
    }
    if (command == "send") {
      std::string hex;
      words >> hex;
      throw_if_failed(fabric->send(other, from_hex(hex), nullptr, Deadline::after(Milliseconds(5000))));
      std::cout << "sent" << std::endl;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  ::alarm(60);  // a test that forgets this process does not leave it behind
  try {
    serve(argv[1], std::strtoull(argv[2], nullptr, 10));
  } catch (const Error& error) {
    std::cout << "error " << error.what() << std::endl;
    return 1;
  }
}
