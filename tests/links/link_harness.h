// Members of link sets for tests: as threads of one process, or as processes that find each other's
// ports in shared memory; a peer made of a bare socket; a proxy that changes bytes.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "core/errors.h"
#include "links/link_set.h"
#include "links/move_operation.h"
#include "links/wire.h"

namespace maniple {

constexpr char kTestToken[] = "0123456789abcdef0123456789abcdef";

// A member's own progress thread, port and links.
struct TestMember {
  explicit TestMember(ListenerLimits limits = {})
      : listener(progress, "127.0.0.1", 0, kTestToken, limits) {}
  // ports[i] is that of member i, which is slice 10 + i.
  LinkConfig config(int self, const std::vector<uint16_t>& ports, uint64_t epoch) const {
    LinkConfig c;
    c.token = kTestToken;
    c.incarnation = 1;
    c.epoch = epoch;
    c.position = 3;
    c.build = "build";
    c.self = self;
    for (size_t i = 0; i < ports.size(); ++i)
      c.members.push_back({10 + static_cast<int>(i), "127.0.0.1", ports[i]});
    c.connect_s = 20;
    return c;
  }
  LinkSet& open(const LinkConfig& c) {
    links = std::make_unique<LinkSet>(progress, listener, c);
    return *links;
  }

  Progress progress;
  LinkListener listener;
  std::unique_ptr<LinkSet> links;
};

inline std::vector<uint16_t> ports_of(const std::vector<std::unique_ptr<TestMember>>& members) {
  std::vector<uint16_t> ports;
  for (const auto& m : members) ports.push_back(m->listener.port());
  return ports;
}

inline std::vector<std::unique_ptr<TestMember>> make_members(int n) {
  std::vector<std::unique_ptr<TestMember>> members;
  for (int i = 0; i < n; ++i) members.push_back(std::make_unique<TestMember>());
  return members;
}

// Runs body(member index) in n threads; rethrows the first exception.
inline void in_threads(int n, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  std::vector<std::exception_ptr> errors(n);
  for (int i = 0; i < n; ++i)
    threads.emplace_back([&, i] {
      try {
        body(i);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    });
  for (auto& t : threads) t.join();
  for (auto& e : errors)
    if (e) std::rethrow_exception(e);
}

// n members, linked with each other, in epoch `epoch`.
inline std::vector<std::unique_ptr<TestMember>> make_linked(int n, uint64_t epoch = 1) {
  auto members = make_members(n);
  const auto ports = ports_of(members);
  in_threads(n, [&](int i) {
    members[i]->open(members[i]->config(i, ports, epoch)).connect();
    members[i]->links->begin_attempt(1, 1);
  });
  return members;
}

// Memory that forked processes share.
struct Shared {
  std::atomic<int> ports[16];
  std::atomic<int> flags[16];
};
inline Shared* make_shared_memory() {
  return static_cast<Shared*>(
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}
inline void wait_until(const std::function<bool()>& what) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!what()) {
    ASSERT_LT(std::chrono::steady_clock::now(), give_up);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// In a forked process: makes member `self` of n and links it.
inline std::unique_ptr<TestMember> join(Shared* shared, int self, int n) {
  auto member = std::make_unique<TestMember>();
  shared->ports[self] = member->listener.port();
  std::vector<uint16_t> ports;
  for (int i = 0; i < n; ++i) {
    wait_until([&] { return shared->ports[i] != 0; });
    ports.push_back(static_cast<uint16_t>(shared->ports[i]));
  }
  member->open(member->config(self, ports, 1)).connect();
  member->links->begin_attempt(1, 1);
  return member;
}

// Forks a process that runs body and ends with 0, or with 1 when it throws or a test failed.
inline pid_t in_process(const std::function<void()>& body) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  int code = 0;
  try {
    body();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "child: %s\n", e.what());
    code = 1;
  }
  _exit(code || testing::Test::HasFailure());
}
inline int exit_code(pid_t pid) {
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// A peer that is only a socket.
class BareSocket {
 public:
  explicit BareSocket(uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  }
  ~BareSocket() { close(fd_); }
  template <typename Bytes>
  bool send(const Bytes& bytes) {
    size_t at = 0;
    while (at < bytes.size()) {
      const ssize_t n = ::send(fd_, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
      if (n <= 0) return false;
      at += n;
    }
    return true;
  }
  // What comes until the other end closes, or within the time, at most `limit` bytes.
  std::vector<uint8_t> receive(size_t limit, int milliseconds = 10000) {
    std::vector<uint8_t> bytes;
    while (bytes.size() < limit) {
      pollfd p = {fd_, POLLIN, 0};
      if (poll(&p, 1, milliseconds) <= 0) break;
      uint8_t buffer[4096];
      const ssize_t n = recv(fd_, buffer, std::min(sizeof buffer, limit - bytes.size()), 0);
      if (n <= 0) {
        closed_ = true;
        break;
      }
      bytes.insert(bytes.end(), buffer, buffer + n);
    }
    return bytes;
  }
  bool closed() const { return closed_; }

 private:
  int fd_;
  bool closed_ = false;
};

inline std::shared_ptr<MoveOperation> move_to_all(int self, std::span<const uint8_t> bytes,
                                                  std::vector<std::span<uint8_t>> receive) {
  return std::make_shared<MoveOperation>(
      self, std::vector<std::span<const uint8_t>>(receive.size(), bytes), receive);
}

inline std::string error_of(const std::function<void()>& what) {
  try {
    what();
  } catch (const CommError& e) {
    return e.what();
  }
  return "";
}

class Stopwatch {
 public:
  double milliseconds() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_)
        .count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace maniple
