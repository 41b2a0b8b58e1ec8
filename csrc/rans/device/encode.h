// The encoder's kernels: prepare, a block for each pass and image, turns symbols into records of
// what is to be coded; write, a block an image, codes them backwards and lays out the payload. The
// bytes are those of the C++ encoder.
#pragma once

#include "rans/device/layout.h"
#include "rans/device/spmd.h"
#include "rans/device/sweep.h"

namespace mlic::rans::device {

// A coded symbol: its entry, and whether it is escaped. u, of 33 bits, is kept apart but for its
// highest, as it is seldom wanted.
constexpr uint32_t kEscapedBit = 1u << 31;
constexpr uint32_t kHighBit = 1u << 30;

MLIC_DEVICE uint32_t make_escaped(uint32_t entry, uint64_t u) {
  return entry | kEscapedBit | (u >> 32 != 0 ? kHighBit : 0);
}
MLIC_DEVICE uint32_t entry_of(uint32_t record) { return record & (kHighBit - 1); }
MLIC_DEVICE bool is_escaped(uint32_t record) { return record >= kEscapedBit; }
MLIC_DEVICE uint64_t u_of(uint32_t record, uint32_t low) {
  return static_cast<uint64_t>((record & kHighBit) != 0) << 32 | low;
}

// ---- Prepare ----

struct PrepareShared {
  Scan coded;
  uint64_t cost;
  uint32_t bad_index;
  uint32_t has_floor;
  uint32_t floor_nonzero;
};

template <class Block>
MLIC_DEVICE void prepare(Block& block, PrepareShared& shared, const EncodeArgs& args,
                         const PassList& list) {
  const uint32_t image = block.column();
  const EncodePass& pass = list.passes[block.row()];
  const size_t begin = static_cast<size_t>(image) * pass.shape.size();
  const int32_t* symbols = pass.symbols + begin;
  const uint8_t* indexes = pass.indexes == nullptr ? nullptr : pass.indexes + begin;
  const uint64_t first = image * args.records_stride + pass.records;
  PassInfo& info = args.infos[image * kMaxPasses + block.row()];
  block.each([&](uint32_t thread) {
    if (thread != 0) return;
    shared.cost = 0;
    shared.bad_index = shared.has_floor = shared.floor_nonzero = 0;
  });

  typename Block::template Threads<uint32_t> others;  // symbols of other tables than the floor's
  block.each([&](uint32_t thread) {
    const Share share = share_of(pass.shape, thread);
    others[thread] = share.end - share.begin;
    if (indexes == nullptr) return;
    uint32_t largest = 0, floor = 0;
    int32_t nonzero = 0;
    for (uint32_t p = share.begin; p < share.end; ++p) {
      const uint32_t offset = p * pass.shape.channels + share.channel;
      const uint32_t index = indexes[offset];
      largest = index > largest ? index : largest;
      floor += index == kFloorTable;
      nonzero |= index == kFloorTable ? symbols[offset] : 0;
    }
    others[thread] -= floor;
    if (floor != 0) atomic_or(shared.has_floor, 1);
    if (nonzero != 0) atomic_or(shared.floor_nonzero, 1);
    if (largest >= pass.tables) atomic_or(shared.bad_index, 1);
  });

  const bool skips = shared.has_floor != 0 && shared.floor_nonzero == 0;
  if (shared.bad_index == 0) {
    block.each([&](uint32_t thread) {
      const Share share = share_of(pass.shape, thread);
      shared.coded.values[share.slot] = skips ? others[thread] : share.end - share.begin;
    });
    sum_up(block, shared.coded);
    block.each([&](uint32_t thread) {
      const Share share = share_of(pass.shape, thread);
      uint64_t next = first + shared.coded.before(share.slot);
      uint64_t cost = 0;
      for (uint32_t p = share.begin; p < share.end; ++p) {
        const uint32_t offset = p * pass.shape.channels + share.channel;
        const uint32_t index = indexes == nullptr ? share.channel : indexes[offset];
        if (skips && index == kFloorTable) continue;
        const CellTable table = load_whole(args.tables.tables + pass.first_table + index);
        const int32_t symbol = symbols[offset];
        const uint32_t above = static_cast<uint32_t>(symbol) - static_cast<uint32_t>(table.minimum);
        const uint32_t number = above < table.escape() ? above : table.escape();
        uint32_t record = table.first + number;
        if (number == table.escape()) {
          const uint64_t u = escape_of(table.minimum, table.beyond(), symbol);
          record = make_escaped(record, u);
          args.escapes[next] = static_cast<uint32_t>(u);
          cost += 256 * kDigitBits * count_digits(u);
        }
        args.records[next++] = record;
        cost += args.tables.encoder_entries[table.first + number].cost();
      }
      atomic_add(shared.cost, cost);
    });
  }
  block.each([&](uint32_t thread) {
    if (thread != 0) return;
    const bool bad = shared.bad_index != 0;
    Flag flag = Flag::kAbsent;
    if (shared.has_floor != 0) flag = skips ? Flag::kSkipped : Flag::kCoded;
    info.cost = bad ? 0 : shared.cost + (flag == Flag::kAbsent ? 0 : 256 * kFlagBits);
    info.coded = bad ? 0 : shared.coded.total;
    info.flag = flag;
    info.error = static_cast<uint32_t>(bad ? Error::kIndex : Error::kNone);
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
  uint32_t until_tail;             // passes
  uint32_t active;                 // lanes that code
  uint32_t enough;                 // words of a group after which no pass is begun
  Scan bits;                       // of the states
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

// The digits of the escapes of a step, the last round first.
template <class Warp>
MLIC_DEVICE bool put_escapes(Warp& warp, WordWriter<Warp>& writer, uint32_t escapes,
                             typename Warp::template Lanes<uint32_t>& x,
                             typename Warp::template Lanes<uint32_t>& record,
                             const uint32_t* lows) {
  typename Warp::template Lanes<uint64_t> u;
  warp.each([&](uint32_t lane) {
    if (has_bit(escapes, lane)) u[lane] = u_of(record[lane], lows[lane]);
  });
  for (uint32_t round = kMaxDigits; round-- > 0;) {
    const uint32_t mask = warp.ballot([&](uint32_t lane) {  //
      return has_bit(escapes, lane) && round < count_digits(u[lane]);
    });
    const auto digit = [&](uint32_t lane) { return digit_of(u[lane], round); };
    if (mask != 0 && !put_bits(warp, writer, mask, kDigitBits, x, digit)) return false;
  }
  return true;
}

// Codes one pass on one group of lanes, backwards. As in decoding, only the states are a chain:
// entries are loaded ahead by two steps, records by four.
template <class Warp>
MLIC_DEVICE bool encode_pass(Warp& warp, WordWriter<Warp>& writer, const EncodeArgs& args,
                             uint64_t begin, uint32_t coded, uint32_t lanes,
                             typename Warp::template Lanes<uint32_t>& x) {
  constexpr uint32_t kAhead = 2;
  const uint32_t width = lesser(lanes, kGroupLanes);
  const uint32_t first = warp.index() * width;
  if (coded <= first) return true;
  const uint32_t* records = args.records + begin;
  const PackedEntry* entries = args.tables.encoder_entries;
  // The record of the lane's symbol in the step whose first is k, or any. Before the first step, k
  // wraps around and is a large number.
  const auto load = [&](uint32_t k, uint32_t lane) {
    return k + lane < coded ? records[k + lane] : 0;
  };
  typename Warp::template Lanes<PackedEntry> entry, next_entry[kAhead];
  typename Warp::template Lanes<uint32_t> record, next[kAhead], later[kAhead];
  uint32_t k = first + (coded - first - 1) / lanes * lanes;
  warp.each([&](uint32_t lane) {
    MLIC_UNROLL
    for (uint32_t i = 0; i < kAhead; ++i) {
      next[i][lane] = load(k - i * lanes, lane);
      later[i][lane] = load(k - (kAhead + i) * lanes, lane);
      next_entry[i][lane] = load_whole(entries + entry_of(next[i][lane]));
    }
  });
  while (k < coded) {
    MLIC_UNROLL
    for (uint32_t i = 0; i < kAhead; ++i) {
      if (k >= coded) break;
      const uint32_t active = lesser(coded - k, width);
      warp.each([&](uint32_t lane) {
        record[lane] = next[i][lane];
        entry[lane] = next_entry[i][lane];
        next[i][lane] = later[i][lane];
        next_entry[i][lane] = load_whole(entries + entry_of(next[i][lane]));
        later[i][lane] = load(k - 2 * kAhead * lanes, lane);
      });
      const uint32_t escapes = warp.ballot([&](uint32_t lane) {  //
        return lane < active && is_escaped(record[lane]);
      });
      if (escapes != 0 &&
          !put_escapes(warp, writer, escapes, x, record, args.escapes + begin + k)) {
        return false;
      }
      const uint32_t sheds = warp.ballot([&](uint32_t lane) {  //
        return lane < active && must_shed(x[lane], entry[lane].unpack());
      });
      if (!writer.put(sheds, x)) return false;
      warp.each([&](uint32_t lane) {
        if (lane < active) x[lane] = encode_entry(x[lane], entry[lane].unpack());
      });
      k -= lanes;
    }
  }
  return true;
}

// Codes passes backwards on the warp's group of the active lanes, from the last before until_tail
// on. Returns how many are left.
template <class Warp>
MLIC_DEVICE uint32_t encode_passes(Warp& warp, WriteShared& shared, const EncodeArgs& args,
                                   const PassList& list, uint32_t image) {
  const uint32_t lanes = shared.active, width = lesser(lanes, kGroupLanes);
  const uint32_t first = warp.index() * width;
  WordWriter<Warp> writer(warp, shared, args, image);
  typename Warp::template Lanes<uint32_t> x;
  warp.each([&](uint32_t lane) { x[lane] = lane < width ? shared.states[first + lane] : kLowest; });
  bool fits = true;
  uint32_t p = shared.until_tail;
  while (p > 0 && fits && writer.total() < shared.enough) {
    const PassInfo& info = args.infos[image * kMaxPasses + --p];
    const uint64_t begin = image * args.records_stride + list.passes[p].records;
    fits = encode_pass(warp, writer, args, begin, info.coded, lanes, x);
    const Flag flag = info.flag;
    if (fits && first == 0 && flag != Flag::kAbsent) {
      const auto value = [&](uint32_t) -> uint32_t { return flag == Flag::kSkipped; };
      fits = put_bits(warp, writer, 1, kFlagBits, x, value);
    }
  }
  writer.close();
  warp.each([&](uint32_t lane) {
    if (lane < width) shared.states[first + lane] = x[lane];
    if (lane == 0 && !fits) atomic_or(shared.overflow, 1);
  });
  return p;
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
    if (thread != 0) return;
    shared.until_tail = list.count;
    shared.active = tail;
    shared.enough = tail < shared.lanes ? shared.lanes - tail : ~0u;
  });
  // One piece of code for both, as it is large.
  MLIC_NO_UNROLL
  for (bool in_tail = tail < shared.lanes;; in_tail = false) {
    typename Block::template Threads<uint32_t> left;
    block.each_warp([&](Warp& warp) {
      if (warp.index() * kGroupLanes >= shared.active) return;
      left[warp.index()] = encode_passes(warp, shared, args, list, image);
    });
    if (!in_tail || shared.overflow != 0) return;
    block.each_warp([&](Warp& warp) {
      if (warp.index() != 0) return;
      WordWriter<Warp> writer(warp, shared, args, image);
      writer.start_lanes(tail, shared.lanes);
      writer.close();
      warp.each([&](uint32_t lane) {
        if (lane != 0) return;
        shared.until_tail = left[0];
        shared.active = shared.lanes;
        shared.enough = ~0u;
      });
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
    uint64_t cost = 0;
    uint32_t error = 0;
    for (uint32_t p = 0; p < list.count; ++p) {
      cost += args.infos[image * kMaxPasses + p].cost;
      error |= args.infos[image * kMaxPasses + p].error;
    }
    shared.lanes = args.lanes != 0 ? args.lanes : choose_lanes(cost >> 11);
    shared.error = error;
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
