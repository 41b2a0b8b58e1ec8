// Checks and narrows the table indexes of a pass.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "rans/core.h"

namespace mlic::rans {

// narrow := indexes. Throws std::invalid_argument if one is negative or has no table.
template <class Index>
void narrow_indexes(const Index* indexes, size_t count, size_t tables,
                    std::vector<uint16_t>& narrow) {
  narrow.resize(count);
  uint32_t largest = 0;  // a negative index becomes a large one
  for (size_t i = 0; i < count; ++i) {
    const auto index = static_cast<uint32_t>(indexes[i]);
    largest = std::max(largest, index);
    narrow[i] = static_cast<uint16_t>(index);
  }
  if (largest >= tables) {
    throw std::invalid_argument("indexes must be 0 to " + std::to_string(tables - 1) +
                                ", the tables there are");
  }
}

inline bool has_floor(const std::vector<uint16_t>& indexes) {
  return std::find(indexes.begin(), indexes.end(), kFloorTable) != indexes.end();
}

// The coded symbols of a pass that skips its floor table: the k-th is at positions[k].
inline void find_coded(const std::vector<uint16_t>& indexes, std::vector<uint32_t>& positions) {
  positions.resize(indexes.size());
  size_t coded = 0;
  for (size_t i = 0; i < indexes.size(); ++i) {
    positions[coded] = static_cast<uint32_t>(i);
    coded += indexes[i] != kFloorTable;
  }
  positions.resize(coded);
}

// The coded symbols of a pass that skips nothing.
struct AllPositions {
  size_t operator[](size_t k) const { return k; }
};

}  // namespace mlic::rans
