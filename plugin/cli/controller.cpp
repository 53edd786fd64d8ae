#include "plugin/controller.h"

#include <fmt/format.h>
#include <pthread.h>

#include <csignal>
#include <ctime>
#include <memory>

#include "plugin/cli/command.h"
#include "schedule/config.h"

namespace weightcast::cli {
namespace {

// Blocks the signals that end a program, in every thread started later too; they are then waited for.
sigset_t block_ending_signals() {
  sigset_t ending;
  sigemptyset(&ending);
  sigaddset(&ending, SIGINT);
  sigaddset(&ending, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &ending, nullptr);
  return ending;
}

int serve(const std::string& file, std::uint32_t status_ms, bool json) {
  const sigset_t ending = block_ending_signals();
  const Config config = load_config(file);
  const Controller controller(config);
  print(json ? controller.status_json() + "\n"
             : fmt::format("controller of run '{}' on {}\n", config.run, controller.address()));
  flush_output();
  const timespec wait{status_ms / 1000, static_cast<long>(status_ms % 1000) * 1'000'000};
  while (sigtimedwait(&ending, nullptr, &wait) < 0) {
    if (!json) continue;
    print(controller.status_json() + "\n");
    flush_output();
  }
  return kDone;
}

}  // namespace

void add_controller(CLI::App& app, Action& action) {
  struct Options {
    std::string file;
    std::uint32_t status_ms = 500;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  auto& command = add_command(app, "controller", "Runs the controller as a process of its own, until SIGINT or SIGTERM",
                              "weightcast controller cluster.json\n"
                              "  weightcast controller cluster.json --json | weightcast-view watch -");
  command.add_option("file", options->file, "the configuration, with \"embedded\": false for trainer 0")->required();
  command.add_option("--status-ms", options->status_ms, "with --json: milliseconds between two status lines")
      ->check(CLI::Range(10U, 3'600'000U))
      ->capture_default_str();
  add_json(command, options->json);
  command.callback(
      [&action, options] { action = [options] { return serve(options->file, options->status_ms, options->json); }; });
}

}  // namespace weightcast::cli
