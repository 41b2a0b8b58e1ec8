// The order in which the symbols of a pass are coded: table by table, a stable counting sort.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "rans/tables.h"

namespace mlic::rans {

// The symbols of one table: places `begin` .. `end` - 1 of a pass.
struct List {
  uint32_t begin;
  uint32_t end;
  uint32_t table;
};

class Order {
 public:
  // Throws std::invalid_argument if an index is negative or has no table; index: uint8_t or
  // int32_t.
  template <class Index>
  void sort(const Tables& tables, const Index* indexes, size_t count);

  // Calls put(place, i) for each symbol i, several lists at a time.
  template <class Put>
  void place(Put&& put);

  const std::vector<List>& lists() const { return lists_; }  // those that are not empty
  uint32_t runs_end() const { return runs_end_; }            // places of run tables come before
  uint32_t count() const { return count_; }
  uint32_t table_of(uint32_t place) const {
    const auto ends_later = [](uint32_t p, const List& list) { return p < list.end; };
    return std::upper_bound(lists_.begin(), lists_.end(), place, ends_later)->table;
  }

 private:
  // Symbols are counted, and put in their places, in four parts side by side: otherwise each symbol
  // would wait for the one before.
  static constexpr size_t kParts = 4;

  template <class Index>
  void count_tables(const Index* indexes);
  template <class Index, class Put>
  void place_from(const Index* indexes, Put&& put);
  uint32_t begin_of(size_t part) const {
    return static_cast<uint32_t>(uint64_t{count_} * part / kParts);
  }

  uint32_t count_ = 0;
  uint32_t runs_end_ = 0;
  const uint8_t* bytes_ = nullptr;                  // indexes of one byte are used where they are
  std::vector<uint16_t> narrow_;                    // others are copied
  std::array<std::vector<uint32_t>, kParts> next_;  // of each part and table: symbols, then places
  std::vector<List> lists_;
};

template <class Index>
void Order::count_tables(const Index* indexes) {
  std::array<uint32_t*, kParts> counts;
  std::array<const Index*, kParts> parts;
  for (size_t p = 0; p < kParts; ++p) {
    counts[p] = next_[p].data();
    parts[p] = indexes + begin_of(p);
  }
  const uint32_t whole = count_ / kParts;
  for (uint32_t i = 0; i < whole; ++i) {
    for (size_t p = 0; p < kParts; ++p) ++counts[p][parts[p][i]];
  }
  for (size_t p = 0; p < kParts; ++p) {
    for (uint32_t i = begin_of(p) + whole; i < begin_of(p + 1); ++i) ++counts[p][indexes[i]];
  }
}

template <class Index>
void Order::sort(const Tables& tables, const Index* indexes, size_t count) {
  count_ = static_cast<uint32_t>(count);
  size_t possible = tables.size();
  bool bad = false;
  if constexpr (sizeof(Index) == 1) {
    possible = std::max<size_t>(possible, 256);
    bytes_ = indexes;
  } else {
    bytes_ = nullptr;
    narrow_.resize(count);
    uint32_t largest = 0;  // a negative index becomes a large one
    for (size_t i = 0; i < count; ++i) {
      const auto index = static_cast<uint32_t>(indexes[i]);
      largest = std::max(largest, index);
      narrow_[i] = static_cast<uint16_t>(index);
    }
    bad = largest >= tables.size();
  }
  if (!bad) {
    for (auto& counts : next_) counts.assign(possible, 0);
    if constexpr (sizeof(Index) == 1) {
      count_tables(indexes);
    } else {
      count_tables(narrow_.data());
    }
    for (const auto& counts : next_) {
      bad |= std::any_of(counts.begin() + static_cast<ptrdiff_t>(tables.size()), counts.end(),
                         [](uint32_t n) { return n != 0; });
    }
  }
  if (bad) {
    throw std::invalid_argument("indexes must be 0 to " + std::to_string(tables.size() - 1) +
                                ", the tables there are");
  }
  lists_.clear();
  runs_end_ = 0;
  uint32_t place = 0;
  const uint32_t* run_tables = tables.view().run_tables;
  for (const uint16_t table : tables.coding_order()) {
    const uint32_t begin = place;
    for (auto& counts : next_) {
      const uint32_t own = counts[table];
      counts[table] = place;
      place += own;
    }
    if (place == begin) continue;
    lists_.push_back({begin, place, table});
    if (run_tables[table] != kNoRuns) runs_end_ = place;
  }
}

template <class Index, class Put>
void Order::place_from(const Index* indexes, Put&& put) {
  std::array<uint32_t*, kParts> next;
  for (size_t p = 0; p < kParts; ++p) next[p] = next_[p].data();
  const std::array<uint32_t, kParts> begins = {begin_of(0), begin_of(1), begin_of(2), begin_of(3)};
  const uint32_t whole = count_ / kParts;
  for (uint32_t i = 0; i < whole; ++i) {
    for (size_t p = 0; p < kParts; ++p) {
      const uint32_t symbol = begins[p] + i;
      put(next[p][indexes[symbol]]++, symbol);
    }
  }
  for (size_t p = 0; p < kParts; ++p) {
    for (uint32_t i = begins[p] + whole; i < begin_of(p + 1); ++i) {
      put(next[p][indexes[i]]++, i);
    }
  }
}

template <class Put>
void Order::place(Put&& put) {
  if (bytes_ != nullptr) {
    place_from(bytes_, put);
  } else {
    place_from(narrow_.data(), put);
  }
}

}  // namespace mlic::rans
