#include "schedule/config.h"

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "plugin/cli/command.h"

namespace weightcast::cli {

void add_config(CLI::App& app, Action& action) {
  struct Options {
    bool print = false;
    bool schema = false;
    std::string check;
    std::string file;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  auto& command = add_command(app, "config", "Shows, checks and documents the configuration",
                              "weightcast config --print cluster.json\n  weightcast config --check cluster.json");
  auto& what = *command.add_option_group("what");
  what.add_flag("--print", options->print, "the effective configuration: FILE over the defaults, every key, as JSON");
  what.add_option("--check", options->check, "whether FILE is a valid configuration")->type_name("FILE");
  what.add_flag("--schema", options->schema, "the JSON Schema of the configuration");
  what.require_option(1);
  command.add_option("file", options->file, "with --print: a configuration file");
  add_json(command, options->json);
  command.callback([&action, options] {
    action = [options] {
      if (options->schema) {
        print(config_schema());
      } else if (options->print) {
        print(to_json(options->file.empty() ? Config{} : load_config(options->file)) + "\n");
      } else {
        static_cast<void>(load_config(options->check));
        print(options->json ? nlohmann::json{{"file", options->check}, {"valid", true}}.dump() + "\n"
                            : fmt::format("{} is valid\n", options->check));
      }
      return kDone;
    };
  });
}

}  // namespace weightcast::cli
