// Activation recomputation: memory for time. A piece of the model keeps only its inputs; backward
// runs it again, this time with a graph, and takes the gradient of that.
//
// The second run does the same operations on the same bits, so losses and gradients are those of a
// run that keeps everything. Parameters need no care: their gradients are added to Parameter::grad
// in the second run's backward and nowhere else. What a body adds up on the side (router sums,
// counts) it must add only when `again` is false. The collectives of a body happen once more in
// backward, on all ranks in the same order, since all ranks recompute alike.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace maniple {

// A function of its inputs and of what outlives the backward pass. `again`: in backward.
using RecomputeBody =
    std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>& inputs, bool again)>;

// One or two inputs. The outputs of `body`, all defined and floating-point. Without gradients enabled it is called
// once and nothing is kept. May be nested.
std::vector<at::Tensor> recompute(const std::vector<at::Tensor>& inputs, RecomputeBody body);

}  // namespace maniple
