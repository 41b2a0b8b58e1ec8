// What host and device exchange: plain structs, pointers to device memory in them.
#pragma once

#include <cstdint>

#include "rans/core.h"
#include "rans/errors.h"

namespace mlic::rans::device {

constexpr uint32_t kMaxGroups = kMaxLanes / kGroupLanes;
constexpr uint32_t kScaleTables = 64;              // a pass with indexes uses tables 0 .. 63
constexpr uint32_t kMaxChannels = 1024;            // of a pass: a thread of the block each
constexpr uint32_t kMaxPasses = 64;                // of one payload
constexpr uint32_t kPageBytes = 1024;              // the encoder's words are collected in pages
constexpr uint32_t kHeaderBytes = 5 * kMaxGroups;  // lengths of groups and passes take at most
// Words that lanes give back when they retire go before those of the payload.
constexpr uint32_t kReturnedWords = kMaxLanes;

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

// An EncoderEntry as it stays in registers from its load until it is wanted.
struct alignas(16) PackedEntry {
  uint64_t reciprocal;
  Entry slots;
  uint32_t packed;  // cost | bits << 16

  MLIC_HD uint16_t cost() const { return static_cast<uint16_t>(packed); }
  MLIC_HD EncoderEntry unpack() const {
    return {reciprocal, static_cast<uint16_t>(freq_of(slots)),
            static_cast<uint16_t>(start_of(slots)), cost(), static_cast<uint8_t>(packed >> 16)};
  }
};

struct TableView {
  const CellTable* tables;
  const PackedEntry* encoder_entries;
  const Cell* cells;
  const Entry* entries;
};

// The consecutive tables that a pass uses.
struct TableRange {
  uint32_t first;
  uint32_t count;
  uint32_t first_cell;
  uint32_t cells;
};

// ---- A pass ----

// Arrays are [batch, positions, channels]; the stream has channels first. Without indexes, the
// table of a symbol is the first of the range plus its channel.
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

constexpr uint32_t kRetired = ~0u;

// Of one image, between the passes.
struct DecoderState {
  uint32_t error;
  uint32_t lanes;       // those of the tail alone, once the others have retired
  uint32_t until_tail;  // passes; kRetired after them
  uint32_t spare;       // words that may be left at the end, all zero
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
  uint64_t* records;       // [batch, records_stride], scratch
  uint32_t words_stride;
  uint32_t records_stride;  // at least the size of the pass
};

struct FinishArgs {
  const DecoderState* states;  // [batch]
  const uint16_t* words;       // [batch, words_stride]
  DecodeResult* results;       // [batch]
  uint32_t words_stride;
};

// ---- Encoding ----

struct EncodePass {
  const int32_t* symbols;  // [batch, positions, channels]
  const uint8_t* indexes;  // [batch, positions, channels] or null
  uint64_t records;        // where those of the pass begin
  PassShape shape;
  uint32_t first_table;
  uint32_t tables;
};

struct PassList {
  uint32_t count;
  EncodePass passes[kMaxPasses];
};

enum class Flag : uint32_t { kAbsent, kCoded, kSkipped };

struct PassInfo {
  uint64_t cost;   // 1/256 bit
  uint32_t coded;  // symbols, and as many records
  Flag flag;
  uint32_t error;
  uint32_t padding;
};

struct EncodeResult {
  uint32_t error;
  uint32_t size;  // bytes
  uint32_t lanes;
};

struct EncodeArgs {
  TableView tables;
  const uint32_t* digests;  // [batch]
  uint32_t* records;        // [batch, records_stride], scratch
  uint32_t* escapes;        // [batch, records_stride], scratch
  PassInfo* infos;          // [batch, kMaxPasses], scratch
  uint8_t* pages;           // [batch, page_count, kPageBytes], scratch, aligned to 8 bytes
  uint8_t* payloads;        // [batch, capacity]
  EncodeResult* results;    // [batch]
  uint64_t records_stride;
  uint32_t page_count;
  uint32_t capacity;
  uint32_t lanes;  // 0 to choose by the size of the payload
};

}  // namespace mlic::rans::device
