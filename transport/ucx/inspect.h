// Reads what UCX prints about itself: the only place where it names the transports that it chose. Text in, names
// out; a UCX that prints otherwise yields empty answers, never an error.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace weightcast {

// What `print(FILE*)` writes.
template <class Print>
[[nodiscard]] std::string printed(Print print) {
  char* text = nullptr;
  std::size_t bytes = 0;
  std::FILE* out = ::open_memstream(&text, &bytes);
  if (out == nullptr) return {};
  print(out);
  std::fclose(out);
  std::string result(text, bytes);
  std::free(text);  // NOLINT: open_memstream allocates with malloc
  return result;
}

// Of ucp_context_print_info: each transport once, in its order.
[[nodiscard]] std::vector<std::string> parse_transports(const std::string& context_info);

// Of ucp_ep_print_info: the transports whose lanes carry bulk puts.
[[nodiscard]] std::vector<std::string> parse_put_lanes(const std::string& endpoint_info);

}  // namespace weightcast
