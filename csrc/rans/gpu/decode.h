// The decoder's kernels, each for a block an image: begin parses a payload, decode_pass turns
// indexes into symbols, finish checks the end. Whatever the payload's bytes are, nothing is read
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

// Lanes beyond the tail's give back the words that they were started from. bad_end is zero before,
// and must be read after the next phase.
template <class Block>
MLIC_DEVICE void retire(Block& block, uint32_t& bad_end, DecoderState& state, uint16_t* words) {
  const uint32_t lanes = state.lanes, tail = tail_of(lanes);
  const uint32_t next = state.next[0] - (lanes - tail);
  block.each([&](uint32_t thread) {
    if (thread >= tail && thread < lanes) {
      const uint32_t x = state.states[thread];
      words[next + thread - tail] = static_cast<uint16_t>(x);
      if (x >> kWordBits != 1) atomic_or(bad_end, 1);
    }
    if (thread > 0 && thread < groups_of(lanes) && state.next[thread] != state.end[thread]) {
      atomic_or(bad_end, 1);
    }
  });
  block.each([&](uint32_t thread) {
    if (thread != 0) return;
    state.spare = state.next[0] == state.end[0] ? lanes - tail : 0;
    state.next[0] = next;
    state.lanes = tail;
    state.until_tail = kRetired;
    if (bad_end != 0) state.error = static_cast<uint32_t>(Error::kEnd);
  });
}

template <class Block>
MLIC_DEVICE void begin(Block& block, BeginShared& shared, const BeginArgs& args) {
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
    uint32_t at = 0, until_tail = 0;
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
    if (error == Error::kNone && tail_of(lanes) < lanes) {
      error = read_leb128(shared.header, header, at, until_tail);
    }
    state.lanes = lanes;
    state.until_tail = lesser(until_tail, kRetired - 1);
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
    for (uint32_t i = thread; i < word_count; i += kBlockThreads) {
      words[kReturnedWords + i] = static_cast<uint16_t>(source[2 * i] | source[2 * i + 1] << 8);
    }
    if (thread != 0) return;
    state.end[groups_of(lanes) - 1] = kReturnedWords + word_count;
    state.error = static_cast<uint32_t>(error);
  });
  if (state.error == 0 && state.until_tail == 0) retire(block, shared.bad_end, state, words);
}

// ---- A pass ----

// What a lane wants to know of a list of a run table.
struct RunList {
  CellTable runs;
  uint32_t end;
  uint32_t limit;
  uint32_t bounds;
  Classes classes;
};

struct DecodeShared {
  Lists lists;
  uint64_t failure;  // the first in the order of the stream
  uint32_t has_escapes;
  uint32_t bad_end;
};

// What the pass uses of the tables. Cells are in shared memory where they fit; cells and bounds are
// counted from the first of the pass.
struct StagedTables {
  DeviceTable* tables;
  uint32_t* bounds;
  Cell* cells;  // null if they do not fit
};

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
  }

  MLIC_DEVICE uint32_t next() const { return window_ + taken_; }
  MLIC_DEVICE uint32_t left() const { return end_ - next(); }

  // Gives words to the lanes of the mask, in increasing order, as far as there are any.
  MLIC_DEVICE void take(uint32_t needs, Lanes& x) {
    Lanes word, beyond;
    const auto position = [&](uint32_t lane) { return taken_ + rank_in(needs, lane); };
    warp_.gather(held_, position, word);
    warp_.gather(following_, position, beyond);
    warp_.each([&](uint32_t lane) {
      if (!has_bit(needs, lane)) return;
      x[lane] = take_word(x[lane], position(lane) < kWarpLanes ? word[lane] : beyond[lane]);
    });
    taken_ += lesser(count_bits(needs), left());
    if (taken_ < kWarpLanes) return;
    taken_ -= kWarpLanes;
    window_ += kWarpLanes;
    warp_.each([&](uint32_t lane) { held_[lane] = following_[lane]; });
    load(window_ + kWarpLanes, following_);
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
  Lanes held_, following_;
};

// Entries of a step, one a lane, while they are being found.
template <class Warp>
struct Step {
  template <class T>
  using Lanes = typename Warp::template Lanes<T>;

  Lanes<CellTable> table;
  Lanes<uint32_t> upper;   // the state above the slot
  Lanes<uint32_t> within;  // how many slots the state's own is above the first of the entry
  Lanes<uint32_t> freq;    // of the entry, which is the right one if that is more
  Lanes<uint32_t> number;  // of the entry in the table

