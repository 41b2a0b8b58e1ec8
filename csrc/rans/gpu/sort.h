// The order in which the symbols of a pass are coded, table by table: a stable counting sort by a
// block, or by the blocks of a cluster with a part of the symbols each. Each warp has consecutive
// symbols, 32 at a time; equal ones among them find one another.
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
  uint16_t ranks[kMaxChannels];   // of each table; kNoRank for indexes without one
  uint32_t runs;                  // lists of run tables, which come first
  uint32_t bad_index;
  Scan scan;
  // Of each warp and rank: symbols, then the place of the first.
  uint32_t counts[kBlockWarps * kCountStride];
  // Of the block's own part of the symbols: how many have a lower rank, and how much higher their
  // places are among the symbols of all blocks.
  uint32_t begins[kScaleTables + 1];
  uint32_t offsets[kScaleTables];

  MLIC_DEVICE uint32_t runs_end() const { return runs == 0 ? 0 : ends[runs - 1]; }
  MLIC_DEVICE uint32_t begin_of(uint32_t rank) const { return rank == 0 ? 0 : ends[rank - 1]; }
};

constexpr uint32_t kNone = ~0u;
// Symbols without a table are counted beside the others.
constexpr uint16_t kNoRank = kScaleTables;
static_assert(kNoRank < kCountStride, "there is room");
constexpr uint8_t kNoTable = 0xff;
static_assert(kScaleTables <= kNoTable, "an index of a byte that has no table");
// Of a symbol: the rank of its table above, and how many of its warp's come before it.
constexpr uint32_t kWithinBits = 26;
static_assert(kScaleTables <= 1u << (32 - kWithinBits), "a rank fits");
static_assert(kMaxSymbols / kBlockWarps < 1u << kWithinBits, "and so do a warp's symbols");

// Consecutive symbols.
struct Share {
  uint32_t begin;
  uint32_t end;

  MLIC_DEVICE uint32_t size() const { return end - begin; }
};

// The symbols of a pass in so many equal parts: whole rows of all threads, but for the last.
MLIC_HD uint32_t part_size(uint32_t parts, uint32_t size) {
  return (size + parts * kBlockThreads - 1) / (parts * kBlockThreads) * kBlockThreads;
}

MLIC_DEVICE Share part_of(uint32_t number, uint32_t parts, uint32_t size) {
  const uint32_t own = part_size(parts, size);
  return {lesser(number * own, size), lesser((number + 1) * own, size)};
}

// What a warp has of a part: whole rows of 32 but for the last.
MLIC_DEVICE Share share_of(uint32_t warp, Share part) {
  const uint32_t own = (part.size() + kBlockThreads - 1) / kBlockThreads * kWarpLanes;
  return {part.begin + warp * own, lesser(part.begin + (warp + 1) * own, part.end)};
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
    if (thread >= range.count && thread <= kNoTable) lists.ranks[thread] = kNoRank;
    for (uint32_t i = thread; i < kBlockWarps * kCountStride; i += kBlockThreads) {
      lists.counts[i] = 0;
    }
    if (thread == 0) {
      lists.runs = range.runs;
      lists.bad_index = 0;
    }
  });
}

// A thread sums up two warps' counts of a rank.
static_assert(kScaleTables * kBlockWarps == 2 * kBlockThreads, "all of them");
constexpr uint32_t kThreadsOfRank = kBlockThreads / kScaleTables;

MLIC_DEVICE uint32_t& count_of(Lists& lists, uint32_t thread, uint32_t second) {
  const uint32_t warp = 2 * (thread % kThreadsOfRank) + second;
  return lists.counts[warp * kCountStride + thread / kThreadsOfRank];
}

// Counts a part of the symbols by table; the ranks of the tables are known. `within` becomes, of
// each symbol of the part, its rank and the number of symbols of the same table before it in the
// share of its warp.
template <class Block>
MLIC_DEVICE void count_symbols(Block& block, Lists& lists, Share part, const uint8_t* indexes,
                               uint32_t* within) {
  using Warp = typename Block::Warp;
  block.each_warp([&](Warp& warp) {
    const Share share = share_of(warp.index(), part);
    uint32_t* counts = lists.counts + warp.index() * kCountStride;
    typename Warp::template Lanes<uint32_t> at[kAtOnce], mask, before;
    for (uint32_t i = share.begin; i < share.end; i += kAtOnce * kWarpLanes) {
      warp.each([&](uint32_t lane) {
        const uint8_t* from = indexes + i + lane;
        MLIC_UNROLL
        for (uint32_t row = 0; row < kAtOnce; ++row) {
          const bool is_own = i + lane + row * kWarpLanes < share.end;
          at[row][lane] = is_own ? from[row * kWarpLanes] : kNoTable;
        }
        MLIC_UNROLL
        for (uint32_t row = 0; row < kAtOnce; ++row) at[row][lane] = lists.ranks[at[row][lane]];
      });
      MLIC_UNROLL
      for (uint32_t row = 0; row < kAtOnce; ++row) {
        if (i + row * kWarpLanes >= share.end) break;
        warp.match(at[row], mask);
        warp.each([&](uint32_t lane) { before[lane] = counts[at[row][lane]]; });
        warp.sync();
        warp.each([&](uint32_t lane) {
          const uint32_t rank = at[row][lane], own = rank_in(mask[lane], lane);
          const uint32_t packed = rank << kWithinBits | (before[lane] + own);
          if (rank != kNoRank) within[i - part.begin + lane + row * kWarpLanes] = packed;
          if (own == 0) counts[rank] = before[lane] + count_bits(mask[lane]);
        });
        warp.sync();
      }
    }
  });
  block.each([&](uint32_t thread) {
    lists.scan.values[thread] = count_of(lists, thread, 0) + count_of(lists, thread, 1);
  });
  sum_up(block, lists.scan);
  block.each([&](uint32_t thread) {
    const uint32_t place = lists.scan.before(thread);
    if (thread % kThreadsOfRank == 0) lists.begins[thread / kThreadsOfRank] = place;
    if (thread == 0) lists.begins[kScaleTables] = lists.scan.total;
  });
}

