// The ranks of a job as a folded mesh: world = slices x slice_size, and inside a slice two views of
// the same ranks. Dense view: inner_dp x tp. Sparse view: inner_edp x ep x etp.
#pragma once

#include <memory>

#include "core/config.h"
#include "parallel/communicator.h"
#include "parallel/trail.h"

namespace maniple {

struct ModelConfig;

struct MeshShape {
  int64_t slices = 1, slice_size = 1, tp = 1, ep = 1, etp = 1;
  int64_t inner_dp() const { return slice_size / tp; }
  int64_t inner_edp() const { return slice_size / (ep * etp); }
  int64_t num_ranks() const { return slices * slice_size; }
};

// Throws ConfigError with the reason and the nearest legal choice when the ranks do not divide.
MeshShape make_mesh_shape(const ParallelConfig& parallel, int64_t num_ranks);
// The smallest legal number of ranks.
int64_t smallest_num_ranks(const ParallelConfig& parallel);

// Where the gradient of a parameter is summed, and so which ranks share its optimizer state: ranks
// of a slice first, then the slices.
enum class GradGroup {
  kSharded,     // split over tp: summed over slices x inner_dp
  kReplicated,  // equal on all tp ranks, gradient too: summed over slices x inner_dp
  kPartial,     // equal on all tp ranks, gradient partial (split tokens or heads): over all ranks
  kExpert,      // split over ep and etp: summed over slices x inner_edp
};
constexpr int kNumGradGroups = 4;
const char* to_string(GradGroup group);

// Owns the communicators by axis and knows the device on which this rank computes: what it hands
// out moves tensors of that device as well as host memory. Collective over the world to construct,
// by the thread that computes.
//
// The slices are the axis `across`, between equal positions. In a job of fixed slices the world
// holds them all; in an elastic job the world is one slice, and each epoch brings its own `across`.
class ProcessMesh {
 public:
  ProcessMesh(const MeshShape& shape, std::unique_ptr<Communicator> world,
              const at::Device& device = at::kCPU);

  const MeshShape& shape() const { return shape_; }
  const at::Device& device() const { return device_; }
  int64_t slice() const { return across_->rank(); }
  int64_t num_slices() const { return across_->size(); }
  int64_t position() const { return position_; }
  int64_t dp_index() const { return position_ / shape_.tp; }
  int64_t tp_index() const { return position_ % shape_.tp; }
  int64_t ep_index() const { return position_ / shape_.etp % shape_.ep; }
  int64_t etp_index() const { return position_ % shape_.etp; }

  Communicator& world() { return *world_; }
  Communicator& across() { return *across_; }
  void set_across(std::unique_ptr<Communicator> across) { across_ = std::move(across); }
  Communicator& in_slice() { return *in_slice_; }
  Communicator& tp() { return *tp_; }
  Communicator& experts() { return *experts_; }  // the ep x etp ranks that hold one set of experts
  Trail& trail() { return *trail_; }  // of what goes through tp and experts
  Communicator& grad_group(GradGroup group);     // the ranks of this slice that share its sums

 private:
  MeshShape shape_;
  at::Device device_;
  std::unique_ptr<Communicator> world_;
  int64_t position_;
  std::unique_ptr<Trail> trail_ = std::make_unique<Trail>();
  std::unique_ptr<Communicator> across_, in_slice_, tp_, experts_, dense_reduce_, expert_reduce_;
};

}  // namespace maniple
