#include "rans/encoder.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "rans/errors.h"
#include "rans/indexes.h"

namespace mlic::rans {
namespace {

void append_leb128(std::vector<uint8_t>& bytes, size_t value) {
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<uint8_t>(value | 0x80));
  bytes.push_back(static_cast<uint8_t>(value));
}

// Appends bits to bytes, the lowest of each byte first.
class BitWriter {
 public:
  explicit BitWriter(std::vector<uint8_t>& bytes) : bytes_(bytes) {}
  ~BitWriter() {
    if (count_ > 0) bytes_.push_back(static_cast<uint8_t>(bits_));
  }

  void put(uint32_t value, uint32_t count) {
    bits_ |= uint64_t{value} << count_;
    for (count_ += count; count_ >= 8; count_ -= 8, bits_ >>= 8) {
      bytes_.push_back(static_cast<uint8_t>(bits_));
    }
  }

 private:
  std::vector<uint8_t>& bytes_;
  uint64_t bits_ = 0;
  uint32_t count_ = 0;
};

}  // namespace

Encoder::Encoder(std::shared_ptr<const Tables> tables, uint32_t lanes)
    : tables_(std::move(tables)), lanes_(lanes) {
  if (lanes != 0 && !is_lane_count(lanes)) {
    throw std::invalid_argument("lanes must be a power of two from 2 to 1024");
  }
}

void Encoder::check_open() const {
  if (finished_)
    throw UsedAfterFinish("the encoder is finished: make a new one for another payload");
}

template <class Index>
void Encoder::encode(const int32_t* symbols, const Index* indexes, size_t count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_open();
  if (count > std::numeric_limits<uint32_t>::max()) {
    throw std::invalid_argument("a pass has at most 2^32 - 1 symbols");
  }
  if (count == 0) return;
  narrow_indexes(indexes, count, tables_->size(), indexes_);
  int32_t nonzero = 0;  // in the floor table
  for (size_t i = 0; i < count; ++i) nonzero |= symbols[i] & -int32_t{indexes_[i] == kFloorTable};
  const bool has_flag = has_floor(indexes_);
  if (has_flag && nonzero == 0) {
    find_coded(indexes_, positions_);
    add_symbols(positions_.size(), positions_.data(), symbols);
    passes_.push_back({entries_.size(), Flag::kSkipped});
  } else {
    add_symbols(count, AllPositions(), symbols);
    passes_.push_back({entries_.size(), has_flag ? Flag::kCoded : Flag::kAbsent});
  }
}

template void Encoder::encode(const int32_t*, const uint8_t*, size_t);
template void Encoder::encode(const int32_t*, const int32_t*, size_t);

template <class Positions>
void Encoder::add_symbols(size_t count, Positions positions, const int32_t* symbols) {
  const TableSet set = tables_->view();
  const size_t begin = entries_.size();
  entries_.resize(begin + count);
  for (size_t k = 0; k < count; ++k) {
    const int32_t symbol = symbols[positions[k]];
    const uint16_t index = indexes_[positions[k]];
    const Table& table = set.tables[index];
    const uint32_t first = static_cast<uint32_t>(set.minima[index]) - table.offset;
    uint32_t entry = static_cast<uint32_t>(symbol) - table.offset;
    if (entry - first >= table.escape - first) {
      entry = table.escape;
      const int32_t beyond = symbol_of(table, table.escape);
      escapes_.push_back({begin + k, escape_of(set.minima[index], beyond, symbol)});
    }
    entries_[begin + k] = entry;
  }
}

uint64_t Encoder::estimate_bytes() const {
  const EncoderEntry* table = tables_->encoder_entries();
  uint64_t cost = 0;  // 1/256 bit
  for (const uint32_t entry : entries_) cost += table[entry].cost;
  for (const Escape& escape : escapes_) cost += 256 * kDigitBits * count_digits(escape.u);
  for (const Pass& pass : passes_) cost += pass.flag == Flag::kAbsent ? 0 : 256 * kFlagBits;
  return cost >> 11;
}

