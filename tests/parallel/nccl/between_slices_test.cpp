// NCCL between slices, over a stub of it (stub/nccl.h): made from the links of an epoch, ended with
// them, made anew by the next epoch. The slices are threads with real links of the loopback.
#include <gtest/gtest.h>

#include "../../links/link_harness.h"
#include "parallel/nccl_communicator.h"
#include "parallel/tcp_communicator.h"
#include "stub_gpu.h"

namespace maniple {
namespace {

constexpr double kLongAfter = 600;

using Members = std::vector<std::unique_ptr<TestMember>>;

std::unique_ptr<Communicator> join_nccl(TestMember& member, double deadline_s = kLongAfter) {
  return make_nccl_communicator(std::make_unique<TcpCommunicator>(*member.links, TcpOptions{}), deadline_s);
}

// What an epoch does first: links to the members that are left, an attempt.
void begin_epoch(Members& members, uint64_t epoch) {
  const auto ports = ports_of(members);
  in_threads(static_cast<int>(members.size()), [&](int i) {
    members[i]->open(members[i]->config(i, ports, epoch)).connect();
    members[i]->links->begin_attempt(1, 1);
  });
}

void expect_exact_sums(Communicator& slices) {
  const int64_t n = slices.size(), rank = slices.rank();
  std::vector<int64_t> counts(n, 2);
  counts[0] = 5;
  const int64_t total = 2 * n + 3, from = rank ? 3 + 2 * rank : 0;
  at::Tensor part = empty(counts[rank]), to = on_gpu(part);
  slices.begin_reduce_scatter(on_gpu(numbers(total, rank)), to, counts)->wait();
  at::Tensor sum = at::zeros({total}, at::kLong);
  for (int64_t r = 0; r < n; ++r) sum += numbers(total, r);
  EXPECT_TRUE(part.equal(sum.narrow(0, from, counts[rank])));
  // Host tensors go by the links, in the same order of calls.
  at::Tensor vote = numbers(3, rank);
  slices.all_reduce(vote);
  EXPECT_TRUE(vote.equal(sum.narrow(0, 0, 3)));
}

TEST(NcclBetweenSlices, EveryEpochHasItsOwn) {
  clear_stub_counts();
  Members members = make_members(3);
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    if (epoch == 3) members.pop_back();  // a slice less
    begin_epoch(members, epoch);
    in_threads(static_cast<int>(members.size()),
               [&](int i) { expect_exact_sums(*join_nccl(*members[i])); });
  }
  EXPECT_EQ(stub_counts().ids, 3);
  EXPECT_EQ(stub_counts().started, 8);
  EXPECT_EQ(stub_counts().destroyed, 8);
  EXPECT_EQ(stub_counts().aborted, 0);
}

// A slice hangs in the middle of a sum. The coordinator's STOP reaches the watchdogs of the others,
// which end the links; that ends NCCL, long before any deadline.
TEST(NcclBetweenSlices, StopEndsTheWaitForASliceThatHangs) {
  clear_stub_counts();
  Members members = make_members(3);
  begin_epoch(members, 1);
  std::atomic<int> waiting = 0;
  std::thread coordinator;
  in_threads(3, [&](int i) {
    const auto slices = join_nccl(*members[i]);
    expect_exact_sums(*slices);
    if (i == 2) return wait_until([&] { return waiting == 2; });  // and never joins the sum
    if (i == 0)
      coordinator = std::thread([&] {
        wait_until([&] { return waiting == 2; });
        for (int m : {0, 1}) members[m]->links->shutdown("STOP");
      });
    at::Tensor t = on_gpu(numbers(4, i));
    const Stopwatch watch;
    const std::string error = error_of([&] {
      ++waiting;
      slices->all_reduce(t);
    });
    EXPECT_NE(error.find("NCCL all_reduce failed"), std::string::npos) << error;
    // One may hear that the other's link has ended before its own watchdog comes.
    const bool heard = error.find("STOP") != std::string::npos || (i == 1 && error.find("slice 10") != std::string::npos);
    EXPECT_TRUE(heard) << error;
    EXPECT_LT(watch.milliseconds(), 20000);
    EXPECT_NE(error_of([&] { slices->all_reduce(t); }).find("aborted before"), std::string::npos);
  });
  coordinator.join();
  EXPECT_EQ(stub_counts().aborted + stub_counts().destroyed, 3);
  EXPECT_GE(stub_counts().aborted, 2);
  // The slices that answered STOP go on by a fresh id.
  members.pop_back();
  begin_epoch(members, 2);
  in_threads(2, [&](int i) { expect_exact_sums(*join_nccl(*members[i])); });
  EXPECT_EQ(stub_counts().ids, 2);
}

// Without any STOP: what NCCL says to one slice, the others hear by the links.
TEST(NcclBetweenSlices, AFailureEndsTheLinksSoThatAllHearOfIt) {
  clear_stub_counts();
  Members members = make_members(3);
  begin_epoch(members, 1);
  in_threads(3, [&](int i) {
    const auto slices = join_nccl(*members[i], i == 0 ? 0.3 : kLongAfter);
    at::Tensor t = on_gpu(numbers(4, i));
    if (i == 2) {  // hangs; hears nothing by NCCL
      wait_until([&] { return !members[2]->links->broken().empty(); });
    } else {
      const std::string error = error_of([&] { slices->all_reduce(t); });
      EXPECT_NE(error.find(i == 0 ? "not finished within 0.3 s" : "slice 10"), std::string::npos) << error;
    }
  });
  EXPECT_EQ(stub_counts().aborted, 3);
  EXPECT_EQ(stub_counts().destroyed, 0);
}

TEST(NcclBetweenSlices, StopEndsAStart) {
  clear_stub_counts();
  Members members = make_members(2);
  begin_epoch(members, 1);
  in_threads(2, [&](int i) {
    if (i == 1) {  // takes the id and comes no further
      at::Tensor id = at::zeros({sizeof(ncclUniqueId)}, at::TensorOptions(at::kByte));
      TcpCommunicator(*members[1]->links, TcpOptions{}).broadcast(id, 0);
      wait_until([] { return stub_counts().started == 1; });
      return members[0]->links->shutdown("STOP");
    }
    const std::string error = error_of([&] { join_nccl(*members[0]); });
    EXPECT_NE(error.find("NCCL start failed"), std::string::npos) << error;
    EXPECT_NE(error.find("STOP"), std::string::npos) << error;
  });
  EXPECT_EQ(stub_counts().aborted, 1);
}

}  // namespace
}  // namespace maniple
