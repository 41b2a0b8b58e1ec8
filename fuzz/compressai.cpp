// Damaged streams of CompressAI's coder: any symbols or CorruptStream; and what is encoded comes
// back, or is refused. CDFs of any numbers are refused, or become CDFs.
//
// Input: what to do; then bytes that are the stream, the symbols and the CDFs.
#include "rans/compressai.h"

#include <array>

#include "passes.h"

using namespace fuzz;
namespace compressai = mlic::rans::compressai;

namespace {

constexpr size_t kMost = 128;  // symbols
constexpr int32_t kTables = 3;

const compressai::Cdfs& cdfs() {
  static const compressai::Cdfs made(
      {0, 1, 65536, 0, 100, 30000, 65000, 65535, 65536, 0, 60000, 65536}, {3, 6, 3},
      {0, -2, INT32_MAX - 1});
  return made;
}

template <class Work>
bool is_refused(Work&& work) {
  try {
    work();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

void make_cdfs(Bytes bytes) {
  static compressai::CdfCache cache;
  std::vector<int32_t> rows{0}, sizes, offsets;
  for (uint32_t count = 1 + bytes.byte() % 6; count > 0; --count) {
    rows.push_back(static_cast<int32_t>(rows.back() + bytes.word() % 8192));
  }
  rows.push_back(65536);
  sizes.push_back(static_cast<int32_t>(rows.size()));
  offsets.push_back(static_cast<int32_t>(bytes.word()));
  std::shared_ptr<compressai::Cdfs> made;
  if (is_refused([&] { made = cache.get(rows, sizes, offsets); })) return;
  require(cache.get(rows, sizes, offsets) == made, "the same CDFs are made twice");
  for (int32_t other = 0; other < 9; ++other) cache.get({0, 9, 65536}, {3}, {other});
  require(made->equals(rows, sizes, offsets), "other CDFs");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return -1;
  const uint8_t what = *data++;
  --size;
  if (what < 8) make_cdfs({data, size});
  const size_t count = std::min(size, kMost);
  std::array<int32_t, kMost> indexes, symbols, decoded;
  for (size_t k = 0; k < count; ++k) indexes[k] = static_cast<int32_t>(data[k] / 16 % kTables);
  if (what == 8 && count > 0) indexes[count / 2] = kTables;  // there is no such table
  try {
    compressai::Decoder decoder(data, size);
    decoder.decode(indexes.data(), count, cdfs(), decoded.data());
  } catch (const rans::CorruptStream&) {
  } catch (const std::invalid_argument&) {
    require(what == 8, "tables that there are were refused");
  }
  if (what >= 64) return 0;  // to encode costs more

  for (size_t k = 0; k < count; ++k) {
    const auto high = static_cast<uint32_t>(data[k] >> 1) << (data[(k + 1) % size] % 32);
    const int32_t near = indexes[k] == 2 ? INT32_MAX - 1 : -2;
    symbols[k] = data[k] % 16 == 1 ? static_cast<int32_t>(high) : near + (data[k] & 1);
  }
  compressai::Encoder encoder;
  if (is_refused([&] { encoder.encode(symbols.data(), indexes.data(), count, cdfs()); })) {
    require(encoder.flush().size() == 8, "what was refused was encoded");
    return 0;
  }
  const std::vector<uint8_t> stream = encoder.flush();
  compressai::Decoder decoder(stream.data(), stream.size());
  decoder.decode(indexes.data(), count, cdfs(), decoded.data());
  require(
      std::equal(symbols.begin(), symbols.begin() + static_cast<ptrdiff_t>(count), decoded.begin()),
      "the symbols do not come back");
  return 0;
}
