// The structs that host and device exchange. Pointers in them are to device memory.
#pragma once

#include <cstdint>

#include "rans/core.h"
#include "rans/errors.h"

namespace mlic::rans::device {

constexpr uint32_t kMaxGroups = kMaxLanes / kGroupLanes;
constexpr uint32_t kMaxChannels = 1024;  // of a pass: a thread of the block each
constexpr uint32_t kMaxPasses = 64;      // of one payload
constexpr uint32_t kPageBytes = 1024;    // the encoder's words are collected in pages
// Lengths of groups and of parts take at most
constexpr uint32_t kHeaderBytes = 5 * (kMaxGroups + kMaxRetirements);
// Words that lanes give back when they retire go before those of the payload.
constexpr uint32_t kReturnedWords = most_given_words(kMaxLanes);

// ---- Tables ----

// Some slots of a table, those with the same upper bits. Nearly always the first two entries that
// touch them are all there is, so that one load of 8 bytes finds a symbol.
struct alignas(8) Cell {
  Entry first;  // the entry of the cell's first slot
  uint32_t
      after;  // frequency of the entry after it, 0 if there is none | number of the first << 16

  MLIC_HD uint32_t next_freq() const { return after & 0xffff; }
  MLIC_HD uint32_t number() const { return after >> 16; }
};

struct alignas(16) CellTable {
  uint32_t cells;  // its first cell
  uint32_t first;  // its first entry
  int32_t minimum;
  uint32_t packed;  // number of the escape in the table | bits << 16 | shift << 24

  MLIC_HD uint32_t escape() const { return packed & 0xffff; }
  MLIC_HD uint32_t bits() const { return packed >> 16 & 0xff; }
  MLIC_HD uint32_t mask() const { return (1u << bits()) - 1; }
  MLIC_HD uint32_t shift() const { return packed >> 24; }  // slot >> shift is the slot's cell
  MLIC_HD int64_t beyond() const { return int64_t{minimum} + escape(); }
};

// How the symbols of one table are coded: with `own`, or, if limit is not zero, in runs.
struct alignas(16) DeviceTable {
  CellTable own;
  CellTable runs;    // the last entry is that of the longest run
  CellTable values;  // those in no class of their own
  uint16_t limit;
  uint16_t near;
  uint32_t bounds;       // bounds + n: where the entry of n zeros and nothing after begins
  uint32_t tails;        // encoder entry tails + n: n < limit zeros and nothing after
  uint32_t runs_before;  // run tables among the tables before

  MLIC_HD Classes classes() const { return {near}; }

  // The table that has entries for the symbols that are not coded in a class.
  MLIC_HD const CellTable& bounded() const { return limit != 0 ? values : own; }
};

// The symbol of an entry of values.
MLIC_HD int32_t value_of(const CellTable& values, Classes classes, uint32_t number) {
  return classes.open_gap(static_cast<int32_t>(static_cast<uint32_t>(values.minimum) + number));
}

MLIC_HD int64_t beyond(const DeviceTable& table) {
  if (table.limit == 0) return table.own.beyond();
  return value_of(table.values, table.classes(), table.values.escape());
}

// An EncoderEntry as it stays in registers from its load until it is wanted.
struct alignas(16) PackedEntry {
  uint64_t reciprocal;
  Entry slots;
  uint32_t packed;  // cost | bits << 24

