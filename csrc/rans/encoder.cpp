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

template <class Unsigned>
void append_little_endian(std::vector<uint8_t>& bytes, Unsigned value) {
  for (size_t i = 0; i < sizeof(Unsigned); ++i)
    bytes.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

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

  std::vector<uint8_t> payload() const {
    std::vector<uint8_t> bytes;
    for (size_t g = 0; g + 1 < fronts_.size(); ++g) {
      append_leb128(bytes, static_cast<size_t>(ends_[g] - fronts_[g]));
    }
    for (const uint32_t x : states_) append_little_endian(bytes, x);
    for (size_t g = 0; g < fronts_.size(); ++g) {
      std::for_each(fronts_[g], ends_[g],
                    [&](uint16_t word) { append_little_endian(bytes, word); });
    }
    return bytes;
  }

 private:
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

template <uint32_t kWidth>
std::vector<uint8_t> Encoder::write(uint32_t digest) const {
  const size_t groups = lanes_ / kWidth;
  Writer writer(lanes_, digest, measure_room(kWidth));
  const Escape* escapes_end = escapes_.data() + escapes_.size();
  for (size_t p = passes_.size(); p-- > 0;) {
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
  return writer.payload();
}

// Number of events of each group.
std::vector<size_t> Encoder::measure_room(size_t width) const {
  std::vector<size_t> room(lanes_ / width);
  const Escape* escape = escapes_.data();
  const Escape* escapes_end = escape + escapes_.size();
  size_t begin = 0;
  for (const Pass& pass : passes_) {
    for (size_t& words : room) words += (pass.end - begin + lanes_ - 1) / lanes_ * width;
    if (pass.flag != Flag::kAbsent) room[0] += 1;
    for (; escape != escapes_end && escape->position < pass.end; ++escape) {
      room[(escape->position - begin) / width % room.size()] += count_digits(escape->u);
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
  switch (std::min(lanes_, kGroupLanes)) {
    case 2:
      return write<2>(digest);
    case 4:
      return write<4>(digest);
    case 8:
      return write<8>(digest);
    case 16:
      return write<16>(digest);
    default:
      return write<32>(digest);
  }
}

}  // namespace mlic::rans
