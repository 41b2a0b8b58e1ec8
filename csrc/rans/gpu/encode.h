// The encoder's kernels: prepare, a block an image for each pass as it comes, sorts symbols;
// collect, likewise, finds what each lane codes of the runs of zeros, once the number of lanes is
// known; write, a block an image, codes all passes backwards and lays out the payload. The bytes
// are those of the C++ encoder.
#pragma once

#include "rans/gpu/layout.h"
#include "rans/gpu/sort.h"
#include "rans/gpu/spmd.h"

namespace mlic::rans::device {

MLIC_DEVICE bool is_escaped(const DeviceTable& table, int32_t symbol) {
  if (table.limit != 0 && (symbol == 0 || table.classes().of(symbol) != table.classes().last())) {
    return false;
  }
  return symbol < table.bounded().minimum || symbol >= beyond(table);
}

MLIC_DEVICE uint64_t u_of(const DeviceTable& table, int32_t symbol) {
  return escape_of(table.bounded().minimum, beyond(table), symbol);
}

// The number of a symbol in a table of consecutive ones; the escape if it has none.
MLIC_DEVICE uint32_t number_of(const CellTable& table, int32_t symbol) {
  const uint32_t above = static_cast<uint32_t>(symbol) - static_cast<uint32_t>(table.minimum);
  return lesser(above, table.escape());
}

MLIC_DEVICE const PassInfo& info_of(const EncodeArgs& args, uint32_t image, uint32_t pass) {
  return args.infos[image * kMaxPasses + pass];
}

// ---- Prepare ----

struct PrepareShared {
  Lists lists;
  uint64_t costs[kMaxChannels];
  uint64_t cost;
  uint32_t has_escapes;
  uint32_t escapes;
};

template <class Block>
MLIC_DEVICE void prepare(Block& block, PrepareShared& shared, const EncodeArgs& args,
                         const EncodePass& pass, uint32_t number) {
  const uint32_t image = block.column(), size = pass.shape.size();
  const size_t begin = static_cast<size_t>(image) * size;
  const int32_t* symbols = pass.symbols + begin;
  const uint8_t* indexes = pass.indexes == nullptr ? nullptr : pass.indexes + begin;
  const size_t first = image * args.symbols_stride + pass.symbols_before;
  int32_t* sorted = args.sorted + first;
  uint32_t* entries = args.entries + first;
  uint32_t* within = entries;  // which are not there yet, and nor are the events
  uint32_t* marks = args.events + image * args.events_stride + pass.events_before;
  const DeviceTable* tables = args.tables.tables + pass.range.first;
  PassInfo& info = args.infos[image * kMaxPasses + number];
  rank_tables(block, shared.lists, tables, pass.range);
  block.each([&](uint32_t thread) {
    for (uint32_t i = thread; i < pass.range.count; i += kBlockThreads) shared.costs[i] = 0;
    if (thread == 0) shared.cost = shared.has_escapes = shared.escapes = 0;
  });
  block.await_launch_before();
  find_lists(block, shared.lists, pass.shape, indexes, within);
  const bool bad = shared.lists.bad_index != 0;
  if (!bad) {
    each_place(block, shared.lists, pass.shape, {0, size}, indexes, within,
               [&](uint32_t i, const uint32_t* places, uint32_t rows) {
                 int32_t own[kAtOnce];
                 MLIC_UNROLL
                 for (uint32_t row = 0; row < kAtOnce; ++row) {
                   own[row] = symbols[i + (row < rows ? row * kWarpLanes : 0)];
                 }
                 MLIC_UNROLL
                 for (uint32_t row = 0; row < kAtOnce; ++row) {
                   if (row < rows) sorted[places[row]] = own[row];
                 }
               });
    block.each([&](uint32_t thread) {
      for (uint32_t i = thread; i < (size + 31) / 32; i += kBlockThreads) marks[i] = 0;
    });
    // Each thread sums up until the list ends.
    constexpr uint32_t kCostsAtOnce = 4;  // more would spill registers on some GPUs
    block.each([&](uint32_t thread) {
      const Share share = share_of(thread / kWarpLanes, {0, size});
      uint32_t rank = 0;
      uint64_t cost = 0;
      for (uint32_t place = share.begin + thread % kWarpLanes; place < share.end;
           place += kCostsAtOnce * kWarpLanes) {
        int32_t own[kCostsAtOnce];
        uint32_t ranks[kCostsAtOnce], numbers[kCostsAtOnce], costs[kCostsAtOnce];
        MLIC_UNROLL
        for (uint32_t row = 0; row < kCostsAtOnce; ++row) {
          const uint32_t at = lesser(place + row * kWarpLanes, share.end - 1);
          own[row] = sorted[at];
          ranks[row] = row == 0 ? rank : ranks[row - 1];
          while (at >= shared.lists.ends[ranks[row]]) ++ranks[row];
        }
        MLIC_UNROLL
        for (uint32_t row = 0; row < kCostsAtOnce; ++row) {
          const CellTable& table = tables[shared.lists.tables[ranks[row]]].own;
          numbers[row] = number_of(table, own[row]);
          costs[row] = args.tables.encoder_entries[table.first + numbers[row]].cost();
        }
        MLIC_UNROLL
        for (uint32_t row = 0; row < kCostsAtOnce; ++row) {
          const uint32_t at = place + row * kWarpLanes;
          if (at >= share.end) continue;
          if (ranks[row] != rank) {
            atomic_add(shared.costs[rank], cost);
            cost = 0;
            rank = ranks[row];
          }
          const DeviceTable& table = tables[shared.lists.tables[rank]];
          cost += costs[row];
          if (numbers[row] == table.own.escape()) {
            const uint64_t u = escape_of(table.own.minimum, table.own.beyond(), own[row]);
            cost += uint64_t{kBit} * kDigitBits * count_digits(u);
          }
          entries[at] = table.own.first + numbers[row];
          if (is_escaped(table, own[row])) {
            atomic_or(marks[at / 32], 1u << at % 32);
            atomic_or(shared.has_escapes, 1);
          }
        }
      }
      atomic_add(shared.costs[rank], cost);
    });
    if (shared.has_escapes != 0) {
      const uint32_t count =
          collect_marked(block, shared.lists.scan, marks, 0, size, args.escapes + first);
      block.each([&](uint32_t thread) {
        if (thread == 0) shared.escapes = count;
      });
    }
  }
  block.each([&](uint32_t thread) {
    for (uint32_t i = thread; i < pass.range.count; i += kBlockThreads) {
      info.costs[i] = bad ? 0 : shared.costs[i];
      info.ends[i] = bad ? 0 : shared.lists.ends[i];
      info.tables[i] = shared.lists.tables[i];
      if (!bad) atomic_add(shared.cost, shared.costs[i]);
    }
  });
  block.each([&](uint32_t thread) {
    if (thread != 0) return;
    info.cost = shared.cost;
    info.error = static_cast<uint32_t>(bad ? Error::kIndex : Error::kNone);
    info.runs_end = bad ? 0 : shared.lists.runs_end();
    info.escapes = shared.escapes;
  });
}

// ---- Collect ----

// A place of a pass.
struct Cut {
  uint32_t pass;
  uint32_t place;
};

// The number of lanes and where they retire, which follow from the costs of all lists.
struct Plan {
  uint32_t error;
  uint32_t lanes;
  uint32_t retirements;
  Cut cuts[kMaxRetirements];
};

// The input of a plan, loaded by many threads.
struct PlanShared {
  Plan plan;
  uint32_t errors[kMaxPasses];
  uint64_t costs[kMaxPasses];
};

template <class Block>
MLIC_DEVICE void make_plan(Block& block, PlanShared& shared, const EncodeArgs& args,
                           const PassList& list, uint32_t image) {
  block.each([&](uint32_t thread) {
    if (thread >= list.count) return;
    const PassInfo& info = info_of(args, image, thread);
    shared.errors[thread] = info.error;
    shared.costs[thread] = info.cost;
  });
  block.each([&](uint32_t thread) {
    if (thread != 0) return;
    Plan& plan = shared.plan = {};
    plan.lanes = args.lanes;
    uint64_t cost = 0;
    for (uint32_t p = 0; p < list.count; ++p) {
      plan.error |= shared.errors[p];
      cost += shared.costs[p];
    }
    if (plan.lanes == 0) plan.lanes = choose_lanes(cost / (8 * kBit));
    plan.retirements = retirements_of(plan.lanes);
    uint32_t cut = plan.retirements;
    uint64_t wanted = 0;  // costs from here to the end
    const auto want_more = [&] {
      if (cut == 0) return false;
      wanted += kBit * start_bits(plan.lanes, --cut);
      return true;
    };
    if (!want_more()) return;
    for (uint32_t p = list.count; p-- > 0;) {
      if (shared.costs[p] < wanted) {
        wanted -= shared.costs[p];
        continue;
      }
      const PassInfo& info = info_of(args, image, p);
      for (uint32_t i = list.passes[p].range.count; i-- > 0;) {
        const uint32_t symbols = info.ends[i] - (i == 0 ? 0 : info.ends[i - 1]);
        const uint64_t own = info.costs[i];
        while (own >= wanted) {
          const uint64_t some = (wanted * symbols + own - 1) / own;
          plan.cuts[cut] = {p, info.ends[i] - static_cast<uint32_t>(some)};
          if (!want_more()) return;
        }
        wanted -= own;
      }
    }
  });
}

// A part of a pass, and the lanes that it is coded on.
struct Part {
  uint32_t begin;
  uint32_t end;
  uint32_t lanes;
};

// The place of a pass where part number `number` begins.
MLIC_DEVICE uint32_t begin_of(const Plan& plan, uint32_t pass, uint32_t size, uint32_t number) {
  if (number == 0) return 0;
  if (number > plan.retirements) return size;
  const Cut& cut = plan.cuts[number - 1];
  return pass < cut.pass ? size : pass == cut.pass ? cut.place : 0;
}

MLIC_DEVICE Part part_of(const Plan& plan, uint32_t pass, uint32_t size, uint32_t number) {
  return {begin_of(plan, pass, size, number), begin_of(plan, pass, size, number + 1),
          lanes_after(plan.lanes, number)};
}

MLIC_DEVICE Part runs_of(const Part& part, uint32_t runs_end) {
  const uint32_t end = lesser(part.end, runs_end);
  return {part.begin, end < part.begin ? part.begin : end, part.lanes};
}

MLIC_DEVICE uint32_t* events_of(const EncodeArgs& args, uint32_t image, const EncodePass& pass,
                                const Part& part, uint32_t number) {
  return args.events + image * args.events_stride + pass.events_before +
         events_before(part.begin, number);
}

constexpr uint32_t kNoEntry = ~0u;

struct CollectShared {
  PlanShared plan;
  Scan scan;
  uint32_t ends[kMaxChannels];
  uint16_t tables[kMaxChannels];
  uint32_t trailing[kBlockThreads];  // zeros at the end of a stretch
  uint32_t all_zero[kBlockThreads];  // and it has nothing else, nor does a list begin in it
  uint32_t counts[kBlockThreads];    // events of a stretch
  uint32_t escapes[kParts];
};

// Consecutive symbols of a lane of a part, by their numbers among the lane's.
struct Stretch {
  uint32_t begin;
  uint32_t end;
};

// Goes over a stretch of a lane, of whose first run some zeros came before, and calls put for each
// event that ends in it.
template <class Put>
MLIC_DEVICE void walk_stretch(const CollectShared& shared, const DeviceTable* tables,
                              const int32_t* sorted, const Part& runs, const Chunks& chunks,
                              uint32_t lane, Stretch stretch, uint32_t zeros, Put&& put) {
  uint32_t number = stretch.begin;
  const uint32_t stop = lesser(stretch.end, chunks.before(lane, runs.end - runs.begin));
  uint32_t rank = 0;
  while (number < stop) {
    while (runs.begin + chunks.place(lane, number) >= shared.ends[rank]) ++rank;
    const DeviceTable& table = tables[shared.tables[rank]];
    const Classes classes = table.classes();
    const uint32_t list_stop =
        chunks.before(lane, lesser(shared.ends[rank], runs.end) - runs.begin);
    const uint32_t limit = table.limit, runs_first = table.runs.first;
    zeros %= limit;
    const auto code = [&](int32_t symbol) {
      if (symbol == 0) {
        if (++zeros < limit) return;
        put(runs_first + classes.count() * zeros);
        zeros = 0;
        return;
      }
      const uint32_t kind = classes.of(symbol);
      put(runs_first + classes.count() * zeros + kind);
      zeros = 0;
      if (kind != classes.last()) return;
      put(table.values.first + (is_escaped(table, symbol)
                                    ? table.values.escape()
                                    : number_of(table.values, classes.close_gap(symbol))));
    };
    const uint32_t end = lesser(list_stop, stop);
    while (number < end) {
      int32_t ahead[kAtOnce];
      MLIC_UNROLL
      for (uint32_t i = 0; i < kAtOnce; ++i) {
        ahead[i] = number + i < end ? sorted[runs.begin + chunks.place(lane, number + i)] : 0;
      }
      MLIC_UNROLL
      for (uint32_t i = 0; i < kAtOnce; ++i) {
        if (number >= end) break;
        code(ahead[i]);
        ++number;
      }
    }
    if (number < list_stop) continue;
    if (zeros > 0) put(table.tails + zeros);
    zeros = 0;
  }
}

// The events of the runs of a part: [steps, lanes], kNoEntry for lanes that have fewer than others
// of their group. Each lane is shared out among threads, in stretches.
template <class Block>
MLIC_DEVICE void collect_events(Block& block, CollectShared& shared, const DeviceTable* tables,
                                const int32_t* sorted, const Part& runs, uint32_t* events,
                                uint32_t* steps) {
  using Warp = typename Block::Warp;
  const uint32_t lanes = runs.lanes, stretches = kBlockThreads / lanes;
  const Chunks chunks(runs.end - runs.begin, lanes);
  const uint32_t longest = chunks.before(0, runs.end - runs.begin);
  const uint32_t own = (longest + stretches - 1) / stretches;
  // Threads of one lane follow one another by its stretches.
  const auto stretch_of = [&](uint32_t thread) {
    const uint32_t begin = thread / lanes * own;
    return Stretch{begin, begin + own};
  };
  // How many zeros there are at the end of a stretch, from its end on.
  block.each([&](uint32_t thread) {
    const Stretch stretch = stretch_of(thread);
    const uint32_t lane = thread % lanes;
    uint32_t count = 0, rank = 0;
    bool broken = false;
    if (stretch.end <= chunks.before(lane, runs.end - runs.begin)) {  // else the lane ends in it
      while (runs.begin + chunks.place(lane, stretch.end - 1) >= shared.ends[rank]) ++rank;
      const auto begin_of_list = [&](uint32_t place) {
        return place > runs.begin ? chunks.before(lane, place - runs.begin) : 0;
      };
      const uint32_t list_begin = rank == 0 ? 0 : begin_of_list(shared.ends[rank - 1]);
      broken = stretch.end >= begin_of_list(shared.ends[rank]);  // a list ends with it
      for (uint32_t i = stretch.end; i > stretch.begin && !broken; --i) {
        broken = i <= list_begin || sorted[runs.begin + chunks.place(lane, i - 1)] != 0;
        count += broken ? 0 : 1;
      }
    }
    shared.trailing[thread] = count;
    shared.all_zero[thread] = !broken;
  });
  const auto zeros_before = [&](uint32_t thread) {
    uint32_t zeros = 0;
    for (uint32_t i = thread; i >= lanes;) {
      i -= lanes;
      zeros += shared.trailing[i];
      if (shared.all_zero[i] == 0) break;
    }
    return zeros;
  };
  block.each([&](uint32_t thread) {
    uint32_t count = 0;
    walk_stretch(shared, tables, sorted, runs, chunks, thread % lanes, stretch_of(thread),
                 zeros_before(thread), [&](uint32_t) { ++count; });
    shared.counts[thread] = count;
  });
  block.each([&](uint32_t thread) {
    const uint32_t lane = thread % lanes;
    uint32_t next = 0;
    for (uint32_t i = lane; i < thread; i += lanes) next += shared.counts[i];
    walk_stretch(shared, tables, sorted, runs, chunks, lane, stretch_of(thread),
                 zeros_before(thread),
                 [&](uint32_t entry) { events[next++ * lanes + lane] = entry; });
    if (thread >= kBlockThreads - lanes) shared.scan.values[lane] = next;
  });
  block.each_warp([&](Warp& warp) {
    const uint32_t width = lesser(lanes, kGroupLanes);
    if (warp.index() * width >= lanes) return;
    typename Warp::template Lanes<uint32_t> counts;
    warp.each([&](uint32_t lane) {
      counts[lane] = lane < width ? shared.scan.values[warp.index() * width + lane] : 0;
    });
    const uint32_t most = warp.greatest(counts);
    warp.each([&](uint32_t lane) {
      if (lane >= width) return;
      for (uint32_t step = counts[lane]; step < most; ++step) {
        events[step * lanes + warp.index() * width + lane] = kNoEntry;
      }
      if (lane == 0) steps[warp.index()] = most;
    });
  });
}

template <class Block>
MLIC_DEVICE void collect(Block& block, CollectShared& shared, const EncodeArgs& args,
                         const PassList& list) {
  const uint32_t image = block.column(), p = block.row();
  const EncodePass& pass = list.passes[p];
  const DeviceTable* tables = args.tables.tables + pass.range.first;
  const int32_t* sorted = args.sorted + image * args.symbols_stride + pass.symbols_before;
  const uint32_t* escapes = args.escapes + image * args.symbols_stride + pass.symbols_before;
  PassInfo& info = args.infos[image * kMaxPasses + p];
  block.await_launch_before();
  make_plan(block, shared.plan, args, list, image);
  if (shared.plan.plan.error != 0) return;
  const uint32_t size = pass.shape.size();
  const Plan& plan = shared.plan.plan;
  block.each([&](uint32_t thread) {
    for (uint32_t i = thread; i < pass.range.count; i += kBlockThreads) {
      shared.ends[i] = info.ends[i];
      shared.tables[i] = info.tables[i];
    }
    if (thread < kParts) shared.escapes[thread] = 0;
  });
  block.each([&](uint32_t thread) {
    for (uint32_t i = thread; i < info.escapes; i += kBlockThreads) {
      uint32_t number = 0;
      while (escapes[i] >= begin_of(plan, p, size, number + 1)) ++number;
      atomic_add(shared.escapes[number], 1);
    }
  });
  MLIC_NO_UNROLL
  for (uint32_t number = 0; number < kParts; ++number) {
    const Part part = part_of(plan, p, size, number);
    const Part runs = runs_of(part, info.runs_end);
    uint32_t* steps = info.steps + number_of_group(number, 0);
    if (runs.begin < runs.end) {
      collect_events(block, shared, tables, sorted, runs,
                     events_of(args, image, pass, part, number), steps);
    } else {
      block.each([&](uint32_t thread) {
        if (thread < groups_of(runs.lanes)) steps[thread] = 0;
      });
    }
  }
  block.each([&](uint32_t thread) {
    if (thread < kParts) info.parts[thread] = shared.escapes[thread];
  });
}

// ---- Write ----

// Words of one group, filled from the back. A step's words are never torn apart, so a page that is
// followed by another lacks at most kGroupLanes - 1 words.
struct Page {
  uint32_t previous;  // kNoPage: none
  uint32_t front;     // of the first word in use
  uint16_t words[(kPageBytes - 8) / 2];
};
constexpr uint32_t kPageWords = (kPageBytes - 8) / 2;
constexpr uint32_t kNoPage = ~0u;
static_assert(sizeof(Page) == kPageBytes, "a page must be as large as the host allocates");

// The most that lanes are started from, and some to be loaded with the last.
constexpr uint32_t kFrontWords = kReturnedWords + 2;

struct WriteShared {
  uint32_t error;
  uint32_t lanes;
  uint32_t pages;  // handed out
  uint32_t overflow;
  uint32_t size;  // of the payload
  uint32_t header_size;
  uint32_t states[kMaxLanes];
  uint32_t words[kMaxGroups];      // how many
  uint32_t last_page[kMaxGroups];  // its words come first
  PlanShared plan;
  uint32_t runs_ends[kMaxPasses];  // of each pass, as in its PassInfo
  uint32_t escapes[kMaxPasses][kParts];
  uint32_t steps[kMaxPasses][kPartGroups];
  uint32_t until[kMaxRetirements];  // symbols before each, and after the one before
  Scan bits;                        // of the states
  uint32_t packed_states[kMaxLanes];
  uint16_t front[kFrontWords];      // words that lanes are started from
  uint32_t first_byte[kMaxGroups];  // in the payload
  uint8_t header[kHeaderBytes];
};

// An image's pages.
MLIC_DEVICE Page* pages_of(const EncodeArgs& args, uint32_t image) {
  return reinterpret_cast<Page*>(args.pages) + static_cast<size_t>(image) * args.page_count;
}

// The words of the warp's group on the way back from its last. What has been written is kept in
// shared memory while there is no writer.
template <class Warp>
class WordWriter {
 public:
  using Lanes = typename Warp::template Lanes<uint32_t>;

