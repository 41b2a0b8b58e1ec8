// The machine that the kernels of the range coder are written for: a block of 32 warps of 32 lanes,
// and a cluster of up to eight blocks. On the device a thread is one lane; on the host the same
// source runs with loops in place of threads.
//
// Code is a sequence of phases, `block.each(f)` for every thread or `block.each_warp(f)` for every
// warp, and a phase ends in a barrier. Variables of one lane or thread that outlive a call are
// Lanes<T> or Threads<T>: a register on the device, an array on the host. Everything else outside
// of the calls is uniform: the same value for all, computed by all. So what one thread tells
// another goes through a ballot, a sum, or memory written in an earlier phase (or before `sync`),
// and nothing else can be written down. The host runs odd phases backwards, so that code that
// depends on the order of threads gives wrong results.
//
// The blocks of a cluster go through phases in the same way: `cluster.each(f)` for every block.
// What one block tells another lies in global memory or in the shared memory of one of them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef __CUDACC__
#include <cooperative_groups.h>
#endif

#include "rans/core.h"

#ifdef __CUDACC__
#define MLIC_DEVICE __device__ __forceinline__
// What is seldom needed: inside of its caller it would take registers from what is not.
#define MLIC_CALLED __device__ __noinline__
#define MLIC_UNROLL _Pragma("unroll")
#define MLIC_NO_UNROLL _Pragma("unroll 1")
#else
#define MLIC_DEVICE inline
#define MLIC_CALLED inline
#define MLIC_UNROLL
#define MLIC_NO_UNROLL
#endif

namespace mlic::rans::device {

constexpr uint32_t kWarpLanes = 32;
constexpr uint32_t kBlockWarps = 32;
constexpr uint32_t kBlockThreads = kWarpLanes * kBlockWarps;

MLIC_HD uint32_t count_bits(uint32_t mask) {
#ifdef __CUDA_ARCH__
  return static_cast<uint32_t>(__popc(static_cast<int>(mask)));
#else
  return static_cast<uint32_t>(__builtin_popcount(mask));
#endif
}

// Without the branch that && and || stand for.
MLIC_HD bool both(bool a, bool b) { return a & b; }
MLIC_HD bool either(bool a, bool b) { return a | b; }

MLIC_HD uint32_t lesser(uint32_t a, uint32_t b) { return a < b ? a : b; }

// Number of the lowest set bit of a mask that is not zero.
MLIC_HD uint32_t lowest_bit(uint32_t mask) { return count_bits((mask & (0u - mask)) - 1); }

MLIC_HD bool has_bit(uint32_t mask, uint32_t lane) { return (mask >> lane & 1) != 0; }

// How many set bits are below the lane's.
MLIC_HD uint32_t rank_in(uint32_t mask, uint32_t lane) {
  return count_bits(mask & ((1u << lane) - 1));
}

#ifdef __CUDACC__

class DeviceWarp {
 public:
  template <class T>
  class Lanes {
   public:
    __device__ T& operator[](uint32_t) { return value_; }

   private:
    T value_;
  };

  __device__ uint32_t index() const { return threadIdx.x / kWarpLanes; }

  template <class F>
  __device__ void each(F&& f) {
    f(lane());
  }

  template <class F>
  __device__ uint32_t ballot(F&& f) {
    return __ballot_sync(~0u, f(lane()));
  }

  __device__ uint32_t broadcast(Lanes<uint32_t>& values, uint32_t from) {
    return __shfl_sync(~0u, values[0], static_cast<int>(from));
  }

  // out: the value of lane f(lane).
  template <class F>
  __device__ void gather(Lanes<uint32_t>& values, F&& f, Lanes<uint32_t>& out) {
    out[0] = __shfl_sync(~0u, values[0], static_cast<int>(f(lane())));
  }

  // masks: the lanes whose value is the lane's own.
  __device__ void match(Lanes<uint32_t>& values, Lanes<uint32_t>& masks) {
    masks[0] = __match_any_sync(~0u, values[0]);
  }

  __device__ uint32_t greatest(Lanes<uint32_t>& values) {
    return __reduce_max_sync(~0u, values[0]);
  }

  // After this, all lanes see what lanes wrote to memory before.
  __device__ void sync() { __syncwarp(); }

