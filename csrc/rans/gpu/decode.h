// The decoder's kernels: begin parses a payload, decode_pass turns indexes into symbols, finish
// checks the end. A block does that for an image, but that all blocks of a cluster sort the symbols
// of a pass and put them back. Whatever the payload's bytes are, nothing is read
// outside of its buffer, every loop is bounded, and the outcome is the C++ decoder's: symbols, or
// the same error.
#pragma once

#include "rans/gpu/layout.h"
#include "rans/gpu/sort.h"
#include "rans/gpu/spmd.h"

namespace mlic::rans::device {

// ---- Begin ----

struct BeginShared {
  uint8_t header[kHeaderBytes];
  uint32_t error;
  uint32_t header_size;
  uint64_t listed;   // words of all groups but the last
  uint32_t padding;  // bits after those of the states, which are zero
  uint32_t bad_end;
  Scan bits;  // of the states
};

// Reads LEB128 as Reader::leb128 of the C++ decoder does.
MLIC_DEVICE Error read_leb128(const uint8_t* bytes, uint32_t size, uint32_t& at, uint32_t& result) {
  uint64_t value = 0;
  for (uint32_t shift = 0; shift < 35; shift += 7) {
    if (at == size) return Error::kTooShort;
    const uint32_t byte = bytes[at++];
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) {
      if ((byte == 0 && shift > 0) || value >> 32 != 0) break;
      result = static_cast<uint32_t>(value);
      return Error::kNone;
    }
  }
  return Error::kLength;
}

// Some bits of a string of bytes, the lowest of each byte first; at most 32.
MLIC_DEVICE uint32_t read_bits(const uint8_t* bytes, uint32_t at, uint32_t count) {
  uint64_t value = 0;
  for (uint32_t i = at / 8; i < (at + count + 7) / 8; ++i) {
    value |= uint64_t{bytes[i]} << (8 * (i - at / 8));
  }
  return static_cast<uint32_t>(value >> at % 8 & ((uint64_t{1} << count) - 1));
}

// Word number `number` of what the lanes from tail on give back, `gone` of them. The bits before
// the low bits of each are in the scan.
MLIC_DEVICE uint32_t given_word(const Scan& scan, const uint32_t* states, uint32_t gone,
                                uint32_t number) {
  const uint32_t begin = number * kWordBits, sizes = kSizeBits * (gone - 1);
  uint32_t word = 0, found = 0;
  MLIC_NO_UNROLL
  for (; found < kWordBits && begin + found < sizes; found += kSizeBits) {
    word |= size_of_state(states[(begin + found) / kSizeBits]) << found;
  }
  if (found == kWordBits) return word;
  uint32_t lane = 0, above = gone;  // the lane of the next bit, by halves
  MLIC_NO_UNROLL
  while (above - lane > 1) {
    const uint32_t middle = (lane + above) / 2;
    if (scan.before(middle) <= begin + found - sizes) {
      lane = middle;
    } else {
      above = middle;
    }
  }
  MLIC_NO_UNROLL
  for (; found < kWordBits; ++lane) {
    const uint32_t at = begin + found - sizes - scan.before(lane);
    const uint32_t size = size_of_state(states[lane]);
    word |= low_bits(states[lane], size) >> at << found;
    found += kWordBits + size - at;
  }
  return word & 0xffff;
}

// The lanes that do not stay give back the bits that they were started from. bad_end must be zero
// before, and may be read after the next phase.
template <class Block>
MLIC_CALLED void retire(Block& block, Scan& scan, uint32_t& bad_end, DecoderState& state,
                        uint16_t* words) {
  const uint32_t lanes = state.lanes, tail = tail_of(lanes), gone = lanes - tail;
  const uint32_t next = state.next[0], left = state.end[0] - next;
  const uint32_t* states = state.states + tail;
  block.each([&](uint32_t thread) {
    scan.values[thread] = thread < gone ? kWordBits + size_of_state(states[thread]) : 0;
    if (thread > 0 && thread < groups_of(lanes) && state.next[thread] != state.end[thread]) {
      atomic_or(bad_end, 1);
    }
  });
  sum_up(block, scan);
  const uint32_t bits = kSizeBits * (gone - 1) + scan.total, count = bits / kWordBits;
  block.each([&](uint32_t thread) {
    MLIC_NO_UNROLL
    for (uint32_t i = thread; i < count; i += kBlockThreads) {
      words[next - count + i] = static_cast<uint16_t>(given_word(scan, states, gone, i));
    }
  });
  block.each([&](uint32_t thread) {
    if (thread != 0) return;
    // Where an encoder had too few words, zeros stood for them.
    if (left <= state.spare) state.spare += count;
    state.next[0] = next - count;
    state.lanes = tail;
    ++state.retired;
    if (bad_end != 0 || bits % kWordBits != 0) state.error = static_cast<uint32_t>(Error::kEnd);
  });
}

// All retirements before which no symbols are left.
template <class Block>
MLIC_DEVICE void retire_if_due(Block& block, Scan& scan, uint32_t& bad_end, DecoderState& state,
                               uint16_t* words) {
  MLIC_NO_UNROLL
  while (state.error == 0 && state.retired < state.retirements && state.until[state.retired] == 0) {
    retire(block, scan, bad_end, state, words);
  }
}

