// Host decoder of a payload: bytes -> symbols, pass by pass.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "rans/order.h"
#include "rans/tables.h"

namespace mlic::rans {

class Decoder {
 public:
  // Copies the payload. Throws CorruptStream if it is too short for its lanes or not laid out as a
  // payload. Symbols do not depend on the number of threads.
  Decoder(std::shared_ptr<const Tables> tables, const uint8_t* data, size_t size, uint32_t lanes,
          int threads = 1);

  // One pass. Throws std::invalid_argument on an index without a table (nothing is consumed then)
  // and CorruptStream when the data end early or hold a malformed escape. Index: uint8_t or
  // int32_t.
  template <class Index>
  void decode(const Index* indexes, size_t count, int32_t* symbols);

  // Checks that everything was consumed and every lane is back at its start; returns the digest.
  uint32_t finish();

 private:
  class Reader;
  class BitReader;
  struct Group {
    const uint16_t* next;
    const uint16_t* end;
    std::vector<uint32_t> escapes;  // places, of the current part
  };

  // Consecutive places of a pass that are coded alike.
  struct Section {
    uint32_t begin;
    uint32_t end;
  };
  struct Run;
  struct RunList {
    uint32_t end;                 // in the section
    uint32_t first;               // the first entry of runs
    uint32_t limit;               // zeros, at most
    uint32_t classes;             // how many
    std::array<Table, 2> tables;  // of runs, of values
  };

  void decode_part(Section part);
  void list_runs(Section section);
  void decode_runs(Section section, size_t group);
  void decode_plain(Section section, size_t group);
  template <uint32_t kWidth>
  void decode_plain(Section section, size_t group);
  void decode_escapes();
  void decode_escapes(Group& group, uint32_t* states, const uint32_t* places, size_t count);
  void advance(Group& group, uint32_t& state);
  void read_states(Reader& reader, uint32_t lanes);
  void retire_if_due();
  void retire();
  void check_open() const;

  std::shared_ptr<const Tables> tables_;
  std::vector<uint16_t> words_;   // room for those of retired lanes, all groups, a pad
  std::vector<uint32_t> states_;  // of all lanes
  std::vector<Group> groups_;
  Order order_;                     // of the current pass
  std::vector<int32_t> sorted_;     // its symbols in their places
  std::vector<uint32_t> escapes_;   // those of all groups
  std::vector<RunList> run_lists_;  // of the current section
  const int threads_;
  std::mutex mutex_;
  std::vector<uint32_t> parts_;  // symbols that are left before each retirement
  size_t retired_ = 0;           // how often lanes have retired
  ptrdiff_t spare_ = 0;          // words that may be left at the end, all zero
  bool finished_ = false;
  bool corrupt_ = false;
};

}  // namespace mlic::rans
