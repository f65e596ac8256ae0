// Gradients to new parameters, sharded: each unit's gradient is rounded once and added to integer
// sums (phase 4 of the step), the sums are reduced to the owners of their blocks (5), measured (6),
// applied by AdamW on the owner's fp32 (fp64) master, m and v (8), and the new values gathered (9).
//
// The flat buffer of a gradient group is cut into blocks. The ranks of a slice that share the
// group's sums take a section of consecutive blocks each; inside a section every block has one or
// more holders among the slices. The first one owns the block: it reduces the sums, counts in norms,
// fingerprints and checkpoints, and hands its parameters out. All holders apply the update and have
// the same bits.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <optional>

#include "checkpoint/checkpoint.h"
#include "core/fingerprint.h"
#include "kernels/adamw.h"
#include "kernels/exact_sum.h"
#include "parallel/parameters.h"
#include "quant/fake_quantizer.h"

namespace maniple {

// Per block of a position: the slices (ranks of mesh.across()) that hold it, the owner first.
using BlockHolders = std::vector<std::vector<int32_t>>;

// optim.block_elements, or for 0 a 64th of the model rounded down to a power of two, from 2^12 to 2^20:
// enough blocks to share out evenly and little padding, few enough to name each. Sums of squares are
// taken block by block, so it depends on nothing but the model.
int64_t block_elements(const OptimConfig& optim, int64_t total_parameters);

class ShardedAdamw {
 public:
  // `store` is allocated. num_units: R. total_parameters fixes the quantum of the sums. Every block
  // is held by one slice, evenly, until set_holders() says otherwise.
  ShardedAdamw(ParameterStore& store, const OptimConfig& optim, int64_t num_units,
               int64_t total_parameters);

  // Blocks of a position, over all groups; the same number at every position (some may be empty).
  int64_t num_blocks() const { return num_blocks_; }
  static int64_t num_blocks(const ParameterStore& store, int64_t block_elements);
  // New holders for the slices that mesh.across() has now. Blocks that this rank begins to hold
  // have zeros; those that it held before keep their state, in case they are asked for, until
  // drop_unheld().
  void set_holders(const BlockHolders& holders);
  void drop_unheld();
  void forget();  // all state; set_holders() begins anew
  // The state of blocks as bytes, to be copied to another holder at the same position. The size is
  // a function of the blocks.
  at::Tensor pack(const std::vector<int64_t>& blocks) const;
  int64_t packed_bytes(const std::vector<int64_t>& blocks) const;
  void unpack(const std::vector<int64_t>& blocks, const at::Tensor& bytes);

  // Starting point: calls fill(parameter, first, n, out) for each held run of local elements,
  // writes masters, zeroes the moments. Publish afterwards.
  using Fill = std::function<void(const Parameter&, int64_t first, int64_t n, double* out)>;
  void initialize(const Fill& fill);

  void refresh_values();  // working copies of held blocks from the masters (after loading)

  void begin_attempt();      // forgets sums and clears gradients
  // Before the first backward of a unit. check: addends_check() is wanted; of the attempt's last unit.
  void begin_unit(bool check = false);
  uint64_t gradient_hash() const;  // of the unit that is to be folded
  // During the last backward of the attempt's last unit: elements of each group's flat buffer from
  // `complete` on have their gradient. Folds those in whole blocks and begins to reduce them, inside
  // the slice or, where this rank is all of it, between the slices. All ranks must call it alike,
  // with falling numbers; then fold_unit, reduce_in_slice and reduce_across do what is left.
  void begin_reduce(const std::array<int64_t, kNumGradGroups>& complete);
  bool can_begin_early() const;  // alike on all ranks; else begin_reduce must not be called
  bool fold_unit();          // gradients of one unit -> sums; false: an addend is out of bounds
  void reduce_in_slice();    // collective over the slice: each rank has its section's sums
  void reduce_across();      // collective between the slices: holders have the sums of their blocks
  // After reduce_across: this rank's share of the squared norm of the scaled gradient; each element is
  // counted by exactly one rank of the job.
  struct Norms {
    FixedPoint128 total = 0, experts = 0, routers = 0;
  };
  // Linear checksums, so that those of addends add up to that of their sum; 0 where blocks have one
  // holder. `sums`, of what this rank owns, makes the addends_check() of all ranks add up to zero when
  // every sum is that of its addends; `copies` is zero over the slices when the holders of a block
  // have equal sums.
  struct ReducedCheck {
    uint64_t sums = 0, copies = 0;
  };
  struct Measured {
    Norms norms;
    bool finite = true;
    ReducedCheck check;
  };
  Measured measure(bool check) const;
  uint64_t addends_check() const { return addends_; }  // of all that this rank adds, after the last fold
  // factor: scaled gradient -> mean gradient; clip: coefficient of the global-norm clipping.
  void update(double lr, double factor, double clip, int64_t applied_steps);
  void publish_across();  // collective between the slices: each rank has its section's parameters
  // Collective over the slice, after publish_across: each rank has all of its parameters, on the grid
  // where there is one.
  void publish_in_slice();
  void publish() {
    publish_across();
    publish_in_slice();
  }
  // From the next publish on.
  void quantize_with(const FakeQuantizer& quantizer) { quantizer_ = quantizer; }
  const std::optional<FakeQuantizer>& quantizer() const { return quantizer_; }

