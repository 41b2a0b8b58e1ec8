// The order in which the symbols of a pass are coded, table by table: a stable counting sort by a
// block. Each warp has consecutive symbols, 32 at a time; equal ones among them find one another.
#pragma once

#include "rans/gpu/layout.h"
#include "rans/gpu/spmd.h"

namespace mlic::rans::device {

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

// Loads that a thread issues before it waits for the first.
constexpr uint32_t kAtOnce = 8;
// Ranks of a warp lie in different banks of shared memory, and so do the warps of a rank.
constexpr uint32_t kCountStride = kScaleTables + 1;

// Lists of symbols of one table, in the order of coding. A list's rank is its number there; tables
// are counted from the first of the pass.
struct Lists {
  uint32_t ends[kMaxChannels];    // of each list: the place after its last symbol
  uint16_t tables[kMaxChannels];  // of each rank
  uint16_t ranks[kMaxChannels];   // of each table
  uint32_t runs;                  // lists of run tables, which come first
  uint32_t bad_index;
  Scan scan;
  // Of each warp and rank: symbols, then the place of the first.
  uint32_t counts[kBlockWarps * kCountStride];

  MLIC_DEVICE uint32_t runs_end() const { return runs == 0 ? 0 : ends[runs - 1]; }
  MLIC_DEVICE uint32_t begin_of(uint32_t rank) const { return rank == 0 ? 0 : ends[rank - 1]; }
};

constexpr uint32_t kNone = ~0u;
// Of a symbol: the rank of its table above, and how many of its warp's come before it.
constexpr uint32_t kWithinBits = 26;
static_assert(kScaleTables <= 1u << (32 - kWithinBits), "a rank fits");
static_assert(kMaxSymbols / kBlockWarps < 1u << kWithinBits, "and so do a warp's symbols");

// The consecutive symbols of a warp, whole rows of 32 but for the last.
struct Share {
  uint32_t begin;
  uint32_t end;
};

MLIC_DEVICE Share share_of(uint32_t warp, uint32_t size) {
  const uint32_t own = (size + kBlockThreads - 1) / kBlockThreads * kWarpLanes;
  return {warp * own, lesser((warp + 1) * own, size)};
}

// Ranks of tables, which do not depend on the symbols.
template <class Block>
MLIC_DEVICE void rank_tables(Block& block, Lists& lists, const DeviceTable* tables,
                             const TableRange& range) {
  block.each([&](uint32_t thread) {
    for (uint32_t t = thread; t < range.count; t += kBlockThreads) {
      const uint32_t rank = rank_of(tables[t], range, t);
      lists.tables[rank] = static_cast<uint16_t>(t);
      lists.ranks[t] = static_cast<uint16_t>(rank);
    }
    for (uint32_t i = thread; i < kBlockWarps * kCountStride; i += kBlockThreads) {
      lists.counts[i] = 0;
    }
    if (thread == 0) {
      lists.runs = range.runs;
      lists.bad_index = 0;
    }
  });
}

// Finds the lists of a pass; the ranks of its tables are known. Without indexes the table of a
// symbol is its channel. With indexes, `within` becomes the rank of each symbol and the number of
// symbols of the same table before it in the share of its warp. The lists must not be used if an
// index is bad.
template <class Block>
MLIC_DEVICE void find_lists(Block& block, Lists& lists, const TableRange& range,
                            const PassShape& shape, const uint8_t* indexes, uint32_t* within) {
  using Warp = typename Block::Warp;
  if (indexes == nullptr) {
    block.each([&](uint32_t thread) {
      if (thread < range.count) lists.ends[thread] = (thread + 1) * shape.positions;
    });
    return;
  }
  block.each_warp([&](Warp& warp) {
    const Share share = share_of(warp.index(), shape.size());
    typename Warp::template Lanes<uint32_t> at[kAtOnce], mask, before;
    for (uint32_t i = share.begin; i < share.end; i += kAtOnce * kWarpLanes) {
      warp.each([&](uint32_t lane) {
        const uint8_t* from = indexes + i + lane;
        bool bad = false;
        MLIC_UNROLL
        for (uint32_t row = 0; row < kAtOnce; ++row) {
          at[row][lane] = i + lane + row * kWarpLanes < share.end ? from[row * kWarpLanes] : kNone;
        }
        MLIC_UNROLL
        for (uint32_t row = 0; row < kAtOnce; ++row) {
          const uint32_t table = at[row][lane];
          bad |= (table != kNone) & (table >= range.count);
          at[row][lane] = table < range.count ? lists.ranks[table] : kNone;
        }
        if (bad) atomic_or(lists.bad_index, 1);
      });
      uint32_t* counts = lists.counts + warp.index() * kCountStride;
      MLIC_UNROLL
      for (uint32_t row = 0; row < kAtOnce; ++row) {
        warp.match(at[row], mask);
        warp.each([&](uint32_t lane) {
          const uint32_t rank = at[row][lane];
          before[lane] = rank == kNone ? 0 : counts[rank];
        });
        warp.sync();
        warp.each([&](uint32_t lane) {
          const uint32_t rank = at[row][lane], own = rank_in(mask[lane], lane);
          if (rank == kNone) return;
          uint32_t* to = within + i + lane;
          to[row * kWarpLanes] = rank << kWithinBits | (before[lane] + own);
          if (own == 0) counts[rank] = before[lane] + count_bits(mask[lane]);
        });
        warp.sync();
      }
    }
  });
  // A thread sums up two warps' counts of a rank.
  static_assert(kScaleTables * kBlockWarps == 2 * kBlockThreads, "all of them");
  const auto count = [&](uint32_t thread, uint32_t second) -> uint32_t& {
    const uint32_t warp = 2 * (thread % (kBlockWarps / 2)) + second;
    return lists.counts[warp * kCountStride + thread / (kBlockWarps / 2)];
  };
  block.each(
      [&](uint32_t thread) { lists.scan.values[thread] = count(thread, 0) + count(thread, 1); });
  sum_up(block, lists.scan);
  block.each([&](uint32_t thread) {
    const uint32_t place = lists.scan.before(thread), first = count(thread, 0);
    count(thread, 0) = place;
    count(thread, 1) = place + first;
  });
  block.each([&](uint32_t thread) {
    if (thread >= range.count) return;
    lists.ends[thread] = thread + 1 < kScaleTables ? lists.counts[thread + 1] : lists.scan.total;
  });
}

// Calls use(i, places, rows) for a thread's symbols i, i + 32, .. of a share, some at a time: the
// places of so many rows, and any after them.
template <class Block, class Use>
MLIC_DEVICE void each_place(Block& block, const Lists& lists, const PassShape& shape,
                            const uint8_t* indexes, const uint32_t* within, Use&& use) {
  block.each([&](uint32_t thread) {
    const uint32_t warp = thread / kWarpLanes;
    const Share share = share_of(warp, shape.size());
    const uint32_t* counts = lists.counts + warp * kCountStride;
    for (uint32_t i = share.begin + thread % kWarpLanes; i < share.end; i += kAtOnce * kWarpLanes) {
      uint32_t places[kAtOnce];
      const uint32_t rows = (share.end - i + kWarpLanes - 1) / kWarpLanes;
      const auto symbol = [&](uint32_t row) { return i + (row < rows ? row * kWarpLanes : 0); };
      if (indexes == nullptr) {
        MLIC_UNROLL
        for (uint32_t row = 0; row < kAtOnce; ++row) {
          const uint32_t position = symbol(row) / shape.channels;
          const uint32_t channel = symbol(row) - position * shape.channels;
          places[row] = lists.ranks[channel] * shape.positions + position;
        }
      } else {
        MLIC_UNROLL
        for (uint32_t row = 0; row < kAtOnce; ++row) places[row] = within[symbol(row)];
        MLIC_UNROLL
        for (uint32_t row = 0; row < kAtOnce; ++row) {
          const uint32_t own = places[row] & ((1u << kWithinBits) - 1);
          places[row] = counts[places[row] >> kWithinBits] + own;
        }
      }
      use(i, places, rows);
    }
  });
}

// The places from begin to end - 1 that have a bit in marks, in their order. Returns how many there
// are.
template <class Block>
MLIC_DEVICE uint32_t collect_marked(Block& block, Scan& scan, const uint32_t* marks, uint32_t begin,
                                    uint32_t end, uint32_t* places) {
  const uint32_t words = (end - begin / 32 * 32 + 31) / 32;
  const uint32_t own = (words + kBlockThreads - 1) / kBlockThreads;
  const auto each_word = [&](uint32_t thread, auto&& use) {
    for (uint32_t i = thread * own; i < lesser((thread + 1) * own, words); ++i) {
      const uint32_t first = (begin / 32 + i) * 32;
      uint32_t mask = marks[first / 32];
      if (first < begin) mask &= ~0u << (begin - first);
      use(first, mask);
    }
  };
  block.each([&](uint32_t thread) {
    uint32_t count = 0;
    each_word(thread, [&](uint32_t, uint32_t mask) { count += count_bits(mask); });
    scan.values[thread] = count;
  });
  sum_up(block, scan);
  block.each([&](uint32_t thread) {
    uint32_t next = scan.before(thread);
    each_word(thread, [&](uint32_t first, uint32_t mask) {
      for (; mask != 0; mask &= mask - 1) places[next++] = first + lowest_bit(mask);
    });
  });
  return scan.total;
}

}  // namespace mlic::rans::device
