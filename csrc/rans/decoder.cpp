#include "rans/decoder.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>

#include "pool.h"
#include "rans/errors.h"

namespace mlic::rans {
namespace {

// Not worth the start of another thread.
constexpr uint32_t kFewSymbols = 1 << 13;

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
                 uint32_t lanes, int threads)
    : tables_(std::move(tables)), threads_(threads) {
  if (!is_lane_count(lanes)) {
    throw CorruptStream(Error::kLaneCount);
  }
  Reader reader(data, size);
  groups_.resize(groups_of(lanes));
  std::vector<size_t> lengths(groups_.size());  // in words
  for (size_t i = 0; i + 1 < lengths.size(); ++i) lengths[i] = reader.leb128();
  parts_.resize(retirements_of(lanes));
  for (uint32_t& symbols : parts_) symbols = reader.leb128();
  read_states(reader, lanes);
  if (reader.left() % 2 != 0) {
    throw CorruptStream(Error::kHalfWord);
  }
  const size_t words = reader.left() / 2;
  const size_t listed = std::accumulate(lengths.begin(), lengths.end(), size_t{0});
  if (listed > words) throw_too_short();
  lengths.back() = words - listed;

  const size_t room = most_given_words(lanes);
  words_.resize(room + words + kGroupLanes);
  uint16_t* next = words_.data() + room;
  for (size_t i = 0; i < words; ++i) next[i] = reader.little_endian<uint16_t>();
  for (size_t i = 0; i < groups_.size(); ++i) {
    groups_[i] = {next, next + lengths[i], {}};
    next += lengths[i];
  }
  retire_if_due();
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

// All retirements before which no symbols are left.
void Decoder::retire_if_due() {
  while (retired_ < parts_.size() && parts_[retired_] == 0) retire();
}

// The lanes that do not stay give back the bits that they were started from.
void Decoder::retire() {
  const auto lanes = static_cast<uint32_t>(states_.size()), tail = tail_of(lanes);
  const auto is_consumed = [](const Group& group) { return group.next == group.end; };
  bool ends = std::all_of(groups_.begin() + 1, groups_.end(), is_consumed);
  std::vector<uint16_t> given;
  uint64_t bits = 0;
  uint32_t count = 0;
  const auto give = [&](uint32_t value, uint32_t more) {
    bits |= uint64_t{value} << count;
    for (count += more; count >= kWordBits; count -= kWordBits, bits >>= kWordBits) {
      given.push_back(static_cast<uint16_t>(bits));
    }
  };
  for (uint32_t lane = tail; lane + 1 < lanes; ++lane)
    give(size_of_state(states_[lane]), kSizeBits);
  for (uint32_t lane = tail; lane < lanes; ++lane) {
    const uint32_t size = size_of_state(states_[lane]);
    give(low_bits(states_[lane], size), kWordBits + size);
  }
  ends &= count == 0;
  if (!ends) throw CorruptStream(Error::kEnd);
  Group& first = groups_[0];
  // Where an encoder had too few words, zeros stood for them.
  const auto returned = static_cast<ptrdiff_t>(given.size());
  if (first.end - first.next <= spare_) spare_ += returned;
  uint16_t* words = words_.data() + (first.next - words_.data()) - returned;
  std::copy(given.begin(), given.end(), words);
  first.next = words;
  states_.resize(tail);
  groups_.resize(1);
  ++retired_;
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
  if (count > kMaxSymbols) {
    throw std::invalid_argument("a payload has at most 2^31 - 1 symbols");
  }
  if (count == 0) return;
  order_.sort(*tables_, indexes, count);
  corrupt_ = true;           // unless the end is reached
  sorted_.assign(count, 0);  // runs of zeros are not written
  const auto end = static_cast<uint32_t>(count);
  for (uint32_t begin = 0; begin < end;) {
    uint32_t part_end = end;
    if (retired_ < parts_.size()) {
      part_end = begin + std::min(end - begin, parts_[retired_]);
      parts_[retired_] -= part_end - begin;
    }
    decode_part({begin, part_end});
    retire_if_due();
    begin = part_end;
  }
  corrupt_ = false;
  order_.place([symbols, sorted = sorted_.data()](uint32_t place, uint32_t symbol) {
    symbols[symbol] = sorted[place];
  });
}

template void Decoder::decode(const uint8_t*, size_t, int32_t*);
template void Decoder::decode(const int32_t*, size_t, int32_t*);

// Groups of lanes do not depend on one another, so each goes through all of its symbols at once.
void Decoder::decode_part(Section part) {
  if (part.begin == part.end) return;
  const uint32_t runs_end = std::clamp(order_.runs_end(), part.begin, part.end);
  list_runs({part.begin, runs_end});
  const bool few = part.end - part.begin < kFewSymbols;
  const auto groups = static_cast<ptrdiff_t>(groups_.size());
  parallel_for(groups, few ? 1 : threads_, [&](ptrdiff_t i) {
    const auto group = static_cast<size_t>(i);
    groups_[group].escapes.clear();
    decode_runs({part.begin, runs_end}, group);
    decode_plain({runs_end, part.end}, group);
  });
  size_t escapes = 0;
  for (const Group& group : groups_) escapes += group.escapes.size();
  escapes_.clear();
  escapes_.reserve(escapes);
  for (const Group& group : groups_) {
    escapes_.insert(escapes_.end(), group.escapes.begin(), group.escapes.end());
  }
  if (!escapes_.empty()) decode_escapes();
}

// The lists of runs of a section.
void Decoder::list_runs(Section section) {
  const TableSet set = tables_->view();
  run_lists_.clear();
  if (section.begin == section.end) return;  // perhaps in a list without runs
  for (const List& list : order_.lists()) {
    if (list.end <= section.begin || list.begin >= section.end) continue;
    const RunTable& table = set.runs[set.run_tables[list.table]];
    run_lists_.push_back({std::min(list.end, section.end) - section.begin,
                          table.first,
                          table.limit,
                          table.classes.count(),
                          {table.runs, table.values}});
  }
}

// Where a lane is in its runs.
struct Decoder::Run {
  uint32_t next;     // the number of the lane's next symbol,
  uint32_t list;     // which is in this list,
  uint32_t stop;     // where the lane has this number
  uint32_t pending;  // 1 if a run has ended there, and the symbol is a value that comes next
};

// Lanes do not wait for one another at the ends of lists, so a step has events of several lists,
// runs and values. Both are decoded by the same instructions, as a branch that depends on what is
// decoded would be mispredicted too often.
void Decoder::decode_runs(Section section, size_t g) {
  const auto lanes = static_cast<uint32_t>(states_.size());
  const uint32_t width = std::min(lanes, kGroupLanes);
  const auto first_lane = static_cast<uint32_t>(g) * width;
  const uint32_t count = section.end - section.begin;
  const Chunks chunks(count, lanes);
  if (chunks.before(first_lane, count) == 0) return;
  const TableSet set = tables_->view();
  const RunEvent* events = tables_->run_events();
  int32_t* sorted = sorted_.data() + section.begin;
  Group& group = groups_[g];
  std::array<uint32_t, kGroupLanes> states;  // a copy: other threads write beside the group's own
  std::copy_n(states_.data() + first_lane, width, states.data());
  const RunList* lists = run_lists_.data();

  std::array<Run, kGroupLanes> runs;
  std::array<uint32_t, kGroupLanes> ends, active;
  uint32_t active_count = 0;
  // To be called only if the lane has symbols left.
  const auto find_list = [&](Run& run, uint32_t lane) {
    while (run.next >= run.stop) run.stop = chunks.before(first_lane + lane, lists[++run.list].end);
  };
  for (; active_count < width; ++active_count) {
    const uint32_t lane = active_count;
    ends[lane] = chunks.before(first_lane + lane, count);
    if (ends[lane] == 0) break;
    runs[lane] = {0, 0, chunks.before(first_lane + lane, lists[0].end), 0};
    find_list(runs[lane], lane);
    active[lane] = lane;
  }
  const uint16_t* next = group.next;
  while (active_count > 0) {
    uint32_t going_on = 0;
    for (uint32_t i = 0; i < active_count; ++i) {
      const uint32_t lane = active[i];
      Run& run = runs[lane];
      const RunList& list = lists[run.list];
      const Table& table = list.tables[run.pending];
      uint32_t x = states[lane];
      const uint32_t longest = std::min(list.limit, run.stop - run.next);
      // The entry of so many zeros and nothing after.
      const uint32_t last = (list.first + list.classes * longest) | (0u - run.pending);
      const uint32_t slot = x & table.mask;
      const uint32_t found = find_entry(set, table, slot);
      const bool ends_run = found < last;
      const uint32_t entry = ends_run ? found : last;
      const uint32_t start = start_of(set.entries[entry]);
      const uint32_t freq = ends_run ? freq_of(set.entries[entry]) : (1u << kRunBits) - start;
      x = freq * (x >> table.bits) + slot - start;
      const RunEvent event = events[entry];
      const uint32_t number = run.next + (ends_run ? event.zeros : longest - 1);
      const uint32_t place = chunks.place(first_lane + lane, number);
      sorted[place] = ends_run ? event.symbol : 0;
      if (ends_run && event.kind == RunEvent::kEscape) {
        group.escapes.push_back(section.begin + place);
      }
      run.pending = ends_run && event.kind == RunEvent::kPending;
      run.next = number + 1 - run.pending;
      active[going_on] = lane;
      const bool goes_on = run.next < ends[lane];
      going_on += goes_on;
      if (goes_on && run.next >= run.stop) find_list(run, lane);
      const uint32_t needed = 0u - needs_word(x);  // a mask
      states[lane] = x << (needed & 16) | (needed & *next);
      next += needed & 1;
    }
    // May have read kGroupLanes words past the end, in the next group or the pad.
    if (next > group.end) throw_too_short();
    active_count = going_on;
  }
  group.next = next;
  std::copy_n(states.data(), width, states_.data() + first_lane);
}

void Decoder::decode_plain(Section section, size_t group) {
  switch (std::min<size_t>(states_.size(), kGroupLanes)) {
    case 2:
      return decode_plain<2>(section, group);
    case 4:
      return decode_plain<4>(section, group);
    case 8:
      return decode_plain<8>(section, group);
    case 16:
      return decode_plain<16>(section, group);
    default:
      return decode_plain<32>(section, group);
  }
}

template <uint32_t kWidth>
void Decoder::decode_plain(Section section, size_t g) {
  const TableSet set = tables_->view();
  int32_t* sorted = sorted_.data();
  Group& group = groups_[g];
  std::array<uint32_t, kWidth> states;
  std::copy_n(states_.data() + g * kWidth, kWidth, states.data());
  const uint16_t* next = group.next;
  const List* list = order_.lists().data();
  for (uint64_t k = section.begin + g * kWidth; k < section.end; k += states_.size()) {
    while (k >= list->end) ++list;
    const List* own = list;
    const auto decode_lane = [&](size_t lane, const Table& table) {
      uint32_t x = states[lane];
      const uint32_t entry = decode_entry(set, table, x);
      const uint32_t needed = 0u - needs_word(x);
      states[lane] = x << (needed & 16) | (needed & *next);
      next += needed & 1;
      sorted[k + lane] = symbol_of(table, entry);
      if (entry == table.escape) group.escapes.push_back(static_cast<uint32_t>(k + lane));
    };
    if (k + kWidth <= std::min(list->end, section.end)) {
      const Table table = set.tables[list->table];
      for (size_t lane = 0; lane < kWidth; ++lane) decode_lane(lane, table);
    } else {
      const size_t width = std::min<size_t>(kWidth, section.end - k);
      for (size_t lane = 0; lane < width; ++lane) {
        while (k + lane >= own->end) ++own;
        decode_lane(lane, set.tables[own->table]);
      }
    }
    if (next > group.end) throw_too_short();
  }
  group.next = next;
  std::copy_n(states.data(), kWidth, states_.data() + g * kWidth);
}

// The rest of the escaped symbols of a part, in the order of their places, one a lane.
void Decoder::decode_escapes() {
  std::sort(escapes_.begin(), escapes_.end());
  const size_t width = std::min<size_t>(states_.size(), kGroupLanes);
  size_t g = 0;
  for (size_t k = 0; k < escapes_.size(); k += width) {
    decode_escapes(groups_[g], states_.data() + g * width, escapes_.data() + k,
                   std::min(width, escapes_.size() - k));
    if (++g == groups_.size()) g = 0;
  }
}

// Rounds of one digit a lane, in lane order, until no lane has digits left.
void Decoder::decode_escapes(Group& group, uint32_t* states, const uint32_t* places, size_t count) {
  const TableSet set = tables_->view();
  std::array<uint64_t, kGroupLanes> u{};
  uint32_t in_flight = count < 32 ? (1u << count) - 1 : ~0u;  // a bit a lane
  for (uint32_t round = 0; in_flight != 0; ++round) {
    for (size_t lane = 0; lane < count; ++lane) {
      if ((in_flight >> lane & 1) == 0) continue;
      const uint32_t digit = decode_bits(kDigitBits, states[lane]);
      advance(group, states[lane]);
      if (!is_valid_digit(digit, round)) {
        throw CorruptStream(Error::kEscape);
      }
      u[lane] = add_digit(u[lane], digit, round);
      if (!is_last_digit(digit)) continue;
      in_flight &= ~(1u << lane);
      const Bounds bounds = bounds_of(set, order_.table_of(places[lane]));
      const int64_t symbol = escaped_symbol(bounds.minimum, bounds.beyond, u[lane]);
      if (symbol != static_cast<int32_t>(symbol)) {
        throw CorruptStream(Error::kRange);
      }
      sorted_[places[lane]] = static_cast<int32_t>(symbol);
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
  const bool ends = retired_ == parts_.size() && words.end - words.next <= spare_ &&
                    std::count(words.next, words.end, 0) == words.end - words.next &&
                    std::count(states_.begin() + 2, states_.end(), kLowest) ==
                        static_cast<ptrdiff_t>(states_.size() - 2);
  if (!ends || (low | high) > 0xffff) throw CorruptStream(Error::kEnd);
  return low | high << 16;
}

}  // namespace mlic::rans