template <class Block>
MLIC_DEVICE void begin(Block& block, BeginShared& shared, const BeginArgs& args) {
  block.await_launch_before();
  const uint32_t image = block.column();
  const uint8_t* data = args.payloads + args.headers[image].offset;
  uint16_t* words = args.words + static_cast<size_t>(image) * args.words_stride;
  DecoderState& state = args.states[image];
  const uint32_t size = args.headers[image].size, lanes = args.headers[image].lanes;
  const bool usable = size <= args.capacity && is_lane_count(lanes);
  const uint32_t header = usable ? lesser(size, kHeaderBytes) : 0;
  block.each([&](uint32_t thread) {
    if (thread < header) shared.header[thread] = data[thread];
    if (thread == 0) shared.padding = shared.bad_end = 0;
  });

  block.each([&](uint32_t thread) {
    if (thread != 0) return;
    Error error = Error::kNone;
    if (!usable) error = size > args.capacity ? Error::kCapacity : Error::kLaneCount;
    uint32_t at = 0;
    uint64_t listed = 0;
    const uint32_t groups = usable ? groups_of(lanes) : 0;
    for (uint32_t g = 0; g + 1 < groups && error == Error::kNone; ++g) {
      uint32_t length = 0;
      error = read_leb128(shared.header, header, at, length);
      // Kept in 32 bits: a sum that would not fit is found too long below.
      state.next[g] = kReturnedWords + static_cast<uint32_t>(listed);
      listed += length;
      state.end[g] = kReturnedWords + static_cast<uint32_t>(listed);
    }
    if (groups > 0) state.next[groups - 1] = kReturnedWords + static_cast<uint32_t>(listed);
    const uint32_t retirements = usable ? retirements_of(lanes) : 0;
    for (uint32_t i = 0; i < retirements && error == Error::kNone; ++i) {
      error = read_leb128(shared.header, header, at, state.until[i]);
    }
    state.lanes = lanes;
    state.retirements = retirements;
    state.retired = state.spare = 0;
    shared.header_size = at;
    shared.listed = listed;
    shared.error = static_cast<uint32_t>(error);
  });
  // Sizes of the states.
  const uint8_t* sizes = data + shared.header_size;
  const uint32_t size_bytes = lanes * kSizeBits / 8;
  const bool has_sizes = shared.error == 0 && size - shared.header_size >= size_bytes;
  if (!has_sizes) {
    block.each([&](uint32_t thread) {
      const auto too_short = static_cast<uint32_t>(Error::kTooShort);
      if (thread == 0) state.error = shared.error != 0 ? shared.error : too_short;
    });
    return;
  }
  const auto size_of = [&](uint32_t lane) { return read_bits(sizes, kSizeBits * lane, kSizeBits); };
  block.each([&](uint32_t thread) {
    shared.bits.values[thread] = thread < lanes ? kWordBits + size_of(thread) : 0;
  });
  sum_up(block, shared.bits);

  // The states.
  const uint8_t* bits = sizes + size_bytes;
  const uint32_t bit_bytes = (shared.bits.total + 7) / 8;
  const uint32_t left = size - shared.header_size - size_bytes;
  const bool has_states = left >= bit_bytes;
  block.each([&](uint32_t thread) {
    if (thread >= lanes || !has_states) return;
    const uint32_t beyond = size_of(thread), at = shared.bits.before(thread);
    state.states[thread] = kLowest << beyond | read_bits(bits, at, kWordBits + beyond);
    if (thread == 0) {
      shared.padding = read_bits(bits, shared.bits.total, 8 * bit_bytes - shared.bits.total);
    }
  });

  const uint32_t word_bytes = has_states ? left - bit_bytes : 0;
  const uint32_t word_count = word_bytes / 2;
  Error error = Error::kNone;
  if (!has_states) {
    error = Error::kTooShort;
  } else if (shared.padding != 0) {
    error = Error::kState;
  } else if (word_bytes % 2 != 0) {
    error = Error::kHalfWord;
  } else if (shared.listed > word_count) {
    error = Error::kTooShort;
  }
  const uint8_t* source = bits + bit_bytes;
  block.each([&](uint32_t thread) {
    for (uint32_t i = thread; i < word_count; i += kAtOnce * kBlockThreads) {
      uint32_t copied[kAtOnce];
      MLIC_UNROLL
      for (uint32_t k = 0; k < kAtOnce; ++k) {
        const uint32_t at = lesser(i + k * kBlockThreads, word_count - 1);
        copied[k] = source[2 * at] | source[2 * at + 1] << 8;
      }
      MLIC_UNROLL
      for (uint32_t k = 0; k < kAtOnce; ++k) {
        const uint32_t at = i + k * kBlockThreads;
        if (at < word_count) words[kReturnedWords + at] = static_cast<uint16_t>(copied[k]);
      }
    }
    if (thread != 0) return;
    state.end[groups_of(lanes) - 1] = kReturnedWords + word_count;
    state.error = static_cast<uint32_t>(error);
  });
  retire_if_due(block, shared.bits, shared.bad_end, state, words);
}

// ---- A pass ----

struct DecodeShared {
  Lists lists;
  // Kept here, as they depend on what fits the shared memory: found anew they would take time in
  // every step.
  uint8_t* ranks;    // of each place
  int8_t* bytes;     // the symbol of each place: where the ranks are, or where all blocks see it
  uint32_t* within;  // of the block's part of the symbols
  uint64_t failure;  // the first in the order of the stream
  uint32_t has_escapes;
  uint32_t bad_end;
  uint32_t gives_zeros;  // as the payload is damaged
};

// The tables of the pass, by rank, and room for ranks and `within`. Cells and bounds are counted
// from the first of the pass. What does not fit the shared memory is null.
struct StagedTables {
  StagedList* lists;
  uint32_t* bounds;
  Cell* cells;
  uint8_t* ranks;
  uint32_t* within;
};

// Of a block.
struct DecodeMemory {
  DecodeShared& shared;
  StagedTables staged;
};

// The least symbol that the table of a list, of runs or not, has no place for.
MLIC_DEVICE int64_t beyond(const StagedList& list, bool of_runs) {
  if (!of_runs) return list.table.beyond();
  return value_of(list.table, list.head.classes(), list.table.escape());
}