  // From the cell of the state's slot.
  MLIC_DEVICE void look_into(const Cell& cell, uint32_t x, uint32_t lane) {
    const uint32_t from_first = (x & table[lane].mask()) - start_of(cell.first);
    const bool is_first = from_first < freq_of(cell.first);
    within[lane] = is_first ? from_first : from_first - freq_of(cell.first);
    freq[lane] = is_first ? freq_of(cell.first) : cell.next_freq();
    number[lane] = is_first ? cell.number() : cell.number() + 1;
    upper[lane] = x >> table[lane].bits();
  }

  // The entry lies beyond the two that the cell tells of.
  MLIC_DEVICE void search_on(const Entry* entries, uint32_t lane) {
    while (within[lane] >= freq[lane] && number[lane] < table[lane].escape()) {
      within[lane] -= freq[lane];
      freq[lane] = freq_of(entries[table[lane].first + ++number[lane]]);
    }
  }

  MLIC_DEVICE uint32_t state(uint32_t lane) const {
    return freq_at(lane) * upper_at(lane) + within_at(lane);
  }

 private:
  // Lanes have no constant access.
  MLIC_DEVICE uint32_t freq_at(uint32_t lane) const { return const_cast<Step*>(this)->freq[lane]; }
  MLIC_DEVICE uint32_t upper_at(uint32_t lane) const {
    return const_cast<Step*>(this)->upper[lane];
  }
  MLIC_DEVICE uint32_t within_at(uint32_t lane) const {
    return const_cast<Step*>(this)->within[lane];
  }
};

// Consecutive places of a pass that are coded alike: place begin + i is on lane i mod lanes.
struct Section {
  uint32_t begin;
  uint32_t end;
  uint32_t lanes;
};

