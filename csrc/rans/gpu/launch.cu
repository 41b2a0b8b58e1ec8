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

// Dynamic shared memory: lists, bounds, cells if they are staged, ranks and `within` if there is
// room.
template <bool kStaged>
__global__ void __launch_bounds__(kBlockThreads)
    decode_kernel(const __grid_constant__ DecodeArgs args, bool has_ranks, bool has_within) {
  extern __shared__ uint4 staged[];
  __shared__ DecodeShared shared;
  auto* lists = reinterpret_cast<StagedList*>(staged);
  auto* bounds = reinterpret_cast<uint32_t*>(lists + args.range.count);
  auto* cells = reinterpret_cast<uint8_t*>(staged) + staged_bytes(args.range);
  auto* ranks = cells + (kStaged ? cell_bytes(args.range) : 0);
  auto* within =
      reinterpret_cast<uint32_t*>(ranks + (has_ranks ? place_bytes(args.shape.size()) : 0));
  DeviceCluster<DecodeMemory> cluster(
      {shared,
       {lists, bounds, kStaged ? reinterpret_cast<Cell*>(cells) : nullptr,
        has_ranks ? ranks : nullptr, has_within ? within : nullptr}});
  decode_pass<kStaged>(cluster, args);
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

int compute_capability(Target target) {
  return attribute(cudaDevAttrComputeCapabilityMajor, target);
}

// A launch of so many columns of clusters. From compute capability 9 on, it begins before the one
// before it has ended, as those of Triton's kernels do.
class Launch {
 public:
  Launch(dim3 grid, uint32_t cluster, size_t shared_bytes, Target target) {
    attributes_[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes_[0].val.programmaticStreamSerializationAllowed = 1;
    attributes_[1].id = cudaLaunchAttributeClusterDimension;
    attributes_[1].val.clusterDim = {1, cluster, 1};
    config_.stream = stream_of(target);
    config_.gridDim = grid;
    config_.blockDim = dim3(kBlockThreads);
    config_.dynamicSmemBytes = shared_bytes;
    config_.attrs = attributes_;
    config_.numAttrs = compute_capability(target) < 9 ? 0 : cluster > 1 ? 2 : 1;
  }

  // How many such clusters the device has room for.
  template <class Kernel>
  uint32_t most_clusters(Kernel* kernel) const {
    int count = 0;
    check(cudaOccupancyMaxActiveClusters(&count, kernel, &config_));
    return static_cast<uint32_t>(count);
  }

  template <class... Parameters, class... Args>
  void operator()(void (*kernel)(Parameters...), Args... args) const {
    check(cudaLaunchKernelEx(&config_, kernel, static_cast<Parameters>(args)...));
  }

 private:
  cudaLaunchAttribute attributes_[2] = {};
  cudaLaunchConfig_t config_{};
};

template <class Kernel, class... Args>
void launch(Kernel* kernel, dim3 blocks, size_t shared_bytes, Target target, Args... args) {
  Launch(blocks, 1, shared_bytes, target)(kernel, args...);
}

void launch_begin(const BeginArgs& args, uint32_t batch, Target target) {
  launch(begin_kernel, batch, 0, target, args);
}

// With so many blocks an image, or with fewer if so many cannot run at once for all images.
void launch_decode(const DecodeArgs& args, uint32_t batch, uint32_t blocks, Target target) {
  // One limit for all passes: another thread may launch between this thread's two calls.
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, target) -
                   static_cast<int>(sizeof(DecodeShared));
  const uint32_t size = args.shape.size();
  size_t bytes = staged_bytes(args.range);
  const auto add_if_it_fits = [&](size_t more) {
    const bool fits = bytes + more <= static_cast<size_t>(most);
    if (fits) bytes += more;
    return fits;
  };
  const bool has_cells = add_if_it_fits(cell_bytes(args.range));
  const bool has_ranks = add_if_it_fits(place_bytes(size));
  const bool has_within = add_if_it_fits(part_size(blocks, size) * sizeof(uint32_t));
  const auto kernel = has_cells ? decode_kernel<true> : decode_kernel<false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  const Launch launch(dim3(batch, blocks), blocks, bytes, target);
  const uint32_t at_once = args.blocks == 0 ? batch : 1;
  if (blocks > 1 && launch.most_clusters(kernel) < at_once) {
    launch_decode(args, batch, blocks / 2, target);
  } else {
    launch(kernel, args, has_ranks, has_within);
  }
}

void launch_decode(const DecodeArgs& args, uint32_t batch, Target target) {
  check(cudaSetDevice(target.device));
  const bool has_clusters = compute_capability(target) >= 9;
  const uint32_t wanted = args.blocks != 0 ? args.blocks : blocks_of(args.shape.size());
  launch_decode(args, batch, has_clusters ? wanted : 1, target);
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
