// Interleaved rANS, one symbol of one lane at a time: what encoder and decoder share, on host
// and device.
//
// Invariants
//   1. Between operations the state x of every lane is in [2^16, 2^32).
//   2. A symbol owns the slots [start, start + freq) of 2^bits, where 1 <= bits <= 16 and
//      1 <= freq < 2^bits.
//   3. Encoding first makes room: if x >= limit = freq << (32 - bits), the low 16 bits of x
//      leave as a word. One word is enough, since x >> 16 < 2^16 <= limit. Now x is in
//      [limit >> 16, limit): with a word it was >= limit before, without one it is still
//      >= 2^16 > limit >> 16. From there x -> (x / freq) << bits | (x % freq + start) lands
//      in [2^16, 2^32), so 1 holds again.
//   4. Decoding inverts it: x -> freq * (x >> bits) + slot - start lands in
//      [limit >> 16, limit), and takes a word exactly if that is below 2^16. As it is >= 1 for
//      any x >= 2^16, 1 also holds for words that no encoder wrote: damaged data give wrong
//      symbols, never a state out of range.
//
// Nothing in 3 and 4 needs the same bits for every symbol: a digit (4 bits), tables of 14 and of 16
// bits follow one another on a lane.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MLIC_HD __host__ __device__ __forceinline__
#else
#define MLIC_HD inline
#endif

namespace mlic::rans {

constexpr uint32_t kLowest = 1u << 16;  // the smallest state
constexpr uint32_t kMinLanes = 2;       // lanes 0 and 1 carry the digest
constexpr uint32_t kMaxLanes = 1024;
constexpr uint32_t kGroupLanes = 32;          // lanes that share a stream of words, at most
constexpr uint32_t kDigitBits = 4;            // a digit of an escape: "more follow" above ..
constexpr uint32_t kDigitPayload = 3;         // .. bits of payload
constexpr uint32_t kMaxSymbols = 0x7fffffff;  // of a payload
constexpr uint32_t kMaxDigits = 11;           // 33 bits, enough for any int32 beyond any table

// Of a number that is not zero: that of its highest bit.
MLIC_HD uint32_t log2_of(uint32_t x) {
#ifdef __CUDA_ARCH__
  return 31 - static_cast<uint32_t>(__clz(static_cast<int>(x)));
#else
  uint32_t bit = 0;
  while (x >>= 1) ++bit;
  return bit;
#endif
}

MLIC_HD bool is_lane_count(uint32_t lanes) {
  return lanes >= kMinLanes && lanes <= kMaxLanes && (lanes & (lanes - 1)) == 0;
}

MLIC_HD uint32_t groups_of(uint32_t lanes) { return lanes < kGroupLanes ? 1 : lanes / kGroupLanes; }

// Lanes retire towards the end, until two are left: this many code on. An encoder, which goes
// backwards, starts the others late, from what was written before, so that their starts cost
// nothing.
MLIC_HD uint32_t tail_of(uint32_t lanes) {
  const uint32_t part = lanes / 4;
  return part < kMinLanes ? kMinLanes : part < kGroupLanes ? part : kGroupLanes;
}

constexpr uint32_t kMaxRetirements = 3;  // 1024 -> 32 -> 8 -> 2

MLIC_HD uint32_t retirements_of(uint32_t lanes) {
  uint32_t count = 0;
  for (; lanes > kMinLanes; lanes = tail_of(lanes)) ++count;
  return count;
}

// The lanes after some retirements.
MLIC_HD uint32_t lanes_after(uint32_t lanes, uint32_t retirements) {
  while (retirements-- > 0) lanes = tail_of(lanes);
  return lanes;
}

// A lane costs its share in the length of its group, which is two bytes for 32 lanes, and the
// numbers of symbols before lanes retire take 2 to 5 bytes, so that lanes take at most 0.2 % of the
// payload. A GPU gains nothing from more than 512.
constexpr uint64_t kLaneBytes = 50;
constexpr uint64_t kFewBytes = 2000;
constexpr uint32_t kMostChosenLanes = 512;

MLIC_HD uint32_t choose_lanes(uint64_t payload_bytes) {
  uint32_t lanes = kMinLanes;
  if (payload_bytes < kFewBytes) return lanes;
  while (lanes < kMostChosenLanes && payload_bytes >= 2 * lanes * kLaneBytes) lanes *= 2;
  return lanes;
}

// ---- Symbols of runs and lanes ----

// Lanes take chunks of consecutive symbols in turns: as few as a lane can have and still meet
// symbols of all kinds, since each list that a lane meets is an event more. Places are counted from
// the first of the section, symbols of a lane from its first.
constexpr uint32_t kLeastChunks = 8;  // of a lane in a section, where these have several symbols

struct Chunks {
  uint32_t size_bits;
  uint32_t lane_bits;

