// Damaged payloads of a few symbols in the host's decoder alone: cheap, so that a target runs a
// hundred million times. What is accepted must come back from the encoder.
//
// Input: lanes, number of symbols, tables of the first and from one symbol to the next; payload.
#include "passes.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

using namespace fuzz;

namespace {

constexpr uint32_t kHead = 4, kMaxSymbols = 24;

struct Plan {
  uint32_t lanes, count, split;  // two passes, of which the first has `split` symbols
  std::array<uint8_t, kMaxSymbols> indexes;
};

Plan read_plan(const uint8_t* data) {
  Plan plan{};
  plan.lanes = data[0] >= 250 ? data[0] : 2u << data[0] % 6;  // some are no lanes
  plan.count = data[1] % (kMaxSymbols + 1);
  plan.split = data[1] / 32 * plan.count / 7;
  uint32_t index = data[2];
  for (uint32_t k = 0; k < plan.count; ++k, index += data[3] % 16) {
    plan.indexes[k] = static_cast<uint8_t>(index % (rans::kScaleTables + kChannels));
  }
  return plan;
}

using Symbols = std::array<int32_t, kMaxSymbols>;

uint32_t decode(const Plan& plan, const uint8_t* data, size_t size, Symbols& symbols) {
  BoundedDecoder decoder(data, size, plan.lanes);
  decoder.decode(plan.indexes.data(), plan.split, symbols.data());
  decoder.decode(plan.indexes.data() + plan.split, plan.count - plan.split,
                 symbols.data() + plan.split);
  return decoder.finish();
}

std::vector<uint8_t> encode(const Plan& plan, const Symbols& symbols, uint32_t digest) {
  rans::Encoder encoder(tables().host, plan.lanes);
  encoder.encode(symbols.data(), plan.indexes.data(), plan.split);
  encoder.encode(symbols.data() + plan.split, plan.indexes.data() + plan.split,
                 plan.count - plan.split);
  return encoder.finish(digest);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kHead) return -1;
  const Plan plan = read_plan(data);
  Symbols symbols{}, again{};
  uint32_t digest = 0;
  try {
    digest = decode(plan, data + kHead, size - kHead, symbols);
  } catch (const rans::CorruptStream&) {
    return 0;
  }
  const std::vector<uint8_t> payload = encode(plan, symbols, digest);
  require(decode(plan, payload.data(), payload.size(), again) == digest && again == symbols,
          "what was accepted does not come back");
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  Noise noise(seed);
  if (noise.next() % 32 != 0 || size < kHead) return LLVMFuzzerMutate(data, size, max_size);
  data[0] %= 250;
  const Plan plan = read_plan(data);
  const uint32_t odd = noise.next() % 8;
  Symbols symbols{};
  for (uint32_t k = 0; k < plan.count; ++k) {
    const uint32_t drawn = noise.next();
    symbols[k] = drawn % 8 < odd ? static_cast<int32_t>(noise.next() << 1 >> drawn % 32)
                                 : static_cast<int32_t>(drawn / 8 % 5) - 2;
  }
  std::vector<uint8_t> payload = encode(plan, symbols, noise.next());
  if (kHead + payload.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  if (noise.next() % 2 == 0 && !payload.empty()) {
    payload[noise.next() % payload.size()] ^= static_cast<uint8_t>(1u << noise.next() % 8);
  }
  std::memcpy(data + kHead, payload.data(), payload.size());
  return kHead + payload.size();
}
