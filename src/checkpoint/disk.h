// The file operations that a checkpoint's safety rests on, beyond core/files.h. Every failure is an
// IoError with the path and the system's reason, unless said otherwise.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace maniple::disk {

// XXH3-64 as 16 hexadecimal digits.
std::string hash_text(std::string_view text);

struct FileHash {
  int64_t bytes;
  std::string xxh3;
};
FileHash hash_file(const std::string& path);

// The size, or -1 if there is no such file.
int64_t file_bytes(const std::string& path);
bool exists(const std::string& path);

// False if there is no such file.
bool read_text(const std::string& path, std::string& text);

// Syncs the temporary file, renames it to `path` and syncs the folder: as write_file_atomic, for a
// file written by other means. The temporary file is gone afterwards, whatever happens.
void commit_file(const std::string& temporary, const std::string& path);

void rename(const std::string& from, const std::string& to);
void sync_folder(const std::string& path);
// Exchanges two folders in one step; false if the file system cannot.
bool exchange(const std::string& a, const std::string& b);
// Best effort, never throws.
void remove_all(const std::string& path) noexcept;

}  // namespace maniple::disk