// Value of a byte whose symbol does not fit.
constexpr int32_t kFar = -128;
// The rank of a plain symbol's place is this if it is no smaller.
constexpr uint32_t kFarRank = 255;

constexpr uint64_t kNoFailure = ~uint64_t{0};

MLIC_DEVICE uint64_t failure_at(uint32_t place, Error error) {
  return static_cast<uint64_t>(place) << 8 | static_cast<uint32_t>(error);
}

// The words of a group. Lane i holds word i of a window of 32 and of the one after it, which is
// loaded long before it is wanted, so that handing words out does not wait for memory.
template <class Warp>
class WordReader {
 public:
  using Lanes = typename Warp::template Lanes<uint32_t>;

  MLIC_DEVICE WordReader(Warp& warp, const uint16_t* words, uint32_t next, uint32_t end)
      : warp_(warp), words_(words), window_(next), end_(end), taken_(0) {
    load(window_, held_);
    load(window_ + kWarpLanes, following_);
    turn_ = lesser(kWarpLanes, end_ - window_ + 1);
  }

  MLIC_DEVICE uint32_t next() const { return window_ + taken_; }
  MLIC_DEVICE uint32_t left() const { return end_ - next(); }

  // Gives words to the lanes of the mask, in increasing order. To be followed by `turn`.
  MLIC_DEVICE void take(uint32_t needs, Lanes& x) {
    Lanes word, beyond;
    const auto position = [&](uint32_t lane) { return taken_ + rank_in(needs, lane); };
    warp_.gather(held_, position, word);
    warp_.gather(following_, position, beyond);
    warp_.each([&](uint32_t lane) {
      if (!has_bit(needs, lane)) return;
      x[lane] = take_word(x[lane], position(lane) < kWarpLanes ? word[lane] : beyond[lane]);
    });
    taken_ += count_bits(needs);
  }

  MLIC_DEVICE bool must_turn() const { return taken_ >= turn_; }

  // To the next window if this one is used up. False if there were not enough words: then nothing
  // is of use any more.
  MLIC_DEVICE bool turn() {
    if (!must_turn()) return true;
    if (taken_ > end_ - window_) return false;
    taken_ -= kWarpLanes;
    window_ += kWarpLanes;
    turn_ = lesser(kWarpLanes, end_ - window_ + 1);
    warp_.each([&](uint32_t lane) { held_[lane] = following_[lane]; });
    load(window_ + kWarpLanes, following_);
    return true;
  }

 private:
  MLIC_DEVICE void load(uint32_t from, Lanes& words) {
    warp_.each([&](uint32_t lane) {
      const uint32_t i = from + lane;
      words[lane] = i < end_ ? words_[i] : 0;
    });
  }

  Warp& warp_;
  const uint16_t* words_;
  uint32_t window_, end_;
  uint32_t taken_;  // words of the window
  uint32_t turn_;   // so many taken words are all of the window, or more than there are
  Lanes held_, following_;
};

// Entries of a step, one a lane, while they are being found.
template <class Warp>
struct Step {
  template <class T>
  using Lanes = typename Warp::template Lanes<T>;

  Lanes<uint32_t> upper;   // the state above the slot
  Lanes<uint32_t> within;  // how many slots the state's own is above the first of the entry
  Lanes<uint32_t> freq;    // of the entry, which is the right one if that is more
  Lanes<uint32_t> number;  // of the entry in the table

  // From the cell of the state's slot.
  MLIC_DEVICE void look_into(const Cell& cell, uint32_t slot, uint32_t lane) {
    const uint32_t from_first = slot - start_of(cell.first);
    const bool is_first = from_first < freq_of(cell.first);
    within[lane] = is_first ? from_first : from_first - freq_of(cell.first);
    freq[lane] = is_first ? freq_of(cell.first) : cell.next_freq();
    number[lane] = is_first ? cell.number() : cell.number() + 1;
  }

  // Searches for an entry beyond the two that the cell holds.
  MLIC_DEVICE void search_on(const Entry* entries, const CellTable& table, uint32_t lane) {
    while (within[lane] >= freq[lane] && number[lane] < table.escape()) {
      within[lane] -= freq[lane];
      freq[lane] = freq_of(entries[table.first + ++number[lane]]);
    }
  }
};

// One warp's share of a pass: a group of lanes. Each of the functions returns false if the words
// end too early. A step is a chain of dependent instructions from state to state: what else there
// is to do has few branches, so that it is done while the chain waits.
template <bool kStaged, class Warp>
class GroupDecoder {
 public:
  template <class T>
  using Lanes = typename Warp::template Lanes<T>;

  MLIC_DEVICE GroupDecoder(Warp& warp, DecodeShared& shared, const StagedTables& staged,
                           const DecodeArgs& args, uint32_t image, DecoderState& state)
      : warp_(warp),
        shared_(shared),
        staged_(staged),
        args_(args),
        state_(state),
        scratch_(args.scratch + static_cast<size_t>(image) * kDecoderScratch * args.scratch_stride),
        cells_(kStaged ? hold_shared(staged.cells) : args.tables.cells),
        lanes_(state.lanes),
        width_(lesser(lanes_, kGroupLanes)),
        words_(warp, args.words + static_cast<size_t>(image) * args.words_stride,
               state.next[warp.index()], state.end[warp.index()]) {
    warp.each([&](uint32_t lane) {
      x_[lane] = lane < width_ ? state_.states[first_lane() + lane] : kLowest;
    });
  }

