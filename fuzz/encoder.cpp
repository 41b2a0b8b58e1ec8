// Any symbols: the host's encoder and the device's write the same bytes, which decode to the same
// symbols and digest.
//
// Input: lanes (or a choice by size), passes (passes.h), 2 bytes a pass for its symbols.
#include "passes.h"

using namespace fuzz;

namespace {

struct Encoded {
  std::vector<uint8_t> payload;
  uint32_t lanes;
};

Encoded encode_on_device(const std::vector<Pass>& passes,
                         const std::vector<std::vector<int32_t>>& symbols, uint32_t lanes,
                         uint32_t digest, uint32_t capacity) {
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
  const uint32_t page_count = (capacity + 2 * device::kReturnedWords) / 954 + 1 + 32;
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
  if (result.error != 0) fail(rans::message_of(static_cast<rans::Error>(result.error)));
  return {{payload.get(), payload.get() + result.size}, result.lanes};
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
  const Encoded other =
      encode_on_device(passes, symbols, code % 4 == 0 ? 0 : encoder.lanes(), digest, capacity);
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
  return 0;
}
