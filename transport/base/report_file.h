// What a command writes as a file: whole under its name, or not there.
#pragma once

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <system_error>
#include <utility>

#include "transport/base/status.h"

namespace weightcast {

class ReportFile {
 public:
  // Empty: none is wanted. Opened before anything is worked out, so that a bad path costs no run; throws
  // Error{unavailable}, here and below, with the name and the cause.
  explicit ReportFile(std::string path) : path_(std::move(path)) {
    if (path_.empty()) return;
    struct stat facts {};
    const bool special = ::stat(path_.c_str(), &facts) == 0 && !S_ISREG(facts.st_mode);  // /dev/stdout: as it is
    written_ = special ? path_ : fmt::format("{}.{}.part", path_, ::getpid());
    file_ = std::fopen(written_.c_str(), "we");
    if (file_ == nullptr) fail();
  }
  ReportFile(const ReportFile&) = delete;
  ReportFile& operator=(const ReportFile&) = delete;
  ~ReportFile() {
    if (file_ != nullptr) std::fclose(file_);
    if (!path_.empty() && written_ != path_) ::unlink(written_.c_str());  // not there any more if it was kept
  }

  // Writes all of it, and what was printed; then the file has its name.
  void keep(const std::string& text) {
    errno = 0;
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      throw Error(Code::unavailable, fmt::format("cannot write standard output: {}", cause()));
    }
    if (path_.empty()) return;
    bool ok = std::fwrite(text.data(), 1, text.size(), file_) == text.size() && std::fflush(file_) == 0;
    ok = ok && (written_ == path_ || ::fsync(::fileno(file_)) == 0);
    if (!ok) fail();
    if (written_ != path_ && std::rename(written_.c_str(), path_.c_str()) != 0) fail();
  }

 private:
  static std::string cause() { return errno == 0 ? "an earlier write failed" : std::generic_category().message(errno); }
  [[noreturn]] void fail() { throw Error(Code::unavailable, fmt::format("cannot write {}: {}", path_, cause())); }

  const std::string path_;
  std::string written_;
  std::FILE* file_ = nullptr;
};

}  // namespace weightcast
