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
constexpr uint64_t kRare = 64;             // a table with less than 1 / 64 beside zero

uint32_t floor_log2(uint32_t value) {
  uint32_t result = 0;
  while (value >>= 1) ++result;
  return result;
}

// bits - log2(freq) in 1/kBit, by squaring, in integers: the same on every machine.
uint32_t cost_of(uint32_t freq, uint32_t bits) {
  const uint32_t whole = floor_log2(freq);
  uint64_t mantissa = static_cast<uint64_t>(freq) << (31 - whole);  // [1, 2) as 1.31
  uint32_t log2 = whole;
  for (uint32_t bit = kBit; bit > 1; bit /= 2) {
    mantissa = mantissa * mantissa >> 31;
    const auto carry = static_cast<uint32_t>(mantissa >> 32);
    mantissa >>= carry;
    log2 = log2 << 1 | carry;
  }
  return bits * kBit - log2;
}

EncoderEntry make_encoder_entry(uint32_t start, uint32_t freq, uint8_t bits) {
  const uint64_t one = uint64_t{1} << (32 + bits);
  return {(one + freq - 1) / freq, static_cast<uint16_t>(freq), static_cast<uint16_t>(start), bits};
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
    std::vector<uint32_t> starts(size, 0);
    std::partial_sum(f, f + size - 1, starts.begin() + 1);
    const auto first = static_cast<uint32_t>(entries_.size());
    tables_.push_back(make_table(starts, bits[i]));
    tables_.back().offset = static_cast<uint32_t>(minima[i]) - first;
    minima_.push_back(minima[i]);
    costs_.resize(first);  // those of runs have none
    for (uint32_t e = 0; e < size; ++e) costs_.push_back(cost_of(f[e], bits[i]));
    add_runs(f, size, minima[i], bits[i]);
    used += size;
  }
  costs_.resize(entries_.size());
  run_events_.resize(entries_.size());
  for (const bool has_runs : {true, false}) {
    for (size_t i = 0; i < table_count; ++i) {
      if ((run_tables_[i] != kNoRuns) == has_runs) {
        coding_order_.push_back(static_cast<uint16_t>(i));
      }
    }
  }
  if (used != frequency_count)
    throw std::invalid_argument("there are more frequencies than entries");
}

void Tables::add_entry(uint32_t start, uint32_t freq, uint32_t bits) {
  entries_.push_back(start | freq << 16);
  encoder_entries_.push_back(make_encoder_entry(start, freq, static_cast<uint8_t>(bits)));
}

Table Tables::make_table(const std::vector<uint32_t>& starts, uint32_t bits) {
  const auto first = static_cast<uint32_t>(entries_.size());
  for (size_t i = 0; i < starts.size(); ++i) {
    const uint32_t end = i + 1 < starts.size() ? starts[i + 1] : 1u << bits;
    add_entry(starts[i], end - starts[i], bits);
  }
  Table table{};
  table.escape = static_cast<uint32_t>(entries_.size()) - 1;
  table.mask = static_cast<uint16_t>((1u << bits) - 1);
  table.bits = static_cast<uint8_t>(bits);
  add_hints(table, first);
  return table;
}

// The table of runs of a table: docs/format.md, "Runs". It is made in integers alone, so that every
// machine makes the same one.
void Tables::add_runs(const uint16_t* frequencies, uint32_t size, int32_t minimum, uint32_t bits) {
  const int64_t highest = int64_t{minimum} + size - 2;
  const auto frequency = [&](int64_t symbol) -> uint64_t {
    return symbol < minimum || symbol > highest ? 0 : frequencies[symbol - minimum];
  };
  const uint64_t total = uint64_t{1} << bits, zero = frequency(0);
  if (4 * zero < total) {
    run_tables_.push_back(kNoRuns);
    return;
  }
  const uint64_t other = total - zero;
  const uint64_t longest = run_tables_.size() < kScaleTables ? kLongestRun : kLongestChannelRun;
  const auto limit = static_cast<uint32_t>(std::min(longest, (3 * total + other - 1) / other));

  const Classes classes{other * kRare < total ? 0u : 2u};
  const uint32_t count = classes.count();

  // Entry i begins at i + (weight of those before) * (slots - number of entries) / (all weights).
  constexpr uint64_t kSlots = uint64_t{1} << kRunBits;
  const uint32_t value_bits = std::max(bits, kRunBits);
  constexpr uint64_t kWhole = uint64_t{1} << 32;
  std::vector<uint32_t> starts;
  const uint64_t run_room = kSlots - (count * limit + 1);
  const auto add_start = [&](uint64_t before, uint64_t weights, uint64_t room) {
    starts.push_back(static_cast<uint32_t>(starts.size() + before * room / weights));
  };
  uint64_t left = kWhole;  // probability of a run that is not shorter
  for (uint32_t run = 0; run < limit; ++run) {
    uint64_t before = 0;  // frequencies of the classes before
    for (uint32_t number = 0; number < count; ++number) {
      add_start(kWhole - left + (left * before >> bits), kWhole, run_room);
      if (number != classes.last()) before += frequency(classes.symbol(number));
    }
    left = left * zero >> bits;
  }
  add_start(kWhole - left, kWhole, run_room);
  RunTable table{};
  table.first = static_cast<uint32_t>(entries_.size());
  table.limit = limit;
  table.classes = classes;
  table.runs = make_table(starts, kRunBits);
  table.tails = static_cast<uint32_t>(entries_.size()) - 1;
  for (uint32_t n = 1; n < limit; ++n) {
    const uint32_t start = starts[count * n];
    add_entry(start, static_cast<uint32_t>(kSlots) - start, kRunBits);
  }

  const auto near = static_cast<int32_t>(classes.near);
  table.lowest = std::min(minimum, -near - 1);
  table.lowest_entry = static_cast<uint32_t>(entries_.size());
  std::vector<uint64_t> weights;
  for (int64_t symbol = table.lowest; symbol <= std::max<int64_t>(highest, near + 1); ++symbol) {
    if (symbol < -near || symbol > near) weights.push_back(frequency(symbol));
  }
  weights.push_back(frequencies[size - 1]);
  const uint64_t all = std::accumulate(weights.begin(), weights.end(), uint64_t{0});
  starts.clear();
  uint64_t before = 0;
  for (const uint64_t weight : weights) {
    add_start(before, all, (uint64_t{1} << value_bits) - weights.size());
    before += weight;
  }
  table.values = make_table(starts, value_bits);
  add_run_events(table);
  run_tables_.push_back(static_cast<uint32_t>(runs_.size()));
  runs_.push_back(table);
}

void Tables::add_run_events(const RunTable& table) {
  run_events_.resize(entries_.size());
  const Classes classes = table.classes;
  for (uint32_t number = 0; number < classes.count() * table.limit; ++number) {
    const uint32_t zeros = classes.run_of(number), kind = number - zeros * classes.count();
    run_events_[table.first + number] = {
        classes.symbol(kind), static_cast<uint16_t>(zeros),
        kind == classes.last() ? RunEvent::kPending : RunEvent::kSymbol};
  }
  for (uint32_t entry = table.lowest_entry; entry < table.values.escape; ++entry) {
    run_events_[entry] = {value_of(table, entry), 0, RunEvent::kSymbol};
  }
  run_events_[table.values.escape] = {0, 0, RunEvent::kEscape};
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
  return tables_.size() * sizeof(Table) + runs_.size() * sizeof(RunTable) +
         entries_.size() * sizeof(Entry) +
         (hints_.size() + minima_.size() + run_tables_.size()) * sizeof(uint32_t);
}

}  // namespace mlic::rans
