// Damaged streams of CompressAI's coder: any symbols or CorruptStream; and what is encoded comes
// back. The bytes are both the stream and, taken as numbers, the symbols.
#include "rans/compressai.h"

#include "passes.h"

using namespace fuzz;
namespace compressai = mlic::rans::compressai;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const compressai::Cdfs cdfs({0, 1, 65536, 0, 100, 30000, 65000, 65535, 65536}, {3, 6},
                                     {0, -2});
  std::vector<int32_t> indexes, symbols;
  for (size_t k = 0; k < size; ++k) {
    indexes.push_back(data[k] & 1);
    const auto high = static_cast<uint32_t>(data[k] >> 1) << (data[(k + 1) % size] % 32);
    symbols.push_back(data[k] % 16 == 1 ? static_cast<int32_t>(high) : data[k] % 6 - 2);
  }
  try {
    std::vector<int32_t> decoded(size);
    const auto copy = exactly<uint8_t>(size);
    std::memcpy(copy.get(), data, size);
    compressai::Decoder decoder(copy.get(), size);
    decoder.decode(indexes.data(), size, cdfs, decoded.data());
  } catch (const rans::CorruptStream&) {
  }
  compressai::Encoder encoder;
  encoder.encode(symbols.data(), indexes.data(), size, cdfs);
  const std::vector<uint8_t> stream = encoder.flush();
  std::vector<int32_t> decoded(size);
  compressai::Decoder decoder(stream.data(), stream.size());
  decoder.decode(indexes.data(), size, cdfs, decoded.data());
  require(decoded == symbols, "the symbols do not come back");
  return 0;
}
