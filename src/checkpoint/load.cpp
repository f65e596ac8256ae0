// Reading: what is stored of a wanted tensor is a partition of its elements into segments; each
// wanted segment is cut along it into reads, which are then made file by file.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "checkpoint/checkpoint.h"
#include "checkpoint/disk.h"
#include "checkpoint/manifest.h"
#include "checkpoint/part_file.h"
#include "core/errors.h"

namespace maniple {
namespace {

// By piece.
using Reads = std::vector<std::vector<PartRead>>;

void check_wanted(const TensorSlice& wanted, const TensorEntry& entry, const std::string& folder) {
  if (wanted.type != entry.type || wanted.global_shape != entry.global_shape)
    throw CheckpointError(fmt::format(
        "{}: tensor '{}' is stored as {}, wanted as {}; the checkpoint is of another model or "
        "precision",
        folder, entry.name, describe(entry.type, entry.global_shape),
        describe(wanted.type, wanted.global_shape)));
  const size_t rank = entry.global_shape.size();
  MANIPLE_INVARIANT(wanted.offset.size() == rank && wanted.shape.size() == rank &&
                        wanted.begin >= 0 && wanted.begin <= wanted.end &&
                        wanted.end <= num_elements(wanted.shape),
                    "wanted slice of '{}' with elements {} to {} does not fit its shape",
                    wanted.name, wanted.begin, wanted.end);
}

// Plans the reads of one slice and zeroes it if some of it is padding.
void plan_slice(const TensorSlice& wanted, const std::vector<StoredSegment>& stored, Reads& reads) {
  const int64_t bytes = element_bytes(wanted.type);
  char* data = static_cast<char*>(wanted.data);
  const std::vector<Segment> segments = shard_segments(wanted);
  if (num_elements(segments) < wanted.end - wanted.begin)
    std::memset(data, 0, static_cast<size_t>((wanted.end - wanted.begin) * bytes));
  for (const Segment& segment : segments) {
    auto source = std::upper_bound(
        stored.begin(), stored.end(), segment.global,
        [](int64_t global, const StoredSegment& s) { return global < s.global + s.count; });
    for (int64_t done = 0; done < segment.count; ++source) {
      const int64_t skip = segment.global + done - source->global;
      const int64_t count = std::min(source->count - skip, segment.count - done);
      reads[source->piece].push_back(
          {source->local + skip, count, data + (segment.local + done - wanted.begin) * bytes});
      done += count;
    }
  }
}

Reads plan(const Manifest& manifest, std::vector<TensorSlice>& slices, const std::string& folder) {
  std::map<std::string, size_t> tensor_index;
  for (size_t i = 0; i < manifest.tensors.size(); ++i) tensor_index[manifest.tensors[i].name] = i;
  std::map<size_t, std::vector<const TensorSlice*>> wanted_by_tensor;
  for (const TensorSlice& wanted : slices) {
    const auto at = tensor_index.find(wanted.name);
    if (at == tensor_index.end())
      throw CheckpointError(
          fmt::format("{} has no tensor '{}' ({} wanted, {} tensors stored); the checkpoint is of "
                      "another model",
                      folder, wanted.name, describe(wanted.type, wanted.global_shape),
                      manifest.tensors.size()));
    check_wanted(wanted, manifest.tensors[at->second], folder);
    wanted_by_tensor[at->second].push_back(&wanted);
  }
  Reads reads(manifest.pieces.size());
  const auto pieces = pieces_by_tensor(manifest);
  for (const auto& [tensor, wanted] : wanted_by_tensor) {
    const auto stored = stored_tensor(manifest, tensor, pieces[tensor], folder);
    for (const TensorSlice* slice : wanted) plan_slice(*slice, stored, reads);
  }
  return reads;
}

}  // namespace

std::vector<TensorEntry> list_tensors(const CheckpointInfo& checkpoint) {
  return read_manifest(checkpoint.folder).tensors;
}

void load_slices(const CheckpointInfo& checkpoint, std::vector<TensorSlice>& slices) {
  const Manifest manifest = read_manifest(checkpoint.folder);
  Reads reads = plan(manifest, slices, checkpoint.folder);
  std::vector<std::vector<size_t>> pieces_by_file(manifest.files.size());
  for (size_t i = 0; i < manifest.pieces.size(); ++i)
    if (!reads[i].empty()) pieces_by_file[manifest.pieces[i].file].push_back(i);

  for (size_t f = 0; f < manifest.files.size(); ++f) {
    if (pieces_by_file[f].empty()) continue;
    PartReader part(checkpoint.folder + "/" + manifest.files[f].name);
    for (const size_t i : pieces_by_file[f]) {
      std::sort(reads[i].begin(), reads[i].end(),
                [](const PartRead& a, const PartRead& b) { return a.from < b.from; });
      const Piece& piece = manifest.pieces[i];
      const TensorSlice stored = manifest.slice(piece);
      part.read(piece.dataset, stored.type, num_elements(stored_segments(stored)), reads[i]);
    }
  }
}

}  // namespace maniple
