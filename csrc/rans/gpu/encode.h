// The encoder's kernels: prepare, a block for each pass and image, sorts symbols; collect,
// likewise, finds what each lane codes of the runs of zeros, once the number of lanes is known;
// write, a block an image, codes all passes backwards and lays out the payload. The bytes are those
// of the C++ encoder.
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
};

template <class Block>
MLIC_DEVICE void prepare(Block& block, PrepareShared& shared, const EncodeArgs& args,
                         const PassList& list) {
  const uint32_t image = block.column(), size = list.passes[block.row()].shape.size();
  const EncodePass& pass = list.passes[block.row()];
  const size_t begin = static_cast<size_t>(image) * size;
  const int32_t* symbols = pass.symbols + begin;
  const uint8_t* indexes = pass.indexes == nullptr ? nullptr : pass.indexes + begin;
  int32_t* sorted = args.sorted + image * args.symbols_stride + pass.symbols_before;
  const DeviceTable* tables = args.tables.tables + pass.range.first;
  PassInfo& info = args.infos[image * kMaxPasses + block.row()];
  block.each([&](uint32_t thread) {
    if (thread == 0) shared.cost = 0;
  });
  find_lists(block, shared.lists, tables, pass.range, pass.shape, indexes);
  const bool bad = shared.lists.bad_index != 0;
  if (!bad) {
    place_symbols(block, shared.lists, pass.range, pass.shape, indexes,
                  [&](uint32_t place, uint32_t i) { sorted[place] = symbols[i]; });
    block.each([&](uint32_t thread) {
      for (uint32_t i = thread; i < pass.range.count; i += kBlockThreads) shared.costs[i] = 0;
    });
    // Each thread sums up until the list ends.
    block.each([&](uint32_t thread) {
      const uint32_t own = (size + kBlockThreads - 1) / kBlockThreads * kWarpLanes;
      const uint32_t end = lesser((thread / kWarpLanes + 1) * own, size);
      uint32_t rank = 0;
      uint64_t cost = 0;
      for (uint32_t place = thread / kWarpLanes * own + thread % kWarpLanes; place < end;
           place += kWarpLanes) {
        if (place >= shared.lists.ends[rank]) {
          atomic_add(shared.costs[rank], cost);
          cost = 0;
          while (place >= shared.lists.ends[rank]) ++rank;
        }
        const CellTable& table = tables[shared.lists.tables[rank]].own;
        const uint32_t number = number_of(table, sorted[place]);
        cost += args.tables.encoder_entries[table.first + number].cost();
        if (number == table.escape()) {
          const uint64_t u = escape_of(table.minimum, table.beyond(), sorted[place]);
          cost += uint64_t{kBit} * kDigitBits * count_digits(u);
        }
      }
      atomic_add(shared.costs[rank], cost);
    });
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
  });
}

// ---- Collect ----

// What the costs of all lists decide: lanes, and where the tail begins.
struct Plan {
  uint32_t error;
  uint32_t lanes;
  uint32_t tail_pass;
  uint32_t tail_place;
};

// For one thread.
MLIC_DEVICE Plan make_plan(const EncodeArgs& args, const PassList& list, uint32_t image) {
  Plan plan{0, args.lanes, 0, 0};
  uint64_t cost = 0;
  for (uint32_t p = 0; p < list.count; ++p) {
    const PassInfo& info = info_of(args, image, p);
    plan.error |= info.error;
    cost += info.cost;
  }
  if (plan.lanes == 0) plan.lanes = choose_lanes(cost / (8 * kBit));
  if (tail_of(plan.lanes) == plan.lanes) return plan;
  uint64_t missing = uint64_t{kBit} * kWordBits * plan.lanes;
  for (uint32_t p = list.count; p-- > 0;) {
    const PassInfo& info = info_of(args, image, p);
    if (info.cost < missing) {
      missing -= info.cost;
      continue;
    }
    for (uint32_t i = list.passes[p].range.count; i-- > 0;) {
      const uint32_t symbols = info.ends[i] - (i == 0 ? 0 : info.ends[i - 1]);
      if (info.costs[i] >= missing) {
        const uint64_t some = (missing * symbols + info.costs[i] - 1) / info.costs[i];
        plan.tail_pass = p;
        plan.tail_place = info.ends[i] - static_cast<uint32_t>(some);
        return plan;
      }
      missing -= info.costs[i];
    }
  }
  return plan;
}

