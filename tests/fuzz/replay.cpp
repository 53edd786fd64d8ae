// Gives every file of the folders named to a fuzz target: what libFuzzer does, without clang and without mutation.
// Each file is also cut at every length up to kCutBytes, and each of those bytes flipped, so that a corpus of a few
// good messages covers truncated and damaged ones. The sanitizers judge.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes);

namespace {

constexpr std::size_t kCutBytes = 512;

// A copy of its own, so that a read past the end is seen.
void give(const std::uint8_t* begin, std::size_t bytes) {
  const std::vector<std::uint8_t> exact(begin, begin + bytes);
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

void replay(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::vector<std::uint8_t> bytes{std::istreambuf_iterator<char>(stream), {}};
  give(bytes.data(), bytes.size());
  for (std::size_t cut = 0; cut < bytes.size() && cut < kCutBytes; ++cut) {
    give(bytes.data(), cut);
    for (const std::uint8_t flip : {0x01, 0x80, 0xFF}) {
      bytes[cut] ^= flip;
      give(bytes.data(), bytes.size());
      bytes[cut] ^= flip;
    }
  }
}

}  // namespace

int main(int count, char** folders) {
  std::size_t files = 0;
  for (int i = 1; i < count; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(folders[i])) {
      replay(entry.path());
      ++files;
    }
  }
  std::printf("%zu corpus files replayed\n", files);
  return files == 0 ? 1 : 0;
}
