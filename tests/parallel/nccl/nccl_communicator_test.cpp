// The communicator of GPUs over a stub of NCCL (stub/nccl.h): what it asks of NCCL, in which order,
// and what it does when a rank does not come. Not that NCCL itself is used rightly: docs/gpu.md.
#include "parallel/nccl_communicator.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>

#include "core/errors.h"
#include "stub_gpu.h"

namespace maniple {
namespace {

constexpr double kDeadline = 0.3;  // seconds
constexpr double kForEver = 60;

using Body = std::function<void(Communicator& gpus, Communicator& host)>;

// `body` on ranks that have a GPU each.
void run_gpus(int ranks, double deadline, const Body& body) {
  clear_stub_counts();
  run_local_ranks(ranks, [&](std::unique_ptr<Communicator> world) {
    const auto gpus = make_nccl_communicator(world->split(0, world->rank()), deadline);
    body(*gpus, *world);
    world->barrier();
  });
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const CommError& error) {
    return error.what();
  }
  return "";
}

TEST(Nccl, GivesWhatTheCommunicatorOfHostMemoryGives) {
  run_gpus(3, kForEver, [](Communicator& gpus, Communicator& host) {
    const int rank = gpus.rank();
    auto compare = [&](int64_t n_in, int64_t n_out, const auto& operation) {
      const at::Tensor in = numbers(n_in, rank);
      at::Tensor expected = empty(n_out), seen = empty(n_out);
      operation(host, in, expected);
      at::Tensor out = on_gpu(seen);
      operation(gpus, on_gpu(in), out);
      EXPECT_TRUE(seen.equal(expected)) << seen << expected;
    };
    using Rows = std::vector<int64_t>;
    const Rows uneven = {5, 0, 2}, even = {4, 4, 4};
    compare(6, 18, [](Communicator& c, const at::Tensor& in, at::Tensor& out) { c.all_gather(in, out); });
    compare(uneven[rank], 7, [&](Communicator& c, const at::Tensor& in, at::Tensor& out) {
      c.all_gather_v(in, out, uneven);
    });
    const Rows send = {2, rank, 1}, receive = rank == 1 ? Rows{0, 1, 2} : Rows(3, rank ? 1 : 2);
    compare(std::accumulate(send.begin(), send.end(), 0), std::accumulate(receive.begin(), receive.end(), 0),
            [&](Communicator& c, const at::Tensor& in, at::Tensor& out) {
              c.all_to_all_v(in, send, out, receive);
            });
    for (const Rows& counts : {uneven, even})
      compare(counts[0] + counts[1] + counts[2], counts[rank],
              [&](Communicator& c, const at::Tensor& in, at::Tensor& out) {
                c.begin_reduce_scatter(in, out, counts)->wait();
              });
    compare(9, 9, [](Communicator& c, const at::Tensor& in, at::Tensor& out) {
      if (in.is_cpu()) {
        out.copy_(in);
        return c.all_reduce(out);
      }
      std::memcpy(out.data_ptr(), in.data_ptr(), in.nbytes());
      c.all_reduce(out);
    });
    for (int root = 0; root < 3; ++root) {
      at::Tensor seen = numbers(4, rank), out = on_gpu(seen);
      gpus.broadcast(out, root);
      EXPECT_TRUE(seen.equal(numbers(4, root)));
    }
  });
  EXPECT_EQ(stub_counts().ids, 1);
  EXPECT_EQ(stub_counts().destroyed, 3);
  EXPECT_EQ(stub_counts().aborted, 0);
}

TEST(Nccl, SumsThatAreUnderWayEndInAnyOrder) {
  run_gpus(2, kForEver, [](Communicator& gpus, Communicator&) {
    at::Tensor a = empty(3), b = empty(3), to_a = on_gpu(a), to_b = on_gpu(b);
    const at::Tensor first = numbers(6, gpus.rank()), second = numbers(6, gpus.rank() + 10);
    const auto sum_a = gpus.begin_reduce_scatter(on_gpu(first), to_a, {3, 3});
    const auto sum_b = gpus.begin_reduce_scatter(on_gpu(second), to_b, {3, 3});
    sum_b->wait();
    sum_a->wait();
    const int64_t from = 3 * gpus.rank();
    EXPECT_TRUE(a.equal((numbers(6, 0) + numbers(6, 1)).narrow(0, from, 3)));
    EXPECT_TRUE(b.equal((numbers(6, 10) + numbers(6, 11)).narrow(0, from, 3)));
  });
}

TEST(Nccl, CallsInDifferentOrderFailAtEveryRank) {
  run_gpus(2, kForEver, [](Communicator& gpus, Communicator&) {
    at::Tensor t = on_gpu(numbers(4, 0)), out = on_gpu(empty(8));
    const std::string error = error_of([&] {
      gpus.rank() ? gpus.all_gather(t, out) : gpus.all_reduce(t);
    });
    EXPECT_NE(error.find("invalid usage"), std::string::npos) << error;
  });
  EXPECT_EQ(stub_counts().aborted, 2);
}

TEST(Nccl, ARankThatHangsIsNotWaitedForBeyondTheDeadlineAndAFreshIdGoesOn) {
  run_gpus(3, kDeadline, [](Communicator& gpus, Communicator& host) {
    at::Tensor t = on_gpu(numbers(4, gpus.rank()));
    gpus.all_reduce(t);
    if (gpus.rank() != 2) {
      const auto start = std::chrono::steady_clock::now();
      const std::string error = error_of([&] { gpus.all_reduce(t); });
      EXPECT_NE(error.find("not finished within 0.3 s"), std::string::npos) << error;
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
      const std::string later = error_of([&] { gpus.all_reduce(t); });
      EXPECT_NE(later.find("aborted before"), std::string::npos) << later;
    }
    host.barrier();
    // The rank that was late meets nobody any more.
    if (gpus.rank() == 2) { EXPECT_NE(error_of([&] { gpus.all_reduce(t); }), ""); }

    const auto again = make_nccl_communicator(host.split(0, host.rank()), kForEver);
    const at::Tensor mine = numbers(4, gpus.rank());
    at::Tensor sum = on_gpu(mine);
    again->all_reduce(sum);
    EXPECT_TRUE(mine.equal(numbers(4, 0) + numbers(4, 1) + numbers(4, 2)));
  });
  EXPECT_EQ(stub_counts().ids, 2);
  EXPECT_EQ(stub_counts().started, 6);
  EXPECT_EQ(stub_counts().aborted, 3);
  EXPECT_EQ(stub_counts().destroyed, 3);
}

TEST(Nccl, AStartThatARankDoesNotJoinEndsAtTheDeadline) {
  clear_stub_counts();
  run_local_ranks(2, [&](std::unique_ptr<Communicator> world) {
    auto host = world->split(0, world->rank());
    if (world->rank() == 0) {
      const std::string error =
          error_of([&] { make_nccl_communicator(std::move(host), kDeadline); });
      EXPECT_NE(error.find("NCCL start failed"), std::string::npos) << error;
    } else {
      at::Tensor id = at::zeros({sizeof(ncclUniqueId)}, at::TensorOptions(at::kByte));
      host->broadcast(id, 0);  // takes the id, and comes no further
    }
    world->barrier();
  });
  EXPECT_EQ(stub_counts().started, 1);
  EXPECT_EQ(stub_counts().aborted, 1);
}

}  // namespace
}  // namespace maniple