// A part of a pass, and the lanes that it is coded on.
struct Part {
  uint32_t begin;
  uint32_t end;
  uint32_t lanes;
};

MLIC_DEVICE Part part_of(const Plan& plan, uint32_t pass, uint32_t size, uint32_t number) {
  uint32_t cut = pass < plan.tail_pass ? size : pass == plan.tail_pass ? plan.tail_place : 0;
  if (tail_of(plan.lanes) == plan.lanes) cut = 0;
  return number == 0 ? Part{0, cut, plan.lanes} : Part{cut, size, tail_of(plan.lanes)};
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

struct CollectShared {
  Plan plan;
  Scan scan;
  uint32_t ends[kMaxChannels];
  uint16_t tables[kMaxChannels];
};

template <class Block>
MLIC_DEVICE void collect(Block& block, CollectShared& shared, const EncodeArgs& args,
                         const PassList& list) {
  const uint32_t image = block.column(), p = block.row();
  const EncodePass& pass = list.passes[p];
  const DeviceTable* tables = args.tables.tables + pass.range.first;
  const int32_t* sorted = args.sorted + image * args.symbols_stride + pass.symbols_before;
  uint32_t* entries = args.entries + image * args.symbols_stride + pass.symbols_before;
  uint32_t* escapes = args.escapes + image * args.symbols_stride + pass.symbols_before;
  PassInfo& info = args.infos[image * kMaxPasses + p];
  block.each([&](uint32_t thread) {
    if (thread == 0) shared.plan = make_plan(args, list, image);
    for (uint32_t i = thread; i < pass.range.count; i += kBlockThreads) {
      shared.ends[i] = info.ends[i];
      shared.tables[i] = info.tables[i];
    }
  });
  if (shared.plan.error != 0) return;
  block.each([&](uint32_t thread) {
    uint32_t rank = 0;
    for (uint32_t place = info.runs_end + thread; place < pass.shape.size();
         place += kBlockThreads) {
      while (place >= shared.ends[rank]) ++rank;
      const CellTable& table = tables[shared.tables[rank]].own;
      entries[place] = table.first + number_of(table, sorted[place]);
    }
  });
  MLIC_NO_UNROLL
  for (uint32_t number = 0; number < kParts; ++number) {
    const Part part = part_of(shared.plan, p, pass.shape.size(), number);
    const Part runs = runs_of(part, info.runs_end);
    uint32_t* events = events_of(args, image, pass, part, number);
    block.each([&](uint32_t thread) {
      if (thread >= part.lanes) return;
      uint32_t count = 0, rank = 0, place = runs.begin + thread;
      const auto put = [&](uint32_t entry) { events[count++ * part.lanes + thread] = entry; };
      while (place < runs.end) {
        while (place >= shared.ends[rank]) ++rank;
        const DeviceTable& table = tables[shared.tables[rank]];
        const Classes classes = table.classes();
        const uint32_t end = lesser(shared.ends[rank], runs.end);
        uint32_t zeros = 0;
        const auto code = [&](int32_t symbol) {
          if (symbol == 0) {
            if (++zeros < table.limit) return;
            put(table.runs.first + classes.count() * zeros);
            zeros = 0;
            return;
          }
          const uint32_t kind = classes.of(symbol);
          put(table.runs.first + classes.count() * zeros + kind);
          zeros = 0;
          if (kind != classes.last()) return;
          put(table.values.first + (is_escaped(table, symbol)
                                        ? table.values.escape()
                                        : number_of(table.values, classes.close_gap(symbol))));
        };
        // Symbols are loaded some at a time, so that memory is waited for once.
        constexpr uint32_t kAtOnce = 16;
        while (place < end) {
          int32_t ahead[kAtOnce];
          MLIC_UNROLL
          for (uint32_t i = 0; i < kAtOnce; ++i) {
            const uint32_t at = place + i * part.lanes;
            ahead[i] = at < end ? sorted[at] : 0;
          }
          MLIC_UNROLL
          for (uint32_t i = 0; i < kAtOnce; ++i) {
            if (place < end) {
              code(ahead[i]);
              place += part.lanes;
            }
          }
        }
        if (zeros > 0) put(table.tails + zeros);
      }
      info.events[number][thread] = count;
    });
    // Escapes, in the order of their places.
    const uint32_t own = (part.end - part.begin + kBlockThreads - 1) / kBlockThreads;
    const auto each_escape = [&](uint32_t thread, auto&& use) {
      uint32_t rank = 0;
      const uint32_t first = part.begin + thread * own;
      for (uint32_t place = first; place < lesser(first + own, part.end); ++place) {
        while (place >= shared.ends[rank]) ++rank;
        if (is_escaped(tables[shared.tables[rank]], sorted[place])) use(place);
      }
    };
    block.each([&](uint32_t thread) {
      uint32_t count = 0;
      each_escape(thread, [&](uint32_t) { ++count; });
      shared.scan.values[thread] = count;
    });
    sum_up(block, shared.scan);
    block.each([&](uint32_t thread) {
      if (thread == 0) info.escapes[number] = shared.scan.total;
      uint32_t next = part.begin + shared.scan.before(thread);
      each_escape(thread, [&](uint32_t place) { escapes[next++] = place; });
    });
  }
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
  Plan plan;
  uint32_t until_tail;  // symbols
  Scan bits;            // of the states
  uint32_t packed_states[kMaxLanes];
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
    if (sheds == 0) return true;
    const uint32_t count = count_bits(sheds);
    if (front_ < count && !turn_page()) return false;
    front_ -= count;
    total_ += count;
    uint16_t* words = page_->words + front_;
    warp_.each([&](uint32_t lane) {
      if (!has_bit(sheds, lane)) return;
      words[rank_in(sheds, lane)] = static_cast<uint16_t>(x[lane]);
      x[lane] >>= 16;
    });
    return true;
  }

  MLIC_DEVICE uint32_t total() const { return total_; }

  // Starts the lanes from number first on, from words of an earlier phase as far as there are any.
  MLIC_DEVICE void start_lanes(uint32_t first, uint32_t lanes) {
    while (first < lanes) {
      const uint32_t here = page_ == nullptr ? kWarpLanes : kPageWords - front_;
      const uint32_t count = lesser(lesser(here, kWarpLanes), lanes - first);
      warp_.each([&](uint32_t lane) {
        if (lane >= count) return;
        const uint32_t word = page_ == nullptr ? 0 : page_->words[front_ + lane];
        shared_.states[first + lane] = kLowest + word;
      });
      first += count;
      if (page_ == nullptr) continue;
      total_ -= count;
      front_ += count;
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
  MLIC_DEVICE void open(uint32_t number) {
    page_ = number == kNoPage ? nullptr : pages_of(args_, image_) + number;
    front_ = number == kNoPage ? 0 : page_->front;
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

constexpr uint32_t kNoEntry = ~0u;

// Codes entries in steps, the last first. entry_at(step, lane) is asked for each step in that
// order, and beyond the first; kNoEntry is none. As in decoding, only the states are a chain:
// entries are loaded ahead by two steps, their numbers by four; by one and two where the compiler
// would spill registers: on all GPUs but those of data centres since Hopper.
template <class Warp, class EntryAt>
MLIC_DEVICE bool put_steps(Warp& warp, WordWriter<Warp>& writer, const PackedEntry* entries,
                           uint32_t steps, typename Warp::template Lanes<uint32_t>& x,
                           EntryAt&& entry_at) {
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
  constexpr uint32_t kAhead = 1;
#else
  constexpr uint32_t kAhead = 2;
#endif
  typename Warp::template Lanes<PackedEntry> entry, next_entry[kAhead];
  typename Warp::template Lanes<uint32_t> number, next[kAhead], later[kAhead];
  const auto ask = [&](uint32_t step, uint32_t lane) {
    return step < steps ? entry_at(step, lane) : kNoEntry;  // before the first it wraps around
  };
  const auto load = [&](uint32_t id) { return load_whole(entries + (id == kNoEntry ? 0 : id)); };
  warp.each([&](uint32_t lane) {
    MLIC_UNROLL
    for (uint32_t i = 0; i < kAhead; ++i) {
      next[i][lane] = ask(steps - 1 - i, lane);
      later[i][lane] = ask(steps - 1 - kAhead - i, lane);
      next_entry[i][lane] = load(next[i][lane]);
    }
  });
  for (uint32_t step = steps; step > 0;) {
    MLIC_UNROLL
    for (uint32_t i = 0; i < kAhead; ++i) {
      if (step == 0) break;
      --step;
      warp.each([&](uint32_t lane) {
        number[lane] = next[i][lane];
        entry[lane] = next_entry[i][lane];
        next[i][lane] = later[i][lane];
        next_entry[i][lane] = load(next[i][lane]);
        later[i][lane] = ask(step - 2 * kAhead, lane);
      });
      const uint32_t sheds = warp.ballot([&](uint32_t lane) {  //
        return number[lane] != kNoEntry && must_shed(x[lane], entry[lane].unpack());
      });
      if (!writer.put(sheds, x)) return false;
      warp.each([&](uint32_t lane) {
        if (number[lane] != kNoEntry) x[lane] = encode_entry(x[lane], entry[lane].unpack());
      });
    }
  }
  return true;
}

// Codes a part of a pass on one group of lanes, backwards.
template <class Warp>
MLIC_DEVICE bool encode_part(Warp& warp, WordWriter<Warp>& writer, const EncodeArgs& args,
                             const EncodePass& pass, uint32_t image, uint32_t p, uint32_t number,
                             const Part& part, typename Warp::template Lanes<uint32_t>& x) {
  const PassInfo& info = info_of(args, image, p);
  const uint64_t at = image * args.symbols_stride + pass.symbols_before;
  const uint32_t lanes = part.lanes, width = lesser(lanes, kGroupLanes);
  const uint32_t first = warp.index() * width;
  const uint32_t escaped = info.escapes[number];
  if (escaped > first) {
    typename Warp::template Lanes<uint64_t> u;
    // Before the first block, k wraps around and is a large number.
    for (uint32_t k = first + (escaped - first - 1) / lanes * lanes; k < escaped; k -= lanes) {
      const uint32_t active = lesser(escaped - k, width);
      warp.each([&](uint32_t lane) {
        if (lane >= active) return;
        const uint32_t place = args.escapes[at + part.begin + k + lane];
        uint32_t rank = 0;
        while (place >= info.ends[rank]) ++rank;
        u[lane] =
            u_of(args.tables.tables[pass.range.first + info.tables[rank]], args.sorted[at + place]);
      });
      const uint32_t mask = active < 32 ? (1u << active) - 1 : ~0u;
      if (!put_digits(warp, writer, mask, u, x)) return false;
    }
  }

  const Part runs = runs_of(part, info.runs_end);
  const uint32_t plain = part.end - runs.end;
  const uint32_t* entries = args.entries + at + runs.end;
  const auto plain_at = [&](uint32_t step, uint32_t lane) {
    const uint32_t k = step * lanes + first + lane;
    return lane < width && k < plain ? entries[k] : kNoEntry;
  };
  const uint32_t blocks = (plain + lanes - 1) / lanes;
  if (!put_steps(warp, writer, args.tables.encoder_entries, blocks, x, plain_at)) return false;

  const uint32_t* events = events_of(args, image, pass, part, number);
  typename Warp::template Lanes<uint32_t> counts;
  warp.each(
      [&](uint32_t lane) { counts[lane] = lane < width ? info.events[number][first + lane] : 0; });
  const auto event_at = [&](uint32_t step, uint32_t lane) {
    return step < counts[lane] ? events[step * lanes + first + lane] : kNoEntry;
  };
  return put_steps(warp, writer, args.tables.encoder_entries, warp.greatest(counts), x, event_at);
}

// Codes the parts of a number of all passes, the last first, on the warp's group of lanes.
template <class Warp>
MLIC_DEVICE void encode_parts(Warp& warp, WriteShared& shared, const EncodeArgs& args,
                              const PassList& list, uint32_t image, uint32_t number) {
  const uint32_t lanes = part_of(shared.plan, 0, 0, number).lanes;
  const uint32_t width = lesser(lanes, kGroupLanes), first = warp.index() * width;
  if (first >= lanes) return;
  WordWriter<Warp> writer(warp, shared, args, image);
  typename Warp::template Lanes<uint32_t> x;
  warp.each([&](uint32_t lane) { x[lane] = lane < width ? shared.states[first + lane] : kLowest; });
  bool fits = true;
  for (uint32_t p = list.count; p > 0 && fits;) {
    const EncodePass& pass = list.passes[--p];
    const Part part = part_of(shared.plan, p, pass.shape.size(), number);
    if (part.begin == part.end) continue;
    fits = encode_part(warp, writer, args, pass, image, p, number, part, x);
  }
  writer.close();
  warp.each([&](uint32_t lane) {
    if (lane < width) shared.states[first + lane] = x[lane];
    if (lane == 0 && !fits) atomic_or(shared.overflow, 1);
  });
}

// The tail, the start of the lanes that it does without, then all else.
template <class Block>
MLIC_DEVICE void encode(Block& block, WriteShared& shared, const EncodeArgs& args,
                        const PassList& list) {
  using Warp = typename Block::Warp;
  const uint32_t image = block.column(), tail = tail_of(shared.lanes);
  block.each([&](uint32_t thread) {
    const uint32_t digest = args.digests[image];  // its carriers are lanes 0 and 1
    if (thread < tail) {
      shared.states[thread] = kLowest + (thread == 0   ? digest & 0xffff
                                         : thread == 1 ? digest >> 16
                                                       : 0);
    }
    if (thread < kMaxGroups) {
      shared.words[thread] = 0;
      shared.last_page[thread] = kNoPage;
    }
  });
  // One piece of code for both, as it is large.
  MLIC_NO_UNROLL
  for (uint32_t number = kParts; number-- > 0;) {
    block.each_warp([&](Warp& warp) { encode_parts(warp, shared, args, list, image, number); });
    if (number == 0 || shared.overflow != 0) return;
    block.each_warp([&](Warp& warp) {
      if (warp.index() != 0) return;
      WordWriter<Warp> writer(warp, shared, args, image);
      writer.start_lanes(tail, shared.lanes);
      writer.close();
    });
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
  if (tail_of(shared.lanes) < shared.lanes) append_leb128(shared, at, shared.until_tail);
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
  block.each([&](uint32_t thread) {
    if (thread != 0) return;
    const Plan plan = make_plan(args, list, image);
    shared.plan = plan;
    shared.lanes = plan.lanes;
    shared.error = plan.error;
    shared.until_tail = 0;
    for (uint32_t p = 0; p < list.count; ++p) {
      shared.until_tail += part_of(plan, p, list.passes[p].shape.size(), 0).end;
    }
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