// Codes events in the reverse of the decoder's order, each group's words from the back of a buffer
// of its own.
class Encoder::Writer {
 public:
  // room[g]: the largest number of events of group g, each worth one word at most.
  Writer(uint32_t lanes, uint32_t digest, const std::vector<size_t>& room)
      : states_(lanes, kLowest) {
    states_[0] += digest & 0xffff;
    states_[1] += digest >> 16;
    for (const size_t words : room) {
      buffers_.emplace_back(
          new uint16_t[words + 1]);  // one more, as put() writes before it decides
      fronts_.push_back(buffers_.back().get() + words + 1);
      ends_.push_back(fronts_.back());
    }
  }

  template <uint32_t kWidth>
  void put_block(size_t group, const EncoderEntry* table, const uint32_t* entries, size_t count) {
    uint32_t* states = states_.data() + group * kWidth;
    uint16_t* front = fronts_[group];
    const auto put = [&](size_t lane) {
      const EncoderEntry& e = table[entries[lane]];
      uint32_t x = states[lane];
      const bool sheds = must_shed(x, e);
      front[-1] = static_cast<uint16_t>(x);
      front -= sheds;
      x = sheds ? x >> 16 : x;
      states[lane] = encode_entry(x, e);
    };
    if (count == kWidth) {
      for (size_t lane = kWidth; lane-- > 0;) put(lane);
    } else {
      for (size_t lane = count; lane-- > 0;) put(lane);
    }
    fronts_[group] = front;
  }

  void put_bits(size_t group, size_t lane, uint32_t value, uint32_t bits) {
    uint32_t& x = states_[lane];
    if (must_shed_bits(x, bits)) {
      *--fronts_[group] = static_cast<uint16_t>(x);
      x >>= 16;
    }
    x = encode_bits(x, value, bits);
  }

  // Of the first group.
  size_t words() const { return static_cast<size_t>(ends_[0] - fronts_[0]); }

  // Starts the lanes from number tail on, from words as far as there are any.
  void start_lanes(size_t tail) {
    for (size_t lane = tail; lane < states_.size(); ++lane) {
      states_[lane] = kLowest + (words() > 0 ? *fronts_[0]++ : 0);
    }
  }

  // until_tail: passes before those that the tail codes.
  std::vector<uint8_t> payload(size_t until_tail) const {
    std::vector<uint8_t> bytes;
    for (size_t g = 0; g + 1 < fronts_.size(); ++g) {
      append_leb128(bytes, static_cast<size_t>(ends_[g] - fronts_[g]));
    }
    if (tail_of(static_cast<uint32_t>(states_.size())) < states_.size()) {
      append_leb128(bytes, until_tail);
    }
    append_states(bytes);
    for (size_t g = 0; g < fronts_.size(); ++g) {
      std::for_each(fronts_[g], ends_[g], [&](uint16_t word) {
        bytes.push_back(static_cast<uint8_t>(word));
        bytes.push_back(static_cast<uint8_t>(word >> 8));
      });
    }
    return bytes;
  }

 private:
  void append_states(std::vector<uint8_t>& bytes) const {
    {
      BitWriter nibbles(bytes);
      for (const uint32_t x : states_) nibbles.put(size_of_state(x), kSizeBits);
    }
    BitWriter bits(bytes);
    for (const uint32_t x : states_) {
      bits.put(low_bits(x, size_of_state(x)), kWordBits + size_of_state(x));
    }
  }

  std::vector<uint32_t> states_;
  std::vector<std::unique_ptr<uint16_t[]>> buffers_;
  std::vector<uint16_t*> fronts_;
  std::vector<uint16_t*> ends_;
};

