#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "plugin/cli/command.h"
#include "transport/control.h"

namespace weightcast::cli {

void add_keygen(CLI::App& app, Action& action) {
  struct Options {
    std::string path;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  auto& command = add_command(app, "keygen", "Creates the secret file that every rank of a run needs",
                              "weightcast keygen weightcast.secret");
  command.add_option("path", options->path, "the file to create; an existing one is never overwritten")->required();
  add_json(command, options->json);
  command.callback([&action, options] {
    action = [options] {
      Secret::make_file(options->path);
      print(options->json
                ? nlohmann::json{{"secret_file", options->path}}.dump() + "\n"
                : fmt::format("{} created; copy it to every rank, readable by its user alone\n", options->path));
      return kDone;
    };
  });
}

}  // namespace weightcast::cli
