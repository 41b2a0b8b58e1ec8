#include "rans/encoder.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "rans/errors.h"

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
  if (count > kMaxSymbols - symbols_) {
    throw std::invalid_argument("a payload has at most 2^31 - 1 symbols");
  }
  if (count == 0) return;
  order_.sort(*tables_, indexes, count);
  sorted_.resize(count);
  order_.place([symbols, sorted = sorted_.data()](uint32_t place, uint32_t symbol) {
    sorted[place] = symbols[symbol];
  });
  Pass pass;
  pass.lists = order_.lists();
  pass.count = order_.count();
  pass.runs_end = order_.runs_end();
  add_runs(pass);
  add_plain(pass);
  passes_.push_back(std::move(pass));
  symbols_ += count;
}

template void Encoder::encode(const int32_t*, const uint8_t*, size_t);
template void Encoder::encode(const int32_t*, const int32_t*, size_t);

namespace {

uint32_t entry_of(const Table& table, int32_t minimum, int32_t symbol) {
  const uint32_t first = static_cast<uint32_t>(minimum) - table.offset;
  const uint32_t entry = static_cast<uint32_t>(symbol) - table.offset;
  return entry - first < table.escape - first ? entry : table.escape;
}

uint64_t cost_of_digits(const Table& table, int32_t minimum, int32_t symbol) {
  return kBit * kDigitBits *
         count_digits(escape_of(minimum, symbol_of(table, table.escape), symbol));
}

// Appends the places begin .. end - 1 whose symbol is not zero.
void find_nonzero(const int32_t* symbols, uint32_t begin, uint32_t end,
                  std::vector<uint32_t>& places) {
  constexpr uint32_t kBlock = 16;
  size_t count = places.size();
  for (uint32_t i = begin; i < end; i += kBlock) {
    const uint32_t block_end = std::min(i + kBlock, end);
    int32_t any = 0;
    for (uint32_t j = i; j < block_end; ++j) any |= symbols[j];
    if (any == 0) continue;
    places.resize(count + kBlock);
    for (uint32_t j = i; j < block_end; ++j) {
      places[count] = j;
      count += symbols[j] != 0;
    }
  }
  places.resize(count);
}

}  // namespace

void Encoder::add_runs(Pass& pass) {
  const TableSet set = tables_->view();
  for (const List& list : pass.lists) {
    if (list.begin >= pass.runs_end) break;
    const Table& table = set.tables[list.table];
    const RunTable& run = set.runs[set.run_tables[list.table]];
    const int32_t minimum = set.minima[list.table];
    const int32_t beyond = value_of(run, run.values.escape);
    places_.clear();
    find_nonzero(sorted_.data(), list.begin, list.end, places_);
    const uint64_t zeros = list.end - list.begin - places_.size();
    uint64_t cost = zeros * tables_->cost(entry_of(table, minimum, 0));
    for (const uint32_t place : places_) {
      const int32_t symbol = sorted_[place];
      const uint32_t entry = entry_of(table, minimum, symbol);
      cost += tables_->cost(entry);
      if (entry == table.escape) cost += cost_of_digits(table, minimum, symbol);
      const uint32_t number = run.classes.of(symbol);
      uint32_t value = 0;
      if (number == run.classes.last()) {
        if (symbol < run.lowest || symbol >= beyond) {
          value = run.values.escape;
          pass.escapes.push_back({place, escape_of(run.lowest, beyond, symbol)});
        } else {
          value = entry_of_value(run, symbol);
        }
      }
      pass.endings.push_back({place, number, value});
    }
    pass.costs.push_back(cost);
  }
}

void Encoder::add_plain(Pass& pass) {
  const TableSet set = tables_->view();
  pass.entries.resize(pass.count - pass.runs_end);
  for (const List& list : pass.lists) {
    if (list.end <= pass.runs_end) continue;
    const Table table = set.tables[list.table];
    const int32_t minimum = set.minima[list.table];
    uint64_t cost = 0;
    for (uint32_t place = list.begin; place < list.end; ++place) {
      const int32_t symbol = sorted_[place];
      const uint32_t entry = entry_of(table, minimum, symbol);
      if (entry == table.escape) {
        pass.escapes.push_back({place, escape_of(minimum, symbol_of(table, entry), symbol)});
        cost += cost_of_digits(table, minimum, symbol);
      }
      pass.entries[place - pass.runs_end] = entry;
      cost += tables_->cost(entry);
    }
    pass.costs.push_back(cost);
  }
}

