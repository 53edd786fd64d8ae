#include "transport/fabric.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>

#include "transport/ucx/entry.h"

namespace weightcast {
namespace {

namespace fs = std::filesystem;

// The folder of the library or program that this code was linked into.
fs::path own_folder() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&open_fabric), &info) == 0 || info.dli_fname == nullptr) return {};
  std::error_code failed;
  auto path = fs::canonical(info.dli_fname, failed);
  if (failed) path = fs::read_symlink("/proc/self/exe", failed);  // for a program the name is whatever argv[0] says
  return path.parent_path();
}

// Installed, both libraries lie in one folder; in a build tree, programs lie in folders beside transport/.
void* open_ucx_part(const fs::path& folder) {
  constexpr const char* kName = "libweightcast_ucx.so";
  std::string tried;
  for (const auto& candidate : {folder / kName, folder / "transport/ucx" / kName, folder / "../transport/ucx" / kName,
                                folder / "../../transport/ucx" / kName}) {
    if (!fs::exists(candidate)) {
      tried += " " + candidate.lexically_normal().string();
      continue;
    }
    // NODELETE: UCX starts threads and keeps thread-local state, so it cannot be unloaded.
    if (void* library = ::dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) return library;
    throw Error(Code::unavailable, fmt::format("cannot load {}: {}", candidate.string(), ::dlerror()));
  }
  throw Error(Code::unavailable, fmt::format("{} not found; looked for{}: reinstall weightcast", kName, tried));
}

}  // namespace

std::unique_ptr<Fabric> open_fabric(const FabricOptions& options, FabricListener& listener) {
  const auto folder = own_folder();
  void* library = open_ucx_part(folder);
  auto* open = reinterpret_cast<OpenUcxFabric*>(::dlsym(library, kUcxEntrySymbol));
  const std::string folder_text = folder.string();
  UcxEntryArguments arguments{
      WEIGHTCAST_VERSION, {&log_enabled, &write_log_line}, folder_text.c_str(), &options, &listener};
  std::unique_ptr<Fabric> fabric(open != nullptr ? open(arguments) : nullptr);
  if (!fabric) {
    throw Error(Code::refused, fmt::format("libweightcast_ucx.so beside {} is not of version {}: reinstall weightcast",
                                           folder_text, WEIGHTCAST_VERSION));
  }
  return fabric;
}

}  // namespace weightcast
