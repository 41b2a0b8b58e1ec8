#include "rans/gpu/image.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace mlic::rans::device {
namespace {

constexpr uint32_t kMinCellBits = 5;
constexpr uint32_t kMaxCellBits = 10;
// Bytes that the tables of the scales may take of shared memory. Where a block has 99 KiB of it, as
// on sm_86, sm_89 and sm_120, they stay in global memory.
constexpr size_t kCellBudget = 80 * 1024;
constexpr uint32_t kSearched = 1024;  // fewer slots in so many are searched for, if there is room

template <class T>
size_t append(std::vector<uint8_t>& bytes, const T* data, size_t count) {
  const size_t at = bytes.size();
  bytes.resize((at + count * sizeof(T) + 15) / 16 * 16);
  if (count > 0) std::memcpy(bytes.data() + at, data, count * sizeof(T));
  return at;
}

// Cells of 2^(bits - shift) slots, and how many slots are of neither of a cell's first two entries.
struct Cells {
  std::vector<Cell> cells;
  uint32_t searched;
};

Cells make_cells(const Entry* entries, uint32_t last, uint32_t bits, uint32_t shift) {
  Cells result{{}, 0};
  uint32_t number = 0;
  for (uint32_t slot = 0; slot < 1u << bits; slot += 1u << shift) {
    const Entry* entry = entries + number;
    for (; slot - start_of(*entry) >= freq_of(*entry); ++entry) ++number;
    const uint32_t next_freq = number < last ? freq_of(entry[1]) : 0;
    result.cells.push_back({*entry, next_freq | number << 16});
    const uint32_t end = start_of(*entry) + freq_of(*entry) + next_freq;
    const uint32_t cell_end = slot + (1u << shift);
    if (end < cell_end) result.searched += cell_end - end;
  }
  return result;
}

CellTable add_table(std::vector<Cell>& cells, const Entry* entries, uint32_t first, uint32_t last,
                    uint32_t bits, int32_t minimum, uint32_t max_bits) {
  uint32_t cell_bits = std::min(kMinCellBits, bits);
  Cells made = make_cells(entries + first, last, bits, bits - cell_bits);
  while (made.searched * kSearched >= 1u << bits && cell_bits < std::min(max_bits, bits)) {
    ++cell_bits;
    made = make_cells(entries + first, last, bits, bits - cell_bits);
  }
  const auto first_cell = static_cast<uint32_t>(cells.size());
  cells.insert(cells.end(), made.cells.begin(), made.cells.end());
  return {first_cell, first, minimum, last | bits << 16 | (bits - cell_bits) << 24};
}

}  // namespace

void TableImage::add_cells(const Tables& tables, uint32_t max_bits) {
  const TableSet set = tables.view();
  tables_.clear();
  cells_.clear();
  bounds_.clear();
  first_cells_.clear();
  first_bounds_.clear();
  runs_before_.clear();
  uint32_t runs = 0;
  for (size_t t = 0; t < tables.size(); ++t) {
    first_cells_.push_back(static_cast<uint32_t>(cells_.size()));
    first_bounds_.push_back(static_cast<uint32_t>(bounds_.size()));
    runs_before_.push_back(runs);
    const Table& table = set.tables[t];
    const uint32_t first = static_cast<uint32_t>(set.minima[t]) - table.offset;
    DeviceTable made{};
    made.runs_before = runs;
    made.own = {0, first, set.minima[t], (table.escape - first) | uint32_t{table.bits} << 16};
    if (set.run_tables[t] == kNoRuns) {
      made.own = add_table(cells_, set.entries, first, table.escape - first, table.bits,
                           set.minima[t], max_bits);
    } else {
      const RunTable& run = set.runs[set.run_tables[t]];
      made.limit = static_cast<uint16_t>(run.limit);
      made.near = static_cast<uint16_t>(run.classes.near);
      made.tails = run.tails;
      made.bounds = first_bounds_.back();
      made.runs = add_table(cells_, set.entries, run.first, run.classes.count() * run.limit,
                            kRunBits, 0, max_bits);
      made.values =
          add_table(cells_, set.entries, run.lowest_entry, run.values.escape - run.lowest_entry,
                    run.values.bits, run.lowest, max_bits);
      for (uint32_t n = 0; n <= run.limit; ++n) {
        bounds_.push_back(start_of(set.entries[run.first + run.classes.count() * n]));
      }
      ++runs;
    }
    tables_.push_back(made);
  }
  first_cells_.push_back(static_cast<uint32_t>(cells_.size()));
  first_bounds_.push_back(static_cast<uint32_t>(bounds_.size()));
  runs_before_.push_back(runs);
}

TableImage::TableImage(const Tables& tables) {
  uint32_t max_bits = kMaxCellBits;
  for (;; --max_bits) {
    add_cells(tables, max_bits);
    if (scales().cells * sizeof(Cell) <= kCellBudget || max_bits == kMinCellBits) break;
  }
  append(bytes_, tables_.data(), tables_.size());
  std::vector<PackedEntry> packed;
  for (uint32_t i = 0; i < tables.entry_count(); ++i) {
    const EncoderEntry& e = tables.encoder_entries()[i];
    packed.push_back(
        {e.reciprocal, tables.view().entries[i], tables.cost(i) | uint32_t{e.bits} << 24});
  }
  encoder_entries_ = append(bytes_, packed.data(), packed.size());
  cells_at_ = append(bytes_, cells_.data(), cells_.size());
  entries_ = append(bytes_, tables.view().entries, tables.entry_count());
  bounds_at_ = append(bytes_, bounds_.data(), bounds_.size());
}

TableView TableImage::view(const uint8_t* base) const {
  return {reinterpret_cast<const DeviceTable*>(base),
          reinterpret_cast<const PackedEntry*>(base + encoder_entries_),
          reinterpret_cast<const Cell*>(base + cells_at_),
          reinterpret_cast<const Entry*>(base + entries_),
          reinterpret_cast<const uint32_t*>(base + bounds_at_)};
}

TableRange TableImage::range(size_t first, size_t count) const {
  if (first > size() || count > size() - first) {
    throw std::invalid_argument("a pass uses tables that there are not");
  }
  const size_t end = first + count;
  return {static_cast<uint32_t>(first), static_cast<uint32_t>(count),
          first_cells_[first],          first_cells_[end] - first_cells_[first],
          first_bounds_[first],         first_bounds_[end] - first_bounds_[first],
          runs_before_[first],          runs_before_[end] - runs_before_[first]};
}

}  // namespace mlic::rans::device
