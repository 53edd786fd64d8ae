#include "plugin/cli/command.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>

namespace weightcast::cli {

int exit_code(Code code) noexcept {
  if (code == Code::ok) return kDone;
  return code == Code::invalid_argument ? kBadUsage : kFailed;
}

CLI::App& add_command(CLI::App& app, const std::string& name, const std::string& what, const std::string& example) {
  auto& command = *app.add_subcommand(name, what);
  command.footer(fmt::format(
      "Example:\n  {}\n\nExit codes: 0 done, 1 it failed, 2 wrong arguments, configuration or catalogs", example));
  return command;
}

void add_json(CLI::App& command, bool& json) { command.add_flag("--json", json, "print JSON instead of plain lines"); }

namespace {
int write_error = 0;  // of the first write that failed
}

void print(std::string_view text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() && write_error == 0) write_error = errno;
}

void flush_output() {
  errno = 0;
  if (std::fflush(stdout) != 0 && write_error == 0) write_error = errno;
  if (write_error == 0) return;
  throw Error(Code::unavailable,
              fmt::format("cannot write standard output: {}", std::generic_category().message(write_error)));
}

}  // namespace weightcast::cli
