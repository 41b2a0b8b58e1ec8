// Starts the kernels: natively on a stream, or on the host with emulated threads. On a stream nothing
// is allocated, awaited or read back, so all of this may be captured into a graph.
#pragma once

#include <cstdint>

#include "rans/device/layout.h"

namespace mlic::rans::device {

struct Target {
  int device;    // its number
  void* stream;  // a cudaStream_t
};

struct Launchers {
  void (*begin)(const BeginArgs& args, uint32_t batch, Target target);
  void (*decode)(const DecodeArgs& args, uint32_t batch, Target target);
  void (*finish)(const DecoderState* states, DecodeResult* results, uint32_t batch, Target target);
  void (*encode)(const EncodeArgs& args, const PassList& passes, uint32_t batch, Target target);
};

extern const Launchers kHostLaunchers;  // ignore the target
#ifdef MLIC_FAST_CUDA
extern const Launchers kCudaLaunchers;  // throw std::runtime_error if CUDA reports an error
#endif

}  // namespace mlic::rans::device
