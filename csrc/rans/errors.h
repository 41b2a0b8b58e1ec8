#pragma once

#include <stdexcept>

namespace mlic::rans {

// The bytes are not what an encoder wrote. Becomes mlic_fast.errors.CorruptStreamError in Python.
struct CorruptStream : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// encode or decode after finish. Becomes ValueError in Python.
struct UsedAfterFinish : std::logic_error {
  using std::logic_error::logic_error;
};

}  // namespace mlic::rans
