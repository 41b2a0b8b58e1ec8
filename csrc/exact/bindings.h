#pragma once

#include <pybind11/pybind11.h>

// Adds the submodule `exact`: the kernels of the entropy path.
void bind_exact(pybind11::module_& m);
