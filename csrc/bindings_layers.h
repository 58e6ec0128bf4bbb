// Adds the network's layers to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace sctrt {

void add_layers(pybind11::module_& module);

}  // namespace sctrt