// One warp's share of a pass: a group of lanes. Each of the functions returns false if the words
// end too early.
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
        cells_(kStaged ? staged.cells : args.tables.cells),
        lanes_(state.lanes),
        shift_(lowest_bit(state.lanes)),
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

  // Lanes do not wait for one another at the ends of lists.
  MLIC_DEVICE bool decode_runs(uint32_t begin, uint32_t end) {
    const Lists& lists = shared_.lists;
    Lanes<uint32_t> place, rank, longest, bound, pending, going;
    Lanes<RunList> list;
    const auto find_list = [&](uint32_t lane) {
      if (place[lane] >= end) {
        going[lane] = 0;
        return;
      }
      if (place[lane] >= list[lane].end) {
        while (place[lane] >= lists.ends[rank[lane]]) ++rank[lane];
        const DeviceTable& table = staged_.tables[lists.tables[rank[lane]]];
        list[lane] = {table.runs, lesser(lists.ends[rank[lane]], end), table.limit, table.bounds,
                      table.classes()};
      }
      const uint32_t left = (list[lane].end - place[lane] + lanes_ - 1) >> shift_;
      longest[lane] = lesser(left, list[lane].limit);
      bound[lane] = staged_.bounds[list[lane].bounds + longest[lane]];
      step_.table[lane] = list[lane].runs;
    };
    warp_.each([&](uint32_t lane) {
      place[lane] = begin + first_lane() + lane;
      rank[lane] = pending[lane] = 0;
      list[lane] = {};
      going[lane] = lane < width_;
      step_.table[lane] = staged_.tables[0].runs;
      if (lane < width_) find_list(lane);
    });
    for (;;) {
      const uint32_t active = warp_.ballot([&](uint32_t lane) { return going[lane] != 0; });
      if (active == 0) return true;
      warp_.each([&](uint32_t lane) {
        if (!has_bit(active, lane)) return;
        const uint32_t slot = x_[lane] & step_.table[lane].mask();
        if (pending[lane] == 0 && slot >= bound[lane]) {
          step_.within[lane] = slot - bound[lane];
          step_.freq[lane] = (1u << kRunBits) - bound[lane];
          step_.upper[lane] = x_[lane] >> kRunBits;
          step_.number[lane] = list[lane].classes.count() * longest[lane];
        } else {
          step_.look_into(look_up(step_.table[lane], slot), x_[lane], lane);
        }
      });
      search(active);
      warp_.each([&](uint32_t lane) {
        if (!has_bit(active, lane)) return;
        x_[lane] = step_.state(lane);
        const uint32_t number = step_.number[lane];
        if (pending[lane] != 0) {
          const uint32_t further = place[lane] - lanes_;
          if (number == step_.table[lane].escape()) {
            mark(further);
          } else {
            put(further, value_of(step_.table[lane], list[lane].classes, number));
          }
          pending[lane] = 0;
          find_list(lane);
          return;
        }
        const Classes own = list[lane].classes;
        const uint32_t zeros = own.run_of(number);
        place[lane] += zeros << shift_;
        if (number != own.count() * longest[lane]) {
          const uint32_t kind = number - zeros * own.count();
          pending[lane] = kind == own.last();
          if (kind != own.last()) put(place[lane], own.symbol(kind));
          place[lane] += lanes_;
        }
        if (pending[lane] != 0) {
          step_.table[lane] = staged_.tables[lists.tables[rank[lane]]].values;
        } else {
          find_list(lane);
        }
      });
      if (!renormalise(active)) return false;
    }
  }

  MLIC_DEVICE bool decode_plain(uint32_t begin, uint32_t end) {
    const Lists& lists = shared_.lists;
    Lanes<uint32_t> place, rank;
    const auto find_table = [&](uint32_t lane) {
      if (lane >= width_ || place[lane] >= end) return;
      while (place[lane] >= lists.ends[rank[lane]]) ++rank[lane];
      step_.table[lane] = staged_.tables[lists.tables[rank[lane]]].own;
    };
    warp_.each([&](uint32_t lane) {
      place[lane] = begin + first_lane() + lane;
      rank[lane] = 0;
      find_table(lane);
    });
    for (uint32_t k = begin + first_lane(); k < end; k += lanes_) {
      const uint32_t count = lesser(end - k, width_);
      const uint32_t active = count < 32 ? (1u << count) - 1 : ~0u;
      warp_.each([&](uint32_t lane) {
        if (!has_bit(active, lane)) return;
        const uint32_t slot = x_[lane] & step_.table[lane].mask();
        step_.look_into(look_up(step_.table[lane], slot), x_[lane], lane);
      });
      search(active);
      warp_.each([&](uint32_t lane) {
        if (!has_bit(active, lane)) return;
        x_[lane] = step_.state(lane);
        const CellTable& table = step_.table[lane];
        const uint32_t number = step_.number[lane];
        if (number == table.escape()) {
          mark(place[lane]);
        } else {
          put(place[lane], static_cast<int32_t>(static_cast<uint32_t>(table.minimum) + number));
        }
        place[lane] += lanes_;
        find_table(lane);
      });
      if (!renormalise(active)) return false;
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
  MLIC_DEVICE void put(uint32_t place, int32_t symbol) {
    scratch(kValues)[place] = static_cast<uint32_t>(symbol);
  }
  MLIC_DEVICE void mark(uint32_t place) {
    atomic_or(scratch(kMarks)[place / 32], 1u << place % 32);
    atomic_or(shared_.has_escapes, 1);
  }
  MLIC_DEVICE Cell look_up(const CellTable& table, uint32_t slot) {
    return load_whole(cells_ + table.cells + (slot >> table.shift()));
  }

  MLIC_DEVICE void search(uint32_t active) {
    const uint32_t further = warp_.ballot([&](uint32_t lane) {  //
      return has_bit(active, lane) && step_.within[lane] >= step_.freq[lane];
    });
    if (further == 0) return;
    warp_.each([&](uint32_t lane) {
      if (has_bit(further, lane)) step_.search_on(args_.tables.entries, lane);
    });
  }

  MLIC_DEVICE bool renormalise(uint32_t active) {
    const uint32_t needs = warp_.ballot([&](uint32_t lane) {  //
      return has_bit(active, lane) && needs_word(x_[lane]);
    });
    const bool enough = count_bits(needs) <= words_.left();
    words_.take(needs, x_);
    return enough;
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
            const DeviceTable& table = staged_.tables[shared_.lists.tables[rank[lane]]];
            const int64_t symbol = escaped_symbol(table.bounded().minimum, beyond(table), u[lane]);
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
  uint32_t lanes_, shift_, width_;
  WordReader<Warp> words_;
  Step<Warp> step_;
  Lanes<uint32_t> x_;
};

// The places of escaped symbols from begin to end - 1, in their order, into scratch. Returns how
// many there are.
template <class Block>
MLIC_DEVICE uint32_t collect_escapes(Block& block, Scan& scan, uint32_t* scratch, uint32_t stride,
                                     uint32_t begin, uint32_t end) {
  const uint32_t* marks = scratch + kMarks * size_t{stride};
  uint32_t* escapes = scratch + kEscapes * size_t{stride};
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
      for (; mask != 0; mask &= mask - 1) escapes[next++] = first + lowest_bit(mask);
    });
  });
  return scan.total;
}

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
      collect_escapes(block, shared.lists.scan, scratch, args.scratch_stride, begin, end);
  block.each_warp([&](Warp& warp) {
    if (warp.index() >= groups) return;
    GroupDecoder<kStaged, Warp> decoder(warp, shared, staged, args, image, state);
    decoder.decode_escapes(count);
    decoder.close();
  });
}

