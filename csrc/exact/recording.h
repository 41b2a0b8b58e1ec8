// Work that was done once, kept as calls of kernels on the same arrays, to be done again without
// Python. It is for one thread at a time, which holds the GIL.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

namespace mlic::exact {

namespace py = pybind11;

// Where recordings have their arrays. One of them at a time is made or replayed on it, and may
// write all.
class Memory {
 public:
  // A place begins at a multiple of this, where no vector of a kernel straddles two cache lines.
  static constexpr size_t kAlignment = 64;

  size_t bytes() const {
    size_t sum = 0;
    for (const auto& [begin, size] : chunks_) sum += size;
    return sum;
  }
  const std::map<char*, size_t>& chunks() const { return chunks_; }

  // A new chunk of at least so many bytes, a multiple of kAlignment. No two chunks touch.
  std::pair<char*, size_t> add_chunk(size_t size) {
    size = std::max(size, bytes() / 4 / kAlignment * kAlignment);
    owners_.emplace_back(static_cast<py::ssize_t>(size + kAlignment));
    char* data = reinterpret_cast<char*>(owners_.back().mutable_data());
    const size_t past = reinterpret_cast<uintptr_t>(data) % kAlignment;
    const std::pair<char*, size_t> chunk(data + (past == 0 ? 0 : kAlignment - past), size);
    chunks_.insert(chunk);
    return chunk;
  }

 private:
  std::vector<py::array_t<uint8_t>> owners_;
  std::map<char*, size_t> chunks_;  // begin, size
};

// Gives parts of a memory to the arrays of one recording, and takes them back. All is free at
// first.
class Places {
 public:
  explicit Places(std::shared_ptr<Memory> memory)
      : memory_(std::move(memory)), free_(memory_->chunks()) {}

  // The smallest free place that is large enough.
  char* take(size_t size) {
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->second >= size && (best == free_.end() || it->second < best->second)) best = it;
    }
    if (best == free_.end()) best = free_.insert(memory_->add_chunk(size)).first;
    const auto [at, free] = *best;
    free_.erase(best);
    if (free > size) free_.emplace(at + size, free - size);
    return at;
  }

  // Free places that touch become one.
  void give_back(char* at, size_t size) {
    auto after = free_.upper_bound(at);
    if (after != free_.end() && after->first == at + size) {
      size += after->second;
      after = free_.erase(after);
    }
    if (after != free_.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second == at) {
        before->second += size;
        return;
      }
    }
    free_.emplace(at, size);
  }

  const Memory& memory() const { return *memory_; }

 private:
  std::shared_ptr<Memory> memory_;
  std::map<char*, size_t> free_;  // begin, size
};

// While a thread records, every call that it makes is kept with the addresses of its arrays, which
// have to lie in the memory of the recording. A place serves again when no array of Python is in
// it; then calls that come later in every replay may write there.
class Recording {
 public:
  explicit Recording(std::shared_ptr<Memory> memory)
      : places_(std::make_shared<Places>(std::move(memory))) {}

  // The one that this thread makes, or null.
  static Recording* current() { return current_; }

  // Records what `work` does, and returns what it returns.
  py::object during(const py::function& work) {
    if (current_ != nullptr) throw std::logic_error("this thread makes a recording already");
    const Current recorded(this);
    return work();
  }

  // Does something that is not recorded.
  py::object pause(const py::function& work) const {
    const Current none(nullptr);
    return work();
  }

  // Does something that is no call of a kernel, now and in every replay.
  void step(const py::function& work) {
    pause(work);
    entries_.push_back({nullptr, work});
  }

  void add(std::function<void()> call) { entries_.push_back({std::move(call), {}}); }

  // What is constant for calls, for as long as they may be made again.
  void keep(py::object constant) { kept_.push_back(std::move(constant)); }

  py::array room(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
    auto bytes = static_cast<size_t>(dtype.itemsize());
    for (const py::ssize_t n : shape) bytes *= static_cast<size_t>(n);
    constexpr size_t unit = Memory::kAlignment;
    auto place = std::make_unique<Place>(places_, std::max(unit, (bytes + unit - 1) / unit * unit));
    char* at = place->at;
    const py::capsule owner(place.get(), [](void* p) { delete static_cast<Place*>(p); });
    place.release();
    return py::array(dtype, shape, at, owner);
  }

  void check(const void* data) const {
    const auto& chunks = places_->memory().chunks();
    const char* at = static_cast<const char*>(data);
    const auto after = chunks.upper_bound(const_cast<char*>(at));
    if (after == chunks.begin() || at >= std::prev(after)->first + std::prev(after)->second) {
      throw std::logic_error("an array of recorded work is not in the memory of the recording");
    }
  }

  void replay() const {
    std::optional<py::gil_scoped_release> released;
    for (size_t i = 0; i < entries_.size(); ++i) {
      const bool listens = i % kCallsBetweenSignals == 0;
      if (listens || entries_[i].step) released.reset();
      if (listens && PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (entries_[i].step) {
        entries_[i].step();
      } else {
        if (!released) released.emplace();
        entries_[i].call();
      }
    }
  }

 private:
  static constexpr size_t kCallsBetweenSignals = 16;

  struct Entry {
    std::function<void()> call;
    py::object step;  // in place of a call
  };

  struct Place {
    Place(std::shared_ptr<Places> from, size_t bytes)
        : places(std::move(from)), size(bytes), at(places->take(bytes)) {}
    ~Place() { places->give_back(at, size); }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

    const std::shared_ptr<Places> places;
    const size_t size;
    char* const at;
  };

  // What this thread records, and what it recorded before at the end.
  class Current {
   public:
    explicit Current(Recording* recording) : before_(std::exchange(current_, recording)) {}
    ~Current() { current_ = before_; }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    Recording* const before_;
  };

  inline static thread_local Recording* current_ = nullptr;

  std::shared_ptr<Places> places_;
  std::vector<Entry> entries_;
  std::vector<py::object> kept_;
};

}  // namespace mlic::exact