  MLIC_DEVICE void close() {
    warp_.each([&](uint32_t lane) {
      if (lane < width_) state_.states[first_lane() + lane] = x_[lane];
      if (lane == 0) state_.next[warp_.index()] = words_.next();
    });
  }

  // Lanes do not wait for one another at the ends of lists. A value that has no class is an event
  // between two runs, pending until it is decoded. The data of the next step are loaded before it
  // is known whether they are wanted.
  MLIC_DEVICE bool decode_runs(uint32_t begin, uint32_t end) {
    if (begin == end) return true;
    const uint32_t last_rank = shared_.lists.runs - 1;
    int8_t* const bytes = shared_.bytes;
    Chunks chunks(end - begin, lanes_);
    chunks.lane_bits = hold(chunks.lane_bits);
    // Of the lane's symbols: the next, where its list ends, and how many there are.
    Lanes<uint32_t> at, stop, next_stop, count;
    Lanes<uint32_t> rank, bound, seldom;
    Lanes<ListHead> list, next;
    Lanes<CellTable> own;  // values of the list, or of that of the pending one
    Lanes<uint32_t> value_cells, value_packed, value_rank;  // of the pending value, kNone for none
    Lanes<int32_t> value;
    const auto going = [&](uint32_t lane) {
      return either(at[lane] < count[lane], value_rank[lane] != kNone);
    };
    const auto ends_list = [&](uint32_t lane) {
      return both(at[lane] >= stop[lane], at[lane] < count[lane]);
    };
    const auto symbols_before = [&](uint32_t lane, uint32_t place) {
      return lesser(chunks.before(first_lane() + lane, place - begin), count[lane]);
    };
    const auto stop_of_next = [&](uint32_t lane) { return symbols_before(lane, next[lane].end); };
    const auto place_of = [&](uint32_t lane, uint32_t number) {
      return begin + chunks.place(first_lane() + lane, number);
    };
    const auto longest = [&](uint32_t lane) {
      return lesser(stop[lane] - at[lane], list[lane].limit());
    };
    const auto expect_run = [&](uint32_t lane) {
      bound[lane] = staged_.bounds[list[lane].bounds() + longest(lane)];
    };
    const auto find_list = [&](uint32_t lane) {
      while (ends_list(lane)) {
        list[lane] = load_whole(&staged_.lists[++rank[lane]].head);
        stop[lane] = list[lane].end > begin ? symbols_before(lane, list[lane].end) : 0;
        expect_run(lane);
      }
    };
    warp_.each([&](uint32_t lane) {
      at[lane] = rank[lane] = 0;
      count[lane] = lane < width_ ? chunks.before(first_lane() + lane, end - begin) : 0;
      list[lane] = load_whole(&staged_.lists[0].head);
      stop[lane] = list[lane].end > begin ? symbols_before(lane, list[lane].end) : 0;
      value_cells[lane] = value_packed[lane] = 0;
      value_rank[lane] = kNone;
      expect_run(lane);
      find_list(lane);
    });
    const auto table_of = [&](uint32_t lane) {
      if (value_rank[lane] != kNone) return staged_.lists[value_rank[lane]].table;
      return args_.tables.tables[args_.range.first + shared_.lists.tables[rank[lane]]].runs;
    };
    if (warp_.ballot(going) == 0) return true;
    for (;;) {
      warp_.each([&](uint32_t lane) {
        const bool is_value = value_rank[lane] != kNone;
        const uint32_t bits = is_value ? value_packed[lane] >> 16 & 0xff : kRunBits;
        const uint32_t shift = (is_value ? value_packed[lane] : list[lane].cells) >> 24;
        const uint32_t cells = is_value ? value_cells[lane] : list[lane].cells & 0xffffff;
        const uint32_t slot = x_[lane] & ((1u << bits) - 1);
        const Cell cell = load_whole(cells_ + cells + (slot >> shift));
        next[lane] = load_whole(&staged_.lists[lesser(rank[lane] + 1, last_rank)].head);
        if (kHasRegisters) next_stop[lane] = stop_of_next(lane);
        own[lane] = load_whole(&staged_.lists[is_value ? value_rank[lane] : rank[lane]].table);
        step_.look_into(cell, slot, lane);
        step_.upper[lane] = x_[lane] >> bits;
        const bool full = !is_value & (slot >= bound[lane]);
        step_.within[lane] = full ? slot - bound[lane] : step_.within[lane];
        step_.freq[lane] = full ? (1u << kRunBits) - bound[lane] : step_.freq[lane];
        step_.number[lane] = full ? kNone : step_.number[lane];
      });
      finish_step(going, table_of);
      warp_.each([&](uint32_t lane) {
        const uint32_t number = step_.number[lane];
        const Classes classes = list[lane].classes();
        const bool is_on = going(lane), is_value = value_rank[lane] != kNone,
                   full = number == kNone;
        const uint32_t zeros = full ? longest(lane) : classes.run_of(number);
        const uint32_t kind = number - zeros * classes.count();
        const bool is_run = is_on & !is_value;
        const bool further = is_run & !full & (kind == classes.last());
        const uint32_t own_rank = is_value ? value_rank[lane] : rank[lane];
        value[lane] = value_of(own[lane], staged_.lists[own_rank].head.classes(), number);
        const uint32_t found = is_value ? at[lane] - 1 : at[lane] + zeros;
        if (is_on & !full & !further) {
          (kHasRegisters ? bytes : shared_.bytes)[place_of(lane, found)] =
              static_cast<int8_t>(is_value ? value[lane] : classes.symbol(kind));
        }
        at[lane] = is_run ? found + (full ? 0 : 1) : at[lane];
        const bool beyond_byte =
            both(is_value, either(number == own[lane].escape(), is_far(value[lane])));
        value_cells[lane] = further ? own[lane].cells : value_cells[lane];
        value_packed[lane] = further ? own[lane].packed : value_packed[lane];
        value_rank[lane] = further ? rank[lane] : kNone;
        const bool turns = ends_list(lane);
        rank[lane] += turns;
        stop[lane] = turns ? (kHasRegisters ? next_stop[lane] : stop_of_next(lane)) : stop[lane];
        list[lane].cells = turns ? next[lane].cells : list[lane].cells;
        list[lane].packed = turns ? next[lane].packed : list[lane].packed;
        expect_run(lane);
        seldom[lane] = beyond_byte ? 2 : either(ends_list(lane), both(is_on, !going(lane)));
      });
      const uint32_t some = warp_.ballot([&](uint32_t lane) { return seldom[lane] != 0; });
      if (!either(some != 0, words_.must_turn())) continue;
      warp_.each([&](uint32_t lane) {
        find_list(lane);
        if (seldom[lane] != 2) return;
        if (step_.number[lane] == own[lane].escape()) {
          mark(place_of(lane, at[lane] - 1));
        } else {
          put(place_of(lane, at[lane] - 1), value[lane]);
        }
      });
      if (!words_.turn()) return false;
      if (warp_.ballot(going) == 0) return true;
    }
  }