  MLIC_DEVICE WordWriter(Warp& warp, WriteShared& shared, const EncodeArgs& args, uint32_t image)
      : warp_(warp), shared_(shared), args_(args), image_(image) {
    open(shared.last_page[warp.index()]);
    total_ = shared.words[warp.index()];
  }

  // Takes the low words of some lanes, so that they come out in increasing order. False: no room.
  MLIC_DEVICE bool put(uint32_t sheds, Lanes& x) {
    const uint32_t count = count_bits(sheds);
    if (front_ < count && !turn_page()) return false;
    front_ -= count;
    total_ += count;
    warp_.each([&](uint32_t lane) {
      const bool is_shed = has_bit(sheds, lane);
      const auto word = static_cast<uint16_t>(x[lane]);
      x[lane] >>= is_shed ? 16 : 0;
      if (is_shed) page_->words[front_ + rank_in(sheds, lane)] = word;
    });
    return true;
  }

  MLIC_DEVICE uint32_t total() const { return total_; }

  // Words that the group would have next in decoding, of an earlier phase; zeros after the last.
  MLIC_DEVICE void peek(uint32_t count, uint16_t* words) {
    const Page* page = page_;
    uint32_t front = front_;
    for (uint32_t at = 0; at < count;) {
      const uint32_t here = page == nullptr ? count - at : lesser(kPageWords - front, count - at);
      warp_.each([&](uint32_t lane) {
        for (uint32_t i = lane; i < here; i += kWarpLanes) {
          words[at + i] = page == nullptr ? 0 : page->words[front + i];
        }
      });
      at += here;
      front += here;
      if (page == nullptr || front < kPageWords) continue;
      page = page_at(page->previous);
      front = page == nullptr ? 0 : page->front;
    }
  }