  // Replaces each value by the sum of those of the lanes before; returns the sum of all.
  __device__ uint32_t exclusive_sum(Lanes<uint32_t>& values) {
    const uint32_t own = values[0];
    uint32_t sum = own;
    for (uint32_t distance = 1; distance < kWarpLanes; distance *= 2) {
      const uint32_t before = __shfl_up_sync(~0u, sum, distance);
      if (lane() >= distance) sum += before;
    }
    values[0] = sum - own;
    return __shfl_sync(~0u, sum, kWarpLanes - 1);
  }

 private:
  __device__ static uint32_t lane() { return threadIdx.x % kWarpLanes; }
};

class DeviceBlock {
 public:
  using Warp = DeviceWarp;
  template <class T>
  using Threads = DeviceWarp::Lanes<T>;

  // Until all that was launched before has ended; then the next launch may begin.
  __device__ void await_launch_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
  }

  __device__ uint32_t column() const { return blockIdx.x; }
  __device__ uint32_t row() const { return blockIdx.y; }

  template <class F>
  __device__ void each(F&& f) {
    f(threadIdx.x);
    __syncthreads();
  }

  template <class F>
  __device__ void each_warp(F&& f) {
    DeviceWarp warp;
    f(warp);
    __syncthreads();
  }
};

// The blocks of a column. Memory is what a block has, with a reference `shared` to what it shares.
template <class Memory>
class DeviceCluster {
 public:
  using Block = DeviceBlock;

  __device__ explicit DeviceCluster(const Memory& memory) : memory_(memory) {}

  __device__ uint32_t column() const { return blockIdx.x; }
  __device__ uint32_t blocks() const {
#if __CUDA_ARCH__ >= 900
    return gridDim.y;
#else
    return 1;
#endif
  }

  template <class F>
  __device__ void each(F&& f) {
    f(block_, memory_);
#if __CUDA_ARCH__ >= 900
    if (blocks() > 1) cooperative_groups::this_cluster().sync();
#endif
  }

  // Without a barrier: nothing that another block shares may be used.
  template <class F>
  __device__ void each_at_last(F&& f) {
    f(block_, memory_);
  }

  // What the block of a row shares.
  __device__ auto& shared_of(uint32_t row) {
#if __CUDA_ARCH__ >= 900
    return *cooperative_groups::this_cluster().map_shared_rank(&memory_.shared, row);
#else
    return memory_.shared;
#endif
  }

 private:
  DeviceBlock block_;
  Memory memory_;
};

#else

class HostWarp {
 public:
  template <class T>
  using Lanes = std::array<T, kWarpLanes>;

  HostWarp(uint32_t index, bool backwards) : index_(index), backwards_(backwards) {}

  uint32_t index() const { return index_; }

  template <class F>
  void each(F&& f) {
    for (uint32_t i = 0; i < kWarpLanes; ++i) f(backwards_ ? kWarpLanes - 1 - i : i);
  }

  template <class F>
  uint32_t ballot(F&& f) {
    uint32_t mask = 0;
    each([&](uint32_t lane) { mask |= static_cast<uint32_t>(static_cast<bool>(f(lane))) << lane; });
    return mask;
  }

  uint32_t broadcast(Lanes<uint32_t>& values, uint32_t from) { return values[from]; }

  template <class F>
  void gather(Lanes<uint32_t>& values, F&& f, Lanes<uint32_t>& out) {
    each([&](uint32_t lane) { out[lane] = values[f(lane) % kWarpLanes]; });
  }

  void match(Lanes<uint32_t>& values, Lanes<uint32_t>& masks) {
    each([&](uint32_t lane) {
      masks[lane] = ballot([&](uint32_t other) { return values[other] == values[lane]; });
    });
  }

  uint32_t greatest(Lanes<uint32_t>& values) {
    return *std::max_element(values.begin(), values.end());
  }

  void sync() {}

  uint32_t exclusive_sum(Lanes<uint32_t>& values) {
    uint32_t sum = 0;
    for (uint32_t& value : values) {
      const uint32_t own = value;
      value = sum;
      sum += own;
    }
    return sum;
  }

 private:
  uint32_t index_;
  bool backwards_;
};

class HostBlock {
 public:
  using Warp = HostWarp;
  template <class T>
  using Threads = std::array<T, kBlockThreads>;

  HostBlock(uint32_t column, uint32_t row) : column_(column), row_(row) {}

  void await_launch_before() {}

