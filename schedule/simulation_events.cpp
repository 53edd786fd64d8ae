// The events of a simulated update. A transfer takes its sender's link, then its receiver's, each in order of
// arrival; it has landed when both have let it through.
#include <algorithm>
#include <cmath>
#include <queue>
#include <random>
#include <utility>

#include "schedule/simulation.h"

namespace weightcast::simulation {
namespace {

using std::uint32_t;
using std::uint64_t;

struct Event {
  enum Kind : std::uint8_t { prepare, prepared, arrive, landed };
  double at = 0;
  uint64_t order = 0;  // of equal times the first planned comes first
  Kind kind = prepare;
  uint32_t index = 0;  // a trainer, a load under way, or a transfer
  bool operator>(const Event& other) const { return at != other.at ? at > other.at : order > other.order; }
};

class Simulation {
 public:
  Simulation(const Workload& work, const std::vector<Endpoint>& endpoints, const SimulationOptions& options)
      : work_(work),
        endpoints_(endpoints),
        options_(options),
        servers_(endpoints.size() - work.trainers.size()),
        window_(std::max<uint64_t>(2, options.window * work.chunk_bytes / work.grain_bytes)),
        scratch_bytes_(std::max(options.scratch_bytes, 4 * work.grain_bytes)),
        trainers_(work.trainers.size()),
        links_(endpoints.size()),
        pairs_(endpoints.size() * servers_),
        random_(options.seed) {
    outcome_.sent_s.resize(trainers_.size());
    outcome_.landed_s.resize(servers_);
    outcome_.busy_s.assign(kLanes, std::vector<double>(endpoints.size()));
    open_spans_.assign(kLanes * endpoints.size(), SIZE_MAX);
    set_amax_times();
    set_picture_gap();
  }

  Outcome run() {
    for (uint32_t trainer = 0; trainer < trainers_.size(); ++trainer) plan(0, Event::prepare, trainer);
    while (!events_.empty()) {
      const Event event = events_.top();
      events_.pop();
      now_ = event.at;
      switch (event.kind) {
        case Event::prepare: prepare(event.index); break;
        case Event::prepared: send(event.index); break;
        case Event::arrive: arrive(event.index); break;
        case Event::landed: land(event.index); break;
      }
    }
    return std::move(outcome_);
  }

 private:
  struct Trainer {
    std::size_t next = 0;  // of its loads
    uint64_t scratch = 0;
    double host_link_free = 0;
    double cast_free = 0;
    double amax_ready = 0;
    bool waits_for_scratch = false;
    bool is_at_second_group = false;
  };
  struct LoadUnderWay {
    const Load* load = nullptr;
    uint32_t trainer = 0;
    uint32_t left = 0;  // puts that are not complete
  };
  struct Transfer {
    uint32_t load = 0;
    uint32_t hop = 0;
    uint32_t sender = 0;  // endpoint
    uint32_t next = kNone;
    double sent_at = 0;
    double slower = 1;
  };
  // From one endpoint to one server.
  struct Pair {
    uint32_t in_flight = 0;
    uint32_t first = kNone;  // of the transfers that wait
    uint32_t last = kNone;
  };
  struct Links {
    double out_free = 0;
    double in_free = 0;
    double nvlink_out_free = 0;
    double nvlink_in_free = 0;
    uint32_t senders = 0;  // with something in flight to it
  };
  static constexpr uint32_t kNone = UINT32_MAX;

  void plan(double at, Event::Kind kind, uint32_t index) { events_.push({at, order_++, kind, index}); }
  [[nodiscard]] uint32_t endpoint_of(uint32_t server) const { return static_cast<uint32_t>(trainers_.size()) + server; }
  [[nodiscard]] Pair& pair(uint32_t sender, uint32_t server) { return pairs_[sender * servers_ + server]; }
  static double seconds(uint64_t bytes, double gbs) { return gbs > 0 ? static_cast<double>(bytes) / (gbs * 1e9) : 0.0; }

  void set_amax_times() {
    std::vector<double> told(trainers_.size());
    for (std::size_t i = 0; i < told.size(); ++i) {
      told[i] =
          seconds(work_.amax_source_bytes[i], options_.cast_gbs) * endpoints_[i].slower + options_.latency_us * 1e-6;
    }
    for (std::size_t i = 0; i < told.size(); ++i) {
      for (const auto from : work_.amax_from[i]) {
        trainers_[i].amax_ready = std::max(trainers_[i].amax_ready, told[from]);
      }
    }
  }

