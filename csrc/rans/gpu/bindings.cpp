// Arrays are addresses here; mlic_fast.coder.gpu_coder checks shapes, dtypes and devices and keeps
// the memory alive.
#include "rans/gpu/bindings.h"

#include <pybind11/numpy.h>

#include <memory>
#include <stdexcept>
#include <utility>

#include "rans/errors.h"
#include "rans/gpu/image.h"
#include "rans/gpu/launch.h"

namespace py = pybind11;
using namespace py::literals;

namespace mlic::rans::device {
namespace {

constexpr int kHost = -1;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

const Launchers& launchers_for(int device) {
  if (device == kHost) return kHostLaunchers;
#ifdef MLIC_FAST_CUDA
  return kCudaLaunchers;
#else
  throw std::invalid_argument("this module was built without CUDA");
#endif
}

Target target_of(int device, uintptr_t stream) { return {device, at<void>(stream)}; }

// A pass: tables by the indexes, or, without indexes, by the channel from `first` on.
TableRange range_of(const TableImage& image, uintptr_t indexes, PassShape shape, uint32_t first) {
  return indexes != 0 ? image.scales() : image.range(first, shape.channels);
}

class Decoder {
 public:
  Decoder(std::shared_ptr<const TableImage> image, uintptr_t tables, int device, uint32_t batch,
          uint32_t capacity, uint32_t symbols, uint32_t blocks, uintptr_t headers,
          uintptr_t payloads, uintptr_t states, uintptr_t words, uintptr_t scratch,
          uintptr_t results)
      : image_(std::move(image)),
        launchers_(launchers_for(device)),
        device_(device),
        batch_(batch) {
    begin_ = {at<PayloadHeader>(headers),
              at<uint8_t>(payloads),
              at<DecoderState>(states),
              at<uint16_t>(words),
              capacity,
              capacity / 2 + kReturnedWords};
    decode_.tables = image_->view(at<uint8_t>(tables));
    decode_.states = begin_.states;
    decode_.words = begin_.words;
    decode_.scratch = at<uint32_t>(scratch);
    decode_.words_stride = begin_.words_stride;
    decode_.scratch_stride = symbols;
    decode_.blocks = blocks;
    finish_ = {begin_.states, begin_.words, at<DecodeResult>(results), begin_.words_stride};
  }

  void begin(uintptr_t stream) const {
    launchers_.begin(begin_, batch_, target_of(device_, stream));
  }

  void decode(uintptr_t symbols, uintptr_t indexes, PassShape shape, uint32_t first,
              uintptr_t stream) const {
    DecodeArgs args = decode_;
    args.range = range_of(*image_, indexes, shape, first);
    args.shape = shape;
    args.indexes = at<uint8_t>(indexes);
    args.symbols = at<int32_t>(symbols);
    launchers_.decode(args, batch_, target_of(device_, stream));
  }

  void finish(uintptr_t stream) const {
    launchers_.finish(finish_, batch_, target_of(device_, stream));
  }

 private:
  std::shared_ptr<const TableImage> image_;
  const Launchers& launchers_;
  int device_;
  uint32_t batch_;
  BeginArgs begin_{};
  DecodeArgs decode_{};
  FinishArgs finish_{};
};

class Encoder {
 public:
  Encoder(std::shared_ptr<const TableImage> image, uintptr_t tables, int device, uint32_t batch,
          uint32_t capacity, uint64_t symbols, uint64_t events, uint32_t lanes, uint32_t page_count,
          uintptr_t digests, uintptr_t scratch, uintptr_t infos, uintptr_t pages,
          uintptr_t payloads, uintptr_t results)
      : image_(std::move(image)),
        launchers_(launchers_for(device)),
        device_(device),
        batch_(batch) {
    args_.tables = image_->view(at<uint8_t>(tables));
    args_.digests = at<uint32_t>(digests);
    args_.sorted = at<int32_t>(scratch);
    args_.entries = at<uint32_t>(scratch) + batch * symbols;
    args_.escapes = args_.entries + batch * symbols;
    args_.events = args_.escapes + batch * symbols;
    args_.infos = at<PassInfo>(infos);
    args_.pages = at<uint8_t>(pages);
    args_.payloads = at<uint8_t>(payloads);
    args_.results = at<EncodeResult>(results);
    args_.symbols_stride = symbols;
    args_.events_stride = events;
    args_.page_count = page_count;
    args_.capacity = capacity;
    args_.lanes = lanes;
  }

  void begin() { passes_.count = 0; }

