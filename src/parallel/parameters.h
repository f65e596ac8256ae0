// The parameters that one rank holds: values in the compute type, gradients in the accumulation
// type, both as views into one flat buffer per gradient group, where optimizer and exchange see
// them as blocks.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "parallel/mesh.h"

namespace maniple {

enum class Precision { kFp32, kBf16, kFp64 };
Precision parse_precision(const std::string& name);
at::ScalarType compute_type(Precision precision);
at::ScalarType accumulate_type(Precision precision);  // gradients, master, moments, router

// What to start a parameter from when no weights are given.
struct Init {
  enum Kind { kNormal, kConstant } kind = kNormal;
  double value = 0.02;  // standard deviation, or the constant
};

struct Parameter {
  std::string name;                    // Maniple's name: hub style, experts with a leading dim
  std::vector<int64_t> global_shape;   // whole and unpadded
  std::vector<int64_t> offset, shape;  // this rank's box; may reach beyond global_shape (padding)
  GradGroup group;
  Init init;
  bool decay = false;  // weight decay applies
  bool router = false;  // has a gradient norm of its own in the metrics

  at::Tensor value;  // [shape], compute type (kPartial: accumulation type)
  at::Tensor grad;   // [shape], accumulation type
  int64_t flat_begin = 0;  // in the flat buffers of its group
  int64_t numel() const;
  // Global row-major index of a local one, or -1 for padding.
  int64_t global_index(int64_t local) const;
};

// Splits dim `dim` of a parameter evenly over `num_parts`, rounding up (the tail is padding).
struct Shard {
  int64_t dim, part, num_parts;
};

class ParameterStore {
 public:
  ParameterStore(ProcessMesh& mesh, Precision precision) : mesh_(mesh), precision_(precision) {}
  ParameterStore(const ParameterStore&) = delete;

  // The reference stays valid for the life of the store.
  Parameter& add(const std::string& name, const std::vector<int64_t>& global_shape, GradGroup group,
                 const std::vector<Shard>& shards, Init init);
  // Allocates the flat buffers; blocks are block_elements long and the buffers whole blocks.
  void allocate(int64_t block_elements);
  void zero_grad();

  std::deque<Parameter>& parameters() { return parameters_; }
  const std::deque<Parameter>& parameters() const { return parameters_; }
  Parameter& find(const std::string& name);
  ProcessMesh& mesh() const { return mesh_; }
  Precision precision() const { return precision_; }

  struct Group {
    at::Tensor value, grad;  // flat, padded to whole blocks
    at::Tensor grad_mask;    // flat bool: false where a gradient counts as 0; undefined: nowhere
    int64_t used = 0;
    std::vector<Parameter*> members;  // in flat order
  };
  Group& group(GradGroup g) { return groups_[static_cast<int>(g)]; }
  const Group& group(GradGroup g) const { return groups_[static_cast<int>(g)]; }
  int64_t block_elements() const { return block_elements_; }

 private:
  ProcessMesh& mesh_;
  const Precision precision_;
  std::deque<Parameter> parameters_;
  Group groups_[kNumGradGroups];
  int64_t block_elements_ = 0;
};

// The starting value of global element `index` of `parameter`, in fp32 precision: a function of
// seed, name and index alone.
double initial_value(const Parameter& parameter, uint64_t seed, int64_t index);

}  // namespace maniple
