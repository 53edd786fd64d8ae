// Servers that pass on, as the controller sees them.
#include <doctest/doctest.h>

#include "tests/support/controller_cluster.h"

using namespace weightcast;

namespace {

// Server 0 feeds server 1, which is another replica.
struct Feeding : Cluster {
  Feeding() {
    feeds = {{0, {1}}};
    becomes_idle();
  }
};

std::vector<RankKey> with_cards(const TableOffer& offer) {
  std::vector<RankKey> names;
  for (const PeerCard& peer : offer.peers) {
    if (!peer.card.empty()) names.push_back({peer.role, peer.rank});
  }
  return names;
}

}  // namespace

TEST_CASE("who passes on learns how to reach whom it feeds, and who is fed learns by whom") {
  const Feeding cluster;
  CHECK(with_cards(cluster.got<TableOffer>(kServer0).back()) == std::vector{kServer1});
  const TableOffer fed = cluster.got<TableOffer>(kServer1).back();
  CHECK(with_cards(fed).empty());
  CHECK(std::any_of(fed.peers.begin(), fed.peers.end(),
                    [](const PeerCard& peer) { return peer.incarnation == usual_incarnation(kServer0); }));
}

TEST_CASE("an attempt ends only when who passes on is quiet as well") {
  Feeding cluster;
  cluster.moves(1);
  cluster.says(kServer1, Failed{1, cluster.token, Code::corrupted, "digest"});
  cluster.says(kTrainer0, Quiesced{1, cluster.token});
  cluster.says(kTrainer1, Quiesced{1, cluster.token});
  CHECK(cluster.core.state() == ClusterState::aborting);
  cluster.says(kServer0, Quiesced{1, cluster.token});
  CHECK(cluster.core.state() == ClusterState::idle);
}

TEST_CASE("when who passes on dies while trainers hold the version, it is sent again by another plan") {
  Feeding cluster;
  cluster.moves(1);
  cluster.actions.clear();
  cluster.says(kTrainer0, PeerLost{Role::server, 0, "connection reset"});
  for (const RankKey& trainer : {kTrainer0, kTrainer1}) {
    REQUIRE(cluster.got<Abort>(trainer).size() == 1);
    CHECK(cluster.got<Abort>(trainer).front().again);
    CHECK(cluster.got<Drop>(trainer).empty());  // it might be done without that server, and let its source go
  }
  CHECK(cluster.got<Abort>(kServer1).size() == 1);
  cluster.feeds.clear();
  cluster.says(kTrainer0, Quiesced{1, cluster.token});
  cluster.says(kTrainer1, Quiesced{1, cluster.token});
  REQUIRE(cluster.core.state() == ClusterState::planning);
  cluster.all = {kTrainer0, kTrainer1, kServer1};
  cluster.plan_and_connect();
  const auto before = cluster.token;
  cluster.says(kTrainer0, Pushed{1});
  cluster.says(kTrainer1, Pushed{1});
  REQUIRE(cluster.got<Begin>(kServer1).size() == 1);
  CHECK(cluster.got<Begin>(kServer1).front().version == 1);
  CHECK(cluster.got<Begin>(kServer1).front().token != before);
}

TEST_CASE("when who passes on dies after a trainer let its source go, whom it fed keeps the version it has") {
  Feeding cluster;
  cluster.moves(1);
  cluster.says(kTrainer0, Sent{1, cluster.token, 8, 0.1, 0.1});
  cluster.actions.clear();
  cluster.says(kTrainer1, PeerLost{Role::server, 0, "connection reset"});
  REQUIRE(cluster.got<Abort>(kServer1).size() == 1);
  CHECK(cluster.got<Abort>(kServer1).front().text.find("server 0 is out") != std::string::npos);
  REQUIRE(cluster.got<Abort>(kTrainer1).size() == 1);
  CHECK_FALSE(cluster.got<Abort>(kTrainer1).front().again);
}

TEST_CASE("whoever is fed and dies before all are armed costs the attempt: who feeds it might not hear of it in time") {
  Feeding cluster;
  cluster.both_push(1);
  cluster.says(kServer0, Armed{1, cluster.token});
  cluster.later_without(3000, {kServer1});
  REQUIRE(cluster.got<Abort>(kTrainer0).size() == 1);
  CHECK(cluster.got<Abort>(kTrainer0).front().again);
  CHECK(cluster.got<Go>(kTrainer0).empty());
}

TEST_CASE("a version that cannot be sent again after all is refused when it is offered") {
  Feeding cluster;
  cluster.moves(1);
  cluster.says(kTrainer0, PeerLost{Role::server, 0, "connection reset"});
  cluster.says(kTrainer0, Sent{1, cluster.token, 8, 0.1, 0.1});  // was on its way
  cluster.says(kTrainer1, Quiesced{1, cluster.token});
  cluster.feeds.clear();
  cluster.all = {kTrainer0, kTrainer1, kServer1};
  cluster.plan_and_connect();
  cluster.actions.clear();
  cluster.says(kTrainer1, Pushed{1});
  REQUIRE(cluster.got<Abort>(kTrainer1).size() == 1);
  CHECK(cluster.got<Abort>(kTrainer1).front().text.find("push a new version") != std::string::npos);
}

TEST_CASE("who was fed by a process that may still put is not told that it is quiet") {
  Feeding cluster;
  cluster.moves(1);
  cluster.later_without(3000, {kServer0});
  cluster.says(kTrainer0, Quiesced{1, cluster.token});
  cluster.says(kTrainer1, Quiesced{1, cluster.token});
  cluster.feeds.clear();
  cluster.all = {kTrainer0, kTrainer1, kServer1};
  cluster.plan_and_connect();
  const auto quiet = cluster.got<TableOffer>(kServer1).back().quiet;
  CHECK(std::find(quiet.begin(), quiet.end(), usual_incarnation(kServer0)) == quiet.end());
  CHECK(std::find(quiet.begin(), quiet.end(), usual_incarnation(kTrainer0)) != quiet.end());
}