// Where the lanes retire that stay no longer, the first retirement first: the symbols from there on
// have the bits that all later starts of lanes take.
std::vector<Encoder::Cut> Encoder::find_cuts() const {
  std::vector<Cut> cuts(retirements_of(lanes_), Cut{0, 0});
  size_t cut = cuts.size();
  uint64_t wanted = 0;  // costs from here to the end
  const auto want_more = [&] {
    if (cut == 0) return false;
    wanted += kBit * start_bits(lanes_, static_cast<uint32_t>(--cut));
    return true;
  };
  if (!want_more()) return cuts;
  for (size_t p = passes_.size(); p-- > 0;) {
    const Pass& pass = passes_[p];
    for (size_t i = pass.lists.size(); i-- > 0;) {
      const List& list = pass.lists[i];
      const uint64_t cost = pass.costs[i];
      while (cost >= wanted) {
        const uint64_t symbols = (wanted * (list.end - list.begin) + cost - 1) / cost;
        cuts[cut] = {p, list.end - static_cast<uint32_t>(symbols)};
        if (!want_more()) return cuts;
      }
      wanted -= cost;
    }
  }
  return cuts;
}

// Codes events in the reverse of the decoder's order, each group's words from the back of a buffer
// of its own.
class Encoder::Writer {
 public:
  Writer(const EncoderEntry* entries, uint32_t lanes, uint32_t digest)
      : entries_(entries), states_(lanes, kLowest), words_(groups_of(lanes)) {
    states_[0] += digest & 0xffff;
    states_[1] += digest >> 16;
  }

  // Makes room for a number of events of a group, each worth a word at most.
  void reserve(size_t group, size_t events) {
    Words& words = words_[group];
    if (words.front > events) return;
    const size_t used = words.buffer.size() - words.front;
    std::vector<uint16_t> larger(2 * (used + events + 1));  // one more, as put() writes before it
                                                            // decides
    std::copy(words.buffer.begin() + static_cast<ptrdiff_t>(words.front), words.buffer.end(),
              larger.end() - static_cast<ptrdiff_t>(used));
    words.buffer = std::move(larger);
    words.front = words.buffer.size() - used;
  }

  // Puts entries on some lanes of a group, the last first.
  void put(size_t group, size_t lane, const uint32_t* entries, size_t count) {
    uint32_t* states = states_.data() + lane;
    uint16_t* front = words_[group].buffer.data() + words_[group].front;
    const uint16_t* const before = front;
    for (size_t i = count; i-- > 0;) put(entries_[entries[i]], states[i], front);
    words_[group].front -= static_cast<size_t>(before - front);
  }

  // Puts the events of a step on the lanes of a group that have one, the last lane first.
  void put_steps(size_t group, size_t first_lane, size_t width,
                 const std::vector<uint32_t>* events) {
    uint32_t* states = states_.data() + first_lane;
    uint16_t* front = words_[group].buffer.data() + words_[group].front;
    const uint16_t* const before = front;
    std::array<const uint32_t*, kGroupLanes> of_lane;
    std::array<size_t, kGroupLanes> counts;
    size_t steps = 0;
    for (size_t lane = 0; lane < width; ++lane) {
      of_lane[lane] = events[lane].data();
      counts[lane] = events[lane].size();
      steps = std::max(steps, counts[lane]);
    }
    for (size_t step = steps; step-- > 0;) {
      for (size_t lane = width; lane-- > 0;) {
        if (step < counts[lane]) put(entries_[of_lane[lane][step]], states[lane], front);
      }
    }
    words_[group].front -= static_cast<size_t>(before - front);
  }

  void put_bits(size_t group, size_t lane, uint32_t value, uint32_t bits) {
    uint32_t& x = states_[lane];
    Words& words = words_[group];
    if (must_shed_bits(x, bits)) {
      words.buffer[--words.front] = static_cast<uint16_t>(x);
      x >>= 16;
    }
    x = encode_bits(x, value, bits);
  }

