// Any symbols: the host's encoder and the device's write the same bytes, which decode to the same
// symbols and digest.
//
// The device's must also say so when an index has no table, or its buffers are too small.
//
// Input: lanes (or a choice by size), passes (passes.h), 2 bytes a pass for its symbols, 2 for the
// size of the buffers.
#include "passes.h"

using namespace fuzz;

namespace {

struct Encoded {
  rans::Error error;
  std::vector<uint8_t> payload;
  uint32_t lanes;
};

uint32_t pages_for(uint32_t capacity) {
  return (capacity + 2 * device::kReturnedWords) / 954 + 1 + 32;
}

Encoded encode_on_device(const std::vector<Pass>& passes,
                         const std::vector<std::vector<int32_t>>& symbols, uint32_t lanes,
                         uint32_t digest, uint32_t capacity, uint32_t page_count) {
  size_t total = 1;
  for (const Pass& pass : passes) total += pass.size();
  std::vector<std::unique_ptr<int32_t[]>> arrays;
  std::vector<std::unique_ptr<uint8_t[]>> indexes;
  device::PassList list{};
  uint64_t before = 0, events = 0;
  for (size_t p = 0; p < passes.size(); ++p) {
    const Pass& pass = passes[p];
    arrays.push_back(exactly<int32_t>(pass.size()));
    indexes.push_back(exactly<uint8_t>(pass.size()));
    for (size_t k = 0; k < pass.size(); ++k) {
      arrays[p][k] = symbols[p][k];
      indexes[p][k] = static_cast<uint8_t>(pass.indexes[k]);
    }
    const device::TableRange range =
        pass.by_channel ? tables().image->range(rans::kScaleTables, pass.shape.channels)
                        : tables().image->scales();
    list.passes[list.count++] = {arrays[p].get(), pass.by_channel ? nullptr : indexes[p].get(),
                                 before,          events,
                                 pass.shape,      range};
    before += pass.size();
    events += device::event_room(pass.size());
  }
  const auto sorted = exactly<int32_t>(total);
  const auto scratch = exactly<uint32_t>(2 * total);
  const auto event_list = exactly<uint32_t>(events + 1);
  const auto infos = exactly<device::PassInfo>(device::kMaxPasses);
  const auto pages = exactly<uint64_t>(size_t{page_count} * device::kPageBytes / 8);
  const auto payload = exactly<uint8_t>(capacity);
  device::EncodeResult result{};
  device::EncodeArgs args{};
  args.tables = tables().view;
  args.digests = &digest;
  args.sorted = sorted.get();
  args.entries = scratch.get();
  args.escapes = scratch.get() + total;
  args.events = event_list.get();
  args.infos = infos.get();
  args.pages = reinterpret_cast<uint8_t*>(pages.get());
  args.payloads = payload.get();
  args.results = &result;
  args.symbols_stride = total;
  args.events_stride = events + 1;
  args.page_count = page_count;
  args.capacity = capacity;
  args.lanes = lanes;
  for (uint32_t p = 0; p < list.count; ++p) {
    device::kHostLaunchers.prepare(args, list.passes[p], p, 1, {});
  }
  device::kHostLaunchers.encode(args, list, 1, {});
  return {static_cast<rans::Error>(result.error),
          {payload.get(), payload.get() + result.size},
          result.lanes};
}

// The passes once more, with an index without a table, or too little room.
void check_refusals(std::vector<Pass> passes, const std::vector<std::vector<int32_t>>& symbols,
                    uint32_t lanes, uint32_t digest, const std::vector<uint8_t>& payload,
                    uint32_t drawn) {
  const auto whole = static_cast<uint32_t>(payload.size());
  const uint32_t less = drawn / 4 % (whole + 1) / 2 * 2;
  const uint32_t pages = 1 + drawn % pages_for(whole);
  const Encoded small = encode_on_device(passes, symbols, lanes, digest, less, pages_for(less));
  require(small.error == (less < whole ? rans::Error::kCapacity : rans::Error::kNone),
          "a payload has room that is larger than its buffer");
  const Encoded few = encode_on_device(passes, symbols, lanes, digest, whole, pages);
  require(few.error == rans::Error::kCapacity || few.payload == payload,
          "another payload with few pages");
  for (Pass& pass : passes) {
    if (pass.by_channel) continue;
    pass.indexes[drawn % pass.size()] = 255;
    const Encoded odd = encode_on_device(passes, symbols, lanes, digest, whole, pages_for(whole));
    require(odd.error == rans::Error::kIndex, "an index without a table was taken");
    return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const uint8_t code = bytes.byte();
  const uint32_t digest = bytes.word() | bytes.word() << 16;
  const std::vector<Pass> passes = read_passes(bytes);
  if (code >= 250) {  // no number of lanes
    try {
      rans::Encoder(tables().host, code);
      fail("a number of lanes that is none was taken");
    } catch (const std::invalid_argument&) {
      return 0;
    }
  }
  rans::Encoder encoder(tables().host, code % 4 == 0 ? 0 : lanes_of(code));
  std::vector<std::vector<int32_t>> symbols;
  for (const Pass& pass : passes) {
    symbols.push_back(draw_symbols(pass, bytes.word()));
    encoder.encode(symbols.back().data(), pass.indexes.data(), pass.size());
  }
  const std::vector<uint8_t> payload = encoder.finish(digest);
  const auto capacity = static_cast<uint32_t>(payload.size() + 8 + payload.size() % 2);
  const uint32_t chosen = code % 4 == 0 ? 0 : encoder.lanes();
  const Encoded other =
      encode_on_device(passes, symbols, chosen, digest, capacity, pages_for(capacity));
  if (other.error != rans::Error::kNone) fail(rans::message_of(other.error));
  require(other.lanes == encoder.lanes(), "the numbers of lanes differ");
  require(other.payload == payload, "the payloads differ");

  rans::Decoder decoder(tables().host, payload.data(), payload.size(), encoder.lanes());
  for (size_t p = 0; p < passes.size(); ++p) {
    std::vector<int32_t> decoded(passes[p].size());
    decoder.decode(passes[p].indexes.data(), passes[p].size(), decoded.data());
    require(decoded == symbols[p], "the symbols do not come back");
  }
  require(decoder.finish() == digest, "the digest does not come back");
  const Decoded emulated =
      decode_on_device(payload.data(), payload.size(), encoder.lanes(), passes);
  require(emulated.error == rans::Error::kNone && emulated.digest == digest &&
              emulated.symbols == symbols,
          "they do not come back on the device");
  if (const uint32_t drawn = bytes.word())
    check_refusals(passes, symbols, chosen, digest, payload, drawn);
  return 0;
}
