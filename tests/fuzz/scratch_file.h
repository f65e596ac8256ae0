// Files for parsers that take a path: in memory where the system has such a place.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <string>

#include "core/errors.h"

namespace maniple {

class ScratchFolder {
 public:
  ScratchFolder()
      : path_((std::filesystem::exists("/dev/shm") ? "/dev/shm" : "/tmp") +
              std::string("/maniple-fuzz-") + std::to_string(getpid())) {
    std::filesystem::create_directories(path_);
  }
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  std::string put(const std::string& name, const std::string& bytes) const {
    const std::string path = path_ + "/" + name;
    std::FILE* file = std::fopen(path.c_str(), "wb");
    MANIPLE_INVARIANT(file && std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size(),
                      "cannot write {}", path);
    std::fclose(file);
    return path;
  }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

}  // namespace maniple
