// Python module mlic_fast._C. Shapes, dtypes and contiguity are the business of the Python side;
// here arrays are taken only as they are (no conversion), and the GIL is released around the work.
#include "exact/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string_view>
#include <vector>

#include "rans/compressai.h"
#include "rans/decoder.h"
#include "rans/encoder.h"
#include "rans/errors.h"
#include "rans/gpu/bindings.h"
#include "rans/tables.h"

namespace py = pybind11;
using namespace py::literals;
namespace rans = mlic::rans;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

size_t size_of(const py::array& array) { return static_cast<size_t>(array.size()); }

void check_same_size(const py::array& a, const py::array& b) {
  if (a.size() != b.size()) throw std::invalid_argument("symbols and indexes differ in size");
}

const uint8_t* bytes_of(std::string_view data) {
  return reinterpret_cast<const uint8_t*>(data.data());
}

py::bytes to_bytes(const std::vector<uint8_t>& data) {
  return py::bytes(reinterpret_cast<const char*>(data.data()), data.size());
}

Array<int32_t> empty_like(const py::array& array) {
  return Array<int32_t>(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
}

// Runs f without the GIL; exceptions pass through.
template <class F>
auto without_gil(F&& f) {
  const py::gil_scoped_release release;
  return f();
}

// ---- Our coder ----

std::shared_ptr<rans::Tables> make_tables(const Array<uint16_t>& frequencies,
                                          const Array<int32_t>& sizes, const Array<int32_t>& minima,
                                          const Array<uint8_t>& precisions) {
  if (sizes.size() != minima.size() || sizes.size() != precisions.size()) {
    throw std::invalid_argument("sizes, minima and precisions differ in length");
  }
  return std::make_shared<rans::Tables>(frequencies.data(), size_of(frequencies), sizes.data(),
                                        minima.data(), precisions.data(), size_of(sizes));
}

template <class Index>
void encode(rans::Encoder& encoder, const Array<int32_t>& symbols, const Array<Index>& indexes) {
  check_same_size(symbols, indexes);
  const int32_t* s = symbols.data();
  const Index* i = indexes.data();
  without_gil([&] { encoder.encode(s, i, size_of(indexes)); });
}

template <class Index>
Array<int32_t> decode(rans::Decoder& decoder, const Array<Index>& indexes) {
  auto symbols = empty_like(indexes);
  int32_t* s = symbols.mutable_data();
  const Index* i = indexes.data();
  without_gil([&] { decoder.decode(i, size_of(indexes), s); });
  return symbols;
}

void bind_rans(py::module_& m) {
  py::class_<rans::Tables, std::shared_ptr<rans::Tables>>(m, "RansTables")
      .def(py::init(&make_tables), "frequencies"_a.noconvert(), "sizes"_a.noconvert(),
           "minima"_a.noconvert(), "precisions"_a.noconvert())
      .def_property_readonly("nbytes", &rans::Tables::bytes);

  py::class_<rans::Encoder>(m, "RansEncoder")
      .def(py::init<std::shared_ptr<rans::Tables>, uint32_t>(), "tables"_a, "lanes"_a)
      .def("encode", &encode<uint8_t>, "symbols"_a.noconvert(), "indexes"_a.noconvert())
      .def("encode", &encode<int32_t>, "symbols"_a.noconvert(), "indexes"_a.noconvert())
      .def(
          "finish",
          [](rans::Encoder& self, uint32_t digest) {
            return to_bytes(without_gil([&] { return self.finish(digest); }));
          },
          "digest"_a)
      .def_property_readonly("lanes", &rans::Encoder::lanes);

  py::class_<rans::Decoder>(m, "RansDecoder")
      .def(py::init([](std::shared_ptr<rans::Tables> tables, std::string_view data, uint32_t lanes,
                       int threads) {
             return std::make_unique<rans::Decoder>(std::move(tables), bytes_of(data), data.size(),
                                                    lanes, threads);
           }),
           "tables"_a, "data"_a, "lanes"_a, "threads"_a)
      .def("decode", &decode<uint8_t>, "indexes"_a.noconvert())
      .def("decode", &decode<int32_t>, "indexes"_a.noconvert())
      .def("finish", &rans::Decoder::finish);
}

// ---- compressai.ans ----

// Appends count integers of a Python list or tuple: several times as fast as going through a numpy
// array.
void append_integers(py::handle sequence, py::ssize_t count, std::vector<int32_t>& out) {
  for (py::ssize_t i = 0; i < count; ++i) {
    const long value = PyLong_AsLong(PySequence_Fast_GET_ITEM(sequence.ptr(), i));
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (value != static_cast<int32_t>(value))
      throw std::invalid_argument("integers must fit in 32 bits");
    out.push_back(static_cast<int32_t>(value));
  }
}

py::object fast_sequence(py::handle object) {
  PyObject* fast = PySequence_Fast(object.ptr(), "a sequence of integers is needed");
  if (fast == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(fast);
}

Array<int32_t> integers(py::handle object) {
  const py::object sequence = fast_sequence(object);
  const py::ssize_t count = PySequence_Fast_GET_SIZE(sequence.ptr());
  std::vector<int32_t> values;
  values.reserve(static_cast<size_t>(count));
  append_integers(sequence, count, values);
  return Array<int32_t>(count, values.data());
}

void check_row_size(int32_t size, py::ssize_t available) {
  if (size < 3 || size > 1 << 16 || size > available) {
    throw std::invalid_argument(
        "cdfs_sizes must be at least 3 and at most the length of their CDF");
  }
}

// The used part of each row of a 2D array or of a sequence of sequences.
std::vector<int32_t> used_rows(py::handle cdfs, const Array<int32_t>& sizes) {
  std::vector<int32_t> rows;
  if (py::isinstance<Array<int32_t>>(cdfs)) {
    const auto array = py::reinterpret_borrow<Array<int32_t>>(cdfs);
    if (array.ndim() != 2 || array.shape(0) != sizes.size()) {
      throw std::invalid_argument("cdfs must have two dimensions and a row for each of cdfs_sizes");
    }
    for (py::ssize_t i = 0; i < sizes.size(); ++i) {
      check_row_size(sizes.at(i), array.shape(1));
      rows.insert(rows.end(), array.data(i, 0), array.data(i, 0) + sizes.at(i));
    }
    return rows;
  }
  const py::object outer = fast_sequence(cdfs);
  if (PySequence_Fast_GET_SIZE(outer.ptr()) != sizes.size()) {
    throw std::invalid_argument("cdfs must have a row for each of cdfs_sizes");
  }
  for (py::ssize_t i = 0; i < sizes.size(); ++i) {
    const py::object row = fast_sequence(PySequence_Fast_GET_ITEM(outer.ptr(), i));
    check_row_size(sizes.at(i), PySequence_Fast_GET_SIZE(row.ptr()));
    append_integers(row, sizes.at(i), rows);
  }
  return rows;
}

std::shared_ptr<rans::compressai::Cdfs> make_cdfs(py::handle cdfs, const Array<int32_t>& sizes,
                                                  const Array<int32_t>& offsets) {
  static rans::compressai::CdfCache cache;
  if (sizes.size() != offsets.size()) {
    throw std::invalid_argument("cdfs_sizes and offsets differ in length");
  }
  return cache.get(used_rows(cdfs, sizes), {sizes.data(), sizes.data() + sizes.size()},
                   {offsets.data(), offsets.data() + offsets.size()});
}

void bind_compressai(py::module_& m) {
  using rans::compressai::Cdfs;
  using rans::compressai::Decoder;
  using rans::compressai::Encoder;

  m.def("integers", &integers, "sequence"_a);

  py::class_<Cdfs, std::shared_ptr<Cdfs>>(m, "CompressaiCdfs")
      .def(py::init(&make_cdfs), "cdfs"_a, "sizes"_a.noconvert(), "offsets"_a.noconvert());

  py::class_<Encoder>(m, "CompressaiEncoder")
      .def(py::init<>())
      .def(
          "encode",
          [](Encoder& self, const Array<int32_t>& symbols, const Array<int32_t>& indexes,
             const Cdfs& cdfs) {
            check_same_size(symbols, indexes);
            const int32_t *s = symbols.data(), *i = indexes.data();
            without_gil([&] { self.encode(s, i, size_of(indexes), cdfs); });
          },
          "symbols"_a.noconvert(), "indexes"_a.noconvert(), "cdfs"_a)
      .def("flush",
           [](Encoder& self) { return to_bytes(without_gil([&] { return self.flush(); })); });

  py::class_<Decoder>(m, "CompressaiDecoder")
      .def(py::init([](std::string_view data) {
             return std::make_unique<Decoder>(bytes_of(data), data.size());
           }),
           "data"_a)
      .def(
          "decode",
          [](Decoder& self, const Array<int32_t>& indexes, const Cdfs& cdfs) {
            auto symbols = empty_like(indexes);
            int32_t* s = symbols.mutable_data();
            const int32_t* i = indexes.data();
            without_gil([&] { self.decode(i, size_of(indexes), cdfs, s); });
            return symbols;
          },
          "indexes"_a.noconvert(), "cdfs"_a);
}

void translate_exceptions(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const rans::CorruptStream& error) {
    const auto type = py::module_::import("mlic_fast.errors").attr("CorruptStreamError");
    PyErr_SetString(type.ptr(), error.what());
  } catch (const rans::UsedAfterFinish& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ core of mlic_fast; its Python front is mlic_fast.coder.";
  py::register_local_exception_translator(&translate_exceptions);
  bind_rans(m);
  bind_rans_device(m);
  bind_compressai(m);
  bind_exact(m);
}