  // Ranks are loaded ahead by two steps, tables by one.
  MLIC_DEVICE bool decode_plain(uint32_t begin, uint32_t end) {
    const uint8_t* ranks = shared_.ranks;
    int8_t* bytes = shared_.bytes;
    Lanes<uint32_t> rank;
    Lanes<bool> is_far_rank;
    Lanes<CellTable> table, next_table;
    const auto rank_at = [&](uint32_t place) { return place < end ? ranks[place] : 0u; };
    const auto table_at = [&](uint32_t number) { return load_whole(&staged_.lists[number].table); };
    // Ranks that a byte has no room for.
    const auto find_table = [&](uint32_t place, uint32_t number) {
      while (place >= shared_.lists.ends[number]) ++number;
      return table_at(number);
    };
    const uint32_t first = begin + first_lane();
    warp_.each([&](uint32_t lane) {
      rank[lane] = rank_at(first + lane);
      next_table[lane] = table_at(rank[lane]);
      if (rank[lane] == kFarRank) next_table[lane] = find_table(first + lane, kFarRank);
      rank[lane] = rank_at(first + lane + lanes_);
    });
    for (uint32_t k = first; k < end; k += lanes_) {
      const auto on = [&](uint32_t lane) { return (lane < width_) & (k + lane < end); };
      warp_.each([&](uint32_t lane) {
        table[lane] = next_table[lane];
        next_table[lane] = table_at(rank[lane]);
        is_far_rank[lane] = rank[lane] == kFarRank;
        rank[lane] = rank_at(k + lane + 2 * lanes_);
        const uint32_t slot = x_[lane] & table[lane].mask();
        const uint32_t cell = table[lane].cells + (slot >> table[lane].shift());
        step_.look_into(load_whole(cells_ + cell), slot, lane);
        step_.upper[lane] = x_[lane] >> table[lane].bits();
      });
      finish_step(on, [&](uint32_t lane) { return find_table(k + lane, shared_.lists.runs); });
      const auto symbol = [&](uint32_t lane) {
        return static_cast<int32_t>(static_cast<uint32_t>(table[lane].minimum) +
                                    step_.number[lane]);
      };
      const auto is_escape = [&](uint32_t lane) {
        return step_.number[lane] == table[lane].escape();
      };
      warp_.each([&](uint32_t lane) {
        if (on(lane) & !is_escape(lane)) {
          bytes[k + lane] = static_cast<int8_t>(symbol(lane));
        }
      });
      const uint32_t some = warp_.ballot([&](uint32_t lane) {
        return both(on(lane),
                    either(is_escape(lane), either(is_far(symbol(lane)), is_far_rank[lane])));
      });
      if (either(some != 0, words_.must_turn())) {
        warp_.each([&](uint32_t lane) {
          if (!has_bit(some, lane)) return;
          if (is_far_rank[lane]) next_table[lane] = find_table(k + lane + lanes_, kFarRank);
          if (is_escape(lane)) {
            mark(k + lane);
          } else {
            put(k + lane, symbol(lane));
          }
        });
        if (!words_.turn()) return false;
      }
    }
    return true;
  }

  // The rest of escaped symbols, in the order of their places, one a lane. The first lane that
  // fails decides the error, as if one lane went after the other.
  MLIC_DEVICE void decode_escapes(uint32_t count) {
    Lanes<uint32_t> place, rank;
    uint32_t block = 0;
    for (uint32_t k = first_lane(); k < count; k += lanes_, ++block) {
      const uint32_t active = lesser(count - k, width_);
      warp_.each([&](uint32_t lane) {
        if (lane >= active) return;
        place[lane] = scratch(kEscapes)[k + lane];
        rank[lane] = 0;
        while (place[lane] >= shared_.lists.ends[rank[lane]]) ++rank[lane];
      });
      const Error error = decode_digits(active < 32 ? (1u << active) - 1 : ~0u, place, rank);
      if (error != Error::kNone) {
        const uint32_t at = block * groups_of(lanes_) + warp_.index();
        warp_.each([&](uint32_t lane) {
          if (lane == 0) atomic_min(shared_.failure, failure_at(1 + at, error));
        });
        return;
      }
    }
  }

