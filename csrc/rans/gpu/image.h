// A set of tables as the kernels want it, in one piece that is copied to the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rans/gpu/layout.h"
#include "rans/tables.h"

namespace mlic::rans::device {

class TableImage {
 public:
  explicit TableImage(const Tables& tables);

  const std::vector<uint8_t>& bytes() const { return bytes_; }
  size_t size() const { return first_cells_.size() - 1; }  // number of tables

  // The tables at the address that the bytes were copied to, which is a multiple of 16.
  TableView view(const uint8_t* base) const;
  TableRange range(size_t first, size_t count) const;  // throws std::invalid_argument
  TableRange scales() const { return range(0, size() < kScaleTables ? size() : kScaleTables); }

 private:
  void add_cells(const Tables& tables, uint32_t max_bits);

  // Where they begin in bytes_.
  size_t encoder_entries_ = 0, cells_at_ = 0, entries_ = 0, bounds_at_ = 0;
  std::vector<DeviceTable> tables_;
  std::vector<Cell> cells_;
  std::vector<uint32_t> bounds_;
  // Of each table, and the end.
  std::vector<uint32_t> first_cells_, first_bounds_, runs_before_;
  std::vector<uint8_t> bytes_;
};

}  // namespace mlic::rans::device
