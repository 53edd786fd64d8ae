#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>
#include <vector>

#include "plugin/cli/command.h"

namespace weightcast::cli {
namespace {

namespace fs = std::filesystem;

// Programs NAME_bench beside this one, or in the folder bench of the same build, by NAME.
std::map<std::string, fs::path> benches() {
  constexpr std::string_view kEnding = "_bench";
  std::map<std::string, fs::path> found;
  const auto here = fs::read_symlink("/proc/self/exe").parent_path();
  for (const auto& folder : {here, here.parent_path() / "bench"}) {
    std::error_code none;  // a folder that is not there holds nothing
    for (const auto& file : fs::directory_iterator(folder, none)) {
      const auto name = file.path().filename().string();
      if (!name.ends_with(kEnding) || ::access(file.path().c_str(), X_OK) != 0) continue;
      found.emplace(name.substr(0, name.size() - kEnding.size()), file.path());
    }
  }
  return found;
}

int run_bench(const std::vector<std::string>& words) {
  const auto known = benches();
  const auto bench = known.find(words.front());
  if (bench == known.end()) {
    std::vector<std::string> names;
    names.reserve(known.size());
    for (const auto& [name, path] : known) names.push_back(name);
    throw Error(Code::invalid_argument,
                fmt::format("there is no bench {}; in this build there are: {}", words.front(),
                            names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "))));
  }
  std::vector<char*> arguments = {const_cast<char*>(bench->second.c_str())};
  for (std::size_t i = 1; i < words.size(); ++i) arguments.push_back(const_cast<char*>(words[i].c_str()));
  arguments.push_back(nullptr);
  ::execv(arguments[0], arguments.data());
  throw Error(Code::unavailable,
              fmt::format("cannot run {}: {}", arguments[0], std::generic_category().message(errno)));
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  auto json = std::make_shared<bool>(false);
  auto& command =
      add_command(app, "bench", "Runs one of the speed measurements of this build; without NAME, lists them",
                  "weightcast bench NAME [ARGUMENTS of the measurement]...\n  weightcast bench quant --help");
  command.prefix_command();  // all behind NAME belongs to the measurement
  command.add_flag("--json", *json, "before NAME: list as JSON; behind it, the measurement's own");
  command.callback([&action, &command, json] {
    action = [&command, json] {
      const auto words = command.remaining();
      if (!words.empty()) return run_bench(words);
      auto list = nlohmann::json::array();
      for (const auto& [name, path] : benches()) {
        list.push_back(name);
        if (!*json) print(name + "\n");
      }
      if (*json) print(list.dump() + "\n");
      return kDone;
    };
  });
}

}  // namespace weightcast::cli