 private:
  MLIC_DEVICE uint32_t first_lane() { return warp_.index() * width_; }
  MLIC_DEVICE uint32_t* scratch(Scratch array) {
    return scratch_ + array * size_t{args_.scratch_stride};
  }
  MLIC_DEVICE static bool is_far(int32_t symbol) { return (symbol <= kFar) | (symbol > 127); }
  MLIC_DEVICE void put(uint32_t place, int32_t symbol) {
    shared_.bytes[place] = static_cast<int8_t>(is_far(symbol) ? kFar : symbol);
    if (is_far(symbol)) scratch(kValues)[place] = static_cast<uint32_t>(symbol);
  }
  MLIC_DEVICE void mark(uint32_t place) {
    atomic_or(scratch(kMarks)[place / 32], 1u << place % 32);
    atomic_or(shared_.has_escapes, 1);
  }

  // The states of those that are on after the entries of a step, and their words.
  template <class On, class TableOf>
  MLIC_DEVICE void finish_step(On&& on, TableOf&& table_of) {
    const auto take_entry = [&](uint32_t lane) {
      x_[lane] = step_.freq[lane] * step_.upper[lane] + step_.within[lane];
    };
    const auto needs = [&](uint32_t lane) { return both(on(lane), needs_word(x_[lane])); };
    const uint32_t further = warp_.ballot([&](uint32_t lane) {  //
      return both(on(lane), step_.within[lane] >= step_.freq[lane]);
    });
    warp_.each([&](uint32_t lane) {
      if (on(lane)) take_entry(lane);
    });
    uint32_t needing = warp_.ballot(needs);
    if (further != 0) {
      warp_.each([&](uint32_t lane) {
        if (!has_bit(further, lane)) return;
        step_.search_on(args_.tables.entries, table_of(lane), lane);
        take_entry(lane);
      });
      needing = warp_.ballot(needs);
    }
    words_.take(needing, x_);
  }

  // Rounds of one digit a lane until none is open.
  MLIC_DEVICE Error decode_digits(uint32_t open, Lanes<uint32_t>& place, Lanes<uint32_t>& rank) {
    Lanes<uint32_t> digit, error;
    Lanes<uint64_t> u;
    warp_.each([&](uint32_t lane) { u[lane] = 0; });
    for (uint32_t round = 0; open != 0 && round < kMaxDigits; ++round) {
      warp_.each([&](uint32_t lane) {
        digit[lane] = has_bit(open, lane) ? decode_bits(kDigitBits, x_[lane]) : 0;
      });
      const uint32_t needs = warp_.ballot([&](uint32_t lane) {  //
        return has_bit(open, lane) && needs_word(x_[lane]);
      });
      const uint32_t left = words_.left();
      words_.take(needs, x_);
      words_.turn();
      warp_.each([&](uint32_t lane) {
        Error e = Error::kNone;
        if (has_bit(open, lane)) {
          if (has_bit(needs, lane) && rank_in(needs, lane) >= left) {
            e = Error::kTooShort;
          } else if (!is_valid_digit(digit[lane], round)) {
            e = Error::kEscape;
          } else {
            u[lane] = add_digit(u[lane], digit[lane], round);
          }
          if (e == Error::kNone && is_last_digit(digit[lane])) {
            const int64_t symbol = escaped_symbol(
                staged_.lists[rank[lane]].table.minimum,
                beyond(staged_.lists[rank[lane]], rank[lane] < shared_.lists.runs), u[lane]);
            if (symbol != static_cast<int32_t>(symbol)) e = Error::kRange;
            put(place[lane], static_cast<int32_t>(symbol));
          }
        }
        error[lane] = static_cast<uint32_t>(e);
      });
      const uint32_t failed = warp_.ballot([&](uint32_t lane) { return error[lane] != 0; });
      if (failed != 0) return static_cast<Error>(warp_.broadcast(error, lowest_bit(failed)));
      open &= warp_.ballot([&](uint32_t lane) { return !is_last_digit(digit[lane]); });
    }
    return Error::kNone;
  }

  Warp& warp_;
  DecodeShared& shared_;
  const StagedTables& staged_;
  const DecodeArgs& args_;
  DecoderState& state_;
  uint32_t* scratch_;
  const Cell* cells_;
  uint32_t lanes_, width_;
  WordReader<Warp> words_;
  Step<Warp> step_;
  Lanes<uint32_t> x_;
};

// Places begin .. end - 1 of a pass.
template <bool kStaged, class Block>
MLIC_DEVICE void decode_part(Block& block, DecodeShared& shared, const StagedTables& staged,
                             const DecodeArgs& args, DecoderState& state, uint32_t begin,
                             uint32_t end) {
  using Warp = typename Block::Warp;
  const uint32_t image = block.column();
  uint32_t* scratch =
      args.scratch + static_cast<size_t>(image) * kDecoderScratch * args.scratch_stride;
  uint32_t runs_end = lesser(shared.lists.runs_end(), end);
  if (runs_end < begin) runs_end = begin;
  const uint32_t groups = groups_of(state.lanes);
  block.each_warp([&](Warp& warp) {
    if (warp.index() >= groups) return;
    GroupDecoder<kStaged, Warp> decoder(warp, shared, staged, args, image, state);
    const bool enough = decoder.decode_runs(begin, runs_end) && decoder.decode_plain(runs_end, end);
    decoder.close();
    warp.each([&](uint32_t lane) {
      if (lane == 0 && !enough) atomic_min(shared.failure, failure_at(0, Error::kTooShort));
    });
  });
  if (shared.has_escapes == 0 || shared.failure != kNoFailure) return;
  const uint32_t count =
      collect_marked(block, shared.lists.scan, scratch + kMarks * size_t{args.scratch_stride},
                     begin, end, scratch + kEscapes * size_t{args.scratch_stride});
  block.each_warp([&](Warp& warp) {
    if (warp.index() >= groups) return;
    GroupDecoder<kStaged, Warp> decoder(warp, shared, staged, args, image, state);
    decoder.decode_escapes(count);
    decoder.close();
  });
}

