#include "rans/compressai.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>

#include "rans/errors.h"

namespace mlic::rans::compressai {
namespace {

constexpr uint64_t kLowest = uint64_t{1} << 31;
constexpr uint32_t kBits = 16;
constexpr uint32_t kDigitBits = 4;
constexpr uint32_t kDigitMask = (1 << kDigitBits) - 1;
constexpr uint32_t kMaxDigits = 8;  // of a 32-bit value
constexpr uint32_t kHintShift = 6;
constexpr uint32_t kHints = 1 << (kBits - kHintShift);

void check_row(const int32_t* cdf, int32_t size, const std::string& name) {
  const bool rises =
      std::adjacent_find(cdf, cdf + size, std::greater_equal<int32_t>()) == cdf + size;
  if (cdf[0] != 0 || cdf[size - 1] != 1 << kBits || !rises) {
    throw std::invalid_argument(name + " must rise strictly from 0 to 65536");
  }
}

// Values off the table: even at and above the escape's own number, odd below zero.
uint32_t raw_of(int64_t number, int32_t escape) {
  return static_cast<uint32_t>(number < 0 ? -2 * number - 1 : 2 * (number - escape));
}

int64_t number_of(uint32_t raw, int32_t escape) {
  const int64_t half = raw >> 1;
  return raw & 1 ? -half - 1 : half + escape;
}

uint32_t count_digits(uint32_t raw) {
  uint32_t count = 0;
  for (; raw != 0; raw >>= kDigitBits) ++count;
  return count;
}

bool exceeds_int32(int64_t value) { return value != static_cast<int32_t>(value); }

}  // namespace

Cdfs::Cdfs(std::vector<int32_t> rows, std::vector<int32_t> sizes, std::vector<int32_t> offsets)
    : rows_(std::move(rows)), sizes_(std::move(sizes)), offsets_(std::move(offsets)) {
  hints_.resize(sizes_.size() * kHints);
  const int32_t* cdf = rows_.data();
  for (size_t i = 0; i < sizes_.size(); ++i) {
    check_row(cdf, sizes_[i], "cdf " + std::to_string(i));
    uint16_t* hints = hints_.data() + i * kHints;
    uint16_t number = 0;
    for (uint32_t h = 0; h < kHints; ++h) {
      while (cdf[number + 1] <= static_cast<int32_t>(h << kHintShift)) ++number;
      hints[h] = number;
    }
    tables_.push_back({cdf, hints, sizes_[i] - 2, offsets_[i]});
    cdf += sizes_[i];
  }
}

const Cdfs::Table& Cdfs::at(int32_t index) const {
  if (static_cast<uint32_t>(index) >= tables_.size()) {
    throw std::invalid_argument("indexes must be 0 to " + std::to_string(tables_.size() - 1) +
                                ", the CDFs there are");
  }
  return tables_[static_cast<size_t>(index)];
}

bool Cdfs::equals(const std::vector<int32_t>& rows, const std::vector<int32_t>& sizes,
                  const std::vector<int32_t>& offsets) const {
  return sizes == sizes_ && offsets == offsets_ && rows == rows_;
}

std::shared_ptr<Cdfs> CdfCache::get(std::vector<int32_t> rows, std::vector<int32_t> sizes,
                                    std::vector<int32_t> offsets) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = std::find_if(recent_.begin(), recent_.end(), [&](const auto& cdfs) {
    return cdfs->equals(rows, sizes, offsets);
  });
  if (found != recent_.end()) {
    std::rotate(recent_.begin(), found, found + 1);
  } else {
    auto made = std::make_shared<Cdfs>(std::move(rows), std::move(sizes), std::move(offsets));
    if (recent_.size() == kSize) recent_.pop_back();
    recent_.insert(recent_.begin(), std::move(made));
  }
  return recent_.front();
}

void Encoder::encode(const int32_t* symbols, const int32_t* indexes, size_t count,
                     const Cdfs& cdfs) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t before = intervals_.size();
  const size_t escapes_before = escapes_.size();
  try {
    intervals_.resize(before + count);
    Interval* intervals = intervals_.data() + before;
    for (size_t i = 0; i < count; ++i) {
      intervals[i] = add(symbols[i], cdfs.at(indexes[i]), before + i);
    }
  } catch (...) {
    intervals_.resize(before);
    escapes_.resize(escapes_before);
    throw;
  }
}

Encoder::Interval Encoder::add(int32_t symbol, const Cdfs::Table& table, size_t position) {
  int64_t number = int64_t{symbol} - table.offset;
  if (number < 0 || number >= table.escape) {
    if (exceeds_int32(number)) throw std::invalid_argument("symbol minus offset exceeds 32 bits");
    escapes_.push_back({position, raw_of(number, table.escape)});
    number = table.escape;
  }
  const int32_t start = table.cdf[number];
  return {static_cast<uint16_t>(start), static_cast<uint16_t>(table.cdf[number + 1] - start)};
}

