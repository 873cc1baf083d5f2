// The library of operations under torch.ops.quilate; each source file beside this one adds its own.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(quilate, m) {}
