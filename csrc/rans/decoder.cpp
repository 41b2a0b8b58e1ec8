#include "rans/decoder.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>

#include "rans/errors.h"
#include "rans/indexes.h"

namespace mlic::rans {
namespace {

[[noreturn]] void throw_too_short() { throw CorruptStream(Error::kTooShort); }

}  // namespace

// Reads the payload's bytes from the front.
class Decoder::Reader {
 public:
  Reader(const uint8_t* data, size_t size) : next_(data), end_(data + size) {}

  size_t left() const { return static_cast<size_t>(end_ - next_); }

  template <class Unsigned>
  Unsigned little_endian() {
    if (left() < sizeof(Unsigned)) throw_too_short();
    Unsigned value = 0;
    for (size_t i = 0; i < sizeof(Unsigned); ++i) {
      value = static_cast<Unsigned>(value | static_cast<Unsigned>(*next_++) << (8 * i));
    }
    return value;
  }

  // At most 32 bits, in the fewest bytes.
  uint32_t leb128() {
    uint64_t value = 0;
    for (uint32_t shift = 0; shift < 35; shift += 7) {
      const auto byte = little_endian<uint8_t>();
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) {
        if ((byte == 0 && shift > 0) || value > std::numeric_limits<uint32_t>::max()) break;
        return static_cast<uint32_t>(value);
      }
    }
    throw CorruptStream(Error::kLength);
  }

 private:
  const uint8_t* next_;
  const uint8_t* end_;
};

// Takes bits from bytes, the lowest of each byte first.
class Decoder::BitReader {
 public:
  explicit BitReader(Reader& reader) : reader_(reader) {}

  uint32_t take(uint32_t count) {
    for (; available_ < count; available_ += 8) {
      bits_ |= uint64_t{reader_.little_endian<uint8_t>()} << available_;
    }
    const uint64_t value = bits_ & ((uint64_t{1} << count) - 1);
    bits_ >>= count;
    available_ -= count;
    return static_cast<uint32_t>(value);
  }

  // What is left of the last byte.
  uint64_t rest() const { return bits_; }

 private:
  Reader& reader_;
  uint64_t bits_ = 0;
  uint32_t available_ = 0;
};

Decoder::Decoder(std::shared_ptr<const Tables> tables, const uint8_t* data, size_t size,
                 uint32_t lanes)
    : tables_(std::move(tables)) {
  if (!is_lane_count(lanes)) {
    throw CorruptStream(Error::kLaneCount);
  }
  Reader reader(data, size);
  groups_.resize(groups_of(lanes));
  std::vector<size_t> lengths(groups_.size());  // in words
  for (size_t i = 0; i + 1 < lengths.size(); ++i) lengths[i] = reader.leb128();
  if (tail_of(lanes) < lanes) until_tail_ = reader.leb128();
  read_states(reader, lanes);
  if (reader.left() % 2 != 0) {
    throw CorruptStream(Error::kHalfWord);
  }
  const size_t words = reader.left() / 2;
  const size_t listed = std::accumulate(lengths.begin(), lengths.end(), size_t{0});
  if (listed > words) throw_too_short();
  lengths.back() = words - listed;

  const uint32_t room = lanes - tail_of(lanes);
  words_.resize(room + words + kGroupLanes);
  uint16_t* next = words_.data() + room;
  for (size_t i = 0; i < words; ++i) next[i] = reader.little_endian<uint16_t>();
  for (size_t i = 0; i < groups_.size(); ++i) {
    groups_[i] = {next, next + lengths[i]};
    next += lengths[i];
  }
  if (until_tail_ == 0) retire();
}

void Decoder::read_states(Reader& reader, uint32_t lanes) {
  std::vector<uint32_t> sizes(lanes);
  BitReader nibbles(reader);
  for (uint32_t& size : sizes) size = nibbles.take(kSizeBits);
  BitReader bits(reader);
  for (const uint32_t size : sizes) {
    states_.push_back(kLowest << size | bits.take(kWordBits + size));
  }
  if (bits.rest() != 0) throw CorruptStream(Error::kState);
}

// The lanes beyond the tail's give back the words that they were started from.
void Decoder::retire() {
  const auto lanes = static_cast<uint32_t>(states_.size()), tail = tail_of(lanes);
  const auto is_consumed = [](const Group& group) { return group.next == group.end; };
  Group& first = groups_[0];
  spare_ = is_consumed(first) ? lanes - tail : 0;
  bool ends = std::all_of(groups_.begin() + 1, groups_.end(), is_consumed);
  uint16_t* words = words_.data() + (first.next - words_.data());
  for (uint32_t lane = lanes; lane-- > tail;) {
    ends &= states_[lane] >> kWordBits == 1;
    *--words = static_cast<uint16_t>(states_[lane]);
  }
  if (!ends) throw CorruptStream(Error::kEnd);
  first.next = words;
  states_.resize(tail);
  groups_.resize(1);
  retired_ = true;
}

void Decoder::check_open() const {
  if (finished_) {
    throw UsedAfterFinish("the decoder is finished: make a new one for another payload");
  }
  if (corrupt_) throw CorruptStream("the payload was found corrupt before");
}

