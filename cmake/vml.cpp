// MKL's vector functions (exp, log, ... of contiguous tensors) choose their kernels at the first call in
// a process, and not thread-safely: MKL stores the raw processor type in the variable that every call
// reads, and its own index for it only afterwards. A thread that reads between the two takes the kernel
// of another accuracy, with half the digits, for that one call
// (https://github.com/pytorch/pytorch/issues/188792). So the first call is made here, before main, where
// there is one thread.
#include <ATen/ops/exp.h>
#include <ATen/ops/zeros.h>

extern "C" const bool maniple_vml_has_chosen = at::zeros({1}, at::kDouble).exp().is_cpu();
