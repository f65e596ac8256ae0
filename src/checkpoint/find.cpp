// Finding and verifying checkpoints.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>

#include "checkpoint/checkpoint.h"
#include "checkpoint/disk.h"
#include "checkpoint/folders.h"
#include "checkpoint/manifest.h"
#include "core/errors.h"

namespace maniple {
namespace {

constexpr char kPrefix[] = "step-";

// "step-00001000" + suffix; false for other names.
bool parse_folder_name(const std::string& name, StepFolder& folder) {
  if (!name.starts_with(kPrefix)) return false;
  const char* first = name.data() + sizeof(kPrefix) - 1;
  const auto [end, error] = std::from_chars(first, name.data() + name.size(), folder.step);
  if (error != std::errc() || folder.step < 0 || !name.starts_with(step_folder_name(folder.step)))
    return false;
  const std::string suffix(end, name.data() + name.size());
  folder.name = name;
  if (suffix.empty()) {
    folder.kind = FolderKind::kCheckpoint;
  } else if (suffix == kReplacedSuffix) {
    folder.kind = FolderKind::kReplaced;
  } else if (suffix.starts_with(kPartialSuffix)) {
    folder.kind = FolderKind::kPartial;
  } else {
    return false;
  }
  return true;
}

// The folders that may be checkpoints, the one to try first in front: what `latest` names, older
// ones newest first, then those with higher steps (of a run that was since rolled back), newest
// first.
std::vector<StepFolder> candidates(const std::string& root,
                                   const std::function<void(const std::string&)>& warn) {
  std::vector<StepFolder> folders = list_step_folders(root);
  std::erase_if(folders, [](const StepFolder& f) { return f.kind == FolderKind::kPartial; });
  std::stable_sort(folders.begin(), folders.end(), [](const StepFolder& a, const StepFolder& b) {
    return a.step != b.step ? a.step > b.step : a.kind < b.kind;
  });
  std::string latest;
  if (!disk::read_text(root + "/latest", latest)) return folders;
  while (!latest.empty() && latest.back() == '\n') latest.pop_back();
  StepFolder named;
  if (!parse_folder_name(latest, named) || named.kind != FolderKind::kCheckpoint) {
    warn(
        fmt::format("{}/latest names no checkpoint; the one with the highest step is tried", root));
    return folders;
  }
  std::stable_partition(folders.begin(), folders.end(),
                        [&](const StepFolder& f) { return f.step <= named.step; });
  if (folders.empty() || folders[0].step != named.step)
    warn(fmt::format("{}/latest names {}, which is not there; another is tried", root, latest));
  return folders;
}

bool is_folder(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored);
}

bool holds_checkpoints(const std::string& path) {
  return disk::exists(path + "/latest") || !list_step_folders(path).empty();
}

CheckpointInfo open_newest(const std::string& root) {
  std::string reasons;
  auto found = find_latest(
      root, [&](const std::string& line) { reasons += (reasons.empty() ? "" : "; ") + line; });
  if (!found && reasons.empty())
    throw NoInputError(fmt::format("{} holds no complete checkpoint", root));
  if (!found) throw CheckpointError(fmt::format("{} holds no good checkpoint: {}", root, reasons));
  if (!reasons.empty()) fmt::print(stderr, "warning: using {}: {}\n", found->folder, reasons);
  return *found;
}

}  // namespace

std::string step_folder_name(int64_t step) { return fmt::format("{}{:08d}", kPrefix, step); }

std::vector<StepFolder> list_step_folders(const std::string& root) {
  std::vector<StepFolder> folders;
  std::error_code error;
  for (std::filesystem::directory_iterator at(root, error), end; !error && at != end;
       at.increment(error)) {
    StepFolder folder;
    if (parse_folder_name(at->path().filename().string(), folder) && is_folder(at->path().string()))
      folders.push_back(folder);
  }
  std::sort(folders.begin(), folders.end(), [](const StepFolder& a, const StepFolder& b) {
    return a.step != b.step ? a.step < b.step : a.name < b.name;
  });
  return folders;
}

namespace {

// The manifest of a folder whose files all have their sizes.
Manifest read_with_sizes(const std::string& folder) {
  Manifest manifest = read_manifest(folder);
  for (const PartEntry& file : manifest.files) {
    const int64_t bytes = disk::file_bytes(folder + "/" + file.name);
    if (bytes != file.bytes)
      throw CheckpointError(bytes < 0 ? fmt::format("{} refused: {} is missing", folder, file.name)
                                      : fmt::format("{} refused: {} has {} bytes, written were {}",
                                                    folder, file.name, bytes, file.bytes));
  }
  return manifest;
}

// An IoError is about an input here.
template <typename Body>
CheckpointInfo refuse_on_io_error(const std::string& folder, const Body& body) {
  try {
    const Manifest manifest = body();
    return {manifest.step, folder, manifest.meta};
  } catch (const IoError& error) {
    throw CheckpointError(fmt::format("{} refused: {}", folder, error.what()));
  }
}

}  // namespace

CheckpointInfo reopen_checkpoint(const std::string& folder) {
  return refuse_on_io_error(folder, [&] { return read_with_sizes(folder); });
}

CheckpointInfo verify_checkpoint(const std::string& folder) {
  return refuse_on_io_error(folder, [&] {
    Manifest manifest = read_with_sizes(folder);
    const auto pieces = pieces_by_tensor(manifest);
    for (size_t t = 0; t < manifest.tensors.size(); ++t)
      stored_tensor(manifest, t, pieces[t], folder);
    for (const PartEntry& file : manifest.files) {
      const std::string xxh3 = disk::hash_file(folder + "/" + file.name).xxh3;
      if (xxh3 != file.xxh3)
        throw CheckpointError(fmt::format("{} refused: {} has XXH3 {}, written was {}", folder,
                                          file.name, xxh3, file.xxh3));
    }
    return manifest;
  });
}

std::unique_ptr<CheckpointInfo> find_latest(const std::string& root,
                                            const std::function<void(const std::string&)>& warn) {
  for (const StepFolder& folder : candidates(root, warn)) {
    try {
      return std::make_unique<CheckpointInfo>(verify_checkpoint(root + "/" + folder.name));
    } catch (const Error& error) {
      warn(error.what());
    }
  }
  return nullptr;
}

CheckpointInfo open_checkpoint(const std::string& path) {
  if (!is_folder(path))
    throw NoInputError(fmt::format("checkpoint {}: there is no such folder", path));
  StepFolder named;
  const std::string name = std::filesystem::weakly_canonical(path).filename().string();
  if (disk::exists(path + "/manifest.json") || parse_folder_name(name, named))
    return verify_checkpoint(path);
  if (holds_checkpoints(path)) return open_newest(path);
  if (holds_checkpoints(path + "/checkpoints")) return open_newest(path + "/checkpoints");
  throw NoInputError(fmt::format(
      "checkpoint {}: it has no manifest.json and no step-* folders; name a step folder, a "
      "checkpoints/ folder or a run folder",
      path));
}

}  // namespace maniple