  // Starts the lanes from number tail on, from bits of words as far as there are any.
  void start_lanes(size_t tail, size_t lanes) {
    Words& words = words_[0];
    size_t at = 0;
    const auto take = [&](uint32_t count) {
      uint64_t bits = 0;
      for (size_t i = at / kWordBits; kWordBits * i < at + count; ++i) {
        const size_t word = words.front + i;
        const uint64_t value = word < words.buffer.size() ? words.buffer[word] : 0;
        bits |= value << kWordBits * (i - at / kWordBits);
      }
      bits >>= at % kWordBits;
      at += count;
      return static_cast<uint32_t>(bits & ((uint64_t{1} << count) - 1));
    };
    uint32_t all = 0;
    for (size_t lane = tail; lane + 1 < lanes; ++lane) {
      states_[lane] = take(kSizeBits);
      all += kSizeBits + states_[lane];
    }
    states_[lanes - 1] = (0u - all) % kWordBits;
    for (size_t lane = tail; lane < lanes; ++lane) {
      const uint32_t size = states_[lane];
      states_[lane] = kLowest << size | take(kWordBits + size);
    }
    words.front = std::min(words.front + at / kWordBits, words.buffer.size());
  }

  // parts: how many symbols are coded before each retirement, and after the one before.
  std::vector<uint8_t> payload(const std::vector<uint64_t>& parts) const {
    std::vector<uint8_t> bytes;
    for (size_t g = 0; g + 1 < words_.size(); ++g) {
      append_leb128(bytes, words_[g].buffer.size() - words_[g].front);
    }
    for (const uint64_t symbols : parts) append_leb128(bytes, symbols);
    append_states(bytes);
    for (const Words& words : words_) {
      for (size_t i = words.front; i < words.buffer.size(); ++i) {
        bytes.push_back(static_cast<uint8_t>(words.buffer[i]));
        bytes.push_back(static_cast<uint8_t>(words.buffer[i] >> 8));
      }
    }
    return bytes;
  }

 private:
  struct Words {
    std::vector<uint16_t> buffer;
    size_t front = 0;
  };

  static void put(const EncoderEntry& entry, uint32_t& state, uint16_t*& front) {
    uint32_t x = state;
    const bool sheds = must_shed(x, entry);
    front[-1] = static_cast<uint16_t>(x);
    front -= sheds;
    x = sheds ? x >> 16 : x;
    state = encode_entry(x, entry);
  }

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

  const EncoderEntry* entries_;
  std::vector<uint32_t> states_;
  std::vector<Words> words_;
};

// The events of the runs of a part, for each lane in its own order.
class Encoder::Runs {
 public:
  Runs(const TableSet& set, uint32_t lanes)
      : set_(set), lanes_(lanes), events_(lanes), next_(lanes) {}

  // Places begin .. end - 1 of a pass.
  void collect(const Pass& pass, uint32_t begin, uint32_t end) {
    for (auto& events : events_) events.clear();
    if (begin == end) return;  // perhaps in a list without runs
    const Chunks chunks(end - begin, lanes_);
    std::fill(next_.begin(), next_.end(), 0);
    auto ending = std::lower_bound(pass.endings.begin(), pass.endings.end(), begin,
                                   [](const Ending& e, uint32_t place) { return e.place < place; });
    for (const List& list : pass.lists) {
      if (list.end <= begin || list.begin >= end) continue;
      const uint32_t list_end = std::min(list.end, end);
      const RunTable& table = set_.runs[set_.run_tables[list.table]];
      for (; ending != pass.endings.end() && ending->place < list_end; ++ending) {
        const uint32_t place = ending->place - begin, lane = chunks.lane_of(place);
        const uint32_t zeros = put_zeros(table, lane, chunks.before(lane, place));
        events_[lane].push_back(table.first + zeros * table.classes.count() + ending->number);
        if (ending->number == table.classes.last()) events_[lane].push_back(ending->value);
        ++next_[lane];
      }
      for (uint32_t lane = 0; lane < lanes_; ++lane) {
        const uint32_t zeros = put_zeros(table, lane, chunks.before(lane, list_end - begin));
        if (zeros > 0) events_[lane].push_back(table.tails + zeros);
      }
    }
  }

  // Those of a lane and the ones after it.
  const std::vector<uint32_t>* of(uint32_t lane) const { return events_.data() + lane; }

