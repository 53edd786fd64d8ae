// The command line: main.cpp reads the arguments, each command is one file that adds itself to the application.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <string_view>

#include "transport/base/status.h"

namespace weightcast::cli {

inline constexpr int kDone = 0;
inline constexpr int kFailed = 1;    // the thing asked for failed
inline constexpr int kBadUsage = 2;  // arguments, configuration or catalogs are wrong
[[nodiscard]] int exit_code(Code code) noexcept;

// What the chosen command does, once all arguments are read. Throws Error; returns the exit code.
using Action = std::function<int()>;

// A command with the footer that they all have: an example, and the exit codes.
CLI::App& add_command(CLI::App& app, const std::string& name, const std::string& what, const std::string& example);
// Adds --json.
void add_json(CLI::App& command, bool& json);

// To standard output. Nothing is sure before flush_output(), which throws Error{unavailable} when a write failed.
void print(std::string_view text);
void flush_output();

void add_bench(CLI::App& app, Action& action);
void add_bound(CLI::App& app, Action& action);
void add_catalogs(CLI::App& app, Action& action);
void add_config(CLI::App& app, Action& action);
void add_controller(CLI::App& app, Action& action);
void add_diff(CLI::App& app, Action& action);
void add_doctor(CLI::App& app, Action& action);
void add_explain(CLI::App& app, Action& action);
void add_keygen(CLI::App& app, Action& action);
void add_plan(CLI::App& app, Action& action);
void add_simulate(CLI::App& app, Action& action);

}  // namespace weightcast::cli
