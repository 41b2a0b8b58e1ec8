#include "rans/device/image.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace mlic::rans::device {
namespace {

constexpr uint32_t kCellsPerEntry = 4;
constexpr uint32_t kMinCellBits = 5;
constexpr uint32_t kMaxCellBits = 8;  // keeps the 64 Gaussian tables in 84 KiB, hence in shared
                                      // memory everywhere; the widest few are searched, but rare

uint32_t cell_bits(uint32_t entries, uint32_t bits) {
  uint32_t result = kMinCellBits;
  while (result < kMaxCellBits && 1u << result < kCellsPerEntry * entries) ++result;
  return std::min(result, bits);
}

template <class T>
size_t append(std::vector<uint8_t>& bytes, const T* data, size_t count) {
  const size_t at = bytes.size();
  bytes.resize(at + count * sizeof(T));
  if (count > 0) std::memcpy(bytes.data() + at, data, count * sizeof(T));
  return at;
}

}  // namespace

TableImage::TableImage(const Tables& tables) {
  const TableSet set = tables.view();
  std::vector<CellTable> cell_tables;
  std::vector<Cell> cells;
  uint32_t first = 0;
  for (size_t t = 0; t < tables.size(); ++t) {
    const Table& table = set.tables[t];
    const uint32_t escape = table.escape - first;
    const uint32_t shift = table.bits - cell_bits(escape + 1, table.bits);
    first_cells_.push_back(static_cast<uint32_t>(cells.size()));
    cell_tables.push_back({first_cells_.back(), first, set.minima[t],
                           escape | uint32_t{table.bits} << 16 | shift << 24});
    uint32_t number = 0;
    for (uint32_t slot = 0; slot < 1u << table.bits; slot += 1u << shift) {
      const Entry* entry = set.entries + first + number;
      for (; slot - start_of(*entry) >= freq_of(*entry); ++entry) ++number;
      const uint32_t next_freq = number < escape ? freq_of(entry[1]) : 0;
      cells.push_back({*entry, next_freq | number << 16});
    }
    first = table.escape + 1;
  }
  first_cells_.push_back(static_cast<uint32_t>(cells.size()));
  append(bytes_, cell_tables.data(), cell_tables.size());
  std::vector<PackedEntry> packed;
  for (uint32_t i = 0; i < first; ++i) {
    const EncoderEntry& e = tables.encoder_entries()[i];
    packed.push_back({e.reciprocal, set.entries[i], e.cost | uint32_t{e.bits} << 16});
  }
  encoder_entries_ = append(bytes_, packed.data(), packed.size());
  cells_ = append(bytes_, cells.data(), cells.size());
  entries_ = append(bytes_, set.entries, first);
}

TableView TableImage::view(const uint8_t* base) const {
  return {reinterpret_cast<const CellTable*>(base),
          reinterpret_cast<const PackedEntry*>(base + encoder_entries_),
          reinterpret_cast<const Cell*>(base + cells_),
          reinterpret_cast<const Entry*>(base + entries_)};
}

TableRange TableImage::range(size_t first, size_t count) const {
  if (first > size() || count > size() - first) {
    throw std::invalid_argument("a pass uses tables that there are not");
  }
  return {static_cast<uint32_t>(first), static_cast<uint32_t>(count), first_cells_[first],
          first_cells_[first + count] - first_cells_[first]};
}

}  // namespace mlic::rans::device
