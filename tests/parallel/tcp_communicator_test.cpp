// The tcp communicator against the local one: the same calls with the same data, as threads and as
// processes.
#include "parallel/tcp_communicator.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "../links/link_harness.h"
#include "links/message_hash.h"
#include "parallel/sum_operation.h"

namespace maniple {
namespace {

using Random = std::mt19937_64;

// Sums of every width of the packed encoding, by groups; some rounds nothing but zeros or 64 bits.
at::Tensor random_sums(int64_t n, Random& random) {
  at::Tensor t = at::zeros({n}, at::kLong);
  auto* x = t.data_ptr<int64_t>();
  int shift = 63;
  const bool wide = random() % 5 == 0;
  for (int64_t i = 0; i < n; ++i) {
    if (i % 128 == 0) shift = wide ? 0 : static_cast<int>(random() % 64);
    x[i] = static_cast<int64_t>(random()) >> shift;
  }
  return t;
}

at::Tensor random_bytes(std::vector<int64_t> shape, at::ScalarType type, Random& random) {
  at::Tensor t = at::zeros(shape, type);
  auto* p = static_cast<uint8_t*>(t.data_ptr());
  for (size_t i = 0; i < t.nbytes(); ++i) p[i] = static_cast<uint8_t>(random());
  return t;
}

int64_t random_size(Random& random) {  // small, around the pieces, or several pieces
  switch (random() % 4) {
    case 0:
      return static_cast<int64_t>(random() % 3);
    case 1:
      return static_cast<int64_t>(random() % 1000);
    case 2:
      return SumOperation::kPieceElements - 2 + static_cast<int64_t>(random() % 5);
    default:
      return static_cast<int64_t>(random() % 200000);
  }
}

// Every operation, some rounds; all results. What is called depends on seed and n alone, the data
// on the rank too.
std::vector<at::Tensor> all_operations(Communicator& comm, uint64_t seed) {
  const int n = comm.size(), rank = comm.rank();
  Random plan(seed), data(seed * 100 + rank);
  std::vector<at::Tensor> results;
  const auto sizes = [&] {
    std::vector<int64_t> s;
    for (int r = 0; r < n; ++r) s.push_back(random_size(plan));
    return s;
  };
  for (int round = 0; round < 3; ++round) {
    const int64_t size = random_size(plan);
    const auto type = std::array{at::kByte, at::kFloat, at::kLong, at::kBFloat16}[plan() % 4];
    at::Tensor in = random_bytes({size}, type, data), out = at::zeros({size * n}, type);
    comm.all_gather(in, out);
    results.push_back(out);

    const auto counts = sizes();
    int64_t total = 0;
    for (int64_t c : counts) total += c;
    in = random_bytes({counts[rank]}, type, data);
    out = at::zeros({total}, type);
    comm.all_gather_v(in, out, counts);
    results.push_back(out);

    // rows[r][s]: from r to s.
    std::vector<std::vector<int64_t>> rows(n, std::vector<int64_t>(n));
    for (auto& row : rows)
      for (auto& x : row) x = static_cast<int64_t>(plan() % 2000) * (plan() % 3 != 0);
    int64_t sent = 0, received = 0;
    std::vector<int64_t> from;
    for (int r = 0; r < n; ++r) {
      from.push_back(rows[r][rank]);
      sent += rows[rank][r];
      received += rows[r][rank];
    }
    in = random_bytes({sent, 3}, type, data);
    out = at::zeros({received, 3}, type);
    comm.all_to_all_v(in, rows[rank], out, from);
    results.push_back(out);

    // Two at once.
    const auto counts2 = sizes();
    int64_t total2 = 0;
    for (int64_t c : counts2) total2 += c;
    at::Tensor sums = random_sums(total, data), sums2 = random_sums(total2, data);
    at::Tensor part = at::zeros({counts[rank]}, at::kLong),
               part2 = at::zeros({counts2[rank]}, at::kLong);
    auto first = comm.begin_reduce_scatter(sums, part, counts);
    auto second = comm.begin_reduce_scatter(sums2, part2, counts2);
    second->wait();
    first->wait();
    results.push_back(part);
    results.push_back(part2);

    for (const int64_t elements : {size, size + 5000}) {
      at::Tensor all = random_sums(elements, data);
      comm.all_reduce(all);
      results.push_back(all);
    }
    at::Tensor news = random_bytes({size}, type, data);
    comm.broadcast(news, static_cast<int>(plan() % n));
    results.push_back(news);
    comm.barrier();
  }
  return results;
}

std::vector<std::vector<at::Tensor>> local_results(int n, uint64_t seed) {
  std::vector<std::vector<at::Tensor>> results(n);
  run_local_ranks(n, [&](std::unique_ptr<Communicator> comm) {
    const int rank = comm->rank();
    results[rank] = all_operations(*comm, seed);
  });
  return results;
}

void expect_equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].nbytes(), b[i].nbytes()) << i;
    if (a[i].nbytes() > 0) {
      ASSERT_EQ(std::memcmp(a[i].const_data_ptr(), b[i].const_data_ptr(), a[i].nbytes()), 0)
          << "result " << i;
    }
  }
}

TcpOptions options_of(uint64_t seed) { return {60, seed % 2 == 0, seed % 3 != 0}; }