  // Against errors of memory (layer L1 of spec/elastic.md section 6): seal() hashes master, m and v
  // of the held blocks. From then on update() compares what it reads with what was written and hashes
  // what it writes; broken_seals() names what the last one found changed.
  void seal();
  const std::vector<std::string>& broken_seals() const { return broken_; }
  uint64_t parameter_hash() const;  // of all parameters of this rank, as they are now
  // Parameters, then each block of the position (0 where it is not held). After seal().
  std::vector<int64_t> state_hashes() const;
  // Adds up to zero over the slices when all copies of the state are equal.
  uint64_t state_check(const std::vector<int64_t>& state_hashes) const;
  // Flips one bit of an element of this rank's `what`: master, m, v, parameter, gradient (of a
  // unit), sum (of the slice) or reduced (of held blocks). For tests.
  void flip(const std::string& what, int64_t element, int bit);

  Fingerprint fingerprint() const;  // of owned blocks; those of all ranks combine
  Fingerprint sums_fingerprint() const;  // of this rank's section of the sums, after reduce_in_slice
  // Views of the state, memory of the device: of owned blocks (what a checkpoint stores) or of all
  // held ones (what it is loaded into).
  enum class Blocks { kOwned, kHeld };
  std::vector<TensorSlice> state_slices(Blocks blocks, bool with_moments = true);
  int64_t state_bytes() const;
  int64_t exchange_bytes() const;  // sent per step and rank, about

 private:
  struct Run {  // of a parameter in a block: local elements [first, first + n), at `at` of the block
    Parameter* parameter;
    int64_t first, n, at;
  };
  struct Block {
    int64_t begin = 0;        // in the flat buffer
    at::Tensor master, m, v;  // [block_elements]
    at::Tensor reduced;       // int64 [block_elements], a view; undefined where nothing is rounded
    bool held = true, owned = false;
    std::vector<Run> runs;
    std::vector<std::array<uint64_t, 3>> seals;  // of master, m, v, by piece; empty: not sealed
  };
  struct Piece {  // n elements of the flat buffer at `from` belong at `to` of the sums
    int64_t from, to, n;
  };
  struct Shard {
    GradGroup group = GradGroup::kSharded;
    bool exact = true;    // false: one addend by configuration, nothing is rounded
    bool counted = true;  // this rank's copy is the one that norms, fingerprints, checkpoints use
    int bound_bits = 62;
    int64_t first_number = 0;             // of its section's first block, among the position's
    int64_t begin = 0, blocks_here = 0;   // the section: first element, blocks
    std::vector<int64_t> section_counts;  // elements per rank of the slice's group

    // Of the holders. Sums lie section by section, inside one by owner, then by second holder.
    std::vector<Piece> pieces;
    std::vector<int64_t> slots;             // of the section's blocks, within the section
    bool in_order = true;                   // slots ascend: sums lie as the flat buffer does
    std::vector<int64_t> owned_counts;      // elements per slice, within the section
    std::vector<int64_t> give, take;        // elements to and from each slice as second holder
    at::Tensor sum, section, owned, taken;  // int64
    at::Tensor gathered;                    // parameters in the order of the sums
    bool fresh = true;                      // no unit has been folded in this attempt
    bool clean = false;                     // the gradients are zero
    int64_t unfolded = 0;                   // elements of this unit, from the start of the buffer
    std::vector<std::unique_ptr<Work>> under_way;  // reductions begun early
    std::map<int64_t, Block> blocks;        // by number, held now or before
  };
  void lay_out(Shard& shard, const BlockHolders& holders);
  void set_reduced(Shard& shard, const BlockHolders& holders);
  std::vector<Run> runs(const Shard& shard, int64_t begin) const;
  // Where a shard's sums are reduced first: inside the slice, else between the slices.
  Communicator& first_group(const Shard& shard) const;
  void fold(Shard& shard, const Piece& piece);
  void fold_from(Shard& shard, int64_t begin);  // what is not folded yet of elements from begin on
  void reduce_early(Shard& shard, int64_t begin, int64_t end);
  void wait_for_sums(bool in_slice);
  const Block* find_block(int64_t number) const;  // null: empty at this position
  void update_piece(const Shard& shard, Block& block, int64_t piece, AdamwStep step, double factor);
  void update_on_device(const Shard& shard, Block& block, AdamwStep step, double factor);
  std::array<uint64_t, 3> hash_piece(const Block& block, int64_t piece) const;
  std::vector<std::array<uint64_t, 3>> hashes_of(const Block& block) const;  // of all pieces
  // The hash's factor of this rank's copy of a block, so that all copies add up to zero.
  uint64_t weight(const Block& block) const;
  Measured measure(const Shard& shard, const Block& block, bool check) const;
  // The gradient of elements [at, at + n) of a block times factor.
  at::Tensor decode(const Shard& shard, const Block& block, int64_t at, int64_t n,
                    double factor) const;
  at::Tensor decode_unmasked(const Shard& shard, const Block& block, int64_t at, int64_t n,
                             double factor) const;

  ParameterStore& store_;
  const OptimConfig optim_;
  const int q_;
  int64_t num_blocks_ = 0;
  std::vector<std::string> broken_;
  std::atomic<bool> legal_{true};  // all addends of the unit so far
  bool check_ = false;                // the unit's fold takes checksums
  std::atomic<uint64_t> addends_{0};  // of the sums folded with check_
  bool copied_ = false, replicated_ = false;  // blocks have more than one holder; all slices
  std::vector<Shard> shards_;
  std::optional<FakeQuantizer> quantizer_;
};

}  // namespace maniple
