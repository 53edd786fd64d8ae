#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <utility>

#include "transport/base/handle.h"
#include "transport/base/status.h"
#include "transport/control.h"

namespace weightcast {
namespace {

// The file: this line, then the key in Z85 (https://rfc.zeromq.org/spec/32), then a line feed.
constexpr std::string_view kHeader = "weightcast secret, version 1; keep it private\n";
constexpr std::size_t kKeyCharacters = 40;
constexpr std::size_t kKeyBytes = 32;
using Key = std::array<char, kKeyCharacters + 1>;  // with the closing zero that libzmq writes and wants

std::string cause_of(int error) { return std::strerror(error); }

[[noreturn]] void not_a_secret(const std::string& path, std::string_view what) {
  throw Error(Code::invalid_argument,
              fmt::format("{} is not a weightcast secret: {}; make one with `weightcast keygen PATH` and copy that "
                          "file to every process",
                          path, what));
}

// Closes and removes a half-written file unless it is kept.
class NewFile {
 public:
  explicit NewFile(const std::string& path)
      : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600)) {
    if (fd_.get() >= 0) return;
    if (errno == EEXIST) {
      throw Error(Code::refused, fmt::format("{} already exists and is not overwritten, because processes may still "
                                             "use it; choose another path or remove it first",
                                             path));
    }
    fail("create", errno);
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (!kept_) ::unlink(path_.c_str());
  }

  void write(std::string_view text) {
    while (!text.empty()) {
      const ssize_t written = ::write(fd_.get(), text.data(), text.size());
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail("write", written < 0 ? errno : ENOSPC);
      text.remove_prefix(static_cast<std::size_t>(written));
    }
  }

  void keep() {
    // Exactly 0600, whatever the umask; on disk, together with its name.
    if (::fchmod(fd_.get(), 0600) != 0 || ::fsync(fd_.get()) != 0) fail("write", errno);
    const auto folder = std::filesystem::path(path_).parent_path();
    const FileDescriptor parent(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (parent.get() >= 0) ::fsync(parent.get());  // file systems that cannot, need not
    kept_ = true;
  }

 private:
  [[noreturn]] void fail(std::string_view verb, int error) const {
    throw Error(Code::unavailable, fmt::format("cannot {} the secret file {}: {}; choose a path in a writable folder "
                                               "with free space",
                                               verb, path_, cause_of(error)));
  }

  const std::string path_;
  FileDescriptor fd_;
  bool kept_ = false;
};

FileDescriptor open_private(const std::string& path) {
  // Not blocking: the path may be a pipe.
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat facts {};
  if (file.get() < 0 || ::fstat(file.get(), &facts) != 0) {
    throw Error(Code::unavailable,
                fmt::format("cannot read the secret file {}: {}; make one with `weightcast keygen {}`, or name the "
                            "right one with \"secret_file\"",
                            path, cause_of(errno), path));
  }
  if (!S_ISREG(facts.st_mode)) not_a_secret(path, "it is no regular file");
  if ((facts.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    throw Error(Code::refused, fmt::format("the secret file {} has mode {:04o}: others than its owner may use it; run "
                                           "`chmod 600 {}`, and make a new one if others could have read it",
                                           path, facts.st_mode & 07777U, path));
  }
  return file;
}

std::string read_up_to(int fd, std::size_t limit_bytes, const std::string& path) {
  std::string text(limit_bytes, '\0');
  std::size_t got = 0;
  while (got < limit_bytes) {
    const ssize_t count = ::read(fd, text.data() + got, limit_bytes - got);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      throw Error(Code::unavailable, fmt::format("cannot read the secret file {}: {}", path, cause_of(errno)));
    }
    if (count == 0) break;
    got += static_cast<std::size_t>(count);
  }
  text.resize(got);
  return text;
}

}  // namespace

Secret Secret::load(const std::string& path) {
  const FileDescriptor file = open_private(path);
  const std::string text = read_up_to(file.get(), 2 * (kHeader.size() + kKeyCharacters), path);
  if (!text.starts_with(kHeader)) not_a_secret(path, "its first line is another");
  std::string key = text.substr(kHeader.size());
  if (key.ends_with('\n')) key.pop_back();
  if (key.size() != kKeyCharacters) {
    not_a_secret(path, fmt::format("its key has {} characters, not {}", key.size(), kKeyCharacters));
  }
  std::array<std::uint8_t, kKeyBytes> binary{};
  Key public_key{};
  if (::zmq_z85_decode(binary.data(), key.c_str()) == nullptr) not_a_secret(path, "its key is damaged");
  if (::zmq_curve_public(public_key.data(), key.c_str()) != 0) {
    throw Error(Code::unavailable, fmt::format("libzmq has no CURVE ({}); install one built with libsodium",
                                               ::zmq_strerror(::zmq_errno())));
  }
  Secret secret;
  secret.secret_key_ = std::move(key);
  secret.public_key_ = public_key.data();
  return secret;
}

void Secret::make_file(const std::string& path) {
  Key public_key{};
  Key secret_key{};
  if (::zmq_curve_keypair(public_key.data(), secret_key.data()) != 0) {
    throw Error(Code::unavailable, fmt::format("libzmq cannot make a CURVE key ({}); install one built with libsodium",
                                               ::zmq_strerror(::zmq_errno())));
  }
  NewFile file(path);
  file.write(fmt::format("{}{}\n", kHeader, secret_key.data()));
  file.keep();
}

}  // namespace weightcast