TEST(TcpCommunicator, EqualsTheLocalOneAsThreads) {
  for (int n = 1; n <= 5; ++n) {
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      auto members = make_linked(n);
      const auto expected = local_results(n, seed);
      in_threads(n, [&](int i) {
        TcpCommunicator comm(*members[i]->links, options_of(seed));
        expect_equal(all_operations(comm, seed), expected[i]);
      });
    }
  }
}

TEST(TcpCommunicator, EqualsTheLocalOneAsProcesses) {
  for (int n = 2; n <= 5; ++n) {
    Shared* shared = make_shared_memory();
    std::vector<pid_t> processes;
    const uint64_t seed = 10 + n;
    for (int i = 0; i < n; ++i)
      processes.push_back(in_process([&] {
        const auto expected = local_results(n, seed);
        auto member = join(shared, i, n);
        TcpCommunicator comm(*member->links, options_of(seed));
        expect_equal(all_operations(comm, seed), expected[i]);
      }));
    for (const pid_t pid : processes) EXPECT_EQ(exit_code(pid), 0);
  }
}

TEST(TcpCommunicator, ChecksumsOfTheAddendsAreThoseOfTheSum) {
  auto members = make_linked(3);
  in_threads(3, [&](int i) {
    TcpCommunicator comm(*members[i]->links, {60, true, true});
    Random random(i);
    const std::vector<int64_t> counts = {100000, 70000, 1};
    at::Tensor in = random_sums(170001, random), out = at::zeros({counts[i]}, at::kLong);
    comm.begin_reduce_scatter(in, out, counts)->wait();
    const auto& check = comm.last_sum_check();
    ASSERT_EQ(check.checksums.size(),
              (counts[i] + SumOperation::kPieceElements - 1) / SumOperation::kPieceElements);
    for (size_t piece = 0; piece < check.checksums.size(); ++piece) {
      const int64_t begin = piece * SumOperation::kPieceElements;
      const int64_t size = std::min(SumOperation::kPieceElements, counts[i] - begin);
      EXPECT_EQ(exact_checksum({out.data_ptr<int64_t>() + begin, static_cast<size_t>(size)},
                               SumOperation::piece_key(check.key, piece)),
                check.checksums[piece]);
    }
  });
}

// A member whose memory or processor changes one element between checksum and sending: the hash of
// the message is right, the sum is not.
class WrongSum : public SumOperation {
 public:
  using SumOperation::SumOperation;
  Piece produce(int peer, int64_t piece, Buffer& buffer) override {
    Piece result = SumOperation::produce(peer, piece, buffer);
    if (piece != 1) return result;
    copy_.assign(result.bytes.begin(), result.bytes.end());
    copy_[8 * 77 + 2] ^= 1;
    result.bytes = copy_;
    result.hash = message_hash(copy_);
    return result;
  }

 private:
  std::vector<uint8_t> copy_;
};

TEST(TcpCommunicator, WrongAddendIsReportedAndTheLinksStayInStep) {
  auto members = make_linked(2);
  const std::vector<int64_t> counts = {70000, 0};
  in_threads(2, [&](int i) {
    LinkSet& links = *members[i]->links;
    TcpCommunicator comm(links, {60, false, true});
    at::Tensor in = at::ones({70000}, at::kLong), out = at::zeros({counts[i]}, at::kLong);
    if (i == 1) {
      SumOptions options;
      options.pack = false;
      options.key = exact_mix32(1u * 0x9e3779b9u ^ 1u * 0x85ebca6bu ^ 0u);
      const auto wrong =
          std::make_shared<WrongSum>(1, std::span<const int64_t>(in.data_ptr<int64_t>(), 70000),
                                     std::span<int64_t>(), counts, options);
      links.start(wrong);
      links.wait(*wrong, 60);
    } else {
      auto work = comm.begin_reduce_scatter(in, out, counts);
      EXPECT_THROW(work->wait(), ChecksumError);
    }
    comm.barrier();
    EXPECT_EQ(links.broken(), "");
  });
}

TEST(TcpCommunicator, DifferentCallsAreAnErrorAndNotAHang) {
  auto members = make_linked(2);
  std::vector<std::string> errors(2);
  in_threads(2, [&](int i) {
    TcpCommunicator comm(*members[i]->links, {10, true, true});
    at::Tensor in = at::zeros({100 + i}, at::kLong), out = at::zeros({2 * (100 + i)}, at::kLong);
    errors[i] = error_of([&] { comm.all_gather(in, out); });
  });
  EXPECT_NE((errors[0] + errors[1]).find("do not make the same calls"), std::string::npos);
  EXPECT_FALSE(errors[0].empty() && errors[1].empty());
}

TEST(TcpCommunicator, WorkThatNobodyWaitsForIsAbandoned) {
  auto members = make_linked(2);
  {
    TcpCommunicator comm(*members[0]->links, {60, true, true});
    at::Tensor in = at::zeros({8 << 20}, at::kLong), out = at::zeros({4 << 20}, at::kLong);
    const auto work = comm.begin_reduce_scatter(in, out, {4 << 20, 4 << 20});
  }
  EXPECT_EQ(members[0]->links->waiting_for(), std::vector<int>{});
  EXPECT_THROW(TcpCommunicator(*members[0]->links, {}).split(0, 0), CommError);
}

}  // namespace
}  // namespace maniple
