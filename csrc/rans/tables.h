// A set of integer probability tables in the forms that the host's encoder and decoder use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rans/core.h"

namespace mlic::rans {

// The meaning of an entry of a run table: so many zeros, then a symbol.
struct RunEvent {
  enum Kind : uint16_t { kSymbol, kPending, kEscape };  // kPending: the symbol is the next entry's

  int32_t symbol;  // 0 if it is not of kind kSymbol
  uint16_t zeros;
  uint16_t kind;
};

// Immutable after construction, so any number of threads may read it.
class Tables {
 public:
  // frequencies: of all entries of all tables, the escape last in each; sizes, minima, bits: of
  // each table, sizes counting the escape. Throws std::invalid_argument on anything that is not a
  // table.
  Tables(const uint16_t* frequencies, size_t frequency_count, const int32_t* sizes,
         const int32_t* minima, const uint8_t* bits, size_t table_count);

  TableSet view() const {
    return {tables_.data(), entries_.data(),    hints_.data(),
            minima_.data(), run_tables_.data(), runs_.data()};
  }
  size_t size() const { return tables_.size(); }
  // The order of tables in a pass: those with runs, then the others.
  const std::vector<uint16_t>& coding_order() const { return coding_order_; }
  // By entry; without a meaning for entries that are not of runs.
  const RunEvent* run_events() const { return run_events_.data(); }
  const EncoderEntry* encoder_entries() const { return encoder_entries_.data(); }
  // The cost of an entry of one of the tables, in 1/kBit bit.
  uint32_t cost(uint32_t entry) const { return costs_[entry]; }
  size_t entry_count() const { return entries_.size(); }
  size_t bytes() const;  // of the decoder's part

 private:
  // Appends a table whose entries begin where `starts` says, and end at 2^bits.
  Table make_table(const std::vector<uint32_t>& starts, uint32_t bits);
  void add_entry(uint32_t start, uint32_t freq, uint32_t bits);
  void add_hints(Table& table, uint32_t first);
  void add_run_events(const RunTable& table);
  void add_runs(const uint16_t* frequencies, uint32_t size, int32_t minimum, uint32_t bits);

  std::vector<Table> tables_;
  std::vector<RunTable> runs_;
  std::vector<uint32_t> run_tables_;
  std::vector<uint16_t> coding_order_;
  std::vector<uint32_t> costs_;
  std::vector<Entry> entries_;
  std::vector<uint32_t> hints_;
  std::vector<int32_t> minima_;
  std::vector<RunEvent> run_events_;
  std::vector<EncoderEntry> encoder_entries_;
};

}  // namespace mlic::rans
