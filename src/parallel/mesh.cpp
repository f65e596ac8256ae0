#include "parallel/mesh.h"

#include <numeric>

#include "core/errors.h"
#include "parallel/device.h"

namespace maniple {

int64_t smallest_num_ranks(const ParallelConfig& p) {
  return p.slices * (p.slice_size > 0 ? p.slice_size : std::lcm(p.tp, p.ep * p.etp));
}

MeshShape make_mesh_shape(const ParallelConfig& p, int64_t num_ranks) {
  auto refuse = [&](const std::string& rule) {
    throw ConfigError(fmt::format(
        "cannot lay {} ranks out as parallel.slices={} tp={} ep={} etp={}: {}; use a multiple of {} "
        "ranks or change parallel.*",
        num_ranks, p.slices, p.tp, p.ep, p.etp, rule, smallest_num_ranks(p)));
  };
  if (num_ranks % p.slices) refuse("ranks must be divisible by slices");
  MeshShape shape{p.slices, num_ranks / p.slices, p.tp, p.ep, p.etp};
  if (p.slice_size > 0 && shape.slice_size != p.slice_size)
    refuse(fmt::format("parallel.slice_size is {}, ranks / slices is {}", p.slice_size,
                       shape.slice_size));
  if (shape.slice_size % p.tp) refuse(fmt::format("slice size {} must be divisible by tp", shape.slice_size));
  if (shape.slice_size % (p.ep * p.etp))
    refuse(fmt::format("slice size {} must be divisible by ep x etp", shape.slice_size));
  return shape;
}

const char* to_string(GradGroup group) {
  static const char* names[] = {"sharded", "replicated", "partial", "expert"};
  return names[static_cast<int>(group)];
}

ProcessMesh::ProcessMesh(const MeshShape& shape, std::unique_ptr<Communicator> world,
                         const at::Device& device)
    : shape_(shape), device_(device) {
  use_device(device);
  world_ = extend_to_device(std::move(world), device);
  MANIPLE_INVARIANT(world_->size() == shape.num_ranks(), "{} != {}", world_->size(),
                    shape.num_ranks());
  const int rank = world_->rank();
  const int64_t slice = rank / shape.slice_size;
  position_ = rank % shape.slice_size;
  const int64_t per_group = shape.ep * shape.etp;
  across_ = world_->split(static_cast<int>(position_), rank);
  in_slice_ = world_->split(static_cast<int>(slice), rank);
  const int position = static_cast<int>(position_);
  tp_ = make_recorded(in_slice_->split(static_cast<int>(dp_index()), position), *trail_);
  experts_ =
      make_recorded(in_slice_->split(static_cast<int>(position_ / per_group), position), *trail_);
  dense_reduce_ = in_slice_->split(static_cast<int>(tp_index()), position);
  expert_reduce_ = in_slice_->split(static_cast<int>(position_ % per_group), position);
}

Communicator& ProcessMesh::grad_group(GradGroup group) {
  switch (group) {
    case GradGroup::kPartial: return *in_slice_;
    case GradGroup::kExpert: return *expert_reduce_;
    default: return *dense_reduce_;
  }
}

}  // namespace maniple
