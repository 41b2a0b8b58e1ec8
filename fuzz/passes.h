// What the targets of the range coder share: tables, passes and symbols from the fuzzer's bytes,
// and the device's coder run on the host.
#pragma once

#include <sanitizer/allocator_interface.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "rans/decoder.h"
#include "rans/encoder.h"
#include "rans/errors.h"
#include "rans/gpu/image.h"
#include "rans/gpu/launch.h"
#include "rans/tables.h"

namespace fuzz {

namespace rans = mlic::rans;
namespace device = mlic::rans::device;

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

inline void require(bool condition, const char* what) {
  if (!condition) fail(what);
}

// What was allocated so far, in all; always 0 without AddressSanitizer.
inline size_t allocated() {
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
  static size_t bytes = 0;
  static const int installed = __sanitizer_install_malloc_and_free_hooks(
      [](const volatile void*, size_t size) { bytes += size; }, [](const volatile void*) {});
  require(installed > 0, "there is no room for a hook");
  return bytes;
#else
  return 0;
#endif
}

// Bytes from the front; zeros when there are no more.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : next_(data), end_(data + size) {}

  uint8_t byte() { return next_ == end_ ? 0 : *next_++; }
  uint32_t word() {
    const uint32_t low = byte();
    return low | uint32_t{byte()} << 8;
  }
  const uint8_t* data() const { return next_; }
  size_t left() const { return static_cast<size_t>(end_ - next_); }

 private:
  const uint8_t* next_;
  const uint8_t* end_;
};

// A generator, so that few bytes of the fuzzer fill a pass.
class Noise {
 public:
  explicit Noise(uint32_t seed) : state_(seed * 2 + 1) {}
  uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 33);
  }

 private:
  uint64_t state_;
};

// ---- Tables ----

constexpr uint32_t kChannels = 12;  // tables of channels, after those of scales

// A two-sided geometric distribution, wider from table to table, as those of scales are.
inline void add_table(uint32_t width, uint32_t bits, std::vector<uint16_t>& frequencies,
                      std::vector<int32_t>& sizes, std::vector<int32_t>& minima,
                      std::vector<uint8_t>& precisions) {
  const uint32_t count = 2 * width + 1;
  std::vector<uint32_t> f(count + 1, 1);
  uint32_t rest = (1u << bits) - count - 1;
  for (uint32_t distance = 0; distance <= width; ++distance) {
    const uint32_t part = distance == width ? rest : rest / (2 + width / 3);
    f[width + distance] += distance == 0 ? part : part - part / 2;
    f[width - distance] += distance == 0 ? 0 : part / 2;
    rest -= part;
  }
  for (const uint32_t frequency : f) frequencies.push_back(static_cast<uint16_t>(frequency));
  sizes.push_back(static_cast<int32_t>(count + 1));
  minima.push_back(-static_cast<int32_t>(width));
  precisions.push_back(static_cast<uint8_t>(bits));
}

struct TableSets {
  std::shared_ptr<const rans::Tables> host;
  std::shared_ptr<const device::TableImage> image;
  std::vector<uint64_t> memory;  // the image, aligned
  device::TableView view;
};

// Of the codec's kind: the first ones of 16 bits and nearly always zero.
inline const TableSets& tables() {
  static const TableSets sets = [] {
    std::vector<uint16_t> frequencies;
    std::vector<int32_t> sizes, minima;
    std::vector<uint8_t> precisions;
    for (uint32_t t = 0; t < rans::kScaleTables + kChannels; ++t) {
      const uint32_t scale = t % rans::kScaleTables;
      const uint32_t width = scale < 6 ? 1 : 1 + scale * scale / 8;
      add_table(width, scale < 6 ? 16 : 14, frequencies, sizes, minima, precisions);
    }
    TableSets made;
    made.host = std::make_shared<rans::Tables>(frequencies.data(), frequencies.size(), sizes.data(),
                                               minima.data(), precisions.data(), sizes.size());
    made.image = std::make_shared<device::TableImage>(*made.host);
    made.memory.resize(made.image->bytes().size() / 8 + 3);
    auto* base = reinterpret_cast<uint8_t*>(made.memory.data());
    base += -reinterpret_cast<uintptr_t>(base) & 15;
    std::memcpy(base, made.image->bytes().data(), made.image->bytes().size());
    made.view = made.image->view(base);
    return made;
  }();
  return sets;
}

// Decodes as rans::Decoder does, within the bounds that SECURITY.md states for its memory. The
// messages of errors take a part of the kilobytes.
class BoundedDecoder {
 public:
  BoundedDecoder(const uint8_t* data, size_t size, uint32_t lanes) {
    const auto& host = tables().host;  // made once
    within(size + 24 * std::min(lanes, rans::kMaxLanes) + 2048,
           [&] { decoder_.emplace(host, data, size, lanes); });
  }
  template <class Index>
  void decode(const Index* indexes, size_t count, int32_t* symbols) {
    within(24 * count + (size_t{24} << 10), [&] { decoder_->decode(indexes, count, symbols); });
  }
  uint32_t finish() { return decoder_->finish(); }

 private:
  template <class Work>
  static void within(size_t limit, Work&& work) {
    const size_t before = allocated();
    const auto check = [&] {
      if (allocated() - before > limit) {
        fail(std::to_string(allocated() - before) + " bytes allocated, not " +
             std::to_string(limit));
      }
    };
    try {
      work();
    } catch (const rans::CorruptStream&) {
      check();
      throw;
    }
    check();
  }

  std::optional<rans::Decoder> decoder_;
};

// ---- Passes ----

