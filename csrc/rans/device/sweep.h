// From the layout of a pass in memory to the order of its symbols in the stream. Memory has
// channels last, the stream has them first, so each thread walks some positions of one channel:
// neighbours read neighbouring bytes, and a sum over the counts of all threads says where in the
// stream the symbols of each begin.
#pragma once

#include "rans/device/layout.h"
#include "rans/device/spmd.h"

namespace mlic::rans::device {

// A thread's share of a pass: positions begin .. end - 1 of a channel. In the stream, the shares
// follow one another in the order of their slots.
struct Share {
  uint32_t channel;
  uint32_t begin;
  uint32_t end;
  uint32_t slot;
};

// The shape is not empty.
MLIC_DEVICE Share share_of(const PassShape& shape, uint32_t thread) {
  const uint32_t chunks = kBlockThreads / shape.channels;
  const uint32_t rows = (shape.positions + chunks - 1) / chunks;
  const uint32_t chunk = thread / shape.channels;
  const uint32_t channel = thread % shape.channels;
  if (chunk >= chunks) return {0, 0, 0, thread};
  const uint32_t begin = lesser(chunk * rows, shape.positions);
  const uint32_t end = lesser(begin + rows, shape.positions);
  return {channel, begin, end, channel * chunks + chunk};
}

// Sums over the slots before.
struct Scan {
  uint32_t values[kBlockThreads];
  uint32_t totals[kBlockWarps];
  uint32_t total;

  MLIC_DEVICE uint32_t before(uint32_t slot) const {
    return values[slot] + totals[slot / kWarpLanes];
  }
};

// From the slots' own numbers in scan.values.
template <class Block>
MLIC_DEVICE void sum_up(Block& block, Scan& scan) {
  using Warp = typename Block::Warp;
  const auto replace = [](Warp& warp, uint32_t* values) {
    typename Warp::template Lanes<uint32_t> sums;
    warp.each([&](uint32_t lane) { sums[lane] = values[lane]; });
    const uint32_t total = warp.exclusive_sum(sums);
    warp.each([&](uint32_t lane) { values[lane] = sums[lane]; });
    return total;
  };
  block.each_warp([&](Warp& warp) {
    const uint32_t total = replace(warp, scan.values + warp.index() * kWarpLanes);
    warp.each([&](uint32_t lane) {
      if (lane == 0) scan.totals[warp.index()] = total;
    });
  });
  block.each_warp([&](Warp& warp) {
    if (warp.index() != 0) return;
    const uint32_t total = replace(warp, scan.totals);
    warp.each([&](uint32_t lane) {
      if (lane == 0) scan.total = total;
    });
  });
}

}  // namespace mlic::rans::device