  MLIC_HD Chunks(uint32_t symbols, uint32_t lanes) : size_bits(0), lane_bits(log2_of(lanes)) {
    const uint32_t most = (symbols >> lane_bits) / kLeastChunks;
    if (most > 0) size_bits = log2_of(most);
  }

  MLIC_HD uint32_t lane_of(uint32_t place) const {
    return place >> size_bits & ((1u << lane_bits) - 1);
  }
  // Of a lane's symbol.
  MLIC_HD uint32_t place(uint32_t lane, uint32_t number) const {
    const uint32_t chunk = number >> size_bits << lane_bits | lane;
    return chunk << size_bits | (number & ((1u << size_bits) - 1));
  }
  // How many symbols of a lane come before a place.
  MLIC_HD uint32_t before(uint32_t lane, uint32_t place) const {
    const uint32_t size = 1u << size_bits, begin = lane << size_bits;
    const uint32_t rest = place & ((size << lane_bits) - 1);
    const uint32_t own = rest > begin ? rest - begin : 0;
    return (place >> (size_bits + lane_bits) << size_bits) + (own < size ? own : size);
  }
};

// ---- States as they are stored ----

constexpr uint32_t kWordBits = 16;
constexpr uint32_t kSizeBits = 4;  // of a state: how many bits it has beyond 17

MLIC_HD uint32_t size_of_state(uint32_t x) { return log2_of(x) - kWordBits; }

// The bits below the leading one, of which there are kWordBits + size.
MLIC_HD uint32_t low_bits(uint32_t x, uint32_t size) {
  return x & ((1u << (kWordBits + size)) - 1);
}

// What the lanes that retire give back, in bits: the size of each but the last, then the low bits
// of each. An encoder starts them from so many bits that were written before, the last one with the
// size that makes whole words of them.
constexpr uint32_t kMostGivenBits = kSizeBits + 2 * kWordBits - 1;  // of a lane

MLIC_HD constexpr uint32_t most_given_words(uint32_t lanes) {
  return lanes * kMostGivenBits / kWordBits;
}

// Bits that the symbols after a retirement should have for each lane that retires, which gives back
// 27.5 on average.
constexpr uint32_t kStartBits = 30;

// The bits for a retirement that leaves so many others before it.
MLIC_HD uint64_t start_bits(uint32_t lanes, uint32_t retirements) {
  const uint32_t before = lanes_after(lanes, retirements);
  return uint64_t{kStartBits} * (before - tail_of(before));
}

// ---- Tables ----

// Slots of one symbol, start | freq << 16.
using Entry = uint32_t;

MLIC_HD uint32_t start_of(Entry e) { return e & 0xffff; }
MLIC_HD uint32_t freq_of(Entry e) { return e >> 16; }

// One table of a set. Its entries are in the order of its symbols, the last one is the escape.
struct Table {
  uint32_t hints;      // its first hint in TableSet::hints
  uint32_t escape;     // its last entry in TableSet::entries
  uint32_t offset;     // entry + offset is the symbol, modulo 2^32
  uint16_t mask;       // 2^bits - 1
  uint8_t bits;        // precision: slots are 0 .. 2^bits - 1
  uint8_t hint_shift;  // hint slot >> hint_shift is the entry from which to search
};

// ---- Runs of zeros ----

// A table is a run table if a quarter of it or more is zero. Its symbols are then coded as runs:
// how many zeros come next, and the class of the symbol that ends them. Each of the symbols
// -near .. near except zero has a class of its own. Symbols in the last class follow as entries of
// another table. A table in which symbols other than zero are rare has the last class alone.
constexpr uint32_t kRunBits = 14;
constexpr uint32_t kLongestRun = 256;        // in tables 0 .. 63
constexpr uint32_t kLongestChannelRun = 32;  // in others, whose lists are short
constexpr uint32_t kScaleTables = 64;
constexpr uint32_t kNoRuns = ~0u;

struct Classes {
  uint32_t near;  // 0 or 2

