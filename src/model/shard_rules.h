// Which meshes a model can be laid out on.
#pragma once

#include "model/model_config.h"
#include "parallel/mesh.h"

namespace maniple {

// Throws ConfigError naming the axis and the size that it does not divide.
void check_mesh(const ModelConfig& model, const MeshShape& mesh);

}  // namespace maniple