  // Takes so many of them away, as far as there are any.
  MLIC_DEVICE void drop(uint32_t count) {
    while (count > 0 && page_ != nullptr) {
      const uint32_t here = lesser(kPageWords - front_, count);
      count -= here;
      total_ -= here;
      front_ += here;
      if (front_ == kPageWords) open(page_->previous);
    }
  }

  MLIC_DEVICE void close() {
    warp_.each([&](uint32_t lane) {
      if (lane != 0) return;
      if (page_ != nullptr) page_->front = front_;
      shared_.words[warp_.index()] = total_;
      shared_.last_page[warp_.index()] = number();
    });
  }

 private:
  MLIC_DEVICE Page* page_at(uint32_t number) const {
    return number == kNoPage ? nullptr : pages_of(args_, image_) + number;
  }

  MLIC_DEVICE void open(uint32_t number) {
    page_ = page_at(number);
    front_ = page_ == nullptr ? 0 : page_->front;
  }

  MLIC_DEVICE uint32_t number() const {
    return page_ == nullptr ? kNoPage : static_cast<uint32_t>(page_ - pages_of(args_, image_));
  }

  MLIC_DEVICE bool turn_page() {
    Lanes next;
    warp_.each([&](uint32_t lane) {
      if (lane != 0) return;
      if (page_ != nullptr) page_->front = front_;
      next[lane] = atomic_add(shared_.pages, 1);
      if (next[lane] < args_.page_count) pages_of(args_, image_)[next[lane]].previous = number();
    });
    const uint32_t page = warp_.broadcast(next, 0);
    if (page >= args_.page_count) return false;
    page_ = pages_of(args_, image_) + page;
    front_ = kPageWords;
    return true;
  }

