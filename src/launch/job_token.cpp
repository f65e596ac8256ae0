#include "launch/job_token.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iostream>

#include "core/errors.h"
#include "core/files.h"
#include "links/wire.h"

namespace maniple {

std::string make_job_token() {
  uint64_t words[2] = {};
  if (::getrandom(words, sizeof words, 0) != sizeof words)
    throw IoError(fmt::format("cannot make a job token: getrandom: {}", std::strerror(errno)));
  return fmt::format("{:016x}{:016x}", words[0], words[1]);
}

void write_job_token(const std::string& path, const std::string& token) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  const std::string line = token + "\n";
  const bool ok =
      fd >= 0 && ::write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size());
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (!ok)
    throw IoError(fmt::format("cannot write the job token '{}': {}", path, std::strerror(error)));
}

std::string read_job_token(const std::string& path) {
  std::string token;
  if (path == "-") {
    std::getline(std::cin, token);
  } else {
    token = read_file(path, "job token");
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0 || (info.st_mode & 077) != 0)
      throw ConfigError(
          fmt::format("the job token '{}' has mode {:o}; others must not read it: "
                      "chmod 600",
                      path, info.st_mode & 0777));
    token = token.substr(0, token.find('\n'));
  }
  if (token.empty() || token.size() > kMaxTokenBytes)
    throw ConfigError(fmt::format("the job token of '{}' has {} characters; it must have 1 to {}",
                                  path, token.size(), kMaxTokenBytes));
  return token;
}

}  // namespace maniple