  MLIC_HD uint32_t cost() const { return packed & 0xffffff; }
  MLIC_HD EncoderEntry unpack() const {
    return {reciprocal, static_cast<uint16_t>(freq_of(slots)),
            static_cast<uint16_t>(start_of(slots)), static_cast<uint8_t>(packed >> 24)};
  }
};

struct TableView {
  const DeviceTable* tables;
  const PackedEntry* encoder_entries;
  const Cell* cells;
  const Entry* entries;
  const uint32_t* bounds;
};

// The consecutive tables that a pass uses.
struct TableRange {
  uint32_t first;
  uint32_t count;
  uint32_t first_cell;
  uint32_t cells;
  uint32_t first_bound;
  uint32_t bounds;
  uint32_t runs_before;
  uint32_t runs;  // run tables
};

// A table of a pass among its lists: run tables come first.
MLIC_HD uint32_t rank_of(const DeviceTable& table, const TableRange& range, uint32_t number) {
  const uint32_t before = table.runs_before - range.runs_before;
  return table.limit != 0 ? before : range.runs + number - before;
}

// What the decoder needs of a list of symbols.
struct alignas(16) ListHead {
  uint32_t end;     // the place after its last symbol
  uint32_t cells;   // of the table of runs: the first | shift << 24
  uint32_t packed;  // the first of its bounds | limit << 20 | near << 29
  uint32_t unused;

  MLIC_HD uint32_t bounds() const { return packed & 0xfffff; }
  MLIC_HD uint32_t limit() const { return packed >> 20 & 0x1ff; }
  MLIC_HD Classes classes() const { return {packed >> 29}; }
};

struct alignas(16) StagedList {
  ListHead head;
  CellTable table;  // of the values, or of the symbols if there are no runs
};

// Shared memory for the tables of a pass, beside cells; a multiple of 16.
MLIC_HD uint32_t staged_bytes(const TableRange& range) {
  return range.count * sizeof(StagedList) + (range.bounds + 3) / 4 * 4 * sizeof(uint32_t);
}

MLIC_HD uint32_t cell_bytes(const TableRange& range) {
  return (range.cells * sizeof(Cell) + 15) / 16 * 16;
}

// Shared memory for the places of a pass, a byte each.
MLIC_HD uint32_t place_bytes(uint32_t size) { return (size + 15) / 16 * 16; }

// ---- A pass ----

// Arrays are [batch, positions, channels]. Without indexes, the table of a symbol is the first of
// the range plus its channel.
struct PassShape {
  uint32_t positions;
  uint32_t channels;

