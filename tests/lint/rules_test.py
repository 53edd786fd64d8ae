"""Each rule accepts a good example and names the culprit in a bad one."""

import unittest

import rules


class Layering(unittest.TestCase):
    def test_accepts_includes_to_the_left(self):
        good = {
            "quant/cast.cpp": '#include "quant/cast.h"\n#include "transport/base/status.h"\n',
            "schedule/plan.cpp": "#include <nlohmann/json.hpp>\n",
            "transport/ucx/worker.h": "#pragma once\n#include <ucp/api/ucp.h>\n",
            "tests/plan_test.cpp": '#include "schedule/plan.h"\n#include <doctest/doctest.h>\n',
        }
        self.assertEqual(rules.layering(good), [])

    def test_names_file_and_line_of_an_include_to_the_right(self):
        found = rules.layering({"quant/cast.cpp": '\n#include "plugin/sender.h"\n'})
        self.assertEqual(len(found), 1)
        self.assertIn('quant/cast.cpp:2: quant/ may not include "plugin/sender.h"', found[0])

    def test_the_base_layer_sees_nothing_else_of_transport(self):
        self.assertEqual(len(rules.layering({"transport/base/log.cpp": '#include "transport/fabric.h"\n'})), 1)

    def test_integrations_see_the_c_interface_alone(self):
        self.assertEqual(len(rules.layering({"integrations/x.cpp": '#include "schedule/plan.h"\n'})), 1)

    def test_includes_beside_the_file_are_refused(self):
        self.assertEqual(len(rules.layering({"schedule/plan.cpp": '#include "plan.h"\n'})), 1)

    def test_ucx_and_json_stay_in_their_places(self):
        self.assertEqual(len(rules.layering({"plugin/sender.cpp": "#include <ucp/api/ucp.h>\n"})), 1)
        self.assertEqual(len(rules.layering({"schedule/plan.h": "#pragma once\n#include <nlohmann/json.hpp>\n"})), 1)

    def test_private_headers_stay_in_the_sources_of_their_folder(self):
        include = '#include "schedule/place.h"\n'
        self.assertEqual(rules.layering({"schedule/catalog_json.cpp": include}), [])
        self.assertEqual(len(rules.layering({"schedule/plan.h": "#pragma once\n" + include})), 1)
        self.assertEqual(len(rules.layering({"plugin/messages.cpp": include})), 1)

    def test_a_header_needs_pragma_once_and_a_file_needs_a_layer(self):
        self.assertEqual(len(rules.layering({"quant/cast.h": ""})), 1)
        self.assertEqual(len(rules.layering({"extra/cast.cpp": ""})), 1)


class Names(unittest.TestCase):
    def test_accepts_what_says_something(self):
        self.assertEqual(rules.names(["transport/base/status.h", "schedule/database_plan.h"]), [])

    def test_refuses_vague_names(self):
        for bad in ("transport/utils/x.h", "plugin/peer_manager.cpp", "tests/helper.h", "quant/data.h"):
            self.assertEqual(len(rules.names([bad])), 1, bad)


class MachinePaths(unittest.TestCase):
    def test_accepts_relative_and_system_paths(self):
        self.assertEqual(rules.machine_paths({"a.md": "see ./home, /usr/lib, /dev/shm, framework/x, $HOME/work\n"}), [])

    def test_refuses_folders_of_one_machine(self):
        for bad in ("/ro" + "ot/x", "cd /wo" + "rk/x", "'/ho" + "me/me/x'", "/tmp/" + "h/x"):
            self.assertEqual(len(rules.machine_paths({"a.md": bad})), 1, bad)


if __name__ == "__main__":
    unittest.main()
