// The byte format of compressai.ans: one 63-bit rANS state, 32-bit words, 16-bit CDFs, 4-bit bypass
// digits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace mlic::rans::compressai {

// CDFs as CompressAI keeps them, checked, with hints for a quick search. Immutable.
class Cdfs {
 public:
  // rows: those of all tables one after another, row i of sizes[i] values from 0 to 65536, the last
  // symbol the escape. Throws std::invalid_argument on anything else.
  Cdfs(std::vector<int32_t> rows, std::vector<int32_t> sizes, std::vector<int32_t> offsets);

  struct Table {
    const int32_t* cdf;
    const uint16_t* hints;
    int32_t escape;  // number of the escape symbol
    int32_t offset;
  };

  const Table& at(int32_t index) const;  // throws std::invalid_argument
  bool equals(const std::vector<int32_t>& rows, const std::vector<int32_t>& sizes,
              const std::vector<int32_t>& offsets) const;

 private:
  std::vector<int32_t> rows_, sizes_, offsets_;
  std::vector<uint16_t> hints_;
  std::vector<Table> tables_;
};

// The CDFs seen last, so that twenty calls with the same arrays convert them once. Compares
// contents, so an array altered in between is seen as another.
class CdfCache {
 public:
  std::shared_ptr<Cdfs> get(std::vector<int32_t> rows, std::vector<int32_t> sizes,
                            std::vector<int32_t> offsets);

 private:
  static constexpr size_t kSize = 8;
  std::vector<std::shared_ptr<Cdfs>> recent_;  // the latest first
  std::mutex mutex_;
};

class Encoder {
 public:
  // Throws std::invalid_argument on an index without a CDF and adds nothing then.
  void encode(const int32_t* symbols, const int32_t* indexes, size_t count, const Cdfs& cdfs);
  std::vector<uint8_t> flush();  // the stream of all symbols so far; then starts anew

 private:
  struct Interval {
    uint16_t start;
    uint16_t freq;
  };
  struct Escape {
    size_t position;  // in intervals_
    uint32_t raw;
  };
  class Writer;  // collects the words

  Interval add(int32_t symbol, const Cdfs::Table& table, size_t position);

  std::vector<Interval> intervals_;
  std::vector<Escape> escapes_;
  std::mutex mutex_;
};

class Decoder {
 public:
  // Copies the stream. Throws CorruptStream if it cannot be one.
  Decoder(const uint8_t* data, size_t size);

  // Throws CorruptStream when the data end early or an escape is malformed.
  void decode(const int32_t* indexes, size_t count, const Cdfs& cdfs, int32_t* symbols);

 private:
  void refill();
  uint32_t take_digit();
  int32_t take_escape(const Cdfs::Table& table);

  std::vector<uint32_t> words_;
  size_t next_ = 2;
  uint64_t state_;
  std::mutex mutex_;
};

}  // namespace mlic::rans::compressai