 private:
  // Codes the longest runs on a lane's way to one of its symbols; returns the zeros left.
  uint32_t put_zeros(const RunTable& table, uint32_t lane, uint32_t number) {
    uint32_t zeros = number - next_[lane];
    next_[lane] = number;
    for (; zeros >= table.limit; zeros -= table.limit) {
      events_[lane].push_back(table.first + table.limit * table.classes.count());
    }
    return zeros;
  }

  TableSet set_;
  uint32_t lanes_;
  std::vector<std::vector<uint32_t>> events_;
  std::vector<uint32_t> next_;  // the number of the lane's next symbol
};

void Encoder::put_part(Writer& writer, Runs& runs, Part part, uint32_t lanes) const {
  const Pass& pass = passes_[part.pass];
  const uint32_t width = std::min(lanes, kGroupLanes), groups = lanes / width;
  const uint32_t runs_end = std::clamp(pass.runs_end, part.begin, part.end);
  runs.collect(pass, part.begin, runs_end);

  // The digits of escapes.
  const auto find = [&](uint32_t place) {
    return std::lower_bound(pass.escapes.begin(), pass.escapes.end(), place,
                            [](const Escape& e, uint32_t p) { return e.place < p; });
  };
  const auto first = find(part.begin), last = find(part.end);
  const auto escapes = static_cast<size_t>(last - first);
  for (size_t block = (escapes + width - 1) / width; block-- > 0;) {
    const size_t begin = block * width, group = block % groups;
    const size_t count = std::min<size_t>(width, escapes - begin);
    writer.reserve(group, count * kMaxDigits);
    for (uint32_t round = kMaxDigits; round-- > 0;) {
      for (size_t i = count; i-- > 0;) {
        const uint64_t u = first[static_cast<ptrdiff_t>(begin + i)].u;
        if (round >= count_digits(u)) continue;
        writer.put_bits(group, group * width + i, digit_of(u, round), kDigitBits);
      }
    }
  }

  // A part that ends among the runs has no entries.
  const uint32_t* entries =
      pass.entries.data() + (std::max(runs_end, pass.runs_end) - pass.runs_end);
  const size_t plain = part.end - runs_end;
  for (uint32_t group = 0; group < groups; ++group) {
    const std::vector<uint32_t>* events = runs.of(group * width);
    size_t count = plain / groups + 2 * width;
    for (uint32_t lane = 0; lane < width; ++lane) count += events[lane].size();
    writer.reserve(group, count);
    for (size_t block = (plain + lanes - 1) / lanes; block-- > 0;) {
      const size_t begin = block * lanes + group * width;
      if (begin < plain) {
        writer.put(group, group * width, entries + begin, std::min<size_t>(width, plain - begin));
      }
    }
    writer.put_steps(group, group * width, width, events);
  }
}

std::vector<uint8_t> Encoder::write(uint32_t digest) const {
  Writer writer(tables_->encoder_entries(), lanes_, digest);
  const std::vector<Cut> cuts = find_cuts();
  std::vector<uint64_t> parts(cuts.size());
  Cut end{passes_.size(), 0};
  for (size_t number = cuts.size() + 1; number-- > 0;) {
    const uint32_t lanes = lanes_after(lanes_, static_cast<uint32_t>(number));
    const Cut begin = number == 0 ? Cut{0, 0} : cuts[number - 1];
    uint64_t symbols = 0;
    Runs runs(tables_->view(), lanes);
    for (size_t p = std::min(end.pass + 1, passes_.size()); p-- > begin.pass;) {
      const Part part = {p, p == begin.pass ? begin.place : 0,
                         p == end.pass ? end.place : passes_[p].count};
      put_part(writer, runs, part, lanes);
      symbols += part.end - part.begin;
    }
    if (number < cuts.size()) parts[number] = symbols;
    if (number > 0) {
      writer.start_lanes(lanes, lanes_after(lanes_, static_cast<uint32_t>(number) - 1));
    }
    end = begin;
  }
  return writer.payload(parts);
}

std::vector<uint8_t> Encoder::finish(uint32_t digest) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_open();
  finished_ = true;
  if (lanes_ == 0) {
    uint64_t cost = 0;
    for (const Pass& pass : passes_)
      cost = std::accumulate(pass.costs.begin(), pass.costs.end(), cost);
    lanes_ = choose_lanes(cost / (8 * kBit));
  }
  return write(digest);
}

}  // namespace mlic::rans