// The places of the own symbols among those of all blocks, from what each of them has counted: the
// lists of the block with number i are of(i). In the first block also the lists of all; they must
// not be used if an index is bad.
template <class Block, class Of>
MLIC_DEVICE void join_lists(Block& block, Lists& lists, uint32_t own, uint32_t blocks,
                            uint32_t size, Of&& of) {
  block.each([&](uint32_t thread) {
    if (thread > kScaleTables) return;
    // Of the other blocks: lower ranks, and the same rank in blocks before.
    uint32_t counted[kMaxBlocks];
    MLIC_UNROLL
    for (uint32_t i = 0; i < kMaxBlocks; ++i) {
      const uint32_t rank = lesser(thread + (i < own ? 1 : 0), kScaleTables);
      counted[i] = of(lesser(i, blocks - 1)).begins[rank];
    }
    uint32_t offset = 0;
    MLIC_UNROLL
    for (uint32_t i = 0; i < kMaxBlocks; ++i) {
      offset += both(i < blocks, i != own) ? counted[i] : 0;
    }
    if (thread < kScaleTables) lists.offsets[thread] = offset;
    if (own != 0) return;
    const uint32_t begin = offset + lists.begins[thread];
    if (thread > 0) lists.ends[thread - 1] = begin;
    // Symbols without a table were not counted.
    if (thread == kScaleTables) lists.bad_index = begin != size;
  });
  block.each([&](uint32_t thread) {
    const uint32_t place = lists.scan.before(thread) + lists.offsets[thread / kThreadsOfRank];
    const uint32_t first = count_of(lists, thread, 0);
    count_of(lists, thread, 0) = place;
    count_of(lists, thread, 1) = place + first;
  });
}

// The lists of a pass in which the table of a symbol is its channel.
template <class Block>
MLIC_DEVICE void list_channels(Block& block, Lists& lists, const PassShape& shape) {
  block.each([&](uint32_t thread) {
    if (thread < shape.channels) lists.ends[thread] = (thread + 1) * shape.positions;
  });
}

// All of it by one block. Without indexes the table of a symbol is its channel.
template <class Block>
MLIC_DEVICE void find_lists(Block& block, Lists& lists, const PassShape& shape,
                            const uint8_t* indexes, uint32_t* within) {
  if (indexes == nullptr) {
    list_channels(block, lists, shape);
    return;
  }
  count_symbols(block, lists, {0, shape.size()}, indexes, within);
  join_lists(block, lists, 0, 1, shape.size(), [&](uint32_t) -> const Lists& { return lists; });
}

// Calls use(i, places, rows) for a thread's symbols i, i + 32, .. of its share of a part, kRows at
// a time: the places of so many rows.
template <uint32_t kRows = kAtOnce, class Block, class Use>
MLIC_DEVICE void each_place(Block& block, const Lists& lists, const PassShape& shape, Share part,
                            const uint8_t* indexes, const uint32_t* within, Use&& use) {
  block.each([&](uint32_t thread) {
    const uint32_t warp = thread / kWarpLanes;
    const Share share = share_of(warp, part);
    const uint32_t* counts = lists.counts + warp * kCountStride;
    for (uint32_t i = share.begin + thread % kWarpLanes; i < share.end; i += kRows * kWarpLanes) {
      uint32_t places[kRows];
      const uint32_t rows = (share.end - i + kWarpLanes - 1) / kWarpLanes;
      if (indexes == nullptr) {
        MLIC_UNROLL
        for (uint32_t row = 0; row < kRows; ++row) {
          if (row == rows) break;
          const uint32_t symbol = i + row * kWarpLanes;
          const uint32_t position = symbol / shape.channels;
          const uint32_t channel = symbol - position * shape.channels;
          places[row] = lists.ranks[channel] * shape.positions + position;
        }
      } else {
        const uint32_t* from = within + (i - part.begin);
        MLIC_UNROLL
        for (uint32_t row = 0; row < kRows; ++row) {
          if (row == rows) break;
          places[row] = from[row * kWarpLanes];
        }
        MLIC_UNROLL
        for (uint32_t row = 0; row < kRows; ++row) {
          if (row == rows) break;
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