// Arrays are [positions, channels].
struct Pass {
  device::PassShape shape;
  bool by_channel;  // the table is that of the channel
  std::vector<int32_t> indexes;

  size_t size() const { return indexes.size(); }
};

// 1 byte: number of passes; then 4 bytes a pass.
inline std::vector<Pass> read_passes(Bytes& bytes) {
  std::vector<Pass> passes(bytes.byte() % 24);
  for (Pass& pass : passes) {
    const uint32_t sizes = bytes.byte(), kind = bytes.byte(), seed = bytes.word();
    pass.by_channel = kind % 8 == 0;
    pass.shape.channels = 1 + sizes % 12;
    pass.shape.positions = 1 + sizes / 12 * (1 + kind / 64);
    Noise noise(seed);
    // Of few tables, of all, of the floor table mostly.
    const uint32_t spread = kind % 4 == 1 ? 1 : kind % 4 == 2 ? 4 : rans::kScaleTables;
    const uint32_t first = seed % rans::kScaleTables;
    for (size_t k = 0; k < size_t{pass.shape.positions} * pass.shape.channels; ++k) {
      const uint32_t drawn = noise.next();
      const uint32_t channel = static_cast<uint32_t>(k % pass.shape.channels);
      const uint32_t any = (first + drawn % spread) % rans::kScaleTables;
      const bool floor = kind % 16 >= 12 && drawn % 16 != 0;
      pass.indexes.push_back(static_cast<int32_t>(pass.by_channel ? rans::kScaleTables + channel
                                                  : floor         ? 0
                                                                  : any));
    }
  }
  return passes;
}

inline uint32_t lanes_of(uint8_t byte) { return 1u << (1 + byte % 10); }

// Symbols of a pass: mostly near zero, now and then of any value.
inline std::vector<int32_t> draw_symbols(const Pass& pass, uint32_t seed) {
  Noise noise(seed);
  std::vector<int32_t> symbols;
  const uint32_t odd = seed % 3 == 1 ? 0 : 1 + seed % 61;
  for (const int32_t index : pass.indexes) {
    const int32_t width = 1 + index % 64 / 4;
    int32_t symbol = static_cast<int32_t>(noise.next() % (2 * width + 1)) - width;
    if (index == 0 && seed % 2 == 0) symbol = 0;
    if (odd != 0 && noise.next() % (7 * odd) == 0) {
      symbol =
          static_cast<int32_t>(noise.next() << (seed % 2) ^ noise.next() >> (noise.next() % 31));
    }
    symbols.push_back(symbol);
  }
  return symbols;
}

// ---- The device's coder on the host ----

template <class T>
std::unique_ptr<T[]> exactly(size_t count) {  // so that a step beyond it is seen
  std::unique_ptr<T[]> memory(new T[count]);
  std::memset(static_cast<void*>(memory.get()), 0xa5, count * sizeof(T));
  return memory;
}

struct Decoded {
  rans::Error error = rans::Error::kNone;
  uint32_t digest = 0;
  std::vector<std::vector<int32_t>> symbols;  // of each pass
};

// A header may claim more bytes than there are.
inline Decoded decode_on_device(const uint8_t* data, size_t size, uint32_t lanes,
                                const std::vector<Pass>& passes, uint32_t more = 0) {
  const device::Launchers& launch = device::kHostLaunchers;
  size_t largest = 1;
  for (const Pass& pass : passes) largest = std::max(largest, pass.size());
  const auto capacity = static_cast<uint32_t>(std::max<size_t>(8, size + size % 2));
  device::PayloadHeader header{more == 0 ? static_cast<uint32_t>(size) : capacity + more, lanes, 0};
  const auto payload = exactly<uint8_t>(capacity);
  std::memcpy(payload.get(), data, size);
  const auto states = exactly<device::DecoderState>(1);
  const uint32_t words_stride = capacity / 2 + device::kReturnedWords;
  const auto words = exactly<uint16_t>(words_stride);
  const auto scratch = exactly<uint32_t>(device::kDecoderScratch * largest);
  device::DecodeResult result{};

  device::BeginArgs begin{};
  begin.headers = &header;
  begin.payloads = payload.get();
  begin.states = states.get();
  begin.words = words.get();
  begin.capacity = capacity;
  begin.words_stride = words_stride;
  launch.begin(begin, 1, {});
  Decoded decoded;
  for (const Pass& pass : passes) {
    const auto indexes = exactly<uint8_t>(pass.size());
    const auto symbols = exactly<int32_t>(pass.size());
    for (size_t k = 0; k < pass.size(); ++k) {
      indexes[k] = static_cast<uint8_t>(pass.indexes[k]);
    }
    device::DecodeArgs args{};
    args.tables = tables().view;
    args.range = pass.by_channel ? tables().image->range(rans::kScaleTables, pass.shape.channels)
                                 : tables().image->scales();
    args.shape = pass.shape;
    args.indexes = pass.by_channel ? nullptr : indexes.get();
    args.symbols = symbols.get();
    args.states = states.get();
    args.words = words.get();
    args.scratch = scratch.get();
    args.words_stride = words_stride;
    args.scratch_stride = static_cast<uint32_t>(largest);
    args.blocks = 1u << pass.size() % 4;
    launch.decode(args, 1, {});
    decoded.symbols.emplace_back(symbols.get(), symbols.get() + pass.size());
  }
  launch.finish({states.get(), words.get(), &result, words_stride}, 1, {});
  decoded.error = static_cast<rans::Error>(result.error);
  decoded.digest = result.digest;
  return decoded;
}

}  // namespace fuzz
