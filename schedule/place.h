// A place in a JSON document that is being read: keeps the way to it on the stack and makes text of it only for an
// error. For the .cpp files of this folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace weightcast {

// Borrows the document, its parent and `origin`; lives no longer than they do.
class Place {
 public:
  using Json = nlohmann::ordered_json;

  Place(const Json& value, const std::string& origin) : value_(value), origin_(origin) {}

  // The tensor that messages name, for this place and those below it; borrowed.
  void set_tensor(std::string_view tensor) { tensor_ = tensor; }
  [[nodiscard]] std::string_view tensor() const { return tensor_; }

  [[nodiscard]] const Json& value() const { return value_; }
  [[nodiscard]] std::string pointer() const;
  // Throws Error{invalid_argument} "origin: /entries/3/shape (tensor a.b): what".
  [[noreturn]] void fail(std::string_view what) const;

  // An object whose keys are all known; else names the nearest known one.
  void require_keys(std::initializer_list<std::string_view> known) const;
  [[nodiscard]] bool has(std::string_view key) const { return value_.contains(key); }
  [[nodiscard]] Place at(std::string_view key) const;  // fails when the key is missing
  [[nodiscard]] Place at(std::size_t index) const { return {value_[index], *this, {}, index}; }

  [[nodiscard]] std::size_t size_of_array(std::size_t most) const;
  [[nodiscard]] const std::string& text(std::size_t most_bytes) const;  // not empty
  [[nodiscard]] std::int64_t integer(std::int64_t least,
                                     std::int64_t most = std::numeric_limits<std::int64_t>::max()) const;
  [[nodiscard]] std::uint64_t count() const;
  [[nodiscard]] double positive_number() const;
  [[nodiscard]] double number(double least, double most) const;
  [[nodiscard]] bool boolean() const;
  [[nodiscard]] std::vector<std::int64_t> integers(std::size_t most, std::int64_t least) const;

 private:
  Place(const Json& value, const Place& parent, std::string_view key, std::size_t index)
      : value_(value), origin_(parent.origin_), parent_(&parent), key_(key), index_(index), tensor_(parent.tensor_) {}

  const Json& value_;
  const std::string& origin_;
  const Place* parent_ = nullptr;
  std::string_view key_;  // empty: index_
  std::size_t index_ = 0;
  std::string_view tensor_;
};

}  // namespace weightcast
