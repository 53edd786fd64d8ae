// Outcomes. Two roads, one crossing: set-up code throws Error, the data path returns Status,
// and plugin/abi.cpp turns either into a code and a text for the C caller.
//
// Whoever decides that something is an error words it: who, what, which version, cause, what to do.
// Everybody else passes it on unchanged.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace weightcast {

// The numbers are part of the C ABI (plugin/weightcast.h) and never change.
enum class Code : int {
  ok = 0,
  invalid_argument = 1,  // the caller's input: configuration, catalog, call order
  refused = 2,           // a rule says no: secret, role, protocol version, lease, emulation
  unavailable = 3,       // something on this machine is missing: library, permission, space
  unreachable = 4,       // a peer is dead, stopped, or was never there
  timed_out = 5,         // a bounded wait ended; the message says what it waited for
  corrupted = 6,         // bytes are not what they must be: digest, plan proof, NaN or Inf
  aborted = 7,           // the update was given up; servers keep their committed version
  internal = 8,          // a defect of weightcast
};

[[nodiscard]] constexpr std::string_view to_string(Code code) noexcept {
  switch (code) {
    case Code::ok: return "ok";
    case Code::invalid_argument: return "invalid argument";
    case Code::refused: return "refused";
    case Code::unavailable: return "unavailable";
    case Code::unreachable: return "unreachable";
    case Code::timed_out: return "timed out";
    case Code::corrupted: return "corrupted";
    case Code::aborted: return "aborted";
    case Code::internal: return "internal error";
  }
  return "unknown code";
}

// A value; success allocates nothing. Distinct objects may be used from distinct threads.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  [[nodiscard]] bool ok() const noexcept { return code_ == Code::ok; }
  [[nodiscard]] Code code() const noexcept { return code_; }
  [[nodiscard]] const std::string& message() const noexcept { return message_; }

 private:
  Code code_ = Code::ok;
  std::string message_;
};

class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] Code code() const noexcept { return code_; }
  [[nodiscard]] Status status() const { return {code_, what()}; }

 private:
  Code code_;
};

// The crossing from the data path to set-up code.
inline void throw_if_failed(const Status& status) {
  if (!status.ok()) throw Error(status.code(), status.message());
}

}  // namespace weightcast
