// Writing: parts and their sidecars, then, by writer 0, the manifest, the folder's final name, the
// `latest` pointer and retention, in this order.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <thread>

#include "checkpoint/checkpoint.h"
#include "checkpoint/disk.h"
#include "checkpoint/folders.h"
#include "checkpoint/manifest.h"
#include "checkpoint/part_file.h"
#include "core/errors.h"
#include "core/files.h"

namespace maniple {
namespace {

constexpr auto kPollInterval = std::chrono::milliseconds(10);

// One checkpoint being written.
struct Job {
  std::string root, attempt;
  int64_t step;
  int num_writers;

  std::string final_folder() const { return root + "/" + step_folder_name(step); }
  std::string folder() const { return final_folder() + kPartialSuffix + attempt; }
  std::string part(int writer) const { return fmt::format("{}/part-{:05d}.h5", folder(), writer); }
  std::string sidecar(int writer) const {
    return fmt::format("{}/part-{:05d}.{}.json", folder(), writer, attempt);
  }
};

void write_sidecar(const Job& job, int writer, Manifest table) {
  table.step = job.step;
  table.num_writers = job.num_writers;
  table.attempt = job.attempt;
  write_file_atomic(job.sidecar(writer), manifest_text(table));
}

void write_part(const Job& job, int writer, const std::vector<TensorSlice>& slices) {
  ensure_directory(job.folder());
  disk::remove_all(job.sidecar(writer));
  try {
    write_sidecar(job, writer, write_part_file(job.part(writer), job.step, writer, slices));
  } catch (const std::exception& error) {
    disk::remove_all(job.part(writer));
    try {  // so that writer 0 need not wait for its time-out
      Manifest failed;
      failed.meta["error"] = error.what();
      write_sidecar(job, writer, failed);
    } catch (const Error&) {
      // The first reason is the one to report.
    }
    throw;
  }
}

// The merged tables of all parts. Blocks until the last one is there.
Manifest collect_parts(const Job& job, double timeout_s) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
  std::vector<Manifest> parts(job.num_writers);
  std::vector<int> missing;
  for (int writer = 0; writer < job.num_writers; ++writer) missing.push_back(writer);
  while (true) {
    std::erase_if(missing, [&](int writer) {
      std::string text;
      if (!disk::read_text(job.sidecar(writer), text)) return false;
      parts[writer] = parse_manifest(text, job.sidecar(writer));
      return true;
    });
    for (int writer = 0; writer < job.num_writers; ++writer)
      if (parts[writer].meta.contains("error"))
        throw IoError(fmt::format("checkpoint of step {}: writer {} failed: {}", job.step, writer,
                                  parts[writer].meta["error"].get<std::string>()));
    if (missing.empty()) break;
    if (std::chrono::steady_clock::now() >= deadline)
      throw IoError(fmt::format(
          "checkpoint of step {}: no part from writer {} of {} in {} within {} s; the checkpoint "
          "is "
          "given up (dead writers, or folder not shared by all hosts?)",
          job.step, fmt::join(missing, ", "), job.num_writers, job.folder(), timeout_s));
    std::this_thread::sleep_for(kPollInterval);
  }
  Manifest manifest;
  manifest.step = job.step;
  manifest.num_writers = job.num_writers;
  manifest.attempt = job.attempt;
  for (const Manifest& part : parts) merge_part(manifest, part);
  return manifest;
}

// What no reader would accept must not become a checkpoint.
void check_complete(const Job& job, const Manifest& manifest) {
  for (const PartEntry& file : manifest.files) {
    const int64_t bytes = disk::file_bytes(job.folder() + "/" + file.name);
    if (bytes != file.bytes)
      throw IoError(fmt::format("checkpoint of step {}: {} has {} bytes in {}, its writer wrote {}",
                                job.step, file.name, bytes, job.folder(), file.bytes));
  }
  const auto pieces = pieces_by_tensor(manifest);
  for (size_t t = 0; t < manifest.tensors.size(); ++t) {
    try {
      stored_tensor(manifest, t, pieces[t], job.folder());
    } catch (const CheckpointError& error) {
      throw InternalError(
          fmt::format("the writers' slices do not make whole tensors: {}", error.what()));
    }
  }
}

void remove_checkpoint(const std::string& folder) {
  disk::remove_all(folder + "/manifest.json");  // first: half of a folder is never a checkpoint
  disk::remove_all(folder);
}

bool is_complete(const std::string& folder) { return disk::exists(folder + "/manifest.json"); }

// Gives the complete folder its final name. A checkpoint that had the name stays loadable until
// then.
void publish(const Job& job) {
  const std::string final_folder = job.final_folder();
  if (!disk::exists(final_folder)) {
    disk::rename(job.folder(), final_folder);
  } else if (disk::exchange(job.folder(), final_folder)) {
    remove_checkpoint(job.folder());  // now the old one
  } else {
    const std::string aside = final_folder + kReplacedSuffix;
    if (is_complete(final_folder)) {
      disk::remove_all(aside);
      disk::rename(final_folder, aside);
    } else {
      disk::remove_all(final_folder);
    }
    disk::rename(job.folder(), final_folder);
    remove_checkpoint(aside);
  }
  disk::sync_folder(job.root);
  write_file_atomic(job.root + "/latest", step_folder_name(job.step) + "\n");
}

// Removes what the new checkpoint makes superfluous. Folders of later steps (the run was rolled
// back, or the next checkpoint is being written) are left alone.
void apply_retention(const Job& job, const CheckpointConfig& retention, int64_t keep_from) {
  const int64_t permanent = retention.keep_every * std::max<int64_t>(retention.every, 1);
  std::vector<StepFolder> complete;
  for (const StepFolder& folder : list_step_folders(job.root)) {
    const std::string path = job.root + "/" + folder.name;
    const std::string plain = job.root + "/" + step_folder_name(folder.step);
    if (folder.step > job.step || (folder.step == job.step && path == plain)) continue;
    if (folder.kind == FolderKind::kPartial ||
        (folder.kind == FolderKind::kReplaced && is_complete(plain)) || !is_complete(path)) {
      remove_checkpoint(path);
    } else {
      complete.push_back(folder);
    }
  }
  const auto num_older = static_cast<size_t>(std::max<int64_t>(retention.keep, 1) - 1);
  for (size_t i = 0; i + num_older < complete.size(); ++i)
    if (complete[i].step < keep_from && (permanent <= 0 || complete[i].step % permanent != 0))
      remove_checkpoint(job.root + "/" + complete[i].name);
}

void complete_checkpoint(const Job& job, const nlohmann::json& meta,
                         const CheckpointConfig& retention, int64_t keep_from,
                         double timeout_s) {
  Manifest manifest = collect_parts(job, timeout_s);
  manifest.meta = meta;
  check_complete(job, manifest);
  write_file_atomic(job.folder() + "/manifest.json", manifest_text(manifest));
  for (int writer = 0; writer < job.num_writers; ++writer) disk::remove_all(job.sidecar(writer));
  publish(job);
  apply_retention(job, retention, keep_from);
}

bool is_plain_name(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '-' || c == '_' || c == '.';
  });
}

}  // namespace

