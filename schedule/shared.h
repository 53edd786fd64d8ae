// Values that copies share until one of them is changed: names and lists that thousands of entries and ranks have in
// common cost memory and time once. Distinct copies may be used by distinct threads.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "schedule/fingerprint.h"

namespace weightcast {

// A text that never changes; assigning gives it another.
class SharedText {
 public:
  SharedText() = default;
  SharedText(std::string text) : value_(std::make_shared<const Value>(std::move(text))) {}
  SharedText(const char* text) : SharedText(std::string(text)) {}

  [[nodiscard]] const std::string& str() const noexcept {
    static const std::string none;
    return value_ ? value_->text : none;
  }
  operator const std::string&() const noexcept { return str(); }
  operator std::string_view() const noexcept { return str(); }
  [[nodiscard]] bool empty() const noexcept { return str().empty(); }
  // Equal for copies of one text, so that they are known to be equal without being read.
  [[nodiscard]] const void* identity() const noexcept { return value_.get(); }
  // Of the text, computed once; 0 of none.
  [[nodiscard]] std::uint64_t print() const noexcept { return value_ ? value_->print : 0; }

  friend bool operator==(const SharedText& a, const SharedText& b) noexcept {
    return a.value_ == b.value_ || (a.print() == b.print() && a.str() == b.str());
  }
  friend bool operator==(const SharedText& a, const std::string& b) noexcept { return a.str() == b; }
  friend bool operator==(const SharedText& a, const char* b) noexcept { return a.str() == b; }
  friend bool operator<(const SharedText& a, const SharedText& b) noexcept { return a.str() < b.str(); }

 private:
  struct Value {
    explicit Value(std::string of) : text(std::move(of)) {
      Fingerprint fingerprint;
      fingerprint.add(text);
      print = text.empty() ? 0 : fingerprint.value();
    }
    std::string text;
    std::uint64_t print = 0;
  };
  std::shared_ptr<const Value> value_;
};

// A list whose copies share their items until one of them is changed.
template <class Item>
class SharedList {
 public:
  using Items = std::vector<Item>;

  SharedList() = default;
  SharedList(Items items) : items_(std::make_shared<Items>(std::move(items))) {}
  SharedList(std::initializer_list<Item> items) : SharedList(Items(items)) {}

  [[nodiscard]] const Items& get() const noexcept {
    static const Items none;
    return items_ ? *items_ : none;
  }
  operator const Items&() const noexcept { return get(); }
  [[nodiscard]] std::size_t size() const noexcept { return get().size(); }
  [[nodiscard]] bool empty() const noexcept { return get().empty(); }
  [[nodiscard]] const Item& operator[](std::size_t at) const noexcept { return get()[at]; }
  [[nodiscard]] const Item& front() const noexcept { return get().front(); }
  [[nodiscard]] const Item& back() const noexcept { return get().back(); }
  [[nodiscard]] auto begin() const noexcept { return get().begin(); }
  [[nodiscard]] auto end() const noexcept { return get().end(); }
  // Equal for copies that share their items.
  [[nodiscard]] const void* identity() const noexcept { return items_.get(); }

  // The items, to be changed: no copy shares them any more. Valid until this list is copied.
  [[nodiscard]] Items& edit() {
    if (!items_) {
      items_ = std::make_shared<Items>();
    } else if (items_.use_count() > 1) {
      items_ = std::make_shared<Items>(*items_);
    }
    return *items_;
  }
  void push_back(Item item) { edit().push_back(std::move(item)); }

  friend bool operator==(const SharedList& a, const SharedList& b) noexcept {
    return a.items_ == b.items_ || a.get() == b.get();
  }
  friend bool operator==(const SharedList& a, const Items& b) noexcept { return a.get() == b; }

 private:
  std::shared_ptr<Items> items_;
};

}  // namespace weightcast

template <>
struct fmt::formatter<weightcast::SharedText> : fmt::formatter<std::string_view> {
  template <class Context>
  auto format(const weightcast::SharedText& text, Context& context) const {
    return fmt::formatter<std::string_view>::format(text.str(), context);
  }
};
