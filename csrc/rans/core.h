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
// Nothing in 3 and 4 needs the same bits for every symbol: a flag (1 bit), a digit (4 bits),
// tables of 14 and of 16 bits follow one another on a lane.
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
constexpr uint32_t kGroupLanes = 32;   // lanes that share a stream of words, at most
constexpr uint32_t kFlagBits = 1;      // "all symbols of the floor table are zero"
constexpr uint32_t kFloorTable = 0;    // the table that the flag is about
constexpr uint32_t kDigitBits = 4;     // a digit of an escape: "more follow" above ..
constexpr uint32_t kDigitPayload = 3;  // .. bits of payload
constexpr uint32_t kMaxDigits = 11;    // 33 bits, enough for any int32 beyond any table

MLIC_HD bool is_lane_count(uint32_t lanes) {
  return lanes >= kMinLanes && lanes <= kMaxLanes && (lanes & (lanes - 1)) == 0;
}

MLIC_HD uint32_t groups_of(uint32_t lanes) { return lanes < kGroupLanes ? 1 : lanes / kGroupLanes; }

// Lanes that code the last passes. The others have retired by then: an encoder, which goes
// backwards, starts them late, each from a word that was written before, so that their starts cost
// nothing.
MLIC_HD uint32_t tail_of(uint32_t lanes) {
  const uint32_t quarter = lanes / 4;
  return quarter < kMinLanes ? kMinLanes : quarter < kGroupLanes ? quarter : kGroupLanes;
}

// Twice the lanes for twice the bytes: a lane costs half a byte at its end, and two bytes at its
// start if it is one of the tail's: 0.1 to 0.25 % of the payload.
MLIC_HD uint32_t choose_lanes(uint64_t payload_bytes) {
  if (payload_bytes < 1024) return kMinLanes;
  uint32_t lanes = 8;
  for (uint64_t limit = 6 * 1024; payload_bytes >= limit && lanes < kMaxLanes; limit *= 2) {
    lanes *= 2;
  }
  return lanes;
}

// ---- States as they are stored ----

constexpr uint32_t kWordBits = 16;
constexpr uint32_t kSizeBits = 4;  // of a state: how many bits it has beyond 17

MLIC_HD uint32_t size_of_state(uint32_t x) {
  uint32_t size = 0;
  while (x >> kWordBits >> size > 1) ++size;
  return size;
}

// The bits below the leading one, of which there are kWordBits + size.
MLIC_HD uint32_t low_bits(uint32_t x, uint32_t size) {
  return x & ((1u << (kWordBits + size)) - 1);
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

struct TableSet {
  const Table* tables;
  const Entry* entries;
  const uint32_t* hints;
  const int32_t* minima;  // the smallest symbol of each table
};

MLIC_HD int32_t symbol_of(const Table& table, uint32_t entry) {
  return static_cast<int32_t>(entry + table.offset);
}

// ---- Decoding ----

MLIC_HD bool needs_word(uint32_t x) { return x < kLowest; }
MLIC_HD uint32_t take_word(uint32_t x, uint32_t word) { return x << 16 | word; }

// The table's entry that x holds; x then needs a word or not.
MLIC_HD uint32_t decode_entry(const TableSet& set, const Table& table, uint32_t& x) {
  const uint32_t slot = x & table.mask;
  uint32_t entry = set.hints[table.hints + (slot >> table.hint_shift)];
  Entry e = set.entries[entry];
  while (slot - start_of(e) >= freq_of(e)) e = set.entries[++entry];  // the last reaches 2^bits
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

// An entry made ready for encoding: reciprocal = ceil(2^(32 + bits) / freq).
struct EncoderEntry {
  uint64_t reciprocal;
  uint16_t freq;
  uint16_t start;
  uint16_t cost;  // bits, 8.8 fixed point
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