  MLIC_HD uint32_t size() const { return positions * channels; }
};

// ---- Decoding ----

struct PayloadHeader {
  uint32_t size;  // bytes
  uint32_t lanes;
  uint64_t offset;  // of its first byte among those of the batch
};

constexpr uint32_t kMaxBlocks = 8;          // of a cluster, that all GPUs with clusters take
constexpr uint32_t kSmallestShared = 6144;  // symbols: with fewer, barriers take what is gained

// Blocks that sort the symbols of a pass; one alone decodes them.
MLIC_HD uint32_t blocks_of(uint32_t size) { return size > kSmallestShared ? kMaxBlocks : 1; }

// Of one image, between the passes.
struct DecoderState {
  uint32_t error;
  uint32_t lanes;                   // that have not retired
  uint32_t retirements;             // how many there are of them,
  uint32_t retired;                 // and how many have been
  uint32_t until[kMaxRetirements];  // symbols left before each
  uint32_t spare;                   // words that may be left at the end, all zero
  uint32_t states[kMaxLanes];
  uint32_t next[kMaxGroups];  // the group's next word
  uint32_t end[kMaxGroups];   // and the one after its last
};

struct DecodeResult {
  uint32_t error;
  uint32_t digest;
};

struct BeginArgs {
  const PayloadHeader* headers;  // [batch]
  const uint8_t* payloads;       // of the batch, one after another
  DecoderState* states;          // [batch]
  uint16_t* words;               // [batch, words_stride]
  uint32_t capacity;
  uint32_t words_stride;  // kReturnedWords and those of the largest payload
};

struct DecodeArgs {
  TableView tables;
  TableRange range;
  PassShape shape;
  const uint8_t* indexes;  // [batch, positions, channels] or null
  int32_t* symbols;        // [batch, positions, channels]
  DecoderState* states;    // [batch]
  uint16_t* words;         // [batch, words_stride]
  uint32_t* scratch;       // [batch, kDecoderScratch, scratch_stride]
  uint32_t words_stride;
  uint32_t scratch_stride;  // at least the size of the pass
  uint32_t blocks;          // of an image, 1 to kMaxBlocks; 0 to choose by the size of the pass
};

// Arrays of the decoder's scratch: the symbol of each place, if a byte does not hold it; of each
// symbol what `count_symbols` says, where shared memory does not have it; places of escaped
// symbols; a bit for each place that has one; and the bytes of all places, for all blocks or where
// shared memory does not have them.
enum Scratch : uint32_t { kValues, kWithin, kEscapes, kMarks, kBytes, kDecoderScratch };

struct FinishArgs {
  const DecoderState* states;  // [batch]
  const uint16_t* words;       // [batch, words_stride]
  DecodeResult* results;       // [batch]
  uint32_t words_stride;
};

// ---- Encoding ----

struct EncodePass {
  const int32_t* symbols;   // [batch, positions, channels]
  const uint8_t* indexes;   // [batch, positions, channels] or null
  uint64_t symbols_before;  // of an image
  uint64_t events_before;   // where its events begin
  PassShape shape;
  TableRange range;
};

struct PassList {
  uint32_t count;
  EncodePass passes[kMaxPasses];
};

// A pass is coded in one part, or in several if lanes retire in it. Part number n is coded on the
// lanes that are left after n retirements.
constexpr uint32_t kParts = kMaxRetirements + 1;

// Where the events [steps, lanes] of a part begin, by the place where the part begins: each event
// takes a symbol, or is the second event of one. A lane has at most one chunk more than the mean,
// so that all lanes with as many as the first take an eighth of the symbols more, and one for each
// lane.
MLIC_HD uint64_t events_before(uint32_t place, uint32_t part) {
  static_assert(kLeastChunks == 8, "an eighth");
  const uint32_t lanes = part == 0 ? 0 : kMaxLanes + 1 + (part - 1) * (kGroupLanes + 1);
  return 2 * (uint64_t{place} + place / 8 + lanes);
}

// Room for the events of a pass.
MLIC_HD uint64_t event_room(uint64_t size) {
  return 2 * (size + size / 8 + kMaxLanes + 1 + kMaxRetirements * (kGroupLanes + 1));
}

// The number of a group of a part: all parts but the first have one group.
constexpr uint32_t kPartGroups = kMaxGroups + kMaxRetirements;
MLIC_HD uint32_t number_of_group(uint32_t part, uint32_t group) {
  return part == 0 ? group : kMaxGroups + part - 1;
}

struct PassInfo {
  uint32_t error;
  uint32_t runs_end;
  uint32_t escapes;        // how many
  uint32_t parts[kParts];  // and of each part
  uint64_t cost;
  uint64_t costs[kMaxChannels];   // of each list, in 1/kBit bit
  uint32_t ends[kMaxChannels];    // of each list
  uint16_t tables[kMaxChannels];  // of each list, counted from the first of the pass
  uint32_t steps[kPartGroups];    // events of the lane that has most of them
};

struct EncodeResult {
  uint32_t error;
  uint32_t size;  // bytes
  uint32_t lanes;
};

struct EncodeArgs {
  TableView tables;
  const uint32_t* digests;  // [batch]
  int32_t* sorted;          // [batch, symbols_stride], scratch: symbols in coding order
  uint32_t* entries;        // [batch, symbols_stride], scratch: of each place without runs
  uint32_t* escapes;        // [batch, symbols_stride], scratch: places of those that are escaped
  uint32_t* events;         // [batch, events_stride], scratch: [steps, lanes] of each part
  PassInfo* infos;          // [batch, kMaxPasses], scratch
  uint8_t* pages;           // [batch, page_count, kPageBytes], scratch, aligned to 8 bytes
  uint8_t* payloads;        // [batch, capacity]
  EncodeResult* results;    // [batch]
  uint64_t symbols_stride;
  uint64_t events_stride;
  uint32_t page_count;
  uint32_t capacity;
  uint32_t lanes;  // 0 to choose by the size of the payload
};

}  // namespace mlic::rans::device
