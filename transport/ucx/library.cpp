#include "transport/ucx/library.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <link.h>
#include <ucs/debug/log_def.h>

#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "transport/base/log.h"

namespace weightcast {
namespace {

namespace fs = std::filesystem;

UcxFunctions functions;
std::string bound_path;
std::mutex bind_mutex;

// UCX reads these only while it is being loaded: without them it patches mmap and installs signal handlers in the
// host process. Set around dlopen() and put back.
constexpr std::array<std::pair<const char*, const char*>, 5> kLoadSettings = {{
    {"UCX_MEM_EVENTS", "n"},
    {"UCX_DEBUG_SIGNO", "0"},
    {"UCX_VFS_ENABLE", "n"},
    {"UCX_ERROR_SIGNALS", ""},
    {"UCX_HANDLE_ERRORS", "none"},
}};

class LoadSettings {
 public:
  LoadSettings() {
    for (const auto& [name, value] : kLoadSettings) {
      const char* before = std::getenv(name);
      before_.push_back(before != nullptr ? std::optional<std::string>(before) : std::nullopt);
      ::setenv(name, value, 1);
    }
  }
  LoadSettings(const LoadSettings&) = delete;
  LoadSettings& operator=(const LoadSettings&) = delete;
  ~LoadSettings() {
    for (std::size_t i = 0; i < kLoadSettings.size(); ++i) {
      if (before_[i]) {
        ::setenv(kLoadSettings[i].first, before_[i]->c_str(), 1);
      } else {
        ::unsetenv(kLoadSettings[i].first);
      }
    }
  }

 private:
  std::vector<std::optional<std::string>> before_;
};

std::string real_path(const std::string& path) {
  std::error_code ignored;
  const auto real = fs::canonical(path, ignored);
  return ignored ? path : real.string();
}

// A libucp with UCX's own soname that is already in this process; wheels that rename theirs do not collide.
std::string loaded_libucp() {
  std::string found;
  ::dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* out) {
        if (fs::path(info->dlpi_name).filename().string().starts_with("libucp.so")) {
          *static_cast<std::string*>(out) = info->dlpi_name;
          return 1;
        }
        return 0;
      },
      &found);
  return found.empty() ? found : real_path(found);
}

void add_wheel(std::vector<std::string>& candidates, const fs::path& site_packages) {
  const auto path = site_packages / "libucx/lib/libucp.so.0";
  if (fs::exists(path)) candidates.push_back(path.string());
}

std::string find_libucp(const std::string& wanted, const std::string& library_folder) {
  if (!wanted.empty()) return wanted;
  if (const char* path = std::getenv("WEIGHTCAST_UCX_LIBRARY"); path != nullptr && *path != '\0') return path;
  std::vector<std::string> candidates;
  add_wheel(candidates, library_folder);
  add_wheel(candidates, fs::path(library_folder).parent_path());
  if (const char* environment = std::getenv("VIRTUAL_ENV"); environment != nullptr) {
    std::error_code ignored;
    for (const auto& python : fs::directory_iterator(fs::path(environment) / "lib", ignored)) {
      add_wheel(candidates, python.path() / "site-packages");
    }
  }
  if (!candidates.empty()) return candidates.front();
#ifdef WEIGHTCAST_BUILD_UCX_LIBRARY
  if (fs::exists(WEIGHTCAST_BUILD_UCX_LIBRARY)) return WEIGHTCAST_BUILD_UCX_LIBRARY;
#endif
  return "libucp.so.0";
}

// UCX would print on standard output, which belongs to the host's own results. What it reports we report too, in
// our words and with names, so its lines are detail.
ucs_log_func_rc_t forward_ucx_log(const char*, unsigned, const char*, ucs_log_level_t level,
                                  const ucs_log_component_config_t*, const char* message, va_list arguments) {
  std::array<char, 512> text{};
  std::vsnprintf(text.data(), text.size(), message, arguments);
  log_at(level == UCS_LOG_LEVEL_FATAL ? LogLevel::error : LogLevel::debug, "UCX: {}", text.data());
  return UCS_LOG_FUNC_RC_STOP;
}

UcxFunctions resolve(void* library, const std::string& path) {
  UcxFunctions table;
  const auto find = [&](const char* name) {
    void* symbol = ::dlsym(library, name);
    if (symbol == nullptr) throw Error(Code::unavailable, fmt::format("{} has no {}: it is no usable UCX", path, name));
    return symbol;
  };
#define WEIGHTCAST_RESOLVE(name) table.name = reinterpret_cast<decltype(table.name)>(find(#name));
  WEIGHTCAST_UCP_FUNCTIONS(WEIGHTCAST_RESOLVE)
#undef WEIGHTCAST_RESOLVE
  table.ucs_status_string = reinterpret_cast<decltype(table.ucs_status_string)>(find("ucs_status_string"));
  return table;
}

void check_version(const UcxFunctions& table, const std::string& path) {
  unsigned major = 0;
  unsigned minor = 0;
  unsigned release = 0;
  table.ucp_get_version(&major, &minor, &release);
  if (major == kMinimumUcxMajor && minor >= kMinimumUcxMinor) return;
  throw Error(Code::unavailable,
              fmt::format("{} is UCX {}.{}.{}, weightcast needs {}.{} or newer: install the wheel libucx-cu13 or name "
                          "a newer library as ucx_library",
                          path, major, minor, release, kMinimumUcxMajor, kMinimumUcxMinor));
}

void* open_libucp(const std::string& path) {
  const LoadSettings settings;
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    throw Error(Code::unavailable, fmt::format("cannot load UCX: {}: install the wheel libucx-cu13 or name a library "
                                               "as ucx_library",
                                               ::dlerror()));
  }
  return library;
}

std::string path_of(const UcxFunctions& table) {
  Dl_info info{};
  ::dladdr(reinterpret_cast<const void*>(table.ucp_get_version), &info);
  return info.dli_fname != nullptr ? real_path(info.dli_fname) : "libucp.so.0";
}

}  // namespace

void bind_ucx(const std::string& wanted, const std::string& library_folder) {
  const std::scoped_lock lock(bind_mutex);
  const std::string path = find_libucp(wanted, library_folder);
  const std::string loaded = loaded_libucp();
  const bool by_name_only = path.find('/') == std::string::npos;
  if (!loaded.empty() && !by_name_only && real_path(path) != loaded) {
    throw Error(Code::refused, fmt::format("two UCX libraries in one process would corrupt each other: {} is already "
                                           "loaded, {} is asked for: name the first as ucx_library",
                                           loaded, path));
  }
  if (!bound_path.empty()) return;
  void* library = open_libucp(path);
  const UcxFunctions table = resolve(library, path);
  check_version(table, path);
  using PushHandler = void (*)(ucs_log_func_t);
  if (const auto push = reinterpret_cast<PushHandler>(::dlsym(library, "ucs_log_push_handler")); push != nullptr) {
    push(&forward_ucx_log);
  }
  functions = table;
  bound_path = path_of(table);
}

const UcxFunctions& ucx() noexcept { return functions; }
const std::string& ucx_path() noexcept { return bound_path; }

}  // namespace weightcast
