#include "trainer/elastic_plan.h"

#include "core/errors.h"
#include "parallel/device.h"
#include "trainer/fault_injector.h"
#include "trainer/run_state.h"

namespace maniple {

Redundancy redundancy_of(const Config& config) {
  const std::string& name = config.elastic.redundancy;
  if (name == "replicated") return Redundancy::kReplicated;
  return name == "none" ? Redundancy::kNone : Redundancy::kShadow;
}

MeshShape slice_shape(const Config& config, int64_t num_ranks) {
  ParallelConfig parallel = config.parallel;
  parallel.slices = 1;
  if (num_ranks == 0) num_ranks = smallest_num_ranks(parallel);
  const MeshShape shape = make_mesh_shape(parallel, num_ranks);
  require_device(config.run.device);
  (void)parse_faults(config.faults);
  const int64_t units = maniple::num_units(config.batch, shape);
  if (units < config.parallel.slices + config.elastic.spares)
    throw ConfigError(fmt::format(
        "{} units for {} slices and {} spares: every slice needs a unit; raise batch.units or "
        "batch.rows",
        units, config.parallel.slices, config.elastic.spares));
  return shape;
}

BlockLayout block_layout(const Config& config) {
  const ModelConfig model = resolve_model(config.model);
  const MeshShape shape = slice_shape(config, 0);
  BlockLayout layout{0, redundancy_of(config)};
  run_local_ranks(static_cast<int>(shape.slice_size), [&](std::unique_ptr<Communicator> world) {
    const bool first = world->rank() == 0;
    ProcessMesh mesh(shape, std::move(world));
    const TrainedModel planned(config, model, mesh, /*allocate=*/false);
    if (first)
      layout.num_blocks = ShardedAdamw::num_blocks(
          planned.store, block_elements(config.optim, num_parameters(model)));
  });
  return layout;
}

}  // namespace maniple
