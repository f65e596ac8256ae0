// What healthy members do: move bytes, go through attempts and epochs, refuse who does not belong.
#include "links/link_set.h"

#include <gtest/gtest.h>

#include <barrier>
#include <filesystem>
#include <random>

#include "link_harness.h"
#include "links/message_hash.h"

namespace maniple {
namespace {

std::vector<uint8_t> random_bytes(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> bytes(n);
  for (auto& b : bytes) b = static_cast<uint8_t>(random());
  return bytes;
}

// Every member sends `size` bytes to all others and checks what it got.
void exchange(LinkSet& links, size_t size, uint64_t seed) {
  const int n = links.size(), self = links.self();
  const auto mine = random_bytes(size, seed * 100 + self);
  std::vector<std::vector<uint8_t>> got(n, std::vector<uint8_t>(size));
  const auto op = move_to_all(self, mine, {got.begin(), got.end()});
  links.start(op);
  links.wait(*op, 60);
  for (int i = 0; i < n; ++i)
    if (i != self) {
      ASSERT_EQ(got[i], random_bytes(size, seed * 100 + i)) << i;
    }
}

TEST(LinkSet, MovesBytesBetweenAllMembers) {
  for (int n = 1; n <= 5; ++n) {
    auto members = make_linked(n);
    in_threads(n, [&](int i) {
      uint64_t seed = 0;
      for (size_t size : {0ul, 1ul, 100ul, 262144ul, 262145ul, 3000000ul, 7ul})
        exchange(*members[i]->links, size, ++seed);
    });
  }
}

TEST(LinkSet, SeveralOperationsRunAtOnceAndEndInAnyOrder) {
  auto members = make_linked(3);
  in_threads(3, [&](int i) {
    LinkSet& links = *members[i]->links;
    std::vector<std::vector<uint8_t>> sent, got;
    std::vector<std::shared_ptr<MoveOperation>> ops;
    for (int k = 0; k < 8; ++k) sent.push_back(random_bytes(500000 * (k % 3) + k, 10 * k + i));
    got.resize(24);
    for (int k = 0; k < 8; ++k) {
      std::vector<std::span<uint8_t>> places;
      for (int from = 0; from < 3; ++from) {
        got[3 * k + from].resize(sent[k].size());
        places.push_back(got[3 * k + from]);
      }
      ops.push_back(move_to_all(i, sent[k], places));
      links.start(ops.back());
    }
    for (int k : {7, 2, 1, 0, 3, 6, 5, 4}) links.wait(*ops[k], 60);
    for (int k = 0; k < 8; ++k)
      for (int from = 0; from < 3; ++from)
        if (from != i) {
          ASSERT_EQ(got[3 * k + from], random_bytes(500000 * (k % 3) + k, 10 * k + from));
        }
  });
}

// A half-sent operation is given up by both sides; the next attempt finds the links in step.
TEST(LinkSet, GivenUpAttemptLeavesTheLinksUsable) {
  auto members = make_linked(2);
  const auto big = random_bytes(64 << 20, 1);
  std::vector<uint8_t> place(big.size());
  LinkSet &a = *members[0]->links, &b = *members[1]->links;
  {
    const auto sends = move_to_all(0, big, {{}, {}});
    a.start(sends);  // b does not read it: its socket fills up
    wait_until([&] { return a.counters().sent_bytes > 0; });
    a.begin_attempt(1, 2);
    EXPECT_NE(error_of([&] { a.wait(*sends, 60); }).find("attempt 2"), std::string::npos);
  }
  b.begin_attempt(1, 2);
  in_threads(2, [&](int i) { exchange(*members[i]->links, 1000000, 5); });
  EXPECT_GT(b.counters().stale_attempt, 0u);
  EXPECT_EQ(a.broken() + b.broken(), "");
}

TEST(LinkSet, MemberInANewerAttemptEndsTheOperationsOfThisOne) {
  auto members = make_linked(2);
  LinkSet &a = *members[0]->links, &b = *members[1]->links;
  const auto bytes = random_bytes(1000, 1);
  std::vector<uint8_t> place(1000);
  const auto op = move_to_all(0, bytes, {{}, place});
  a.start(op);
  std::thread ahead([&] {
    b.begin_attempt(1, 2);
    exchange(b, 1000, 9);
  });
  EXPECT_NE(error_of([&] { a.wait(*op, 60); }).find("has gone on to step 1, attempt 2"),
            std::string::npos);
  EXPECT_EQ(a.broken(), "");
  a.begin_attempt(1, 2);
  exchange(a, 1000, 9);
  ahead.join();
}

// It has given all that the operation needs of it; the third member is late.
TEST(LinkSet, MemberInANewerAttemptLeavesOperationsAloneThatWaitForOthers) {
  auto members = make_linked(3);
  LinkSet &a = *members[0]->links, &b = *members[1]->links, &c = *members[2]->links;
  const auto bytes = random_bytes(1000, 1);
  std::vector<uint8_t> from_b(1000), from_c(1000);
  const auto op = std::make_shared<MoveOperation>(
      0, std::vector<std::span<const uint8_t>>(3), std::vector<std::span<uint8_t>>{{}, from_b, from_c});
  a.start(op);
  const auto to_a = [&](int self) {
    return std::make_shared<MoveOperation>(self, std::vector<std::span<const uint8_t>>{bytes, {}, {}},
                                           std::vector<std::span<uint8_t>>(3));
  };
  const auto given = to_a(1);
  b.start(given);
  b.wait(*given, 60);
  b.begin_attempt(1, 2);
  const auto next = to_a(1);
  b.start(next);
  b.wait(*next, 60);
  // Until a has seen that b is ahead.
  wait_until([&] { return a.counters().received_bytes >= 1000; });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const auto late = to_a(2);
  c.start(late);
  c.wait(*late, 60);
  EXPECT_EQ(error_of([&] { a.wait(*op, 60); }), "");
  EXPECT_EQ(from_c, bytes);
}

TEST(LinkSet, StaleEpochsAndAttemptsAreDroppedAndCounted) {
  auto members = make_members(1);
  const std::vector<uint16_t> ports = {members[0]->listener.port(), 1};
  LinkSet& links = members[0]->open(members[0]->config(0, ports, 5));
  std::thread connecting([&] { links.connect(); });
  BareSocket peer(ports[0]);
  peer.send(encode(Hello{kTestToken, 1, 5, 11, 10, 3, "build"}));
  EXPECT_EQ(peer.receive(2 * kHelloBytes).size(), 2 * kHelloBytes);
  connecting.join();
  links.begin_attempt(7, 2);
  std::vector<uint8_t> place(4);
  const auto op = std::make_shared<MoveOperation>(0, std::vector<std::span<const uint8_t>>(2),
                                                  std::vector<std::span<uint8_t>>{{}, place});
  links.start(op);
  const auto send = [&](uint64_t incarnation, uint64_t epoch, uint64_t step, uint32_t attempt,
                        std::array<uint8_t, 4> bytes) {
    FrameHeader h;
    h.bytes = 4;
    h.incarnation = incarnation;
    h.epoch = epoch;
    h.step = step;
    h.attempt = attempt;
    h.payload_hash = message_hash(bytes);
    peer.send(encode(h));
    peer.send(bytes);
  };
  send(0, 5, 7, 2, {9, 9, 9, 9});
  send(1, 4, 7, 2, {9, 9, 9, 9});
  send(1, 6, 7, 2, {9, 9, 9, 9});
  send(1, 5, 6, 9, {8, 8, 8, 8});
  send(1, 5, 7, 1, {8, 8, 8, 8});
  send(1, 5, 7, 2, {1, 2, 3, 4});
  send(1, 5, 7, 2, {7, 7, 7, 7});  // once more: the operation has ended
  links.wait(*op, 60);
  EXPECT_EQ(place, (std::vector<uint8_t>{1, 2, 3, 4}));
  wait_until([&] { return links.counters().late == 1; });
  EXPECT_EQ(links.counters().stale_epoch, 3u);
  EXPECT_EQ(links.counters().stale_attempt, 2u);
  EXPECT_EQ(links.broken(), "");
}

TEST(LinkSet, WhoDoesNotBelongIsRefusedWithTheReason) {
  auto members = make_members(2);
  const auto ports = ports_of(members);
  const Hello good = {kTestToken, 1, 5, 11, 10, 3, "build"};
  LinkSet& links = members[0]->open(members[0]->config(0, ports, 5));
  std::thread connecting([&] { links.connect(); });
  const auto answer_to = [&](const Hello& hello) -> std::string {
    BareSocket socket(ports[0]);
    socket.send(encode(hello));
    const auto bytes = socket.receive(kHelloBytes + 1);
    HelloBytes answer;
    if (bytes.size() != answer.size()) return fmt::format("{} bytes", bytes.size());
    std::copy(bytes.begin(), bytes.end(), answer.begin());
    return decode_answer(answer).value_or("no answer");
  };
  {
    BareSocket early(ports[0]);  // until the door is open
    early.send(encode(Hello{kTestToken, 1, 5, 99, 10, 3, "build"}));
    EXPECT_GE(early.receive(kHelloBytes).size(), kHelloBytes);
  }
  const auto with = [&](auto change) {
    Hello hello = good;
    change(hello);
    return answer_to(hello);
  };
  EXPECT_EQ(with([](Hello& h) { h.token = "0123456789abcdef0123456789abcdeF"; }), "0 bytes");
  EXPECT_NE(with([](Hello& h) { h.epoch = 4; }).find("is over here"), std::string::npos);
  EXPECT_NE(with([](Hello& h) { h.incarnation = 0; }).find("is over here"), std::string::npos);
  EXPECT_NE(with([](Hello& h) { h.position = 2; }).find("position 3, not 2"), std::string::npos);
  EXPECT_NE(with([](Hello& h) { h.slice = 12; }).find("no other member"), std::string::npos);
  EXPECT_NE(with([](Hello& h) { h.slice = 10; }).find("no other member"), std::string::npos);
  EXPECT_NE(with([](Hello& h) { h.to_slice = 11; }).find("slice 10, not 11"), std::string::npos);
  EXPECT_NE(with([](Hello& h) { h.build = "other"; }).find("build fingerprint"), std::string::npos);
  EXPECT_EQ(members[0]->listener.counters().wrong_token, 1u);
  members[1]->open(members[1]->config(1, ports, 5)).connect();
  connecting.join();
  EXPECT_NE(answer_to(good).find("only a new epoch"), std::string::npos);
}

TEST(LinkSet, RefusedMemberSaysWhy) {
  auto members = make_members(2);
  const auto ports = ports_of(members);
  LinkConfig other = members[1]->config(1, ports, 5), mine = members[0]->config(0, ports, 5);
  other.build = "other";
  mine.connect_s = 0.3;
  LinkSet& links = members[0]->open(mine);
  std::string waited;
  std::thread connecting([&] { waited = error_of([&] { links.connect(); }); });
  EXPECT_NE(error_of([&] {
              members[1]->open(other).connect();
            }).find("slice 10 refused the link: build fingerprint build here, other there"),
            std::string::npos);
  connecting.join();
  EXPECT_NE(waited.find("no link within 0.3 s to slice 11"), std::string::npos) << waited;
}

TEST(LinkSet, HelloForALaterEpochWaitsForIt) {
  auto members = make_linked(2, 1);
  const auto ports = ports_of(members);
  members[1]->links.reset();
  std::atomic<bool> linked = false;
  std::thread early([&] {
    members[1]->open(members[1]->config(1, ports, 2)).connect();
    linked = true;
  });
  wait_until([&] { return members[0]->listener.counters().accepted == 2; });
  EXPECT_FALSE(linked);
  members[0]->links.reset();
  members[0]->open(members[0]->config(0, ports, 2)).connect();
  early.join();
}

// Sends when it is told to.
class SlowMove : public MoveOperation {
 public:
  using MoveOperation::MoveOperation;
  Piece produce(int peer, int64_t piece, Buffer& buffer) override {
    while (!may_send) std::this_thread::yield();
    return MoveOperation::produce(peer, piece, buffer);
  }
  std::atomic<bool> may_send = false;
};

// Member 2 is through and gone while member 0 still waits for member 1.
TEST(LinkSet, MemberThatLeavesAfterItsLastOperationDisturbsNobody) {
  using Sends = std::vector<std::span<const uint8_t>>;
  using Places = std::vector<std::span<uint8_t>>;
  auto members = make_linked(3);
  const std::vector<uint8_t> byte(1, 7);
  std::vector<uint8_t> got(1);
  const auto sends = std::make_shared<SlowMove>(1, Sends{byte, {}, {}}, Places(3));
  const auto waits = std::make_shared<MoveOperation>(0, Sends(3), Places{{}, got, {}});
  members[1]->links->start(sends);
  LinkSet& links = *members[0]->links;
  links.start(waits);
  members[2]->links.reset();
  const auto new_one = [&] {
    const auto nothing = std::make_shared<MoveOperation>(0, Sends(3), Places(3));
    links.start(nothing);
    links.wait(*nothing, 60);
  };
  wait_until([&] { return error_of(new_one).find("slice 12 has left") != std::string::npos; });
  sends->may_send = true;
  members[1]->links->wait(*sends, 60);
  links.wait(*waits, 60);
  EXPECT_EQ(got, byte);
  EXPECT_EQ(links.broken(), "");
}

TEST(LinkSet, HundredEpochsLeaveNoDescriptorBehind) {
  const auto descriptors = [] {
    int n = 0;
    for (auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
      n += !entry.path().empty();
    return n;
  };
  auto members = make_members(3);
  const auto ports = ports_of(members);
  std::barrier all_done(3);
  int before = 0;
  for (uint64_t epoch = 1; epoch <= 101; ++epoch) {
    if (epoch == 2) before = descriptors();
    in_threads(3, [&](int i) {
      LinkSet& links = members[i]->open(members[i]->config(i, ports, epoch));
      links.connect();
      links.begin_attempt(epoch, 1);
      exchange(links, 1000, epoch);
      if (epoch % 3) return;  // ends with a goodbye
      all_done.arrive_and_wait();
      links.shutdown("end of the epoch");
    });
  }
  wait_until([&] { return descriptors() <= before; });
}

}  // namespace
}  // namespace maniple
