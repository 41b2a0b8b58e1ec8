// The kernels on the device.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "rans/gpu/decode.h"
#include "rans/gpu/encode.h"
#include "rans/gpu/launch.h"

namespace mlic::rans::device {
namespace {

// With one block a multiprocessor, the compiler uses the registers that it needs.
__global__ void __launch_bounds__(kBlockThreads, 1)
    begin_kernel(const __grid_constant__ BeginArgs args) {
  __shared__ BeginShared shared;
  DeviceBlock block;
  begin(block, shared, args);
}

// Dynamic shared memory: lists, bounds, cells if they are staged, then bytes if there is room.
template <bool kStaged>
__global__ void __launch_bounds__(kBlockThreads)
    decode_kernel(const __grid_constant__ DecodeArgs args, bool has_bytes) {
  extern __shared__ uint4 staged[];
  __shared__ DecodeShared shared;
  DeviceBlock block;
  auto* lists = reinterpret_cast<StagedList*>(staged);
  auto* bounds = reinterpret_cast<uint32_t*>(lists + args.range.count);
  auto* cells = reinterpret_cast<uint8_t*>(staged) + staged_bytes(args.range);
  auto* bytes = reinterpret_cast<int8_t*>(cells + (kStaged ? cell_bytes(args.range) : 0));
  decode_pass<kStaged>(block, shared,
                       {lists, bounds, kStaged ? reinterpret_cast<Cell*>(cells) : nullptr,
                        has_bytes ? bytes : nullptr},
                       args);
}

__global__ void __launch_bounds__(kBlockThreads)
    finish_kernel(const __grid_constant__ FinishArgs args) {
  __shared__ FinishShared shared;
  DeviceBlock block;
  finish(block, shared, args);
}

__global__ void __launch_bounds__(kBlockThreads)
    prepare_kernel(const __grid_constant__ EncodeArgs args, const __grid_constant__ EncodePass pass,
                   uint32_t number) {
  __shared__ PrepareShared shared;
  DeviceBlock block;
  prepare(block, shared, args, pass, number);
}

__global__ void __launch_bounds__(kBlockThreads)
    collect_kernel(const __grid_constant__ EncodeArgs args,
                   const __grid_constant__ PassList passes) {
  __shared__ CollectShared shared;
  DeviceBlock block;
  collect(block, shared, args, passes);
}

__global__ void __launch_bounds__(kBlockThreads)
    write_kernel(const __grid_constant__ EncodeArgs args, const __grid_constant__ PassList passes) {
  __shared__ WriteShared shared;
  DeviceBlock block;
  write(block, shared, args, passes);
}

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }
}

cudaStream_t stream_of(Target target) {
  check(cudaSetDevice(target.device));
  return static_cast<cudaStream_t>(target.stream);
}

int attribute(cudaDeviceAttr name, Target target) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, target.device));
  return value;
}

// From compute capability 9 on, the launch begins before the one before it has ended, as those of
// Triton's kernels do.
template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), dim3 blocks, size_t shared_bytes, Target target,
            Args... args) {
  cudaLaunchAttribute programmatic{};
  programmatic.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  programmatic.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.stream = stream_of(target);
  config.gridDim = blocks;
  config.blockDim = dim3(kBlockThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &programmatic;
  config.numAttrs = attribute(cudaDevAttrComputeCapabilityMajor, target) >= 9 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...));
}

void launch_begin(const BeginArgs& args, uint32_t batch, Target target) {
  launch(begin_kernel, batch, 0, target, args);
}

void launch_decode(const DecodeArgs& args, uint32_t batch, Target target) {
  check(cudaSetDevice(target.device));
  // One limit for all passes: another thread may launch between this thread's two calls.
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, target) -
                   static_cast<int>(sizeof(DecodeShared));
  size_t bytes = staged_bytes(args.range);
  const auto add_if_it_fits = [&](size_t more) {
    const bool fits = bytes + more <= static_cast<size_t>(most);
    if (fits) bytes += more;
    return fits;
  };
  const bool has_cells = add_if_it_fits(cell_bytes(args.range));
  const bool has_bytes = add_if_it_fits(value_bytes(args.shape.size()));
  const auto kernel = has_cells ? decode_kernel<true> : decode_kernel<false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  launch(kernel, batch, bytes, target, args, has_bytes);
}

void launch_finish(const FinishArgs& args, uint32_t batch, Target target) {
  launch(finish_kernel, batch, 0, target, args);
}

void launch_prepare(const EncodeArgs& args, const EncodePass& pass, uint32_t number, uint32_t batch,
                    Target target) {
  launch(prepare_kernel, batch, 0, target, args, pass, number);
}

void launch_encode(const EncodeArgs& args, const PassList& passes, uint32_t batch, Target target) {
  if (passes.count > 0) {
    launch(collect_kernel, dim3(batch, passes.count), 0, target, args, passes);
  }
  launch(write_kernel, batch, 0, target, args, passes);
}

}  // namespace

const Launchers kCudaLaunchers = {launch_begin, launch_decode, launch_finish, launch_prepare,
                                  launch_encode};

}  // namespace mlic::rans::device
