// Checks of the arrays that bindings take, and what the kernels need of them.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "exact/ops.h"
#include "exact/recording.h"

namespace mlic::arrays {

namespace py = pybind11;

using Shape = std::vector<py::ssize_t>;

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

inline std::string text(const Shape& shape) {
  std::string s = "[";
  for (const py::ssize_t n : shape) s += (s.size() > 1 ? ", " : "") + std::to_string(n);
  return s + "]";
}

inline Shape shape_of(const py::array& array) {
  return {array.shape(), array.shape() + array.ndim()};
}

template <class T>
void require_type(const py::array& array, const char* name) {
  if (!py::isinstance<py::array_t<T>>(array)) {
    throw std::invalid_argument(std::string(name) + " must be " +
                                std::string(py::str(py::dtype::of<T>())));
  }
}

inline void require_shape(const py::array& array, const Shape& shape, const char* name) {
  if (shape_of(array) != shape) {
    throw std::invalid_argument(std::string(name) + " must be " + text(shape) + ", not " +
                                text(shape_of(array)));
  }
}

inline bool contiguous(const py::array& array) { return (array.flags() & py::array::c_style) != 0; }

// Where a call is recorded, its arrays lie in the memory of the recording: copies do not.
inline void check_recorded(const py::array& array) {
  if (const auto* recording = exact::Recording::current()) recording->check(array.data());
}

// An array of type T and the given shape, copied if it is not contiguous and aligned.
template <class T>
class Contiguous {
 public:
  Contiguous(const py::array& array, const Shape& shape, const char* name) {
    take(array, shape, name);
    check_recorded(array_);
  }
  const T* data() const { return static_cast<const T*>(array_.data()); }

 protected:
  Contiguous() = default;
  void take(const py::array& array, const Shape& shape, const char* name) {
    require_type<T>(array, name);
    require_shape(array, shape, name);
    const bool aligned = reinterpret_cast<uintptr_t>(array.data()) % alignof(T) == 0;
    array_ = contiguous(array) && aligned ? array : py::array(array.attr("copy")());
  }

  py::array array_;
};

// Weights, biases and the like, which a recording keeps.
template <class T>
class Constant : public Contiguous<T> {
 public:
  Constant(const py::array& array, const Shape& shape, const char* name) {
    this->take(array, shape, name);
    if (auto* recording = exact::Recording::current()) recording->keep(this->array_);
  }
};

// An array that is written: contiguous.
template <class T>
T* output(py::array& array, const Shape& shape, const char* name) {
  require_type<T>(array, name);
  require_shape(array, shape, name);
  require(contiguous(array), "outputs must be contiguous");
  check_recorded(array);
  return static_cast<T*>(array.mutable_data());  // throws where it is read-only
}

// A tensor [B, H, W, C], perhaps a channel slice of a wider one. It is copied if its positions are
// not evenly spaced.
template <class T>
class View {
 public:
  View(const py::array& array, const char* name) : array_(array) {
    require_type<T>(array, name);
    if (array.ndim() != 4 || array.shape(3) < 1) {
      throw std::invalid_argument(std::string(name) + " must be [B, H, W, C]");
    }
    stride_ = position_stride();
    if (stride_ == 0) {
      array_ = py::array(array.attr("copy")());
      stride_ = array.shape(3);
    }
    check_recorded(array_);
  }
  const T* data() const { return static_cast<const T*>(array_.data()); }
  py::ssize_t stride() const { return stride_; }
  exact::Act act() const {
    return {data(), array_.shape(0), array_.shape(1), array_.shape(2), array_.shape(3), stride_};
  }

 private:
  // In elements; 0 where there is none.
  py::ssize_t position_stride() const {
    constexpr py::ssize_t size = sizeof(T);
    if (array_.shape(3) > 1 && array_.strides(3) != size) return 0;
    if (reinterpret_cast<uintptr_t>(array_.data()) % alignof(T) != 0) return 0;
    py::ssize_t stride = 0;
    py::ssize_t positions = 1;
    for (int axis = 2; axis >= 0; --axis) {
      if (array_.shape(axis) <= 1) continue;
      if (stride == 0) stride = array_.strides(axis) / positions;
      if (array_.strides(axis) != stride * positions) return 0;
      positions *= array_.shape(axis);
    }
    if (positions == 1) return array_.shape(3);
    return stride > 0 && stride % size == 0 ? stride / size : 0;
  }

  py::array array_;
  py::ssize_t stride_;
};

using ActView = View<int16_t>;

inline bool is_float(const py::array& array) { return py::isinstance<py::array_t<float>>(array); }

}  // namespace mlic::arrays