// Codes in the reverse of the decoder's order, so the last word comes first.
class Encoder::Writer {
 public:
  void put(Interval interval) {
    make_room(interval.freq);
    x_ = (x_ / interval.freq << kBits) + x_ % interval.freq + interval.start;
  }

  void put_digit(uint32_t digit) {
    make_room(1 << (kBits - kDigitBits));
    x_ = x_ << kDigitBits | digit;
  }

  std::vector<uint8_t> stream() {
    words_.push_back(static_cast<uint32_t>(x_ >> 32));
    words_.push_back(static_cast<uint32_t>(x_));
    std::vector<uint8_t> bytes;
    bytes.reserve(4 * words_.size());
    for (auto word = words_.rbegin(); word != words_.rend(); ++word) {
      for (int shift = 0; shift < 32; shift += 8) {
        bytes.push_back(static_cast<uint8_t>(*word >> shift));
      }
    }
    return bytes;
  }

 private:
  void make_room(uint64_t freq) {
    if (x_ < freq << 47) return;
    words_.push_back(static_cast<uint32_t>(x_));
    x_ >>= 32;
  }

  uint64_t x_ = kLowest;
  std::vector<uint32_t> words_;
};

std::vector<uint8_t> Encoder::flush() {
  const std::lock_guard<std::mutex> lock(mutex_);
  Writer writer;
  for (size_t i = intervals_.size(); i-- > 0;) {
    if (!escapes_.empty() && escapes_.back().position == i) {
      const uint32_t raw = escapes_.back().raw;
      const uint32_t digits = count_digits(raw);
      for (uint32_t k = digits; k-- > 0;) writer.put_digit(raw >> (kDigitBits * k) & kDigitMask);
      writer.put_digit(digits);
      escapes_.pop_back();
    }
    writer.put(intervals_[i]);
  }
  intervals_.clear();
  return writer.stream();
}

Decoder::Decoder(const uint8_t* data, size_t size) {
  if (size < 8 || size % 4 != 0) {
    throw CorruptStream("the stream must be whole words of 4 bytes, at least two");
  }
  words_.reserve(size / 4);
  for (size_t i = 0; i < size; i += 4) {
    words_.push_back(uint32_t{data[i]} | uint32_t{data[i + 1]} << 8 | uint32_t{data[i + 2]} << 16 |
                     uint32_t{data[i + 3]} << 24);
  }
  state_ = words_[0] | uint64_t{words_[1]} << 32;
  if (state_ < kLowest || state_ >> 63 != 0)
    throw CorruptStream("the stream starts with an impossible state");
}

void Decoder::refill() {
  if (state_ >= kLowest) return;
  if (next_ == words_.size()) {
    throw CorruptStream("the stream ends too early: it was cut short or altered");
  }
  state_ = state_ << 32 | words_[next_++];
}

uint32_t Decoder::take_digit() {
  const auto digit = static_cast<uint32_t>(state_ & kDigitMask);
  state_ >>= kDigitBits;
  refill();
  return digit;
}

int32_t Decoder::take_escape(const Cdfs::Table& table) {
  const uint32_t digits = take_digit();
  if (digits > kMaxDigits) {
    throw CorruptStream("an escaped symbol is malformed: the stream was altered");
  }
  uint32_t raw = 0;
  for (uint32_t i = 0; i < digits; ++i) raw |= take_digit() << (kDigitBits * i);
  const int64_t symbol = number_of(raw, table.escape) + table.offset;
  if (exceeds_int32(symbol)) {
    throw CorruptStream("a symbol exceeds 32 bits: the stream was altered");
  }
  return static_cast<int32_t>(symbol);
}

void Decoder::decode(const int32_t* indexes, size_t count, const Cdfs& cdfs, int32_t* symbols) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = 0; i < count; ++i) {
    const Cdfs::Table& table = cdfs.at(indexes[i]);
    const auto slot = static_cast<int32_t>(state_ & 0xffff);
    int32_t number = table.hints[slot >> kHintShift];
    while (table.cdf[number + 1] <= slot) ++number;
    const int32_t start = table.cdf[number];
    state_ = (state_ >> kBits) * static_cast<uint64_t>(table.cdf[number + 1] - start) +
             static_cast<uint64_t>(slot - start);
    refill();
    symbols[i] = number == table.escape ? take_escape(table) : number + table.offset;
  }
}

}  // namespace mlic::rans::compressai
