#include "rans/tables.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

namespace mlic::rans {
namespace {

constexpr size_t kMaxTables = 1 << 16;     // indexes are kept in 16 bits
constexpr uint32_t kMaxEntries = 1 << 15;  // of one table
constexpr uint32_t kHintsPerEntry = 8;     // keeps the search after a hint short,
constexpr uint32_t kMinHintBits = 8;       // mostly none in narrow tables,
constexpr uint32_t kMaxHintBits = 11;      // and the hints of a wide table within 8 KiB

uint32_t floor_log2(uint32_t value) {
  uint32_t result = 0;
  while (value >>= 1) ++result;
  return result;
}

// bits - log2(freq) in 8.8 fixed point, by squaring, in integers: the same on every machine.
uint16_t cost_of(uint32_t freq, uint32_t bits) {
  const uint32_t whole = floor_log2(freq);
  uint64_t mantissa = static_cast<uint64_t>(freq) << (31 - whole);  // [1, 2) as 1.31
  uint32_t log2 = whole;
  for (int i = 0; i < 8; ++i) {
    mantissa = mantissa * mantissa >> 31;
    const uint32_t bit = static_cast<uint32_t>(mantissa >> 32);
    mantissa >>= bit;
    log2 = log2 << 1 | bit;
  }
  return static_cast<uint16_t>((bits << 8) - log2);
}

EncoderEntry make_encoder_entry(uint32_t start, uint32_t freq, uint8_t bits) {
  const uint64_t one = uint64_t{1} << (32 + bits);
  return {(one + freq - 1) / freq, static_cast<uint16_t>(freq), static_cast<uint16_t>(start),
          cost_of(freq, bits), bits};
}

}  // namespace

Tables::Tables(const uint16_t* frequencies, size_t frequency_count, const int32_t* sizes,
               const int32_t* minima, const uint8_t* bits, size_t table_count) {
  if (table_count == 0 || table_count > kMaxTables) {
    throw std::invalid_argument("a set has 1 to 65536 tables");
  }
  size_t used = 0;
  for (size_t i = 0; i < table_count; ++i) {
    const std::string name = "table " + std::to_string(i);
    if (bits[i] < 1 || bits[i] > 16) {
      throw std::invalid_argument(name + ": precision must be 1 to 16");
    }
    if (sizes[i] < 2 || static_cast<uint32_t>(sizes[i]) > kMaxEntries) {
      throw std::invalid_argument(name + ": must have 2 to 32768 entries, the last the escape");
    }
    const auto size = static_cast<uint32_t>(sizes[i]);
    if (size > frequency_count - used) {
      throw std::invalid_argument(name + ": frequencies are missing");
    }
    if (minima[i] > std::numeric_limits<int32_t>::max() - sizes[i]) {
      throw std::invalid_argument(name + ": symbols exceed 32 bits");
    }
    const uint16_t* f = frequencies + used;
    if (std::find(f, f + size, 0) != f + size) {
      throw std::invalid_argument(name + ": every entry needs a frequency of at least 1");
    }
    if (std::accumulate(f, f + size, uint64_t{0}) != uint64_t{1} << bits[i]) {
      throw std::invalid_argument(name + ": frequencies must sum to 2^precision");
    }
    add_table(f, size, minima[i], bits[i]);
    used += size;
  }
  if (used != frequency_count)
    throw std::invalid_argument("there are more frequencies than entries");
}

void Tables::add_table(const uint16_t* frequencies, uint32_t size, int32_t minimum, uint8_t bits) {
  const auto first = static_cast<uint32_t>(entries_.size());
  uint32_t start = 0;
  for (uint32_t i = 0; i < size; ++i) {
    entries_.push_back(start | uint32_t{frequencies[i]} << 16);
    encoder_entries_.push_back(make_encoder_entry(start, frequencies[i], bits));
    start += frequencies[i];
  }
  Table table{};
  table.escape = first + size - 1;
  table.offset = static_cast<uint32_t>(minimum) - first;
  table.mask = static_cast<uint16_t>((1u << bits) - 1);
  table.bits = bits;
  add_hints(table, first);
  tables_.push_back(table);
  minima_.push_back(minimum);
}

void Tables::add_hints(Table& table, uint32_t first) {
  const uint32_t size = table.escape - first + 1;
  const uint32_t wanted = floor_log2(2 * kHintsPerEntry * size - 1);
  const uint32_t hint_bits =
      std::min({std::max(wanted, kMinHintBits), kMaxHintBits, uint32_t{table.bits}});
  table.hint_shift = static_cast<uint8_t>(table.bits - hint_bits);
  table.hints = static_cast<uint32_t>(hints_.size());
  uint32_t entry = first;
  for (uint32_t i = 0; i < 1u << hint_bits; ++i) {
    const uint32_t slot = i << table.hint_shift;
    while (slot - start_of(entries_[entry]) >= freq_of(entries_[entry])) ++entry;
    hints_.push_back(entry);
  }
}

size_t Tables::bytes() const {
  return tables_.size() * sizeof(Table) + entries_.size() * sizeof(Entry) +
         (hints_.size() + minima_.size()) * sizeof(uint32_t);
}

}  // namespace mlic::rans