  // What a picture cannot show apart is one span.
  void set_picture_gap() {
    std::vector<uint64_t> taken(servers_);
    for (const auto& loads : work_.trainers) {
      for (const auto& load : loads) {
        for (const auto& hop : work_.routes[load.route]) {
          if (hop.from == Hop::kTrainer) taken[hop.server] += load.bytes;
        }
      }
    }
    double longest = 0;
    for (uint32_t server = 0; server < servers_; ++server) {
      longest = std::max(longest, static_cast<double>(taken[server]) / endpoints_[endpoint_of(server)].in);
    }
    picture_gap_s_ = longest / 500;
  }

  void record(Lane lane, uint32_t endpoint, double begin, double end) {
    if (end <= begin) return;
    outcome_.busy_s[lane][endpoint] += end - begin;
    auto& open = open_spans_[lane * endpoints_.size() + endpoint];
    if (open != SIZE_MAX && begin - outcome_.spans[open].end_s < picture_gap_s_) {
      outcome_.spans[open].end_s = std::max(outcome_.spans[open].end_s, static_cast<float>(end));
      return;
    }
    open = outcome_.spans.size();
    const bool is_trainer = endpoint < trainers_.size();
    outcome_.spans.push_back({is_trainer ? Role::trainer : Role::server,
                              is_trainer ? endpoint : endpoint - static_cast<uint32_t>(trainers_.size()), lane,
                              static_cast<float>(begin), static_cast<float>(end)});
  }

  // ---- a trainer's stages ----

  // The next load of a trainer: from host memory, gathered, cast; one is cast while the next one is on its way.
  void prepare(uint32_t rank) {
    auto& trainer = trainers_[rank];
    const auto& loads = work_.trainers[rank];
    if (trainer.next == loads.size()) return come_to_second_group(rank);
    const auto& load = loads[trainer.next];
    if (load.is_second_group && !may_begin_second_group(rank)) return;
    if (trainer.scratch > 0 && trainer.scratch + load.scratch > scratch_bytes_) {
      trainer.waits_for_scratch = true;
      return;
    }
    ++trainer.next;
    trainer.scratch += load.scratch;
    const double slower = endpoints_[rank].slower;
    const double copied_from = std::max(now_, trainer.host_link_free);
    trainer.host_link_free = copied_from + seconds(load.source_bytes, options_.h2d_gbs) * slower;
    double from = std::max(trainer.host_link_free, trainer.cast_free);
    if (load.needs_amax) from = std::max(from, trainer.amax_ready);
    trainer.cast_free = from + (load.gather_s + seconds(load.source_bytes, options_.cast_gbs)) * slower;
    if (options_.h2d_gbs > 0) record(kPrepare, rank, copied_from, trainer.host_link_free);
    record(kPrepare, rank, from, trainer.cast_free);
    loads_.push_back({&load, rank, 0});
    plan(trainer.cast_free, Event::prepared, static_cast<uint32_t>(loads_.size() - 1));
    plan(from, Event::prepare, rank);
  }

  void come_to_second_group(uint32_t rank) {
    auto& trainer = trainers_[rank];
    if (std::exchange(trainer.is_at_second_group, true)) return;
    second_group_from_ = std::max({second_group_from_, now_, trainer.cast_free});
    if (++at_second_group_ != trainers_.size()) return;
    for (uint32_t other = 0; other < trainers_.size(); ++other) plan(second_group_from_, Event::prepare, other);
  }

  [[nodiscard]] bool may_begin_second_group(uint32_t rank) {
    const bool may = at_second_group_ == trainers_.size() && now_ >= second_group_from_;
    if (!may) come_to_second_group(rank);
    return may;
  }

  void send(uint32_t index) {
    const auto& route = work_.routes[loads_[index].load->route];
    loads_[index].left = static_cast<uint32_t>(
        std::count_if(route.begin(), route.end(), [](const Hop& hop) { return hop.from == Hop::kTrainer; }));
    if (loads_[index].left == 0) finish(index);
    for (uint32_t hop = 0; hop < route.size(); ++hop) {
      if (route[hop].from == Hop::kTrainer) submit(index, hop, loads_[index].trainer);
    }
  }

  // All puts of a load are complete: its scratch is free.
  void finish(uint32_t index) {
    auto& trainer = trainers_[loads_[index].trainer];
    trainer.scratch -= loads_[index].load->scratch;
    if (std::exchange(trainer.waits_for_scratch, false)) prepare(loads_[index].trainer);
  }

  // ---- links ----

  void submit(uint32_t load, uint32_t hop, uint32_t sender) {
    const auto index = static_cast<uint32_t>(transfers_.size());
    transfers_.push_back({load, hop, sender});
    auto& between = pair(sender, server_of(transfers_.back()));
    (between.first == kNone ? between.first : transfers_[between.last].next) = index;
    between.last = index;
    post(between);
  }

  [[nodiscard]] uint32_t server_of(const Transfer& transfer) const {
    return work_.routes[loads_[transfer.load].load->route][transfer.hop].server;
  }