template <bool kStaged, class Block>
MLIC_DEVICE void decode_pass(Block& block, DecodeShared& shared, const StagedTables& staged,
                             const DecodeArgs& args) {
  const uint32_t image = block.column();
  const uint32_t size = args.shape.size();
  DecoderState& state = args.states[image];
  uint16_t* words = args.words + static_cast<size_t>(image) * args.words_stride;
  int32_t* symbols = args.symbols + static_cast<size_t>(image) * size;
  const uint8_t* indexes =
      args.indexes == nullptr ? nullptr : args.indexes + static_cast<size_t>(image) * size;
  uint32_t* scratch =
      args.scratch + static_cast<size_t>(image) * kDecoderScratch * args.scratch_stride;
  uint32_t* values = scratch + kValues * size_t{args.scratch_stride};
  uint32_t* places = scratch + kPlaces * size_t{args.scratch_stride};
  uint32_t* marks = scratch + kMarks * size_t{args.scratch_stride};
  block.each([&](uint32_t thread) {
    for (uint32_t i = thread; i < size; i += kBlockThreads) values[i] = 0;
    for (uint32_t i = thread; i < (size + 31) / 32; i += kBlockThreads) marks[i] = 0;
    for (uint32_t i = thread; i < args.range.count; i += kBlockThreads) {
      DeviceTable table = args.tables.tables[args.range.first + i];
      table.bounds -= args.range.first_bound;
      if (kStaged) {
        table.own.cells -= args.range.first_cell;
        table.runs.cells -= args.range.first_cell;
        table.values.cells -= args.range.first_cell;
      }
      staged.tables[i] = table;
    }
    for (uint32_t i = thread; i < args.range.bounds; i += kBlockThreads) {
      staged.bounds[i] = args.tables.bounds[args.range.first_bound + i];
    }
    for (uint32_t i = thread; kStaged && i < args.range.cells; i += kBlockThreads) {
      staged.cells[i] = args.tables.cells[args.range.first_cell + i];
    }
    if (thread != 0) return;
    shared.failure = kNoFailure;
    shared.has_escapes = shared.bad_end = 0;
  });
  find_lists(block, shared.lists, staged.tables, args.range, args.shape, indexes);
  if (state.error == 0 && shared.lists.bad_index == 0) {
    const auto put = [&](uint32_t place, uint32_t i) { places[i] = place; };
    place_symbols(block, shared.lists, args.range, args.shape, indexes, put);
    // One piece of code for both parts, as it is large.
    uint32_t begin = 0;
    MLIC_NO_UNROLL
    while (begin < size && state.error == 0) {
      const bool in_tail = state.until_tail == kRetired;
      const uint32_t end = in_tail ? size : begin + lesser(size - begin, state.until_tail);
      decode_part<kStaged>(block, shared, staged, args, state, begin, end);
      block.each([&](uint32_t thread) {
        if (thread != 0) return;
        if (shared.failure != kNoFailure) state.error = shared.failure & 0xff;
        if (!in_tail) state.until_tail -= end - begin;
      });
      if (state.error == 0 && state.until_tail == 0) retire(block, shared.bad_end, state, words);
      begin = end;
    }
  }
  const bool bad_index = shared.lists.bad_index != 0;
  // A damaged payload, now or before, gives zeros.
  const bool sound = state.error == 0 && !bad_index;
  block.each([&](uint32_t thread) {
    for (uint32_t i = thread; i < size; i += kBlockThreads) {
      symbols[i] = sound ? static_cast<int32_t>(values[places[i]]) : 0;
    }
  });
  block.each([&](uint32_t thread) {
    if (thread == 0 && bad_index && state.error == 0) {
      state.error = static_cast<uint32_t>(Error::kIndex);
    }
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
  block.each([&](uint32_t thread) {
    if (thread == 0) shared.bad_end = 0;
  });
  if (state.error == 0) {
    block.each([&](uint32_t thread) {
      const uint32_t left = state.end[0] - state.next[0];
      bool bad = state.until_tail != kRetired || left > state.spare;
      bad |= !bad && thread < left && words[state.next[0] + thread] != 0;
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
