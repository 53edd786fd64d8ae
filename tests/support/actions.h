// Picks what a state machine answered with.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "plugin/trainer_core.h"

namespace weightcast {

template <class Wanted, class Action>
std::vector<Wanted> all_of(const std::vector<Action>& actions) {
  std::vector<Wanted> found;
  for (const Action& action : actions) {
    if (const auto* wanted = std::get_if<Wanted>(&action)) found.push_back(*wanted);
  }
  return found;
}

// The messages of one type among what a member sends.
template <class Wanted, class Action>
std::vector<Wanted> sent(const std::vector<Action>& actions) {
  std::vector<Wanted> found;
  for (const SendMessage& send : all_of<SendMessage>(actions)) {
    if (const auto* wanted = std::get_if<Wanted>(&send.message)) found.push_back(*wanted);
  }
  return found;
}

inline bool says_in(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace weightcast
