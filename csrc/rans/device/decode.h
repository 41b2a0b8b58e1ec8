// The decoder's kernels, each for a block an image: begin parses a payload, decode_pass turns
// indexes into symbols, finish checks the end. Whatever the payload's bytes are, nothing is read
// outside of its buffer, every loop is bounded, and the outcome is the C++ decoder's: symbols, or
// the same error.
#pragma once

#include "rans/device/layout.h"
#include "rans/device/spmd.h"
#include "rans/device/sweep.h"

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

struct DecodeShared {
  Scan coded;
  uint64_t failure;  // the first in the order of the stream
  uint32_t bad_index;
  uint32_t has_floor;
  uint32_t skips_floor;
  uint32_t bad_end;
};

// The tables of the pass, the first of which is number 0. Tables and cells are in shared memory
// where they fit, then cells are counted from the first of the pass.
struct StagedTables {
  CellTable* tables;
  Cell* cells;  // null if they do not fit
};

constexpr uint64_t kNoFailure = ~uint64_t{0};

// place: 0 for the flag, 1 + the number of the group's step otherwise.
MLIC_DEVICE uint64_t failure_at(uint32_t place, Error error) {
  return static_cast<uint64_t>(place) << 8 | static_cast<uint32_t>(error);
}

// A coded symbol: where it is in memory, and its table.
MLIC_DEVICE uint64_t make_record(uint32_t offset, uint32_t table) {
  return offset | static_cast<uint64_t>(table) << 32;
}
MLIC_DEVICE uint32_t offset_of(uint64_t record) { return static_cast<uint32_t>(record); }
MLIC_DEVICE uint32_t table_of(uint64_t record) { return static_cast<uint32_t>(record >> 32); }

// The words of a group. Lane i holds the next word but i, so that handing them out does not wait
// for memory.
template <class Warp>
class WordReader {
 public:
  using Lanes = typename Warp::template Lanes<uint32_t>;

  MLIC_DEVICE WordReader(Warp& warp, const uint16_t* words, uint32_t next, uint32_t end)
      : warp_(warp), words_(words), next_(next), end_(end) {
    load();
  }

  MLIC_DEVICE uint32_t next() const { return next_; }
  MLIC_DEVICE uint32_t left() const { return end_ - next_; }

  // Gives words to the lanes of the mask, in increasing order, as far as there are any.
  MLIC_DEVICE void take(uint32_t needs, Lanes& x) {
    Lanes word;
    warp_.gather(held_, [&](uint32_t lane) { return rank_in(needs, lane); }, word);
    warp_.each([&](uint32_t lane) {
      if (has_bit(needs, lane)) x[lane] = take_word(x[lane], word[lane]);
    });
    const uint32_t count = count_bits(needs);
    next_ += lesser(count, left());
    load();
  }

 private:
  MLIC_DEVICE void load() {
    warp_.each([&](uint32_t lane) { held_[lane] = lane < left() ? words_[next_ + lane] : 0; });
  }

  Warp& warp_;
  const uint16_t* words_;
  uint32_t next_, end_;
  Lanes held_;
};

// The symbols of a step, one a lane, while they are being found.
template <class Warp>
struct Step {
  template <class T>
  using Lanes = typename Warp::template Lanes<T>;

  Lanes<uint64_t> record;
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

  // Puts the symbol in its place, if it is not escaped, and returns the state without it.
  MLIC_DEVICE uint32_t take(int32_t* symbols, uint32_t lane) {
    symbols[offset_of(record[lane])] =
        static_cast<int32_t>(static_cast<uint32_t>(table[lane].minimum) + number[lane]);
    return freq[lane] * upper[lane] + within[lane];
  }
};

// Rounds of one digit a lane until no escape is open. The first lane that fails decides the error,
// as if one lane went after the other.
template <class Warp>
MLIC_DEVICE Error decode_escapes(Warp& warp, WordReader<Warp>& words, uint32_t open,
                                 Step<Warp>& step, typename Warp::template Lanes<uint32_t>& x,
                                 int32_t* symbols) {
  typename Warp::template Lanes<uint32_t> digit, error;
  typename Warp::template Lanes<uint64_t> u;
  warp.each([&](uint32_t lane) { u[lane] = 0; });
  for (uint32_t round = 0; open != 0 && round < kMaxDigits; ++round) {
    warp.each([&](uint32_t lane) {
      digit[lane] = has_bit(open, lane) ? decode_bits(kDigitBits, x[lane]) : 0;
    });
    const uint32_t needs = warp.ballot([&](uint32_t lane) {  //
      return has_bit(open, lane) && needs_word(x[lane]);
    });
    const uint32_t left = words.left();
    words.take(needs, x);
    warp.each([&](uint32_t lane) {
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
          const CellTable& t = step.table[lane];
          const int64_t symbol = escaped_symbol(t.minimum, t.beyond(), u[lane]);
          if (symbol != static_cast<int32_t>(symbol)) e = Error::kRange;
          symbols[offset_of(step.record[lane])] = static_cast<int32_t>(symbol);
        }
      }
      error[lane] = static_cast<uint32_t>(e);
    });
    const uint32_t failed = warp.ballot([&](uint32_t lane) { return error[lane] != 0; });
    if (failed != 0) return static_cast<Error>(warp.broadcast(error, lowest_bit(failed)));
    open &= warp.ballot([&](uint32_t lane) { return !is_last_digit(digit[lane]); });
  }
  return Error::kNone;
}

