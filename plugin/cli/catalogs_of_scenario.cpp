#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "plugin/cli/catalogs.h"
#include "plugin/cli/command.h"
#include "transport/base/report_file.h"

namespace weightcast::cli {

namespace {

struct CatalogsOptions {
  std::string file;
  std::string folder;
  bool json = false;
};

int write_catalogs(const Catalogs& catalogs, const CatalogsOptions& options) {
  auto files = nlohmann::json::array();
  for (const auto* side : {&catalogs.trainers, &catalogs.servers}) {
    for (const auto& catalog : *side) {
      const auto name = fmt::format("{}{}.catalog.json", to_string(catalog.role), catalog.rank);
      const auto path = (std::filesystem::path(options.folder) / name).string();
      ReportFile(path).keep(to_json(catalog));
      files.push_back(path);
    }
  }
  print(options.json ? files.dump() + "\n" : fmt::format("{} catalogs in {}\n", files.size(), options.folder));
  return kDone;
}

}  // namespace

void add_catalogs(CLI::App& app, Action& action) {
  auto options = std::make_shared<CatalogsOptions>();
  auto& command = add_command(app, "catalogs", "Writes the catalogs that the ranks of a scenario would send",
                              "weightcast catalogs scenario.json folder");
  command.add_option("file", options->file, "a scenario")->required();
  command
      .add_option("folder", options->folder, "an existing folder; trainer0.catalog.json and so on are written there")
      ->required();
  add_json(command, options->json);
  command.callback([&action, options] {
    action = [options] {
      return with_cluster({options->file},
                          [&](const Cluster& cluster) { return write_catalogs(cluster.catalogs, *options); });
    };
  });
}

}  // namespace weightcast::cli
