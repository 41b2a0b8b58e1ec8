// Starts the kernels: natively on a stream, or on the host with emulated threads. On a stream
// nothing is allocated, awaited or read back, so all of this may be captured into a graph.
#pragma once

#include <cstdint>

#include "rans/gpu/layout.h"

namespace mlic::rans::device {

struct Target {
  int device;    // its number
  void* stream;  // a cudaStream_t
};

struct Launchers {
  void (*begin)(const BeginArgs& args, uint32_t batch, Target target);
  void (*decode)(const DecodeArgs& args, uint32_t batch, Target target);
  void (*finish)(const FinishArgs& args, uint32_t batch, Target target);
  // As soon as the symbols of a pass, by its number, are there.
  void (*prepare)(const EncodeArgs& args, const EncodePass& pass, uint32_t number, uint32_t batch,
                  Target target);
  // After all of them.
  void (*encode)(const EncodeArgs& args, const PassList& passes, uint32_t batch, Target target);
};

extern const Launchers kHostLaunchers;  // ignore the target
extern const Launchers
    kCudaLaunchers;  // in builds with CUDA; throw std::runtime_error on its errors

}  // namespace mlic::rans::device
