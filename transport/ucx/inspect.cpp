#include "transport/ucx/inspect.h"

#include <algorithm>
#include <sstream>

namespace weightcast {
namespace {

void add_once(std::vector<std::string>& names, const std::string& name) {
  if (!name.empty() && std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

// "tcp" of "4:tcp/lo.0"
std::string transport_in(const std::string& word) {
  const auto slash = word.find('/');
  if (slash == std::string::npos) return {};
  const auto colon = word.rfind(':', slash);
  const auto first = colon == std::string::npos ? 0 : colon + 1;
  return word.substr(first, slash - first);
}

}  // namespace

std::vector<std::string> parse_transports(const std::string& context_info) {
  std::vector<std::string> names;
  std::istringstream lines(context_info);
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" resource ") == std::string::npos) continue;
    std::istringstream words(line);
    for (std::string word; words >> word;) add_once(names, transport_in(word));
  }
  return names;
}

std::vector<std::string> parse_put_lanes(const std::string& endpoint_info) {
  std::vector<std::string> names;
  std::istringstream lines(endpoint_info);
  for (std::string line; std::getline(lines, line);) {
    if (line.find("lane[") == std::string::npos || line.find("rma_bw") == std::string::npos) continue;
    std::istringstream words(line);
    for (std::string word; words >> word;) add_once(names, transport_in(word));
  }
  return names;
}

}  // namespace weightcast