  Warp& warp_;
  WriteShared& shared_;
  const EncodeArgs& args_;
  uint32_t image_;
  Page* page_;
  uint32_t front_;
  uint32_t total_;
};

// Puts bits on the lanes of the mask.
template <class Warp, class Value>
MLIC_DEVICE bool put_bits(Warp& warp, WordWriter<Warp>& writer, uint32_t mask, uint32_t bits,
                          typename Warp::template Lanes<uint32_t>& x, Value&& value) {
  const uint32_t sheds = warp.ballot([&](uint32_t lane) {  //
    return has_bit(mask, lane) && must_shed_bits(x[lane], bits);
  });
  if (!writer.put(sheds, x)) return false;
  warp.each([&](uint32_t lane) {
    if (has_bit(mask, lane)) x[lane] = encode_bits(x[lane], value(lane), bits);
  });
  return true;
}

// The digits of escapes, one a lane of the mask, the last round first.
template <class Warp>
MLIC_DEVICE bool put_digits(Warp& warp, WordWriter<Warp>& writer, uint32_t escapes,
                            typename Warp::template Lanes<uint64_t>& u,
                            typename Warp::template Lanes<uint32_t>& x) {
  for (uint32_t round = kMaxDigits; round-- > 0;) {
    const uint32_t mask = warp.ballot([&](uint32_t lane) {  //
      return has_bit(escapes, lane) && round < count_digits(u[lane]);
    });
    const auto digit = [&](uint32_t lane) { return digit_of(u[lane], round); };
    if (mask != 0 && !put_bits(warp, writer, mask, kDigitBits, x, digit)) return false;
  }
  return true;
}

// Steps of a group in the parts of a number of some passes, the last first. Of a pass there are two
// sections: plain symbols, then events of runs, each [steps, lanes].
template <class Warp>
class StepReader {
 public:
  using Lanes = typename Warp::template Lanes<uint32_t>;

