// What fabric_test and fabric_peer share: cards and messages as text.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "transport/fabric.h"

namespace weightcast {

inline std::string to_hex(std::span<const std::byte> bytes) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string text;
  for (const auto byte : bytes) {
    text += kDigits[std::to_integer<unsigned>(byte) >> 4];
    text += kDigits[std::to_integer<unsigned>(byte) & 15];
  }
  return text;
}

inline Bytes from_hex(const std::string& text) {
  Bytes bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoul(text.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

// A sum that notices swapped bytes.
inline std::uint64_t weighted_sum(std::span<const std::byte> bytes) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) sum += std::to_integer<std::uint64_t>(bytes[i]) * (i % 251 + 1);
  return sum;
}

}  // namespace weightcast
