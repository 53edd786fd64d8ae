// Repeated measurements of one thing, and how they are printed and reported.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <vector>

namespace weightcast {

struct Spread {
  double median = 0;
  double least = 0;
  double most = 0;

  // Of each value, e.g. a rate of a time.
  [[nodiscard]] Spread map(const std::function<double(double)>& of) const {
    const double a = of(least), b = of(most);
    return {of(median), std::min(a, b), std::max(a, b)};
  }
  [[nodiscard]] nlohmann::json json() const { return {{"min", least}, {"median", median}, {"max", most}}; }
};

[[nodiscard]] inline Spread spread_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values.front(), values.back()};
}

}  // namespace weightcast
