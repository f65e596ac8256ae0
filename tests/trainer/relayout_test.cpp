// Checkpoints of trained state from layout to layout, compared tensor by tensor.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "checkpoint/layout.h"
#include "tiny_trainer.h"
#include "trainer/checkpoint_writer.h"

namespace maniple {
namespace {

// Every tensor of a checkpoint, whole, as bytes.
std::map<std::string, std::vector<char>> tensors_of(const CheckpointInfo& checkpoint) {
  std::map<std::string, std::vector<char>> tensors;
  std::vector<TensorSlice> slices;
  for (const TensorEntry& entry : list_tensors(checkpoint)) {
    const int64_t count = num_elements(entry.global_shape);
    std::vector<char>& bytes = tensors[entry.name];
    bytes.resize(count * element_bytes(entry.type));
    slices.push_back({entry.name, entry.type, entry.global_shape,
                      std::vector<int64_t>(entry.global_shape.size(), 0), entry.global_shape, 0, count, bytes.data()});
  }
  load_slices(checkpoint, slices);
  return tensors;
}

// Master, m, v, the router's bias and the loads that its balance loss uses keep every bit over 20
// changes of the layout, and so does the fingerprint; nothing is trained in between.
TEST(Relayout, TwentyChangesKeepEveryTensor) {
  const std::vector<MeshLayout> layouts = {
      {1, 1, 1, 1, 1}, {2, 1, 1, 1, 2}, {1, 2, 2, 1, 2}, {1, 1, 4, 1, 4}, {3, 1, 1, 1, 3}, {1, 4, 1, 1, 4},
      {1, 2, 2, 2, 4}, {4, 1, 1, 1, 4}, {1, 1, 2, 1, 2}, {2, 1, 2, 1, 4}, {1, 2, 4, 1, 4}, {1, 1, 1, 1, 4},
      {2, 2, 1, 2, 4}, {1, 4, 8, 1, 8}, {1, 1, 1, 1, 1}, {1, 1, 2, 2, 4}, {2, 1, 2, 1, 8}, {1, 2, 1, 1, 2},
      {1, 1, 8, 1, 8}, {4, 1, 2, 1, 8}, {1, 1, 1, 2, 2}};
  ASSERT_EQ(layouts.size(), 21u);
  const std::string root = testing::TempDir() + fmt::format("maniple-relayout-{}", ::getpid());
  std::filesystem::remove_all(root);
  Config config = tiny_config();
  config.batch = {.rows = 96, .units = 12, .micro_batch_rows = 1, .seq_len = 24};
  const CheckpointConfig keep_all{.every = 0, .keep = 1000, .keep_every = 0};
  std::map<std::string, std::vector<char>> first;
  Fingerprint first_fingerprint;
  for (size_t n = 0; n < layouts.size(); ++n) {
    SCOPED_TRACE(fmt::format("{}: {}", n, name_of(layouts[n])));
    Fingerprint fingerprint;
    std::mutex mutex;
    run_local_ranks(layouts[n].ranks, [&](std::unique_ptr<Communicator> world) {
      const int rank = world->rank(), ranks = world->size();
      Trainer t(with_layout(config, layouts[n]), std::move(world));
      if (n == 0) {
        for (int64_t s = 1; s <= 3; ++s) t.step.run(s, config.optim.lr);
      } else {
        load_checkpoint(t.model, open_checkpoint(root), /*with_moments=*/true);
        t.model.optimizer->publish();
      }
      {
        const Fingerprint mine = fingerprint_of_state(t.model, rank == 0);
        const std::lock_guard lock(mutex);
        fingerprint.combine(mine);
      }
      t.mesh.world().barrier();  // all have loaded before the next one is the newest
      CheckpointWriter writer;
      writer.start(t.model, rank == 0, [&](const std::vector<TensorSlice>& slices) {
        write_checkpoint(root, static_cast<int64_t>(n), rank, ranks, "a", slices, {}, keep_all, 60);
      });
      writer.finish();
    });
    const CheckpointInfo checkpoint = open_checkpoint(root);
    ASSERT_EQ(checkpoint.step, static_cast<int64_t>(n));
    const auto tensors = tensors_of(checkpoint);
    if (n == 0) {
      first = tensors;
      first_fingerprint = fingerprint;
      for (const char* kind : {"master/", "m/", "v/", "router_bias/", "previous_load/"}) {
        size_t set = 0;  // bytes that are not zero
        for (const auto& [name, bytes] : tensors)
          if (name.starts_with(kind)) set += bytes.size() - std::count(bytes.begin(), bytes.end(), 0);
        EXPECT_GT(set, 0u) << kind;
      }
      continue;
    }
    EXPECT_TRUE(fingerprint == first_fingerprint);
    ASSERT_EQ(tensors.size(), first.size());
    for (const auto& [name, bytes] : first) EXPECT_TRUE(tensors.at(name) == bytes) << name;
  }
  std::filesystem::remove_all(root);
}

}  // namespace
}  // namespace maniple
