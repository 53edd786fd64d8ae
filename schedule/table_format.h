// What writer and reader of encoded tables have in common. For table.cpp and table_reader.cpp.
#pragma once

#include <string_view>

namespace weightcast {

inline constexpr std::string_view kTrainerTableFormat = "weightcast.trainer_table/3";
inline constexpr std::string_view kServerTableFormat = "weightcast.server_table/4";

}  // namespace weightcast
