#pragma once

#include <pybind11/pybind11.h>

// Adds the submodule `device`: the range coder's kernels on addresses of memory.
void bind_rans_device(pybind11::module_& m);