template <class Index>
void Decoder::decode(const Index* indexes, size_t count, int32_t* symbols) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_open();
  if (count > std::numeric_limits<uint32_t>::max()) {
    throw std::invalid_argument("a pass has at most 2^32 - 1 symbols");
  }
  if (count == 0) return;
  narrow_indexes(indexes, count, tables_->size(), indexes_);
  corrupt_ = true;  // unless the end is reached
  bool skips_floor = false;
  if (has_floor(indexes_)) {
    skips_floor = decode_bits(kFlagBits, states_[0]) != 0;
    advance(groups_[0], states_[0]);
  }
  if (skips_floor) {
    std::fill(symbols, symbols + count, 0);
    find_coded(indexes_, positions_);
    decode_symbols(positions_.size(), positions_.data(), symbols);
  } else {
    decode_symbols(count, AllPositions(), symbols);
  }
  if (!retired_ && --until_tail_ == 0) retire();
  corrupt_ = false;
}

template void Decoder::decode(const uint8_t*, size_t, int32_t*);
template void Decoder::decode(const int32_t*, size_t, int32_t*);

template <class Positions>
void Decoder::decode_symbols(size_t count, Positions positions, int32_t* symbols) {
  switch (std::min<size_t>(states_.size(), kGroupLanes)) {
    case 2:
      return decode_blocks<2>(count, positions, symbols);
    case 4:
      return decode_blocks<4>(count, positions, symbols);
    case 8:
      return decode_blocks<8>(count, positions, symbols);
    case 16:
      return decode_blocks<16>(count, positions, symbols);
    default:
      return decode_blocks<32>(count, positions, symbols);
  }
}

// A block is what one step gives one group: up to kWidth symbols, one a lane.
template <uint32_t kWidth, class Positions>
void Decoder::decode_blocks(size_t count, Positions positions, int32_t* symbols) {
  const TableSet set = tables_->view();
  const uint16_t* indexes = indexes_.data();
  const size_t groups = groups_.size();
  size_t g = 0;
  for (size_t k = 0; k < count; k += kWidth) {
    Group& group = groups_[g];
    uint32_t* states = states_.data() + g * kWidth;
    const uint16_t* next = group.next;
    bool escapes = false;
    const auto decode_lane = [&](size_t lane) {
      const size_t position = positions[k + lane];
      const Table& table = set.tables[indexes[position]];
      uint32_t x = states[lane];
      const uint32_t entry = decode_entry(set, table, x);
      const uint32_t needed = 0u - needs_word(x);  // a mask, as a branch would be mispredicted
      states[lane] = x << (needed & 16) | (needed & *next);
      next += needed & 1;
      symbols[position] = symbol_of(table, entry);
      escapes |= entry == table.escape;
    };
    // May read kWidth words past the end, in the next group or the pad, before it is checked.
    const size_t lanes = std::min<size_t>(kWidth, count - k);
    if (lanes == kWidth) {
      for (size_t lane = 0; lane < kWidth; ++lane) decode_lane(lane);
    } else {
      for (size_t lane = 0; lane < lanes; ++lane) decode_lane(lane);
    }
    if (next > group.end) throw_too_short();
    group.next = next;
    if (escapes) {
      std::array<uint32_t, kWidth> at;
      for (size_t lane = 0; lane < lanes; ++lane) {
        at[lane] = static_cast<uint32_t>(positions[k + lane]);
      }
      decode_escapes(group, states, lanes, at.data(), symbols);
    }
    if (++g == groups) g = 0;
  }
}

// Rounds of one digit a lane, in lane order, until no lane of the block has an escape in flight.
void Decoder::decode_escapes(Group& group, uint32_t* states, size_t lanes,
                             const uint32_t* positions, int32_t* symbols) {
  const TableSet set = tables_->view();
  const auto table_of = [&](size_t lane) -> const Table& {
    return set.tables[indexes_[positions[lane]]];
  };
  std::array<uint64_t, kGroupLanes> u{};
  uint32_t in_flight = 0;  // a bit a lane
  for (size_t lane = 0; lane < lanes; ++lane) {
    const Table& table = table_of(lane);
    const bool escapes = symbols[positions[lane]] == symbol_of(table, table.escape);
    in_flight |= static_cast<uint32_t>(escapes) << lane;
  }
  for (uint32_t round = 0; in_flight != 0; ++round) {
    for (size_t lane = 0; lane < lanes; ++lane) {
      if ((in_flight >> lane & 1) == 0) continue;
      const uint32_t digit = decode_bits(kDigitBits, states[lane]);
      advance(group, states[lane]);
      if (!is_valid_digit(digit, round)) {
        throw CorruptStream(Error::kEscape);
      }
      u[lane] = add_digit(u[lane], digit, round);
      if (!is_last_digit(digit)) continue;
      in_flight &= ~(1u << lane);
      const int32_t minimum = set.minima[indexes_[positions[lane]]];
      const int32_t beyond = symbol_of(table_of(lane), table_of(lane).escape);
      const int64_t symbol = escaped_symbol(minimum, beyond, u[lane]);
      if (symbol != static_cast<int32_t>(symbol)) {
        throw CorruptStream(Error::kRange);
      }
      symbols[positions[lane]] = static_cast<int32_t>(symbol);
    }
  }
}

void Decoder::advance(Group& group, uint32_t& state) {
  if (!needs_word(state)) return;
  if (group.next == group.end) throw_too_short();
  state = take_word(state, *group.next++);
}

uint32_t Decoder::finish() {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_open();
  finished_ = true;
  const uint32_t low = states_[0] - kLowest, high = states_[1] - kLowest;
  const Group& words = groups_[0];
  const bool ends = retired_ && words.end - words.next <= spare_ &&
                    std::count(words.next, words.end, 0) == words.end - words.next &&
                    std::count(states_.begin() + 2, states_.end(), kLowest) ==
                        static_cast<ptrdiff_t>(states_.size() - 2);
  if (!ends || (low | high) > 0xffff) throw CorruptStream(Error::kEnd);
  return low | high << 16;
}

}  // namespace mlic::rans