void write_checkpoint_part(const std::string& root, int64_t step, int writer, int num_writers,
                           const std::string& attempt, const std::vector<TensorSlice>& slices) {
  MANIPLE_INVARIANT(step >= 0 && writer >= 0 && writer < num_writers && is_plain_name(attempt),
                    "step {}, writer {} of {}, attempt '{}'", step, writer, num_writers, attempt);
  write_part({root, attempt, step, num_writers}, writer, slices);
}

void publish_checkpoint(const std::string& root, int64_t step, int num_writers,
                        const std::string& attempt, const nlohmann::json& meta,
                        const CheckpointConfig& retention, int64_t keep_from, double timeout_s) {
  const Job job{root, attempt, step, num_writers};
  try {
    complete_checkpoint(job, meta, retention, keep_from, timeout_s);
  } catch (...) {
    remove_checkpoint(job.folder());  // its space may be what is missing
    throw;
  }
}

void drop_checkpoints(const std::string& root, int64_t after) {
  std::string newest;
  for (const StepFolder& folder : list_step_folders(root)) {
    const std::string path = root + "/" + folder.name;
    if (folder.step > after)
      remove_checkpoint(path);
    else if (folder.kind == FolderKind::kCheckpoint && is_complete(path))
      newest = folder.name;
  }
  if (!newest.empty()) write_file_atomic(root + "/latest", newest + "\n");
}

void write_checkpoint(const std::string& root, int64_t step, int writer, int num_writers,
                      const std::string& attempt, const std::vector<TensorSlice>& slices,
                      const nlohmann::json& meta, const CheckpointConfig& retention,
                      double timeout_s) {
  try {
    write_checkpoint_part(root, step, writer, num_writers, attempt, slices);
  } catch (const Error&) {
    if (writer == 0) remove_checkpoint(Job{root, attempt, step, num_writers}.folder());
    throw;
  }
  if (writer == 0)
    publish_checkpoint(root, step, num_writers, attempt, meta, retention, INT64_MAX, timeout_s);
}

}  // namespace maniple