// The symbols of one group of lanes.
//
// A step is a chain of dependent instructions from state to state, so all else is taken off it:
// records are loaded ahead by four steps and tables by one; what is seldom needed is in one branch,
// taken if any lane needs it; and the next step's cell is looked up before that branch is decided,
// in vain if it is taken. (One look-up in a loop, as two would have to meet in the same registers,
// for which the compiler waits.)
template <bool kStaged, class Warp>
MLIC_DEVICE void decode_group(Warp& warp, DecodeShared& shared, const StagedTables& staged,
                              const DecodeArgs& args, uint32_t image, DecoderState& state) {
  constexpr uint32_t kAhead = 4;
  const uint32_t lanes = state.lanes, group = warp.index();
  const uint32_t width = lesser(lanes, kGroupLanes);
  const uint32_t coded = shared.coded.total;
  const Cell* cells = kStaged ? staged.cells : args.tables.cells;
  const uint64_t* records = args.records + static_cast<size_t>(image) * args.records_stride;
  int32_t* symbols = args.symbols + static_cast<size_t>(image) * args.shape.size();
  WordReader<Warp> words(warp, args.words + static_cast<size_t>(image) * args.words_stride,
                         state.next[group], state.end[group]);
  // The record of the lane's symbol in the step whose first is k, or any.
  const auto load = [&](uint32_t k, uint32_t lane) {
    return k + lane < coded ? records[k + lane] : 0;
  };
  const auto load_table = [&](uint64_t record) {
    return load_whole(staged.tables + table_of(record));
  };
  const auto look_up = [&](const CellTable& table, uint32_t x) {
    return load_whole(cells + table.cells + ((x & table.mask()) >> table.shift()));
  };

  Step<Warp> step;
  typename Warp::template Lanes<uint32_t> x;
  typename Warp::template Lanes<uint64_t> ahead[kAhead];
  typename Warp::template Lanes<CellTable> next_table;
  typename Warp::template Lanes<Cell> cell;
  uint32_t k = group * width;
  warp.each([&](uint32_t lane) {
    x[lane] = lane < width ? state.states[k + lane] : kLowest;
    MLIC_UNROLL
    for (uint32_t i = 0; i < kAhead; ++i) ahead[i][lane] = load(k + i * lanes, lane);
    next_table[lane] = load_table(ahead[0][lane]);
    cell[lane] = look_up(next_table[lane], x[lane]);
  });
  while (k < coded) {
    MLIC_UNROLL
    for (uint32_t i = 0; i < kAhead; ++i) {
      if (k >= coded) break;
      const uint32_t active = lesser(coded - k, width);
      warp.each([&](uint32_t lane) {
        step.table[lane] = next_table[lane];
        step.record[lane] = ahead[i][lane];
        ahead[i][lane] = load(k + kAhead * lanes, lane);
        next_table[lane] = load_table(ahead[(i + 1) % kAhead][lane]);
        step.look_into(cell[lane], x[lane], lane);
        if (lane < active) x[lane] = step.take(symbols, lane);
      });
      // Once if nothing was needed, else twice.
      for (uint32_t asking = active;; asking = 0) {
        warp.each([&](uint32_t lane) { cell[lane] = look_up(next_table[lane], x[lane]); });
        const auto needing = [&](uint32_t lane) { return lane < asking && needs_word(x[lane]); };
        const auto escaping = [&](uint32_t lane) {
          return lane < asking && step.number[lane] == step.table[lane].escape();
        };
        uint32_t needs = warp.ballot(needing), escapes = warp.ballot(escaping);
        const uint32_t further = warp.ballot([&](uint32_t lane) {  //
          return lane < asking && step.within[lane] >= step.freq[lane];
        });
        if ((needs | escapes | further) == 0) break;
        if (further != 0) {
          warp.each([&](uint32_t lane) {
            if (!has_bit(further, lane)) return;
            step.search_on(args.tables.entries, lane);
            x[lane] = step.take(symbols, lane);
          });
          needs = warp.ballot(needing);
          escapes = warp.ballot(escaping);
        }
        Error error = count_bits(needs) > words.left() ? Error::kTooShort : Error::kNone;
        words.take(needs, x);
        if (error == Error::kNone && escapes != 0) {
          error = decode_escapes(warp, words, escapes, step, x, symbols);
        }
        if (error != Error::kNone) {
          warp.each([&](uint32_t lane) {
            if (lane == 0) atomic_min(shared.failure, failure_at(1 + k / width, error));
          });
          return;
        }
      }
      k += lanes;
    }
  }
  warp.each([&](uint32_t lane) {
    if (lane < width) state.states[group * width + lane] = x[lane];
    if (lane == 0) state.next[group] = words.next();
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
  uint64_t* records = args.records + static_cast<size_t>(image) * args.records_stride;
  // A damaged payload, now or before, gives zeros; so do skipped symbols.
  block.each([&](uint32_t thread) {
    for (uint32_t i = thread; i < size; i += kBlockThreads) symbols[i] = 0;
    for (uint32_t i = thread; i < args.range.count; i += kBlockThreads) {
      staged.tables[i] = args.tables.tables[args.range.first + i];
      if (kStaged) staged.tables[i].cells -= args.range.first_cell;
    }
    for (uint32_t i = thread; kStaged && i < args.range.cells; i += kBlockThreads) {
      staged.cells[i] = args.tables.cells[args.range.first_cell + i];
    }
    if (thread != 0) return;
    shared.failure = kNoFailure;
    shared.bad_index = shared.has_floor = shared.skips_floor = shared.bad_end = 0;
  });
  if (state.error != 0) return;

  typename Block::template Threads<uint32_t> others;  // symbols of other tables than the floor's
  block.each([&](uint32_t thread) {
    const Share share = share_of(args.shape, thread);
    others[thread] = share.end - share.begin;
    if (indexes == nullptr) return;
    uint32_t largest = 0, floor = 0;
    for (uint32_t p = share.begin; p < share.end; ++p) {
      const uint32_t index = indexes[p * args.shape.channels + share.channel];
      largest = index > largest ? index : largest;
      floor += index == kFloorTable;
    }
    others[thread] -= floor;
    if (floor != 0) atomic_or(shared.has_floor, 1);
    if (largest >= args.range.count) atomic_or(shared.bad_index, 1);
  });
  block.each([&](uint32_t thread) {
    if (thread != 0) return;
    if (shared.bad_index != 0) {
      shared.failure = failure_at(0, Error::kIndex);
    } else if (shared.has_floor != 0) {
      uint32_t x = state.states[0];
      shared.skips_floor = decode_bits(kFlagBits, x);
      if (needs_word(x) && state.next[0] == state.end[0]) {
        shared.failure = failure_at(0, Error::kTooShort);
      } else if (needs_word(x)) {
        x = take_word(x, words[state.next[0]++]);
      }
      state.states[0] = x;
    }
  });

  if (shared.failure == kNoFailure) {
    block.each([&](uint32_t thread) {
      const Share share = share_of(args.shape, thread);
      shared.coded.values[share.slot] =
          shared.skips_floor != 0 ? others[thread] : share.end - share.begin;
    });
    sum_up(block, shared.coded);
    block.each([&](uint32_t thread) {
      const Share share = share_of(args.shape, thread);
      uint64_t* next = records + shared.coded.before(share.slot);
      for (uint32_t p = share.begin; p < share.end; ++p) {
        const uint32_t offset = p * args.shape.channels + share.channel;
        const uint32_t table = indexes == nullptr ? share.channel : indexes[offset];
        const bool skipped = shared.skips_floor != 0 && table == kFloorTable;
        if (!skipped) *next++ = make_record(offset, table);
      }
    });
    block.each_warp([&](typename Block::Warp& warp) {
      if (warp.index() < groups_of(state.lanes)) {
        decode_group<kStaged>(warp, shared, staged, args, image, state);
      }
    });
  }
  block.each([&](uint32_t thread) {
    if (thread != 0) return;
    if (shared.failure != kNoFailure) state.error = shared.failure & 0xff;
    if (state.until_tail != kRetired) --state.until_tail;
  });
  if (state.error == 0 && state.until_tail == 0) retire(block, shared.bad_end, state, words);
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
