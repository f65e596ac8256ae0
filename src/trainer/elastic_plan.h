// What follows from the config of an elastic job before any of its processes is started.
#pragma once

#include "core/config.h"
#include "elastic/reshard.h"
#include "parallel/mesh.h"

namespace maniple {

Redundancy redundancy_of(const Config& config);
// The mesh of one slice of an elastic job; num_ranks 0: the smallest legal number. Throws ConfigError
// for what such a job cannot do.
MeshShape slice_shape(const Config& config, int64_t num_ranks);
// The blocks of a position and how they are held, which the coordinator must know.
BlockLayout block_layout(const Config& config);

}  // namespace maniple
