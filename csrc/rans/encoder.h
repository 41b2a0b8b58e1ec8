// Host encoder of a payload: collects passes, then codes all of them backwards at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "rans/tables.h"

namespace mlic::rans {

class Encoder {
 public:
  // lanes: a power of two in 2 .. 1024, or 0 to choose by the size of the payload.
  Encoder(std::shared_ptr<const Tables> tables, uint32_t lanes);

  // One pass. Throws std::invalid_argument on an index without a table; nothing is added then.
  // Index: uint8_t or int32_t.
  template <class Index>
  void encode(const int32_t* symbols, const Index* indexes, size_t count);

  // The payload of all passes. digest comes back from Decoder::finish.
  std::vector<uint8_t> finish(uint32_t digest);

  uint32_t lanes() const { return lanes_; }  // 0 while not chosen

 private:
  enum class Flag : uint8_t { kAbsent, kCoded, kSkipped };
  struct Pass {
    size_t end;  // of its entries in entries_
    Flag flag;
  };
  struct Escape {
    size_t position;  // in entries_
    uint64_t u;
  };
  class Writer;  // collects the words of all groups

  void check_open() const;
  // The symbols to be coded: the k-th is symbols[positions[k]].
  template <class Positions>
  void add_symbols(size_t count, Positions positions, const int32_t* symbols);
  uint64_t estimate_bytes() const;  // of the payload, the same on every machine
  std::vector<size_t> measure_room() const;
  std::vector<uint8_t> write(uint32_t digest) const;
  void put_pass(Writer& writer, size_t p, size_t lanes, const Escape*& escapes_end) const;
  template <uint32_t kWidth>
  void put_pass(Writer& writer, size_t p, size_t lanes, const Escape*& escapes_end) const;
  static void put_escapes(Writer& writer, size_t group, size_t first_lane, size_t begin,
                          const Escape* first, const Escape* last);

  std::shared_ptr<const Tables> tables_;
  std::vector<uint32_t> entries_;  // numbers of encoder entries, in coding order
  std::vector<Pass> passes_;
  std::vector<Escape> escapes_;
  std::vector<uint16_t> indexes_;    // of the current pass
  std::vector<uint32_t> positions_;  // of its coded symbols if some are skipped
  std::mutex mutex_;
  uint32_t lanes_;
  bool finished_ = false;
};

}  // namespace mlic::rans
