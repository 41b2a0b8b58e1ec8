// Host encoder of a payload: collects passes, then codes all of them backwards at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "rans/order.h"
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
  struct Ending {  // a symbol that ends a run
    uint32_t place;
    uint32_t number;  // of its class
    uint32_t value;   // its entry, in the last class
  };
  struct Escape {
    uint32_t place;
    uint64_t u;
  };
  struct Pass {
    std::vector<List> lists;
    std::vector<uint64_t> costs;  // of the lists, about, the same on every machine
    uint32_t count;
    uint32_t runs_end;              // places before are of run tables,
    std::vector<Ending> endings;    // those of them that are not zero,
    std::vector<uint32_t> entries;  // and the others
    std::vector<Escape> escapes;
  };
  // Consecutive places of a pass.
  struct Part {
    size_t pass;
    uint32_t begin;
    uint32_t end;
  };
  // A place of a pass.
  struct Cut {
    size_t pass;
    uint32_t place;
  };
  class Writer;  // collects the words of all groups
  class Runs;    // collects the events of runs of each lane

  void check_open() const;
  void add_runs(Pass& pass);
  void add_plain(Pass& pass);
  std::vector<Cut> find_cuts() const;
  std::vector<uint8_t> write(uint32_t digest) const;
  void put_part(Writer& writer, Runs& runs, Part part, uint32_t lanes) const;

  std::shared_ptr<const Tables> tables_;
  std::vector<Pass> passes_;
  size_t symbols_ = 0;  // of all passes
  Order order_;         // of the current pass
  std::vector<int32_t> sorted_;
  std::vector<uint32_t> places_;
  std::mutex mutex_;
  uint32_t lanes_;
  bool finished_ = false;
};

}  // namespace mlic::rans
