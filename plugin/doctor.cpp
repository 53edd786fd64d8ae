#include "plugin/doctor.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "transport/base/status.h"
#include "transport/base/units.h"

namespace weightcast {
namespace {

constexpr double kGiB = static_cast<double>(GiB);
constexpr Milliseconds kPatience{10000};

class Silent : public FabricListener {
 public:
  void on_message(std::span<const std::byte> /*bytes*/) override {}
  void on_peer_failure(PeerId /*peer*/, const Status& /*cause*/) override {}
};

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

Finding look_at_gpu(bool& has_gpu) {
  const bool has_device = std::filesystem::exists("/dev/nvidiactl");
  const bool has_driver = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL) != nullptr;  // stays: drivers do not unload
  has_gpu = has_device && has_driver;
  if (has_gpu) return {"gpu", FindingState::ok, "an NVIDIA driver and device are there", ""};
  if (has_device != has_driver) {
    return {"gpu", FindingState::problem,
            has_device ? "there is an NVIDIA device, but libcuda.so.1 cannot be loaded"
                       : "libcuda.so.1 is there, but no NVIDIA device (/dev/nvidiactl)",
            "in a container, start it with the NVIDIA runtime (--gpus all); otherwise install the driver"};
  }
  return {"gpu", FindingState::note, "no NVIDIA GPU: host memory only", ""};
}

Finding look_at_rdma(bool& has_port) {
  const auto ports = names_in("/sys/class/infiniband");
  has_port = !ports.empty();
  if (!has_port) return {"rdma", FindingState::note, "no RDMA network port: between hosts, TCP carries the bytes", ""};
  return {"rdma", FindingState::ok, fmt::format("RDMA ports: {}", fmt::join(ports, ", ")), ""};
}

Finding look_at_shared_memory() {
  struct statvfs facts {};
  if (::statvfs("/dev/shm", &facts) != 0) {
    return {"shared_memory", FindingState::problem, fmt::format("/dev/shm: {}", std::strerror(errno)),
            "mount a tmpfs at /dev/shm"};
  }
  return judge_shared_memory(std::uint64_t{facts.f_bavail} * facts.f_frsize,
                             std::uint64_t{facts.f_blocks} * facts.f_frsize);
}

Finding look_at_cma() {
  int scope = -1;
  std::ifstream("/proc/sys/kernel/yama/ptrace_scope") >> scope;
  // From the child: its parent is no descendant, as peers are not.
  std::uint64_t secret = 42;
  const pid_t child = ::fork();
  if (child < 0) return {"cma", FindingState::note, fmt::format("not tried: fork: {}", std::strerror(errno)), ""};
  if (child == 0) {
    std::uint64_t seen = 0;
    const iovec here{&seen, sizeof seen};
    const iovec there{&secret, sizeof secret};
    ::_exit(::process_vm_readv(::getppid(), &here, 1, &there, 1, 0) == sizeof seen ? 0 : errno);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return judge_cma(WIFEXITED(status) ? WEXITSTATUS(status) : EIO, scope);
}

FabricOptions options_of(const Config& config, bool same_host_shortcuts) {
  FabricOptions options;
  options.ucx_library = config.fabric.ucx_library;
  options.interfaces = config.fabric.interfaces;
  options.allow_emulation = config.fabric.allow_emulation;
  options.same_host_shortcuts = same_host_shortcuts;
  return options;
}

// A pair of fabrics in this process, connected as two processes would be.
Finding look_at_path(const Config& config, bool same_host_shortcuts) {
  const std::string name = same_host_shortcuts ? "path_same_host" : "path_network";
  try {
    Silent listener;
    const auto target = open_fabric(options_of(config, same_host_shortcuts), listener);
    const auto source = open_fabric(options_of(config, same_host_shortcuts), listener);
    const RegionId region = target->allocate(1 * MiB);
    const PeerId peer = source->connect("doctor", target->card({&region, 1}), Deadline::after(kPatience));
    const PeerFacts facts = source->peer_facts(peer);
    source->disconnect(peer);
    return {name, FindingState::ok,
            fmt::format("{} over {}, first contact {:.0f} ms", same_host_shortcuts ? "processes of this host" : "hosts",
                        facts.path, facts.first_contact_s * 1e3),
            ""};
  } catch (const Error& error) {
    return {name, FindingState::problem, error.what(), "see \"fabric\" in the configuration"};
  }
}

Finding look_at_ucx(const Config& config, bool has_gpu, bool has_rdma_port, bool& ucx_works) {
  try {
    Silent listener;
    return judge_ucx(open_fabric(options_of(config, true), listener)->facts(), has_gpu, has_rdma_port);
  } catch (const Error& error) {
    ucx_works = false;
    return {"ucx", FindingState::problem, error.what(),
            "install UCX 1.21 or newer (pip install libucx-cu13) or name one with \"fabric\": {\"ucx_library\"}"};
  }
}

Finding look_at_memory_lock(bool has_rdma_port) {
  rlimit limit{};
  ::getrlimit(RLIMIT_MEMLOCK, &limit);
  return judge_memory_lock(limit.rlim_cur, has_rdma_port);
}

Finding look_at_cores(const Config& config) {
  cpu_set_t cores;
  const bool known = ::sched_getaffinity(0, sizeof cores, &cores) == 0;
  return judge_cores(known ? static_cast<std::uint32_t>(CPU_COUNT(&cores)) : 1, config.performance.spin);
}

}  // namespace

std::string_view to_string(FindingState state) noexcept {
  switch (state) {
    case FindingState::ok: return "ok";
    case FindingState::note: return "note";
    case FindingState::problem: return "problem";
  }
  return "unknown";
}

Finding judge_ucx(const FabricFacts& facts, bool has_gpu, bool has_rdma_port) {
  Finding finding{"ucx", FindingState::ok,
                  fmt::format("UCX {} at {}, transports {}", facts.library_version, facts.library_path,
                              fmt::join(facts.transports, ", ")),
                  ""};
  std::vector<std::string_view> lacks;
  if (!facts.has_rdma) lacks.emplace_back("RDMA");
  if (!facts.has_cuda) lacks.emplace_back("CUDA");
  if (lacks.empty()) return finding;
  finding.text += fmt::format("; without {}", fmt::join(lacks, " and "));
  const bool is_missed = (has_rdma_port && !facts.has_rdma) || (has_gpu && !facts.has_cuda);
  finding.state = is_missed ? FindingState::problem : FindingState::note;
  if (is_missed) {
    finding.what_to_do =
        "this machine has the device: name a UCX that was built for it with \"fabric\": {\"ucx_library\"}";
  }
  return finding;
}

Finding judge_shared_memory(std::uint64_t free_bytes, std::uint64_t total_bytes) {
  constexpr std::uint64_t kTight = 1 * GiB;
  Finding finding{"shared_memory", FindingState::ok,
                  fmt::format("/dev/shm has {:.2f} of {:.2f} GiB free; each server's shadow takes the size of its "
                              "weights there (landing \"staged\")",
                              static_cast<double>(free_bytes) / kGiB, static_cast<double>(total_bytes) / kGiB),
                  ""};
  if (free_bytes >= kTight) return finding;
  finding.state = free_bytes < 64 * MiB ? FindingState::problem : FindingState::note;
  finding.what_to_do = "start the container with --shm-size, or remount: mount -o remount,size=SIZE /dev/shm";
  return finding;
}

Finding judge_memory_lock(std::uint64_t limit_bytes, bool has_rdma_port) {
  if (limit_bytes == RLIM_INFINITY) return {"memory_lock", FindingState::ok, "memory may be locked without limit", ""};
  Finding finding{"memory_lock", FindingState::note, fmt::format("at most {} KiB may be locked", limit_bytes / KiB),
                  ""};
  if (has_rdma_port) {
    finding.state = FindingState::problem;
    finding.text += ", RDMA locks all memory that it registers";
    finding.what_to_do = "`ulimit -l unlimited`, or --ulimit memlock=-1 for a container";
  }
  return finding;
}

Finding judge_cma(int errno_of_read, int ptrace_scope) {
  const std::string scope = ptrace_scope < 0 ? "" : fmt::format(" (kernel.yama.ptrace_scope {})", ptrace_scope);
  if (errno_of_read == 0 && ptrace_scope <= 0) {
    return {"cma", FindingState::ok, "processes of this user may copy each other's memory" + scope, ""};
  }
  const std::string why = errno_of_read == 0 ? "allowed here, refused to processes without CAP_SYS_PTRACE"
                                             : fmt::format("refused: {}", std::strerror(errno_of_read));
  return {"cma", errno_of_read == 0 ? FindingState::note : FindingState::problem,
          fmt::format("copies between processes of one host: {}{}", why, scope),
          "`sysctl kernel.yama.ptrace_scope=0`; in a container add --cap-add SYS_PTRACE; otherwise memory that "
          "weightcast did not allocate goes over TCP"};
}

Finding judge_cores(std::uint32_t cores, const std::string& spin) {
  Finding finding{"cores", FindingState::ok, fmt::format("{} cores for this process, spin \"{}\"", cores, spin), ""};
  if (cores >= 4 || spin == "never") return finding;
  finding.state = FindingState::note;
  finding.text += ": too few for a thread that spins beside its peers on this host";
  if (spin == "always")
    finding.what_to_do = "set \"performance\": {\"spin\": \"auto\"}, or give the process more cores";
  return finding;
}

std::vector<Finding> examine(const Config& config) {
  bool has_gpu = false;
  bool has_rdma_port = false;
  std::vector<Finding> findings;
  findings.push_back(look_at_cma());  // forks: before UCX starts threads
  findings.push_back(look_at_shared_memory());
  findings.push_back(look_at_gpu(has_gpu));
  findings.push_back(look_at_rdma(has_rdma_port));
  findings.push_back(look_at_memory_lock(has_rdma_port));
  findings.push_back(look_at_cores(config));
  bool ucx_works = true;
  findings.push_back(look_at_ucx(config, has_gpu, has_rdma_port, ucx_works));
  if (!ucx_works) return findings;
  if (config.fabric.same_host_shortcuts) findings.push_back(look_at_path(config, true));
  findings.push_back(look_at_path(config, false));
  return findings;
}

std::string to_text(std::span<const Finding> findings) {
  std::string text;
  for (const Finding& finding : findings) {
    text += fmt::format("{:8} {}: {}\n", to_string(finding.state), finding.name, finding.text);
    if (!finding.what_to_do.empty()) text += fmt::format("         -> {}\n", finding.what_to_do);
  }
  return text;
}

std::string to_json(std::span<const Finding> findings) {
  nlohmann::ordered_json json{{"problems", 0}, {"findings", nlohmann::ordered_json::array()}};
  int problems = 0;
  for (const Finding& finding : findings) {
    problems += finding.state == FindingState::problem ? 1 : 0;
    json["findings"].push_back({{"name", finding.name},
                                {"state", to_string(finding.state)},
                                {"text", finding.text},
                                {"what_to_do", finding.what_to_do}});
  }
  json["problems"] = problems;
  return json.dump(2);
}

}  // namespace weightcast
