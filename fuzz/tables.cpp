// Any arrays as tables: refused with std::invalid_argument, or every symbol comes back.
//
// Input: number of tables; of each 1 byte precision, 4 minimum, 2 size, kind of frequencies; noise.
#include "passes.h"

using namespace fuzz;

namespace {

template <class Error, class Work>
void must_refuse(Work&& work) {
  try {
    work();
  } catch (const Error&) {
    return;
  }
  fail("what must be refused is not");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  std::vector<uint16_t> frequencies;
  std::vector<int32_t> sizes, minima;
  std::vector<uint8_t> precisions;
  const uint32_t count = bytes.byte() % 5;
  for (uint32_t t = 0; t < count; ++t) {
    const uint8_t bits = bytes.byte(), kind = bytes.byte();
    const uint32_t minimum = bytes.word() | bytes.word() << 16, entries = bytes.word();
    precisions.push_back(bits % 32 < 20 ? bits % 32 : 1 + bits % 16);
    minima.push_back(kind % 4 == 0 ? static_cast<int32_t>(minimum)
                                   : static_cast<int32_t>(minimum % 64) - 32);
    uint32_t left = 1u << precisions.back() % 20;
    const uint32_t wanted = std::min<uint32_t>(kind % 8 == 1 ? entries : 2 + entries % 300, left);
    sizes.push_back(static_cast<int32_t>(kind % 16 == 2 ? entries : wanted));
    Noise noise(entries);
    for (uint32_t i = 0; i + 1 < wanted; ++i) {
      const uint32_t most = left - (wanted - 1 - i);
      const uint32_t f = 1 + noise.next() % std::max(1u, kind & 128 ? 2 * most / wanted : most);
      frequencies.push_back(static_cast<uint16_t>(std::min(f, most)));
      left -= frequencies.back();
    }
    if (wanted > 0) frequencies.push_back(static_cast<uint16_t>(left));
    if (kind % 16 == 3 && !frequencies.empty()) {
      frequencies[entries % frequencies.size()] ^= static_cast<uint16_t>(minimum);
    }
  }
  if (bytes.left() % 64 == 63) frequencies.push_back(1);  // of no table
  std::shared_ptr<const rans::Tables> made;
  try {
    made = std::make_shared<rans::Tables>(frequencies.data(), frequencies.size(), sizes.data(),
                                          minima.data(), precisions.data(), count);
  } catch (const std::invalid_argument&) {
    return 0;
  }
  const device::TableImage image(*made);
  require(image.size() == count, "the device has another number of tables");
  require(made->bytes() >= made->entry_count() * sizeof(rans::Entry), "entries are not counted");
  const uint32_t lanes = lanes_of(bytes.byte());
  rans::Encoder encoder(made, lanes);
  std::vector<int32_t> symbols, indexes;
  for (size_t k = 0; k < 200; ++k) {
    const uint32_t t = bytes.byte() % count;
    indexes.push_back(static_cast<int32_t>(t));
    const uint32_t at = bytes.byte();
    const int64_t near = minima[t] + static_cast<int64_t>(at % (2 * sizes[t])) - sizes[t] / 2;
    symbols.push_back(at == 255 ? INT32_MIN : at == 254 ? INT32_MAX : static_cast<int32_t>(near));
  }
  std::vector<int32_t> decoded(symbols.size());
  const auto none = static_cast<int32_t>(count);
  must_refuse<std::invalid_argument>([&] { encoder.encode(symbols.data(), &none, 1); });
  encoder.encode(symbols.data(), indexes.data(), symbols.size());
  const std::vector<uint8_t> payload = encoder.finish(1);
  must_refuse<rans::UsedAfterFinish>([&] { encoder.finish(1); });
  rans::Decoder decoder(made, payload.data(), payload.size(), lanes);
  must_refuse<std::invalid_argument>([&] { decoder.decode(&none, 1, decoded.data()); });
  decoder.decode(indexes.data(), indexes.size(), decoded.data());
  require(decoded == symbols && decoder.finish() == 1, "the symbols do not come back");
  must_refuse<rans::UsedAfterFinish>([&] { decoder.finish(); });
  return 0;
}