  MLIC_DEVICE StepReader(Warp& warp, const WriteShared& shared, const EncodeArgs& args,
                         const PassList& list, uint32_t image, uint32_t number)
      : warp_(warp), shared_(shared), args_(args), list_(list), image_(image), number_(number) {
    lanes_ = part_of(shared.plan.plan, 0, 0, number).lanes;
    width_ = lesser(lanes_, kGroupLanes);
  }

  // The passes from first to last - 1. Returns how many steps they have.
  MLIC_DEVICE uint32_t open(uint32_t first, uint32_t last) {
    uint32_t steps = 0;
    first_ = 2 * first;
    for (section_ = 2 * last; section_ > first_;) {
      open_section();
      steps += left_;
    }
    section_ = 2 * last;
    left_ = 0;
    return steps;
  }

  // The entry of each lane in the next step; kNoEntry if it has none, or there is no step.
  MLIC_DEVICE void read(Lanes& entries) {
    if (left_ == 0) {
      while (left_ == 0 && section_ > first_) open_section();
      if (left_ == 0) count_ = 0;
    }
    warp_.each([&](uint32_t lane) { entries[lane] = lane < count_ ? from_[lane] : kNoEntry; });
    if (left_ == 0) return;
    --left_;
    from_ -= lanes_;
    count_ = width_;
  }

