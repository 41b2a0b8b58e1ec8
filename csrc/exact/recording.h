// Calls of kernels that are kept, to be made again on the same arrays without Python.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

namespace mlic::exact {

// While a thread records, every call that it makes is kept with the addresses of its arrays. So
// these must stay where they are for as long as the recording: they lie in memory that it was told
// of. What a call takes as constant (weights, biases, scales) has to live as long, too.
class Recording {
 public:
  // The one that this thread makes, or null.
  static Recording* current() { return current_; }

  void begin() {
    if (current_ != nullptr) throw std::logic_error("this thread makes a recording already");
    current_ = this;
  }
  void end() { current_ = nullptr; }

  void add_memory(const void* begin, size_t bytes) {
    memory_[static_cast<const char*>(begin)] = bytes;
  }
  void check(const void* data) const {
    const char* at = static_cast<const char*>(data);
    auto after = memory_.upper_bound(at);
    if (after == memory_.begin() || at >= std::prev(after)->first + std::prev(after)->second) {
      throw std::logic_error("an array of a recorded call is not in the memory of the recording");
    }
  }

  void add(std::function<void()> call) { calls_.push_back(std::move(call)); }
  // As many calls as were made before; `replay` takes some of them.
  size_t size() const { return calls_.size(); }
  void replay(size_t begin, size_t end) const {
    for (size_t i = begin; i < end; ++i) calls_.at(i)();
  }

 private:
  inline static thread_local Recording* current_ = nullptr;

  std::map<const char*, size_t> memory_;
  std::vector<std::function<void()>> calls_;
};

}  // namespace mlic::exact