// Sets up what depends on no payload but the ranks of the tables, which are known. This may run
// before the previous launch has ended.
template <bool kStaged, class Block>
MLIC_DEVICE void stage(Block& block, DecodeShared& shared, const StagedTables& staged,
                       const DecodeArgs& args) {
  const TableRange& range = args.range;
  block.each([&](uint32_t thread) {
    for (uint32_t i = thread; i < range.count; i += kBlockThreads) {
      const DeviceTable& table = args.tables.tables[range.first + i];
      const uint32_t base = kStaged ? range.first_cell : 0;
      StagedList list{};
      list.table = table.own;
      if (table.limit != 0) {
        list.table = table.values;
        list.head.cells = (table.runs.cells - base) | table.runs.shift() << 24;
        list.head.packed = (table.bounds - range.first_bound) | uint32_t{table.limit} << 20 |
                           uint32_t{table.near} << 29;
      }
      list.table.cells -= base;
      staged.lists[shared.lists.ranks[i]] = list;
    }
    for (uint32_t i = thread; i < range.bounds; i += kBlockThreads) {
      staged.bounds[i] = args.tables.bounds[range.first_bound + i];
    }
    if (kStaged) {
      for (uint32_t i = thread; i < range.cells; i += kAtOnce * kBlockThreads) {
        Cell cells[kAtOnce];
        MLIC_UNROLL
        for (uint32_t k = 0; k < kAtOnce; ++k) {
          const uint32_t at = range.first_cell + lesser(i + k * kBlockThreads, range.cells - 1);
          cells[k] = load_whole(args.tables.cells + at);
        }
        MLIC_UNROLL
        for (uint32_t k = 0; k < kAtOnce; ++k) {
          const uint32_t at = i + k * kBlockThreads;
          if (at < range.cells) staged.cells[at] = cells[k];
        }
      }
    }
    if (thread != 0) return;
    shared.failure = kNoFailure;
    shared.has_escapes = shared.bad_end = 0;
  });
}

// The ends of the lists, and the ranks of all plain places.
template <class Block>
MLIC_DEVICE void fill_ranks(Block& block, const DecodeShared& shared, const StagedTables& staged,
                            uint32_t count, uint32_t size) {
  const Lists& lists = shared.lists;
  const uint32_t zeros = lists.runs_end() / 4;  // words that no plain symbol touches
  const uint32_t words = (size + 3) / 4;
  const uint32_t own = (words - zeros + kBlockThreads - 1) / kBlockThreads;
  block.each([&](uint32_t thread) {
    for (uint32_t i = thread; i < count; i += kBlockThreads) {
      staged.lists[i].head.end = lists.ends[i];
    }
    const uint32_t begin = zeros + thread * own, end = lesser(begin + own, words);
    if (begin >= end) return;
    uint32_t rank = 0, above = count;  // the list of the first place, by halves
    while (above - rank > 1) {
      const uint32_t middle = (rank + above) / 2;
      if (4 * begin >= lists.ends[middle - 1]) {
        rank = middle;
      } else {
        above = middle;
      }
    }
    auto* ranks = reinterpret_cast<uint32_t*>(shared.ranks);
    for (uint32_t i = begin; i < end; ++i) {
      uint32_t word = 0;
      MLIC_UNROLL
      for (uint32_t k = 0; k < 4; ++k) {
        while (rank + 1 < count && 4 * i + k >= lists.ends[rank]) ++rank;
        if (rank >= lists.runs) word |= lesser(rank, kFarRank) << 8 * k;
      }
      ranks[i] = word;
    }
  });
}

// Before anything is decoded, all symbols are zero and no place has an escape.
template <class Block>
MLIC_DEVICE void clear(Block& block, Share part, int8_t* bytes, uint32_t* marks) {
  auto* words = reinterpret_cast<uint32_t*>(bytes);
  block.each([&](uint32_t thread) {
    MLIC_NO_UNROLL
    for (uint32_t i = part.begin / 4 + thread; i < (part.end + 3) / 4; i += kBlockThreads) {
      words[i] = 0;
    }
    MLIC_NO_UNROLL
    for (uint32_t i = part.begin / 32 + thread; i < (part.end + 31) / 32; i += kBlockThreads) {
      marks[i] = 0;
    }
  });
}

// All symbols of a pass, by one block.
template <bool kStaged, class Block>
MLIC_DEVICE void decode_symbols(Block& block, DecodeShared& shared, const StagedTables& staged,
                                const DecodeArgs& args, DecoderState& state) {
  const uint32_t size = args.shape.size();
  uint16_t* words = args.words + static_cast<size_t>(block.column()) * args.words_stride;
  // One piece of code for all parts, as it is large.
  uint32_t begin = 0;
  MLIC_NO_UNROLL
  while (begin < size && state.error == 0) {
    const bool is_last = state.retired == state.retirements;
    const uint32_t left = size - begin;
    const uint32_t end = begin + (is_last ? left : lesser(left, state.until[state.retired]));
    decode_part<kStaged>(block, shared, staged, args, state, begin, end);
    block.each([&](uint32_t thread) {
      if (thread != 0) return;
      if (shared.failure != kNoFailure) state.error = shared.failure & 0xff;
      if (!is_last) state.until[state.retired] -= end - begin;
    });
    retire_if_due(block, shared.lists.scan, shared.bad_end, state, words);
    begin = end;
  }
}

