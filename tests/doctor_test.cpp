// What the doctor concludes from what it sees, and how it says so.
#include "plugin/doctor.h"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>

using namespace weightcast;

TEST_CASE("a UCX without the device that the machine has is a problem, without one that it has not a note") {
  FabricFacts facts{"/opt/ucx/libucp.so.0", "1.22.0", false, true, {"posix", "tcp"}};
  CHECK(judge_ucx(facts, true, false).state == FindingState::note);
  CHECK(judge_ucx(facts, true, true).state == FindingState::problem);
  CHECK(judge_ucx(facts, true, true).text.find("without RDMA") != std::string::npos);
  facts.has_rdma = true;
  CHECK(judge_ucx(facts, true, true).state == FindingState::ok);
  facts.has_cuda = false;
  CHECK(judge_ucx(facts, true, true).state == FindingState::problem);
  CHECK(judge_ucx(facts, false, true).state == FindingState::note);
}

TEST_CASE("little shared memory, locked memory and few cores are named with what to do") {
  CHECK(judge_shared_memory(8 * GiB, 16 * GiB).state == FindingState::ok);
  CHECK(judge_shared_memory(512 * MiB, 16 * GiB).state == FindingState::note);
  CHECK(judge_shared_memory(1 * MiB, 64 * MiB).state == FindingState::problem);
  CHECK(judge_memory_lock(RLIM_INFINITY, true).state == FindingState::ok);
  CHECK(judge_memory_lock(64 * KiB, false).state == FindingState::note);
  CHECK(judge_memory_lock(64 * KiB, true).what_to_do.find("ulimit -l") != std::string::npos);
  CHECK(judge_cores(16, "auto").state == FindingState::ok);
  CHECK(judge_cores(2, "never").state == FindingState::ok);
  CHECK(judge_cores(2, "always").state == FindingState::note);
}

TEST_CASE("a refused copy between processes is a problem, one that only root may make a note") {
  CHECK(judge_cma(0, -1).state == FindingState::ok);
  CHECK(judge_cma(0, 0).state == FindingState::ok);
  CHECK(judge_cma(0, 1).state == FindingState::note);
  CHECK(judge_cma(EPERM, 1).state == FindingState::problem);
  CHECK(judge_cma(EPERM, 1).what_to_do.find("ptrace_scope=0") != std::string::npos);
}

TEST_CASE("findings print as lines and as JSON") {
  const std::vector<Finding> findings = {{"ucx", FindingState::ok, "fine", ""},
                                         {"cma", FindingState::problem, "refused", "allow it"}};
  CHECK(to_text(findings) == "ok       ucx: fine\nproblem  cma: refused\n         -> allow it\n");
  const auto json = nlohmann::json::parse(to_json(findings));
  CHECK(json["problems"] == 1);
  CHECK(json["findings"][1]["what_to_do"] == "allow it");
}

TEST_CASE("this machine is examined, and a UCX that is not there is a finding, not a crash") {
  Config config;
  config.fabric.ucx_library = "/nonexistent/libucp.so.0";
  const auto findings = examine(config);
  const auto ucx = std::find_if(findings.begin(), findings.end(), [](const auto& f) { return f.name == "ucx"; });
  REQUIRE(ucx != findings.end());
  CHECK(ucx->state == FindingState::problem);
  CHECK(ucx->text.find("/nonexistent/libucp.so.0") != std::string::npos);
  for (const char* name : {"cma", "shared_memory", "gpu", "rdma", "memory_lock", "cores"}) {
    CHECK(std::any_of(findings.begin(), findings.end(), [&](const auto& f) { return f.name == name; }));
  }
}
