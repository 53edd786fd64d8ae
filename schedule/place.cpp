#include "schedule/place.h"

#include <fmt/format.h>

#include "schedule/strict_json.h"
#include "transport/base/status.h"

namespace weightcast {

std::string Place::pointer() const {
  if (parent_ == nullptr) return "";
  return parent_->pointer() + "/" + (key_.empty() ? std::to_string(index_) : std::string(key_));
}

void Place::fail(std::string_view what) const {
  const auto pointer = this->pointer();
  const auto tensor = tensor_.empty() ? "" : fmt::format(" (tensor {})", tensor_);
  throw Error(Code::invalid_argument,
              fmt::format("{}: {}{}: {}", origin_, pointer.empty() ? "the document" : pointer, tensor, what));
}

void Place::require_keys(std::initializer_list<std::string_view> known) const {
  if (!value_.is_object()) fail("must be an object");
  for (const auto& [key, value] : value_.items()) {
    bool is_known = false;
    for (const auto name : known) is_known = is_known || name == key;
    if (is_known) continue;
    fail(fmt::format("unknown key \"{}\"; the nearest known one is \"{}\"", key.substr(0, 100),
                     nearest(key.substr(0, 100), known)));
  }
}

Place Place::at(std::string_view key) const {
  const auto found = value_.find(key);
  if (found == value_.end()) fail(fmt::format("the key \"{}\" is missing", key));
  return {*found, *this, key, 0};
}

std::size_t Place::size_of_array(std::size_t most) const {
  if (!value_.is_array()) fail("must be an array");
  if (value_.size() > most) fail(fmt::format("has {} items, at most {} are supported", value_.size(), most));
  return value_.size();
}

const std::string& Place::text(std::size_t most_bytes) const {
  if (!value_.is_string()) fail("must be a string");
  const auto& text = value_.get_ref<const std::string&>();
  if (text.empty()) fail("must not be empty");
  if (text.size() > most_bytes) fail(fmt::format("has {} bytes, at most {} are supported", text.size(), most_bytes));
  return text;
}

std::int64_t Place::integer(std::int64_t least, std::int64_t most) const {
  const bool fits = value_.is_number_unsigned() ? value_.get<std::uint64_t>() <= static_cast<std::uint64_t>(most)
                                                : value_.is_number_integer() && value_.get<std::int64_t>() <= most;
  if (!fits || value_.get<std::int64_t>() < least) {
    fail(fmt::format("must be an integer from {} to {}, is {}", least, most, value_.dump().substr(0, 100)));
  }
  return value_.get<std::int64_t>();
}

std::uint64_t Place::count() const {
  if (!value_.is_number_unsigned()) {
    fail(fmt::format("must be an integer from 0 to 2^64-1, is {}", value_.dump().substr(0, 100)));
  }
  return value_.get<std::uint64_t>();
}

double Place::positive_number() const {
  constexpr double kMost = 1e9;  // far from where products overflow
  if (!value_.is_number() || !(value_.get<double>() > 0) || value_.get<double>() > kMost) {
    fail(fmt::format("must be a number above 0, at most {}, is {}", kMost, value_.dump().substr(0, 100)));
  }
  return value_.get<double>();
}

double Place::number(double least, double most) const {
  if (!value_.is_number() || !(value_.get<double>() >= least) || value_.get<double>() > most) {
    fail(fmt::format("must be a number from {} to {}, is {}", least, most, value_.dump().substr(0, 100)));
  }
  return value_.get<double>();
}

bool Place::boolean() const {
  if (!value_.is_boolean()) fail("must be true or false");
  return value_.get<bool>();
}

std::vector<std::int64_t> Place::integers(std::size_t most, std::int64_t least) const {
  const auto size = size_of_array(most);
  std::vector<std::int64_t> values(size);
  for (std::size_t i = 0; i < size; ++i) values[i] = at(i).integer(least);
  return values;
}

}  // namespace weightcast
