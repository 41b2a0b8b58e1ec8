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

template <bool kStaged>
__global__ void __launch_bounds__(kBlockThreads)
    decode_kernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ uint4 staged[];
  __shared__ DecodeShared shared;
  DeviceBlock block;
  auto* tables = reinterpret_cast<DeviceTable*>(staged);
  auto* bounds = reinterpret_cast<uint32_t*>(tables + args.range.count);
  auto* cells =
      reinterpret_cast<Cell*>(reinterpret_cast<uint8_t*>(staged) + staged_bytes(args.range));
  decode_pass<kStaged>(block, shared, {tables, bounds, kStaged ? cells : nullptr}, args);
}

__global__ void __launch_bounds__(kBlockThreads)
    finish_kernel(const __grid_constant__ FinishArgs args) {
  __shared__ FinishShared shared;
  DeviceBlock block;
  finish(block, shared, args);
}

__global__ void __launch_bounds__(kBlockThreads)
    prepare_kernel(const __grid_constant__ EncodeArgs args,
                   const __grid_constant__ PassList passes) {
  __shared__ PrepareShared shared;
  DeviceBlock block;
  prepare(block, shared, args, passes);
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

void launch_begin(const BeginArgs& args, uint32_t batch, Target target) {
  begin_kernel<<<batch, kBlockThreads, 0, stream_of(target)>>>(args);
  check(cudaGetLastError());
}

void launch_decode(const DecodeArgs& args, uint32_t batch, Target target) {
  const cudaStream_t stream = stream_of(target);
  int available = 0;
  check(cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, target.device));
  // One limit for all passes: another thread may launch between this thread's two calls.
  const int most = available - static_cast<int>(sizeof(DecodeShared));
  const size_t tables = staged_bytes(args.range);
  const size_t all = tables + args.range.cells * sizeof(Cell);
  const bool fits = all <= static_cast<size_t>(most);
  const auto kernel = fits ? decode_kernel<true> : decode_kernel<false>;
  const size_t bytes = fits ? all : tables;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  kernel<<<batch, kBlockThreads, bytes, stream>>>(args);
  check(cudaGetLastError());
}

void launch_finish(const FinishArgs& args, uint32_t batch, Target target) {
  finish_kernel<<<batch, kBlockThreads, 0, stream_of(target)>>>(args);
  check(cudaGetLastError());
}

void launch_encode(const EncodeArgs& args, const PassList& passes, uint32_t batch, Target target) {
  const cudaStream_t stream = stream_of(target);
  if (passes.count > 0) {
    const dim3 blocks(batch, passes.count);
    prepare_kernel<<<blocks, kBlockThreads, 0, stream>>>(args, passes);
    check(cudaGetLastError());
    collect_kernel<<<blocks, kBlockThreads, 0, stream>>>(args, passes);
    check(cudaGetLastError());
  }
  write_kernel<<<batch, kBlockThreads, 0, stream>>>(args, passes);
  check(cudaGetLastError());
}

}  // namespace

const Launchers kCudaLaunchers = {launch_begin, launch_decode, launch_finish, launch_encode};

}  // namespace mlic::rans::device