  void record(uintptr_t symbols, uintptr_t indexes, PassShape shape, uint32_t first,
              uintptr_t stream) {
    if (passes_.count == kMaxPasses) throw std::invalid_argument("a payload has 64 passes at most");
    const TableRange range = range_of(*image_, indexes, shape, first);
    uint64_t symbols_before = 0, events_before = 0;
    if (passes_.count > 0) {
      const EncodePass& last = passes_.passes[passes_.count - 1];
      symbols_before = last.symbols_before + last.shape.size();
      events_before = last.events_before + event_room(last.shape.size());
    }
    if (symbols_before + shape.size() > args_.symbols_stride ||
        events_before + event_room(shape.size()) > args_.events_stride) {
      throw std::invalid_argument("the passes have more symbols than the encoder was made for");
    }
    const EncodePass pass = {
        at<int32_t>(symbols), at<uint8_t>(indexes), symbols_before, events_before, shape, range};
    launchers_.prepare(args_, pass, passes_.count, batch_, target_of(device_, stream));
    passes_.passes[passes_.count++] = pass;
  }

  void finish(uintptr_t stream) const {
    launchers_.encode(args_, passes_, batch_, target_of(device_, stream));
  }

 private:
  std::shared_ptr<const TableImage> image_;
  const Launchers& launchers_;
  int device_;
  uint32_t batch_;
  EncodeArgs args_{};
  PassList passes_{};
};

py::array_t<uint8_t> bytes_of(const TableImage& image) {
  return py::array_t<uint8_t>(static_cast<py::ssize_t>(image.bytes().size()), image.bytes().data());
}

void check(uint32_t error) {
  switch (static_cast<Error>(error)) {
    case Error::kNone:
      return;
    case Error::kIndex:
    case Error::kCapacity:
      throw std::invalid_argument(message_of(static_cast<Error>(error)));
    default:
      throw CorruptStream(static_cast<Error>(error));
  }
}

}  // namespace
}  // namespace mlic::rans::device

void bind_rans_device(py::module_& module) {
  using namespace mlic::rans::device;
  using mlic::rans::Tables;
  auto m = module.def_submodule("gpu_coder");
#ifdef MLIC_FAST_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
  m.attr("HOST") = kHost;
  m.attr("DECODER_SCRATCH") = static_cast<uint32_t>(kDecoderScratch);
  m.attr("MAX_PASSES") = kMaxPasses;
  m.def("choose_lanes", &mlic::rans::choose_lanes, "payload_bytes"_a);
  m.def("tail_of", &mlic::rans::tail_of, "lanes"_a);
  m.attr("START_BITS") = mlic::rans::kStartBits;
  m.def("event_room", &event_room, "size"_a);
  m.attr("HEADER_BYTES") = sizeof(PayloadHeader);
  m.attr("RETURNED_WORDS") = kReturnedWords;
  m.attr("MAX_RETIREMENTS") = mlic::rans::kMaxRetirements;
  m.attr("STATE_BYTES") = sizeof(DecoderState);
  m.attr("INFO_BYTES") = sizeof(PassInfo) * kMaxPasses;
  m.attr("PAGE_BYTES") = kPageBytes;
  m.attr("MAX_CHANNELS") = kMaxChannels;
  m.attr("SMALLEST_SHARED") = kSmallestShared;
  m.attr("ERROR_CAPACITY") = static_cast<uint32_t>(mlic::rans::Error::kCapacity);
  m.def("check", &check, "error"_a);

  py::class_<PassShape>(m, "PassShape")
      .def(py::init([](uint32_t positions, uint32_t channels) {
             return PassShape{positions, channels};
           }),
           "positions"_a, "channels"_a);

  py::class_<TableImage, std::shared_ptr<TableImage>>(m, "TableImage")
      .def(py::init([](const Tables& tables) { return std::make_shared<TableImage>(tables); }),
           "tables"_a)
      .def("bytes", &bytes_of);

  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<Decoder>(m, "Decoder")
      .def(py::init<std::shared_ptr<const TableImage>, uintptr_t, int, uint32_t, uint32_t, uint32_t,
                    uint32_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>(),
           "image"_a, "tables"_a, "device"_a, "batch"_a, "capacity"_a, "symbols"_a, "blocks"_a,
           "headers"_a, "payloads"_a, "states"_a, "words"_a, "scratch"_a, "results"_a)
      .def("begin", &Decoder::begin, "stream"_a, release)
      .def("decode", &Decoder::decode, "symbols"_a, "indexes"_a, "shape"_a, "first"_a, "stream"_a,
           release)
      .def("finish", &Decoder::finish, "stream"_a, release);

  py::class_<Encoder>(m, "Encoder")
      .def(py::init<std::shared_ptr<const TableImage>, uintptr_t, int, uint32_t, uint32_t, uint64_t,
                    uint64_t, uint32_t, uint32_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t,
                    uintptr_t, uintptr_t>(),
           "image"_a, "tables"_a, "device"_a, "batch"_a, "capacity"_a, "symbols"_a, "events"_a,
           "lanes"_a, "page_count"_a, "digests"_a, "scratch"_a, "infos"_a, "pages"_a, "payloads"_a,
           "results"_a)
      .def("begin", &Encoder::begin)
      .def("record", &Encoder::record, "symbols"_a, "indexes"_a, "shape"_a, "first"_a, "stream"_a,
           release)
      .def("finish", &Encoder::finish, "stream"_a, release);
}