// All blocks sort their parts of the symbols, the first decodes, all put back what is theirs.
template <bool kStaged, class Cluster>
MLIC_DEVICE void decode_pass(Cluster& cluster, const DecodeArgs& args) {
  using Block = typename Cluster::Block;
  const uint32_t image = cluster.column(), blocks = cluster.blocks(), size = args.shape.size();
  DecoderState& state = args.states[image];
  int32_t* symbols = args.symbols + static_cast<size_t>(image) * size;
  const uint8_t* indexes =
      args.indexes == nullptr ? nullptr : args.indexes + static_cast<size_t>(image) * size;
  const auto scratch = [&](Scratch array) {
    const size_t number = static_cast<size_t>(image) * kDecoderScratch + array;
    return args.scratch + number * args.scratch_stride;
  };
  cluster.each([&](Block& block, DecodeMemory& memory) {
    DecodeShared& shared = memory.shared;
    const Share part = part_of(block.row(), blocks, size);
    block.each([&](uint32_t thread) {
      if (thread != 0) return;
      auto* bytes = reinterpret_cast<uint8_t*>(scratch(kBytes));
      shared.ranks = memory.staged.ranks != nullptr ? memory.staged.ranks : bytes;
      shared.bytes = reinterpret_cast<int8_t*>(blocks > 1 ? bytes : shared.ranks);
      const bool has_room = memory.staged.within != nullptr;
      shared.within = has_room ? memory.staged.within : scratch(kWithin) + part.begin;
    });
    rank_tables(block, shared.lists, args.tables.tables + args.range.first, args.range);
    if (block.row() == 0) stage<kStaged>(block, shared, memory.staged, args);
    block.await_launch_before();
    clear(block, part, shared.bytes, scratch(kMarks));
    if (indexes != nullptr) {
      count_symbols(block, shared.lists, part, indexes, shared.within);
    } else {
      list_channels(block, shared.lists, args.shape);
    }
  });
  cluster.each([&](Block& block, DecodeMemory& memory) {
    Lists& lists = memory.shared.lists;
    if (indexes != nullptr) {
      join_lists(block, lists, block.row(), blocks, size,
                 [&](uint32_t row) -> const Lists& { return cluster.shared_of(row).lists; });
    }
    if (block.row() != 0) return;
    if (state.error == 0 && lists.bad_index == 0) {
      fill_ranks(block, memory.shared, memory.staged, args.range.count, size);
      decode_symbols<kStaged>(block, memory.shared, memory.staged, args, state);
    }
    block.each([&](uint32_t thread) {
      const bool is_sound = state.error == 0 && lists.bad_index == 0;
      if (thread < blocks) cluster.shared_of(thread).gives_zeros = is_sound ? 0 : 1;
    });
    block.each([&](uint32_t thread) {
      if (thread != 0 || lists.bad_index == 0 || state.error != 0) return;
      state.error = static_cast<uint32_t>(Error::kIndex);
    });
  });
  cluster.each_at_last([&](Block& block, DecodeMemory& memory) {
    const Share part = part_of(block.row(), blocks, size);
    if (memory.shared.gives_zeros != 0) {
      block.each([&](uint32_t thread) {
        for (uint32_t i = part.begin + thread; i < part.end; i += kBlockThreads) symbols[i] = 0;
      });
      return;
    }
    constexpr uint32_t kRows = 4;  // more would spill registers
    const int8_t* bytes = memory.shared.bytes;
    each_place<kRows>(block, memory.shared.lists, args.shape, part, indexes, memory.shared.within,
                      [&](uint32_t i, const uint32_t* places, uint32_t rows) {
                        int32_t found[kRows];
                        int32_t* to = symbols + i;
                        bool some_are_far = false;
                        MLIC_UNROLL
                        for (uint32_t row = 0; row < kRows; ++row) {
                          if (row == rows) break;
                          found[row] = bytes[places[row]];
                        }
                        MLIC_UNROLL
                        for (uint32_t row = 0; row < kRows; ++row) {
                          if (row == rows) break;
                          to[row * kWarpLanes] = found[row];
                          some_are_far |= found[row] == kFar;
                        }
                        if (!some_are_far) return;
                        MLIC_UNROLL
                        for (uint32_t row = 0; row < kRows; ++row) {
                          if (row == rows) break;
                          if (found[row] != kFar) continue;
                          const uint32_t value = scratch(kValues)[places[row]];
                          to[row * kWarpLanes] = static_cast<int32_t>(value);
                        }
                      });
  });
}

// ---- End ----

struct FinishShared {
  uint32_t bad_end;
};

template <class Block>
MLIC_DEVICE void finish(Block& block, FinishShared& shared, const FinishArgs& args) {
  const uint32_t image = block.column();
  const DecoderState& state = args.states[image];
  const uint16_t* words = args.words + static_cast<size_t>(image) * args.words_stride;
  block.await_launch_before();
  block.each([&](uint32_t thread) {
    if (thread == 0) shared.bad_end = 0;
  });
  if (state.error == 0) {
    block.each([&](uint32_t thread) {
      const uint32_t left = state.end[0] - state.next[0];
      bool bad = state.retired != state.retirements || left > state.spare;
      for (uint32_t i = thread; !bad && i < left; i += kBlockThreads) {
        bad = words[state.next[0] + i] != 0;
      }
      if (thread < state.lanes) bad |= state.states[thread] - kLowest > (thread < 2 ? 0xffff : 0);
      if (bad) atomic_or(shared.bad_end, 1);
    });
  }
  block.each([&](uint32_t thread) {
    if (thread != 0) return;
    const uint32_t bad = shared.bad_end != 0 ? static_cast<uint32_t>(Error::kEnd) : 0;
    const uint32_t error = state.error != 0 ? state.error : bad;
    const uint32_t digest = (state.states[0] - kLowest) | (state.states[1] - kLowest) << 16;
    args.results[image] = {error, error != 0 ? 0 : digest};  // an early error leaves no states
  });
}

}  // namespace mlic::rans::device
