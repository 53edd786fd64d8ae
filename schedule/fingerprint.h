// Sixty-four bits over a sequence of numbers and texts, the same on every machine. It tells different catalogs apart;
// it does not withstand an attacker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace weightcast {

class Fingerprint {
 public:
  void add(std::uint64_t number) noexcept {
    std::uint64_t x = state_ ^ number;  // the finaliser of splitmix64: a bijection, so no number is lost
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    state_ = (x ^ (x >> 31)) + 0x9E3779B97F4A7C15;
  }
  void add(std::string_view text) noexcept {
    add(text.size());
    for (std::size_t begin = 0; begin < text.size(); begin += 8) {
      std::uint64_t word = 0;
      for (const char byte : text.substr(begin, 8)) word = word << 8 | static_cast<unsigned char>(byte);
      add(word);
    }
  }
  [[nodiscard]] std::uint64_t value() const noexcept { return state_; }

 private:
  std::uint64_t state_ = 0x243F6A8885A308D3;
};

}  // namespace weightcast
