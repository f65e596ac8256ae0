// Messages of tensors on a GPU through pinned host memory and a communicator of host memory. So
// several ranks can share one GPU. Host tensors pass through.
#pragma once

#include "parallel/communicator.h"

namespace maniple {

std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host);

}  // namespace maniple