// Rounds of one digit a lane, in reverse; [first, last) are the escapes of one block, which begins
// at entry begin.
void Encoder::put_escapes(Writer& writer, size_t group, size_t first_lane, size_t begin,
                          const Escape* first, const Escape* last) {
  for (uint32_t round = kMaxDigits; round-- > 0;) {
    for (const Escape* escape = last; escape-- != first;) {
      if (round >= count_digits(escape->u)) continue;
      writer.put_bits(group, first_lane + escape->position - begin, digit_of(escape->u, round),
                      kDigitBits);
    }
  }
}

// One pass on the first lanes; escapes_end is that of the escapes up to it, and moves before it.
template <uint32_t kWidth>
void Encoder::put_pass(Writer& writer, size_t p, size_t lanes, const Escape*& escapes_end) const {
  const size_t groups = lanes / kWidth;
  const size_t pass_begin = p == 0 ? 0 : passes_[p - 1].end;
  const size_t count = passes_[p].end - pass_begin;
  for (size_t block = (count + kWidth - 1) / kWidth; block-- > 0;) {
    const size_t group = block % groups;
    const size_t begin = pass_begin + block * kWidth;
    const Escape* escapes = escapes_end;
    while (escapes != escapes_.data() && escapes[-1].position >= begin) --escapes;
    if (escapes != escapes_end) {
      put_escapes(writer, group, group * kWidth, begin, escapes, escapes_end);
    }
    escapes_end = escapes;
    writer.put_block<kWidth>(group, tables_->encoder_entries(), entries_.data() + begin,
                             std::min<size_t>(kWidth, passes_[p].end - begin));
  }
  const Flag flag = passes_[p].flag;
  if (flag != Flag::kAbsent) writer.put_bits(0, 0, flag == Flag::kSkipped, kFlagBits);
}

void Encoder::put_pass(Writer& writer, size_t p, size_t lanes, const Escape*& escapes_end) const {
  switch (std::min<size_t>(lanes, kGroupLanes)) {
    case 2:
      return put_pass<2>(writer, p, lanes, escapes_end);
    case 4:
      return put_pass<4>(writer, p, lanes, escapes_end);
    case 8:
      return put_pass<8>(writer, p, lanes, escapes_end);
    case 16:
      return put_pass<16>(writer, p, lanes, escapes_end);
    default:
      return put_pass<32>(writer, p, lanes, escapes_end);
  }
}

std::vector<uint8_t> Encoder::write(uint32_t digest) const {
  const uint32_t tail = tail_of(lanes_);
  Writer writer(lanes_, digest, measure_room());
  const Escape* escapes_end = escapes_.data() + escapes_.size();
  size_t p = passes_.size();
  while (p > 0 && writer.words() < lanes_ - tail) put_pass(writer, --p, tail, escapes_end);
  const size_t until_tail = p;
  writer.start_lanes(tail);
  while (p > 0) put_pass(writer, --p, lanes_, escapes_end);
  return writer.payload(until_tail);
}

// The largest number of events of each group, the first of which may have the tail.
std::vector<size_t> Encoder::measure_room() const {
  const size_t width = std::min(lanes_, kGroupLanes);
  std::vector<size_t> room(lanes_ / width);
  const Escape* escape = escapes_.data();
  const Escape* escapes_end = escape + escapes_.size();
  size_t begin = 0;
  for (const Pass& pass : passes_) {
    for (size_t& words : room) words += (pass.end - begin + lanes_ - 1) / lanes_ * width;
    room[0] += pass.end - begin + (pass.flag != Flag::kAbsent ? 1 : 0);
    for (; escape != escapes_end && escape->position < pass.end; ++escape) {
      room[(escape->position - begin) / width % room.size()] += count_digits(escape->u);
      room[0] += count_digits(escape->u);
    }
    begin = pass.end;
  }
  return room;
}

std::vector<uint8_t> Encoder::finish(uint32_t digest) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_open();
  finished_ = true;
  if (lanes_ == 0) lanes_ = choose_lanes(estimate_bytes());
  return write(digest);
}

}  // namespace mlic::rans