  MLIC_HD uint32_t count() const { return 2 * near + 1; }
  MLIC_HD uint32_t last() const { return 2 * near; }

  // Of a symbol that is not zero.
  MLIC_HD uint32_t of(int32_t symbol) const {
    const auto n = static_cast<uint32_t>(symbol) + near;
    if (n > 2 * near) return last();
    return symbol < 0 ? n : n - 1;
  }

  // The inverse; 0 of the last class.
  MLIC_HD int32_t symbol(uint32_t number) const {
    const auto n = static_cast<int32_t>(number - near);
    return n < 0 ? n : number == last() ? 0 : n + 1;
  }

  // The run of an entry of a table of runs: number / count(). Numbers are below 2^11.
  MLIC_HD uint32_t run_of(uint32_t number) const {
    return near == 0 ? number : number * 13108 >> 16;
  }

  // The table of symbols of the last class has no place for the others.
  MLIC_HD int32_t open_gap(int32_t symbol) const {
    return symbol + static_cast<int32_t>(near) < 0 ? symbol
                                                   : symbol + static_cast<int32_t>(count());
  }
  MLIC_HD int32_t close_gap(int32_t symbol) const {
    return symbol < 0 ? symbol : symbol - static_cast<int32_t>(count());
  }
};

// The part of a table that codes runs.
struct RunTable {
  Table runs;      // entry run * classes + class; the last is `limit` zeros and nothing after
  Table values;    // those of the last class; the last entry is the escape
  uint32_t first;  // the first entry of runs
  uint32_t limit;  // zeros, at most 256
  Classes classes;
  uint32_t tails;         // encoder entry tails + n: a list of n < limit symbols ends in zeros
  int32_t lowest;         // the smallest symbol of values
  uint32_t lowest_entry;  // and its entry
};

MLIC_HD int32_t value_of(const RunTable& table, uint32_t entry) {
  return table.classes.open_gap(
      static_cast<int32_t>(entry - table.lowest_entry + static_cast<uint32_t>(table.lowest)));
}

// The inverse, of a symbol that has an entry.
MLIC_HD uint32_t entry_of_value(const RunTable& table, int32_t symbol) {
  return table.lowest_entry + static_cast<uint32_t>(table.classes.close_gap(symbol) - table.lowest);
}

struct TableSet {
  const Table* tables;
  const Entry* entries;
  const uint32_t* hints;
  const int32_t* minima;       // the smallest symbol of each table
  const uint32_t* run_tables;  // of each table its number in runs, or kNoRuns
  const RunTable* runs;
};

MLIC_HD int32_t symbol_of(const Table& table, uint32_t entry) {
  return static_cast<int32_t>(entry + table.offset);
}

// The symbols that a table has entries for: minimum .. beyond - 1.
struct Bounds {
  int64_t minimum;
  int64_t beyond;
};

MLIC_HD Bounds bounds_of(const TableSet& set, uint32_t table) {
  if (set.run_tables[table] == kNoRuns) {
    return {set.minima[table], symbol_of(set.tables[table], set.tables[table].escape)};
  }
  const RunTable& run = set.runs[set.run_tables[table]];
  return {run.lowest, value_of(run, run.values.escape)};
}

// ---- Decoding ----

MLIC_HD bool needs_word(uint32_t x) { return x < kLowest; }
MLIC_HD uint32_t take_word(uint32_t x, uint32_t word) { return x << 16 | word; }

// The table's entry that owns a slot.
MLIC_HD uint32_t find_entry(const TableSet& set, const Table& table, uint32_t slot) {
  uint32_t entry = set.hints[table.hints + (slot >> table.hint_shift)];
  while (slot - start_of(set.entries[entry]) >= freq_of(set.entries[entry])) {
    ++entry;  // the last reaches 2^bits
  }
  return entry;
}

// The table's entry that x holds; x then needs a word or not.
MLIC_HD uint32_t decode_entry(const TableSet& set, const Table& table, uint32_t& x) {
  const uint32_t slot = x & table.mask;
  const uint32_t entry = find_entry(set, table, slot);
  const Entry e = set.entries[entry];
  x = freq_of(e) * (x >> table.bits) + slot - start_of(e);
  return entry;
}

// Uniform bits; x then needs a word or not.
MLIC_HD uint32_t decode_bits(uint32_t bits, uint32_t& x) {
  const uint32_t value = x & ((1u << bits) - 1);
  x >>= bits;
  return value;
}

// ---- Encoding ----

constexpr uint32_t kBit = 1u << 16;  // the unit of costs is a part of a bit

// An entry made ready for encoding: reciprocal = ceil(2^(32 + bits) / freq).
struct EncoderEntry {
  uint64_t reciprocal;
  uint16_t freq;
  uint16_t start;
  uint8_t bits;
};

MLIC_HD bool must_shed(uint32_t x, const EncoderEntry& e) {
  return x >= uint32_t{e.freq} << (32 - e.bits);
}

// x < freq << (32 - bits), so the product is below 2^64 and the quotient is x / freq: with
// reciprocal = (2^(32 + bits) + r) / freq, 0 <= r < freq, the error x * r / (freq << (32 + bits))
// is below 1 / freq because x * r < freq^2 << (32 - bits) < 2^(32 + bits), and the product is at
// most (2^(32 - bits) - 1 / freq) * (2^(32 + bits) + r) < 2^64 because r * freq < 4^bits.
MLIC_HD uint32_t encode_entry(uint32_t x, const EncoderEntry& e) {
  const uint32_t quotient = static_cast<uint32_t>((x * e.reciprocal) >> (32 + e.bits));
  return x + e.start + quotient * ((1u << e.bits) - e.freq);
}

MLIC_HD bool must_shed_bits(uint32_t x, uint32_t bits) { return x >> (32 - bits) != 0; }
MLIC_HD uint32_t encode_bits(uint32_t x, uint32_t value, uint32_t bits) {
  return x << bits | value;
}

// ---- Escapes ----

// A symbol off the table, whose symbols are minimum .. beyond - 1, as u >= 0: even from beyond on,
// odd below the minimum. Less than 2^33.
MLIC_HD uint64_t escape_of(int64_t minimum, int64_t beyond, int64_t symbol) {
  return static_cast<uint64_t>(symbol < minimum ? 2 * (minimum - 1 - symbol) + 1
                                                : 2 * (symbol - beyond));
}

// The inverse; may exceed 32 bits if no encoder wrote u.
MLIC_HD int64_t escaped_symbol(int64_t minimum, int64_t beyond, uint64_t u) {
  const int64_t distance = static_cast<int64_t>(u >> 1);
  return u & 1 ? minimum - 1 - distance : beyond + distance;
}

// Digit number round, the lowest bits first.
MLIC_HD uint32_t digit_of(uint64_t u, uint32_t round) {
  const uint64_t rest = u >> (kDigitPayload * round);
  const uint32_t more = rest >> kDigitPayload != 0;
  return (static_cast<uint32_t>(rest) & ((1u << kDigitPayload) - 1)) | more << kDigitPayload;
}

MLIC_HD uint32_t count_digits(uint64_t u) {
  uint32_t count = 1;
  while (u >>= kDigitPayload) ++count;
  return count;
}

MLIC_HD bool is_last_digit(uint32_t digit) { return digit >> kDigitPayload == 0; }

// Only digit 0 may be zero and last, and only digit kMaxDigits - 1 must be last: each u has one
// spelling.
MLIC_HD bool is_valid_digit(uint32_t digit, uint32_t round) {
  return is_last_digit(digit) ? digit != 0 || round == 0 : round + 1 < kMaxDigits;
}

MLIC_HD uint64_t add_digit(uint64_t u, uint32_t digit, uint32_t round) {
  return u | static_cast<uint64_t>(digit & ((1u << kDigitPayload) - 1)) << (kDigitPayload * round);
}

}  // namespace mlic::rans
