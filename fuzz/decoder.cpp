// Damaged payloads: the host's decoder and the device's say the same of each, and all they decode
// is the same.
//
// Half of the inputs go to the host's decoder alone, which is faster by far than the emulated one.
//
// Input: lanes, passes (passes.h), payload. The mutator now and then puts a payload of a real
// encoder there, so that damage lies behind what is right.
#include "passes.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

using namespace fuzz;

namespace {

Decoded decode_on_host(const uint8_t* data, size_t size, uint32_t lanes,
                       const std::vector<Pass>& passes, std::string& message) {
  Decoded decoded;
  try {
    const auto copy = exactly<uint8_t>(size);
    std::memcpy(copy.get(), data, size);
    BoundedDecoder decoder(copy.get(), size, lanes);
    for (const Pass& pass : passes) {
      std::vector<int32_t> symbols(pass.size());
      decoder.decode(pass.indexes.data(), pass.size(), symbols.data());
      decoded.symbols.push_back(symbols);
    }
    decoded.digest = decoder.finish();
  } catch (const rans::CorruptStream& error) {
    message = error.what();
  }
  return decoded;
}

// What no stream can do, but a caller of the device's decoder: more bytes than the buffer has, and
// an index without a table.
void check_refusals(const uint8_t* data, size_t size, uint32_t lanes, std::vector<Pass> passes,
                    bool sound) {
  const Decoded longer = decode_on_device(data, size, lanes, passes, 2);
  require(longer.error == rans::Error::kCapacity, "more bytes than there are were taken");
  for (Pass& pass : passes) {
    if (pass.by_channel) continue;
    pass.indexes.back() = 255;
    const rans::Error error = decode_on_device(data, size, lanes, passes).error;
    require(error != rans::Error::kNone && (!sound || error == rans::Error::kIndex),
            "an index without a table was taken");
    return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const uint8_t code = bytes.byte();
  const uint32_t lanes = code >= 250 ? code : lanes_of(code);  // some are no lanes
  const std::vector<Pass> passes = read_passes(bytes);
  std::string message;
  const Decoded host = decode_on_host(bytes.data(), bytes.left(), lanes, passes, message);
  if (code >= 128 && code < 250) return 0;
  const Decoded emulated = decode_on_device(bytes.data(), bytes.left(), lanes, passes);
  if (message.empty()) {
    require(emulated.error == rans::Error::kNone, "the device's decoder alone finds an error");
    require(emulated.digest == host.digest, "the digests differ");
  } else if (message != rans::message_of(emulated.error)) {
    fail("host: " + message + "; device: " + rans::message_of(emulated.error));
  }
  for (size_t p = 0; p < host.symbols.size(); ++p) {
    require(host.symbols[p] == emulated.symbols[p], "the symbols differ");
  }
  if (code % 8 == 3) check_refusals(bytes.data(), bytes.left(), lanes, passes, message.empty());
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  Noise noise(seed);
  if (noise.next() % 8 != 0) return LLVMFuzzerMutate(data, size, max_size);
  Bytes bytes(data, size);
  const uint32_t lanes = lanes_of(bytes.byte());
  const std::vector<Pass> passes = read_passes(bytes);
  const size_t head = size - bytes.left();
  rans::Encoder encoder(tables().host, lanes);
  for (const Pass& pass : passes) {
    const std::vector<int32_t> symbols = draw_symbols(pass, noise.next());
    encoder.encode(symbols.data(), pass.indexes.data(), pass.size());
  }
  std::vector<uint8_t> payload = encoder.finish(noise.next());
  if (head + payload.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  for (uint32_t hits = noise.next() % 4; hits > 0 && !payload.empty(); --hits) {
    payload[noise.next() % payload.size()] ^= static_cast<uint8_t>(1u << noise.next() % 8);
  }
  std::memcpy(data + head, payload.data(), payload.size());
  return head + payload.size();
}
