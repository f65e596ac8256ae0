// One reduce-scatter of int64 sums between ranks (processes) of this machine over links, measured
// on request: for scripts and bench/tcp_vs_gloo, which alternates it with others.
//
//   bench_tcp_reduce_scatter RANKS MIB
//
// Per line of standard input, "DATA PACK CHECK" (gradient or wide; 0 or 1; 0 or 1), one operation
// of MIB MiB per rank between two barriers. Answer: milliseconds, CPU milliseconds of all ranks,
// bytes sent by all ranks. gradient: sums that need four bytes, as those of a training step do;
// wide: all 64 bits are random, so that packing cannot help.
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "parallel/tcp_communicator.h"

namespace maniple {
namespace {

using Clock = std::chrono::steady_clock;

double cpu_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return t.tv_sec + 1e-6 * t.tv_usec; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

at::Tensor make_data(int64_t n, int rank, bool wide) {
  at::Tensor data = at::empty({n}, at::kLong);
  auto* x = data.data_ptr<int64_t>();
  std::mt19937_64 random(rank);
  std::normal_distribution<double> normal(0, 1 << 27);
  for (int64_t i = 0; i < n; ++i)
    x[i] = wide ? static_cast<int64_t>(random()) : static_cast<int64_t>(normal(random));
  return data;
}

void run(int rank, int ranks, int64_t mib, std::atomic<int>* ports) {
  Progress progress;
  LinkListener listener(progress, "127.0.0.1", 0, "benchmark");
  ports[rank] = listener.port();
  LinkConfig config;
  config.token = "benchmark";
  config.self = rank;
  config.connect_s = 30;
  for (int r = 0; r < ranks; ++r) {
    while (ports[r] == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    config.members.push_back({r, "127.0.0.1", static_cast<uint16_t>(ports[r])});
  }
  LinkSet links(progress, listener, config);
  links.connect();
  TcpOptions options;
  options.deadline_s = 1e6;
  const int64_t n = mib << 17;
  const at::Tensor gradient = make_data(n, rank, false), wide = make_data(n, rank, true);
  const std::vector<int64_t> counts(ranks, n / ranks);
  at::Tensor out = at::zeros({n / ranks}, at::kLong);
  if (rank == 0) std::printf("ready\n");
  std::fflush(stdout);
  for (;;) {
    at::Tensor request = at::zeros({3}, at::kLong);
    auto* wanted = request.data_ptr<int64_t>();
    char data[16];
    int pack, check;
    if (rank == 0) {
      const bool more = std::scanf("%15s %d %d", data, &pack, &check) == 3;
      if (more) wanted[0] = std::strcmp(data, "wide") ? 1 : 2, wanted[1] = pack, wanted[2] = check;
    }
    TcpCommunicator comm(links, options);
    comm.broadcast(request, 0);
    if (wanted[0] == 0) return;
    options.pack = wanted[1];
    options.check = wanted[2];
    TcpCommunicator measured(links, options);
    measured.barrier();
    const auto start = Clock::now();
    const double cpu = cpu_seconds();
    const auto sent = links.counters().sent_bytes;
    measured.begin_reduce_scatter(wanted[0] == 1 ? gradient : wide, out, counts)->wait();
    measured.barrier();
    const double wall = std::chrono::duration<double>(Clock::now() - start).count();
    at::Tensor totals = at::empty({2}, at::kLong);
    totals.data_ptr<int64_t>()[0] = static_cast<int64_t>((cpu_seconds() - cpu) * 1e6);
    totals.data_ptr<int64_t>()[1] = static_cast<int64_t>(links.counters().sent_bytes - sent);
    measured.all_reduce(totals);
    if (rank == 0)
      std::printf("%.3f %.3f %ld\n", wall * 1e3, totals.data_ptr<int64_t>()[0] / 1e3,
                  static_cast<long>(totals.data_ptr<int64_t>()[1]));
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace maniple

int main(int argc, char** argv) {
  const int ranks = argc > 1 ? std::atoi(argv[1]) : 4;
  const int64_t mib = argc > 2 ? std::atoi(argv[2]) : 64;
  auto* ports = static_cast<std::atomic<int>*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  for (int rank = 1; rank < ranks; ++rank)
    if (fork() == 0) {
      maniple::run(rank, ranks, mib, ports);
      return 0;
    }
  maniple::run(0, ranks, mib, ports);
  while (wait(nullptr) > 0) {
  }
}