  void post(Pair& between) {
    while (between.in_flight < window_ && between.first != kNone) {
      const auto index = between.first;
      auto& transfer = transfers_[index];
      between.first = transfer.next;
      const auto& load = *loads_[transfer.load].load;
      auto& receiver = links_[endpoint_of(server_of(transfer))];
      if (between.in_flight++ == 0) ++receiver.senders;
      if (options_.jitter > 0) transfer.slower = 1 - options_.jitter * std::log(1 - uniform());
      const auto& sender = endpoints_[transfer.sender];
      auto& free = links_[transfer.sender].out_free;
      const double from = std::max(now_, free);
      free = from + (static_cast<double>(load.bytes) / sender.out * transfer.slower +
                     load.puts * options_.put_overhead_us * 1e-6) *
                        sender.slower;
      transfer.sent_at = free;
      record(kSend, transfer.sender, from, free);
      plan(from, Event::arrive, index);
    }
  }

  // From 0 up to, and without, 1; the same on every machine.
  double uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

  void arrive(uint32_t index) {
    const auto& transfer = transfers_[index];
    const auto at = endpoint_of(server_of(transfer));
    const auto& receiver = endpoints_[at];
    auto& link = links_[at];
    const double crowd = link.senders > options_.incast_senders ? link.senders - options_.incast_senders : 0;
    const double from = std::max(now_, link.in_free);
    link.in_free = from + static_cast<double>(loads_[transfer.load].load->bytes) / receiver.in * transfer.slower *
                              receiver.slower * (1 + crowd * options_.incast_penalty);
    record(kTake, at, from, link.in_free);
    plan(std::max(transfer.sent_at, link.in_free) + options_.latency_us * 1e-6, Event::landed, index);
  }

  void land(uint32_t index) {
    const auto transfer = transfers_[index];
    const auto server = server_of(transfer);
    auto& between = pair(transfer.sender, server);
    if (--between.in_flight == 0) --links_[endpoint_of(server)].senders;
    post(between);
    if (transfer.sender < trainers_.size()) {
      outcome_.sent_s[transfer.sender] = now_;
      if (--loads_[transfer.load].left == 0) finish(transfer.load);
    }
    pass_on(transfer.load, transfer.hop, now_);
  }

  // A hop has the load at `at`: its own passes on begin. Over NVLink the times follow at once, because nothing else
  // waits for what that link does; to another node, through the NICs, as a transfer.
  void pass_on(uint32_t load_index, uint32_t hop, double at) {
    ++outcome_.transfers;
    const auto& load = *loads_[load_index].load;
    const auto& route = work_.routes[load.route];
    const auto server = route[hop].server;
    outcome_.landed_s[server] = std::max(outcome_.landed_s[server], at);
    const auto from = endpoint_of(server);
    for (uint32_t next = hop + 1; next < route.size(); ++next) {
      if (route[next].from != hop) continue;
      const auto to = endpoint_of(route[next].server);
      const bool is_near = endpoints_[from].node == endpoints_[to].node && endpoints_[from].nvlink > 0;
      if (!is_near) {
        submit(load_index, next, from);
        continue;
      }
      const auto took = [&](uint32_t end) {
        return static_cast<double>(load.bytes) / endpoints_[end].nvlink * endpoints_[end].slower;
      };
      auto& out_free = links_[from].nvlink_out_free;
      auto& in_free = links_[to].nvlink_in_free;
      const double begin = std::max(at, out_free);
      out_free = begin + took(from);
      in_free = std::max(begin, in_free) + took(to);
      record(kRelay, from, begin, out_free);
      pass_on(load_index, next, std::max(out_free, in_free) + options_.latency_us * 1e-6);
    }
  }

  const Workload& work_;
  const std::vector<Endpoint>& endpoints_;
  const SimulationOptions& options_;
  const std::size_t servers_;
  const uint64_t window_;
  const uint64_t scratch_bytes_;
  std::vector<Trainer> trainers_;
  std::vector<Links> links_;  // by endpoint
  std::vector<Pair> pairs_;   // sender by sender
  std::vector<LoadUnderWay> loads_;
  std::vector<Transfer> transfers_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  uint64_t order_ = 0;
  double now_ = 0;
  std::size_t at_second_group_ = 0;
  double second_group_from_ = 0;
  double picture_gap_s_ = 0;
  std::vector<std::size_t> open_spans_;  // by lane and endpoint: the last one of outcome_.spans
  std::mt19937_64 random_;
  Outcome outcome_;
};

}  // namespace

Outcome run(const Workload& work, const std::vector<Endpoint>& endpoints, const SimulationOptions& options) {
  return Simulation(work, endpoints, options).run();
}

}  // namespace weightcast::simulation