 private:
  // The section before the last that was opened.
  MLIC_DEVICE void open_section() {
    const uint32_t p = --section_ / 2;
    const EncodePass& pass = list_.passes[p];
    const Part part = part_of(shared_.plan.plan, p, pass.shape.size(), number_);
    const Part runs = runs_of(part, shared_.runs_ends[p]);
    const uint32_t first = warp_.index() * width_;
    count_ = width_;
    if (section_ % 2 == 0) {
      left_ = shared_.steps[p][number_of_group(number_, warp_.index())];
      from_ = events_of(args_, image_, pass, part, number_);
    } else {
      const uint32_t symbols = part.end - runs.end;
      left_ = symbols <= first ? 0 : (symbols - first + lanes_ - 1) / lanes_;
      from_ = args_.entries + image_ * args_.symbols_stride + pass.symbols_before + runs.end;
      if (left_ > 0) count_ = lesser(width_, symbols - first - (left_ - 1) * lanes_);
    }
    if (left_ > 0) from_ += first + (left_ - 1) * lanes_;
  }

  Warp& warp_;
  const WriteShared& shared_;
  const EncodeArgs& args_;
  const PassList& list_;
  uint32_t image_, number_;
  uint32_t section_, first_;
  uint32_t lanes_, width_;
  uint32_t left_;         // steps of the section
  uint32_t count_;        // lanes that have an entry in the next of them
  const uint32_t* from_;  // and where these are
};

// Codes some steps. As in decoding, only the states are a chain: entries are loaded ahead by a
// step, their numbers by two.
template <class Warp>
MLIC_DEVICE bool put_steps(Warp& warp, WordWriter<Warp>& writer, const PackedEntry* entries,
                           StepReader<Warp>& reader, uint32_t steps,
                           typename Warp::template Lanes<uint32_t>& x) {
  typename Warp::template Lanes<PackedEntry> entry, next_entry;
  typename Warp::template Lanes<uint32_t> number, next, later;
  const auto load = [&](uint32_t id) { return load_whole(entries + (id == kNoEntry ? 0 : id)); };
  reader.read(next);
  reader.read(later);
  warp.each([&](uint32_t lane) { next_entry[lane] = load(next[lane]); });
  MLIC_NO_UNROLL
  for (; steps > 0; --steps) {
    warp.each([&](uint32_t lane) {
      number[lane] = next[lane];
      entry[lane] = next_entry[lane];
      next[lane] = later[lane];
      next_entry[lane] = load(next[lane]);
    });
    reader.read(later);
    const uint32_t sheds = warp.ballot([&](uint32_t lane) {  //
      return both(number[lane] != kNoEntry, must_shed(x[lane], entry[lane].unpack()));
    });
    if (!writer.put(sheds, x)) return false;
    warp.each([&](uint32_t lane) {
      const uint32_t coded = encode_entry(x[lane], entry[lane].unpack());
      x[lane] = number[lane] != kNoEntry ? coded : x[lane];
    });
  }
  return true;
}

// Codes the digits of the escapes of a part of a pass on one group of lanes, backwards.
template <class Warp>
MLIC_DEVICE bool put_escapes(Warp& warp, WriteShared& shared, WordWriter<Warp>& writer,
                             const EncodeArgs& args, const EncodePass& pass, uint32_t image,
                             uint32_t p, uint32_t number, uint32_t lanes,
                             typename Warp::template Lanes<uint32_t>& x) {
  const PassInfo& info = info_of(args, image, p);
  const uint64_t at = image * args.symbols_stride + pass.symbols_before;
  const uint32_t* places = args.escapes + at;
  for (uint32_t i = 0; i < number; ++i) places += shared.escapes[p][i];
  const uint32_t escaped = shared.escapes[p][number];
  const uint32_t width = lesser(lanes, kGroupLanes), first = warp.index() * width;
  if (escaped <= first) return true;
  typename Warp::template Lanes<uint64_t> u;
  // Before the first block, k wraps around and is a large number.
  for (uint32_t k = first + (escaped - first - 1) / lanes * lanes; k < escaped; k -= lanes) {
    const uint32_t active = lesser(escaped - k, width);
    warp.each([&](uint32_t lane) {
      if (lane >= active) return;
      const uint32_t place = places[k + lane];
      uint32_t rank = 0;
      while (place >= info.ends[rank]) ++rank;
      u[lane] =
          u_of(args.tables.tables[pass.range.first + info.tables[rank]], args.sorted[at + place]);
    });
    const uint32_t mask = active < 32 ? (1u << active) - 1 : ~0u;
    if (!put_digits(warp, writer, mask, u, x)) return false;
  }
  return true;
}

// Codes the parts of a number of all passes, the last first, on the warp's group of lanes.
template <class Warp>
MLIC_DEVICE void encode_parts(Warp& warp, WriteShared& shared, const EncodeArgs& args,
                              const PassList& list, uint32_t image, uint32_t number) {
  const uint32_t lanes = part_of(shared.plan.plan, 0, 0, number).lanes;
  const uint32_t width = lesser(lanes, kGroupLanes), first = warp.index() * width;
  if (first >= lanes) return;
  WordWriter<Warp> writer(warp, shared, args, image);
  StepReader<Warp> reader(warp, shared, args, list, image, number);
  typename Warp::template Lanes<uint32_t> x;
  warp.each([&](uint32_t lane) { x[lane] = lane < width ? shared.states[first + lane] : kLowest; });
  bool fits = true;
  // Passes of which only the last has escapes are one run of steps.
  for (uint32_t last = list.count; last > 0 && fits;) {
    uint32_t p = last - 1;
    fits = put_escapes(warp, shared, writer, args, list.passes[p], image, p, number, lanes, x);
    while (p > 0 && shared.escapes[p - 1][number] == 0) --p;
    if (fits) {
      const uint32_t steps = reader.open(p, last);
      fits = put_steps(warp, writer, args.tables.encoder_entries, reader, steps, x);
    }
    last = p;
  }
  writer.close();
  warp.each([&](uint32_t lane) {
    if (lane < width) shared.states[first + lane] = x[lane];
    if (lane == 0 && !fits) atomic_or(shared.overflow, 1);
  });
}

// Some bits of words, at most 32.
MLIC_DEVICE uint32_t bits_at(const uint16_t* words, uint32_t at, uint32_t count) {
  const uint16_t* from = words + at / kWordBits;
  const uint64_t bits = uint64_t{from[0]} | uint64_t{from[1]} << 16 | uint64_t{from[2]} << 32;
  return static_cast<uint32_t>(bits >> at % kWordBits & ((uint64_t{1} << count) - 1));
}

// Starts the lanes from number tail on, from bits of the first group's words as far as there are
// any.
template <class Block>
MLIC_DEVICE void start_lanes(Block& block, WriteShared& shared, const EncodeArgs& args,
                             uint32_t image, uint32_t tail, uint32_t lanes) {
  using Warp = typename Block::Warp;
  const uint32_t gone = lanes - tail, sizes = kSizeBits * (gone - 1);
  const auto with_writer = [&](auto&& use) {
    block.each_warp([&](Warp& warp) {
      if (warp.index() != 0) return;
      WordWriter<Warp> writer(warp, shared, args, image);
      use(writer);
      writer.close();
    });
  };
  with_writer(
      [&](WordWriter<Warp>& writer) { writer.peek(most_given_words(gone) + 2, shared.front); });
  // The last one's is not written: its size makes whole words of the bits of all.
  const auto size_of = [&](uint32_t thread) {
    return thread + 1 < gone ? bits_at(shared.front, kSizeBits * thread, kSizeBits) : 0;
  };
  block.each([&](uint32_t thread) {
    shared.bits.values[thread] = thread < gone ? kWordBits + size_of(thread) : 0;
  });
  sum_up(block, shared.bits);
  const uint32_t bits = sizes + shared.bits.total, of_last = (0 - bits) % kWordBits;
  block.each([&](uint32_t thread) {
    if (thread >= gone) return;
    const uint32_t size = thread + 1 < gone ? size_of(thread) : of_last;
    const uint32_t low =
        bits_at(shared.front, sizes + shared.bits.before(thread), kWordBits + size);
    shared.states[tail + thread] = kLowest << size | low;
  });
  with_writer([&](WordWriter<Warp>& writer) { writer.drop((bits + of_last) / kWordBits); });
}

// The symbols that two lanes code alone, the start of others, and so on to the first symbols.
template <class Block>
MLIC_DEVICE void encode(Block& block, WriteShared& shared, const EncodeArgs& args,
                        const PassList& list) {
  using Warp = typename Block::Warp;
  const uint32_t image = block.column();
  block.each([&](uint32_t thread) {
    const uint32_t digest = args.digests[image];
    if (thread < kMinLanes) {
      shared.states[thread] = kLowest + (thread == 0 ? digest & 0xffff : digest >> 16);
    }
    if (thread < kMaxGroups) {
      shared.words[thread] = 0;
      shared.last_page[thread] = kNoPage;
    }
  });
  // All go through one piece of code, since it is large.
  MLIC_NO_UNROLL
  for (uint32_t number = shared.plan.plan.retirements + 1; number-- > 0;) {
    block.each_warp([&](Warp& warp) { encode_parts(warp, shared, args, list, image, number); });
    if (number == 0 || shared.overflow != 0) return;
    start_lanes(block, shared, args, image, lanes_after(shared.lanes, number),
                lanes_after(shared.lanes, number - 1));
  }
}

MLIC_DEVICE void append_leb128(WriteShared& shared, uint32_t& at, uint32_t value) {
  for (; value >= 0x80; value >>= 7) shared.header[at++] = static_cast<uint8_t>(value | 0x80);
  shared.header[at++] = static_cast<uint8_t>(value);
}

// Lengths of groups, and where the parts of the payload are; for one thread.
MLIC_DEVICE void lay_out(WriteShared& shared, uint32_t groups, uint32_t capacity) {
  uint32_t at = 0;
  for (uint32_t g = 0; g + 1 < groups; ++g) append_leb128(shared, at, shared.words[g]);
  for (uint32_t i = 0; i < shared.plan.plan.retirements; ++i) {
    append_leb128(shared, at, shared.until[i]);
  }
  shared.header_size = at;
  uint64_t size = at + shared.lanes * kSizeBits / 8 + (shared.bits.total + 7) / 8;
  for (uint32_t g = 0; g < groups; ++g) {
    shared.first_byte[g] = static_cast<uint32_t>(size);
    size += 2 * uint64_t{shared.words[g]};
  }
  if (size > capacity) shared.overflow = 1;
  shared.size = static_cast<uint32_t>(size);
}

// The states as they are stored, in packed_states, from their sizes in shared.bits on.
template <class Block>
MLIC_DEVICE void pack_states(Block& block, WriteShared& shared) {
  constexpr uint32_t kBits = 32;
  block.each([&](uint32_t thread) {
    shared.packed_states[thread] = 0;
    const bool there = thread < shared.lanes;
    shared.bits.values[thread] = there ? kWordBits + size_of_state(shared.states[thread]) : 0;
  });
  sum_up(block, shared.bits);
  block.each([&](uint32_t thread) {
    if (thread >= shared.lanes) return;
    const uint32_t x = shared.states[thread], size = size_of_state(x);
    const uint32_t at = shared.bits.before(thread);
    const uint64_t bits = uint64_t{low_bits(x, size)} << at % kBits;
    atomic_or(shared.packed_states[at / kBits], static_cast<uint32_t>(bits));
    if (bits >> kBits != 0) {
      atomic_or(shared.packed_states[at / kBits + 1], static_cast<uint32_t>(bits >> kBits));
    }
  });
}

// All of the payload before the words.
template <class Block>
MLIC_DEVICE void write_header(Block& block, const WriteShared& shared, uint8_t* payload) {
  block.each([&](uint32_t thread) {
    if (thread < shared.header_size) payload[thread] = shared.header[thread];
    uint8_t* sizes = payload + shared.header_size;
    if (thread < shared.lanes / 2) {
      sizes[thread] =
          static_cast<uint8_t>(size_of_state(shared.states[2 * thread]) |
                               size_of_state(shared.states[2 * thread + 1]) << kSizeBits);
    }
    uint8_t* bits = sizes + shared.lanes / 2;
    for (uint32_t i = thread; i < (shared.bits.total + 7) / 8; i += kBlockThreads) {
      bits[i] = static_cast<uint8_t>(shared.packed_states[i / 4] >> (8 * (i % 4)));
    }
  });
}

// The pages of a group are shared among the warps that it has in the block.
template <class Warp>
MLIC_DEVICE void copy_words(Warp& warp, const WriteShared& shared, const Page* pages,
                            uint32_t groups, uint8_t* payload) {
  const uint32_t group = warp.index() % groups, own = warp.index() / groups;
  const uint32_t warps = kBlockWarps / groups;
  uint32_t ordinal = 0;
  uint8_t* out = payload + shared.first_byte[group];
  for (uint32_t p = shared.last_page[group]; p != kNoPage; p = pages[p].previous) {
    const uint32_t count = kPageWords - pages[p].front;
    if (ordinal++ % warps == own) {
      const uint16_t* words = pages[p].words + pages[p].front;
      warp.each([&](uint32_t lane) {
        for (uint32_t i = lane; i < count; i += kWarpLanes) {
          out[2 * i] = static_cast<uint8_t>(words[i]);
          out[2 * i + 1] = static_cast<uint8_t>(words[i] >> 8);
        }
      });
    }
    out += 2 * count;
  }
}

template <class Block>
MLIC_DEVICE void write(Block& block, WriteShared& shared, const EncodeArgs& args,
                       const PassList& list) {
  using Warp = typename Block::Warp;
  const uint32_t image = block.column();
  block.await_launch_before();
  make_plan(block, shared.plan, args, list, image);
  block.each([&](uint32_t thread) {
    for (uint32_t i = thread; i < list.count * kPartGroups; i += kBlockThreads) {
      const uint32_t p = i / kPartGroups, group = i % kPartGroups;
      const PassInfo& info = info_of(args, image, p);
      shared.steps[p][group] = info.steps[group];
      if (group < kParts) shared.escapes[p][group] = info.parts[group];
      if (group == 0) shared.runs_ends[p] = info.runs_end;
    }
    const Plan& plan = shared.plan.plan;
    if (thread < plan.retirements) {
      uint32_t symbols = 0;
      for (uint32_t p = 0; p < list.count; ++p) {
        const Part part = part_of(plan, p, list.passes[p].shape.size(), thread);
        symbols += part.end - part.begin;
      }
      shared.until[thread] = symbols;
    }
    if (thread != 0) return;
    shared.lanes = plan.lanes;
    shared.error = plan.error;
    shared.pages = shared.overflow = shared.size = 0;
  });
  const uint32_t groups = groups_of(shared.lanes);
  if (shared.error == 0) {
    encode(block, shared, args, list);
    pack_states(block, shared);
    block.each([&](uint32_t thread) {
      if (thread == 0 && shared.overflow == 0) lay_out(shared, groups, args.capacity);
    });
    if (shared.overflow == 0) {
      uint8_t* payload = args.payloads + static_cast<size_t>(image) * args.capacity;
      const Page* pages = pages_of(args, image);
      write_header(block, shared, payload);
      block.each_warp([&](Warp& warp) { copy_words(warp, shared, pages, groups, payload); });
    }
  }
  block.each([&](uint32_t thread) {
    if (thread != 0) return;
    const uint32_t overflow = shared.overflow != 0 ? static_cast<uint32_t>(Error::kCapacity) : 0;
    const uint32_t error = shared.error != 0 ? shared.error : overflow;
    args.results[image] = {error, error != 0 ? 0 : shared.size, shared.lanes};
  });
}

}  // namespace mlic::rans::device