  uint32_t column() const { return column_; }
  uint32_t row() const { return row_; }

  template <class F>
  void each(F&& f) {
    const bool backwards = next_order();
    for (uint32_t i = 0; i < kBlockThreads; ++i) f(backwards ? kBlockThreads - 1 - i : i);
  }

  template <class F>
  void each_warp(F&& f) {
    const bool backwards = next_order();
    for (uint32_t i = 0; i < kBlockWarps; ++i) {
      HostWarp warp(backwards ? kBlockWarps - 1 - i : i, backwards);
      f(warp);
    }
  }

 private:
  bool next_order() { return phase_++ % 2 != 0; }

  uint32_t column_, row_;
  uint32_t phase_ = 0;
};

// Odd phases go from the last block to the first, in odd columns even phases.
template <class Memory>
class HostCluster {
 public:
  using Block = HostBlock;

  // The memory of each block.
  HostCluster(uint32_t column, std::vector<Memory>& memories)
      : column_(column), memories_(memories), phase_(column) {
    for (uint32_t row = 0; row < blocks(); ++row) blocks_.emplace_back(column, row);
  }

  uint32_t column() const { return column_; }
  uint32_t blocks() const { return static_cast<uint32_t>(memories_.size()); }

  template <class F>
  void each(F&& f) {
    const bool backwards = phase_++ % 2 != 0;
    for (uint32_t i = 0; i < blocks(); ++i) {
      const uint32_t row = backwards ? blocks() - 1 - i : i;
      f(blocks_[row], memories_[row]);
    }
  }

  template <class F>
  void each_at_last(F&& f) {
    each(f);
  }

  auto& shared_of(uint32_t row) { return memories_[row].shared; }

 private:
  uint32_t column_;
  std::vector<Memory>& memories_;
  std::vector<HostBlock> blocks_;
  uint32_t phase_;
};

#endif

// One load of 8 or 16 bytes, where the compiler might make one for each member.
template <class T>
MLIC_HD T load_whole(const T* source) {
#ifdef __CUDA_ARCH__
  static_assert(sizeof(T) == 8 || sizeof(T) == 16, "the sizes of vector loads");
  using Vector = std::conditional_t<sizeof(T) == 8, uint2, uint4>;
  const Vector vector = *reinterpret_cast<const Vector*>(source);
  T value;
  memcpy(&value, &vector, sizeof(T));
  return value;
#else
  return *source;
#endif
}

// Whether registers are left for what could be found anew in every step: before 9.0 they are not.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kHasRegisters = true;
#else
constexpr bool kHasRegisters = false;
#endif

// A number to be held in a register, if there is one: the compiler would rather find it anew.
MLIC_DEVICE uint32_t hold(uint32_t value) {
#ifdef __CUDA_ARCH__
  if (kHasRegisters) asm volatile("" : "+r"(value));
#endif
  return value;
}

// An address in shared memory, to be held in a register: the compiler would rather find it anew in
// every step.
template <class T>
MLIC_DEVICE T* hold_shared(T* address) {
#ifdef __CUDA_ARCH__
  auto offset = static_cast<uint32_t>(__cvta_generic_to_shared(address));
  asm volatile("" : "+r"(offset));
  return static_cast<T*>(__cvta_shared_to_generic(offset));
#else
  return address;
#endif
}

// ---- Atomic operations on shared memory ----

MLIC_HD uint32_t atomic_add(uint32_t& target, uint32_t value) {
#ifdef __CUDA_ARCH__
  return atomicAdd(&target, value);
#else
  const uint32_t before = target;
  target += value;
  return before;
#endif
}

MLIC_HD void atomic_add(uint64_t& target, uint64_t value) {
#ifdef __CUDA_ARCH__
  atomicAdd(reinterpret_cast<unsigned long long*>(&target), value);
#else
  target += value;
#endif
}

MLIC_HD void atomic_or(uint32_t& target, uint32_t value) {
#ifdef __CUDA_ARCH__
  atomicOr(&target, value);
#else
  target |= value;
#endif
}

MLIC_HD void atomic_min(uint64_t& target, uint64_t value) {
#ifdef __CUDA_ARCH__
  atomicMin(reinterpret_cast<unsigned long long*>(&target), value);
#else
  if (value < target) target = value;
#endif
}

}  // namespace mlic::rans::device
