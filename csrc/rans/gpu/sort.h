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

// Lists of symbols of one table, in the order of coding. A list's rank is its number there; tables
// are counted from the first of the pass.
struct Lists {
  uint32_t ends[kMaxChannels];    // of each list: the place after its last symbol
  uint16_t tables[kMaxChannels];  // of each rank
  uint16_t ranks[kMaxChannels];   // of each table
  uint32_t runs;                  // lists of run tables, which come first
  uint32_t bad_index;
  Scan scan;
  // Of each rank and warp: symbols, then the next place.
  uint32_t counts[kScaleTables * kBlockWarps];

  MLIC_DEVICE uint32_t runs_end() const { return runs == 0 ? 0 : ends[runs - 1]; }
  MLIC_DEVICE uint32_t begin_of(uint32_t rank) const { return rank == 0 ? 0 : ends[rank - 1]; }
};

static_assert(kScaleTables * kBlockWarps == 2 * kBlockThreads, "a thread sums two counts");
constexpr uint32_t kNoTable = ~0u;

// Calls use(i, table, mask of the lanes with an equal table) for 32 symbols of the warp after the
// other; lanes that have none, or an index without a table, have kNoTable.
template <class Warp, class Use>
MLIC_DEVICE void walk(Warp& warp, const uint8_t* indexes, uint32_t size, uint32_t tables,
                      Use&& use) {
  const uint32_t own = (size + kBlockThreads - 1) / kBlockThreads * kWarpLanes;
  const uint32_t end = lesser((warp.index() + 1) * own, size);
  typename Warp::template Lanes<uint32_t> table, mask;
  for (uint32_t i = warp.index() * own; i < end; i += kWarpLanes) {
    warp.each([&](uint32_t lane) {
      const uint32_t index = i + lane < end ? indexes[i + lane] : kNoTable;
      table[lane] = index < tables ? index : kNoTable;
    });
    warp.match(table, mask);
    use(i, table, mask);
  }
}

// Finds the lists of a pass. Without indexes the table of a symbol is its channel. Nothing is to be
// done with the lists if there is a bad index.
template <class Block>
MLIC_DEVICE void find_lists(Block& block, Lists& lists, const DeviceTable* tables,
                            const TableRange& range, const PassShape& shape,
                            const uint8_t* indexes) {
  using Warp = typename Block::Warp;
  block.each([&](uint32_t thread) {
    for (uint32_t t = thread; t < range.count; t += kBlockThreads) {
      const uint32_t before = tables[t].runs_before - range.runs_before;
      const uint32_t rank = tables[t].limit != 0 ? before : range.runs + t - before;
      lists.tables[rank] = static_cast<uint16_t>(t);
      lists.ranks[t] = static_cast<uint16_t>(rank);
      if (indexes == nullptr) lists.ends[rank] = (rank + 1) * shape.positions;
    }
    for (uint32_t i = thread; i < kScaleTables * kBlockWarps; i += kBlockThreads) {
      lists.counts[i] = 0;
    }
    if (thread == 0) {
      lists.runs = range.runs;
      lists.bad_index = 0;
    }
  });
  if (indexes == nullptr) return;
  block.each_warp([&](Warp& warp) {
    using Lanes = typename Warp::template Lanes<uint32_t>;
    const uint32_t size = shape.size();
    walk(warp, indexes, size, range.count, [&](uint32_t i, Lanes& table, Lanes& mask) {
      warp.each([&](uint32_t lane) {
        if (table[lane] == kNoTable) {
          if (i + lane < size && indexes[i + lane] >= range.count) atomic_or(lists.bad_index, 1);
        } else if (lane == lowest_bit(mask[lane])) {
          lists.counts[lists.ranks[table[lane]] * kBlockWarps + warp.index()] +=
              count_bits(mask[lane]);
        }
      });
      warp.sync();
    });
  });
  block.each([&](uint32_t thread) {
    lists.scan.values[thread] = lists.counts[2 * thread] + lists.counts[2 * thread + 1];
  });
  sum_up(block, lists.scan);
  block.each([&](uint32_t thread) {
    const uint32_t place = lists.scan.before(thread), first = lists.counts[2 * thread];
    lists.counts[2 * thread] = place;
    lists.counts[2 * thread + 1] = place + first;
  });
  block.each([&](uint32_t thread) {
    if (thread >= range.count) return;
    const uint32_t next = (thread + 1) * kBlockWarps;
    lists.ends[thread] = next < kScaleTables * kBlockWarps ? lists.counts[next] : lists.scan.total;
  });
}

// Calls put(place, i) for each symbol i.
template <class Block, class Put>
MLIC_DEVICE void place_symbols(Block& block, Lists& lists, const TableRange& range,
                               const PassShape& shape, const uint8_t* indexes, Put&& put) {
  using Warp = typename Block::Warp;
  if (indexes == nullptr) {
    block.each([&](uint32_t thread) {
      for (uint32_t i = thread; i < shape.size(); i += kBlockThreads) {
        const uint32_t channel = i % shape.channels;
        put(lists.ranks[channel] * shape.positions + i / shape.channels, i);
      }
    });
    return;
  }
  block.each_warp([&](Warp& warp) {
    using Lanes = typename Warp::template Lanes<uint32_t>;
    walk(warp, indexes, shape.size(), range.count, [&](uint32_t i, Lanes& table, Lanes& mask) {
      warp.each([&](uint32_t lane) {
        if (table[lane] == kNoTable) return;
        const uint32_t first = lists.counts[lists.ranks[table[lane]] * kBlockWarps + warp.index()];
        put(first + rank_in(mask[lane], lane), i + lane);
      });
      warp.sync();
      warp.each([&](uint32_t lane) {
        if (table[lane] == kNoTable || lane != lowest_bit(mask[lane])) return;
        lists.counts[lists.ranks[table[lane]] * kBlockWarps + warp.index()] +=
            count_bits(mask[lane]);
      });
      warp.sync();
    });
  });
}

}  // namespace mlic::rans::device
