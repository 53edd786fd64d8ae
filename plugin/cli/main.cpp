#include <fmt/format.h>

#include <cstdio>
#include <exception>

#include "plugin/cli/command.h"

namespace {

using namespace weightcast;

// One line, whatever the message holds.
int complain(std::string text, int code) {
  for (auto& c : text) {
    if (c == '\n') c = ' ';
  }
  fmt::print(stderr, "weightcast: {}\n", text);
  return code;
}

int run(int argc, char** argv) {
  CLI::App app("Moves a model's weights from the ranks that train it to the ranks that serve it.", "weightcast");
  app.set_version_flag("--version", "weightcast " WEIGHTCAST_VERSION);
  app.require_subcommand(1);
  app.footer("Each command has --help with an example. Exit codes: 0 done, 1 it failed, 2 wrong usage");
  cli::Action action;
  for (auto* add :
       {cli::add_bench, cli::add_bound, cli::add_catalogs, cli::add_config, cli::add_controller, cli::add_diff,
        cli::add_doctor, cli::add_explain, cli::add_keygen, cli::add_plan, cli::add_simulate}) {
    add(app, action);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForVersion& version) {
    cli::print(fmt::format("{}\n", version.what()));
    cli::flush_output();
    return cli::kDone;
  } catch (const CLI::CallForHelp&) {
    const auto asked = app.get_subcommands();
    cli::print(asked.empty() ? app.help() : asked.front()->help(app.get_name()));
    cli::flush_output();
    return cli::kDone;
  } catch (const CLI::ParseError& error) {
    return complain(fmt::format("{} (see weightcast --help)", error.what()), cli::kBadUsage);
  }
  const int code = action();
  cli::flush_output();
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    return complain(error.what(), cli::exit_code(error.code()));
  } catch (const std::exception& error) {
    return complain(fmt::format("internal error: {}", error.what()), cli::kFailed);
  }
}
