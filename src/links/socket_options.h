// Options of every socket of a link. Private to src/links.
#pragma once

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

namespace maniple {

constexpr int kSocketBufferBytes = 4 << 20;

// Before connect or listen: the buffers decide the window that the handshake announces.
inline void prepare_socket(int fd) {
  const int bytes = kSocketBufferBytes;
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
  fcntl(fd, F_SETFD, FD_CLOEXEC);
}

// Of a connected socket. The time-out only frees sockets whose other host is gone; leases decide
// long before.
inline void prepare_link(int fd, double user_timeout_s) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const unsigned milliseconds = static_cast<unsigned>(user_timeout_s * 1000);
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof milliseconds);
}

}  // namespace maniple
