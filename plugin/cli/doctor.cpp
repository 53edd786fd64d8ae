#include "plugin/doctor.h"

#include <algorithm>
#include <memory>

#include "plugin/cli/command.h"

namespace weightcast::cli {

void add_doctor(CLI::App& app, Action& action) {
  struct Options {
    std::string file;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  auto& command = add_command(app, "doctor", "Looks at this machine the way an update would use it",
                              "weightcast doctor cluster.json");
  command.add_option("file", options->file, "a configuration; without it, the defaults");
  add_json(command, options->json);
  command.callback([&action, options] {
    action = [options] {
      const auto findings = examine(options->file.empty() ? Config{} : load_config(options->file));
      print(options->json ? to_json(findings) + "\n" : to_text(findings));
      const bool sound = std::none_of(findings.begin(), findings.end(),
                                      [](const Finding& finding) { return finding.state == FindingState::problem; });
      return sound ? kDone : kFailed;
    };
  });
}

}  // namespace weightcast::cli
