#pragma once

#include <cstdint>
#include <stdexcept>

namespace mlic::rans {

// Why a payload is not what an encoder wrote, or has no place.
enum class Error : uint32_t {
  kNone,
  kLaneCount,
  kTooShort,
  kLength,
  kState,
  kHalfWord,
  kEscape,
  kRange,
  kEnd,
  kIndex,     // not the payload's fault: an index without a table
  kCapacity,  // nor this: it is larger than the buffer on the device
};

inline const char* message_of(Error error) {
  switch (error) {
    case Error::kLaneCount:
      return "the number of lanes must be a power of two from 2 to 1024";
    case Error::kTooShort:
      return "the payload ends too early: it was cut short or altered";
    case Error::kLength:
      return "a length in the payload is malformed: it was altered";
    case Error::kState:
      return "the states in the payload are malformed: it was altered";
    case Error::kHalfWord:
      return "the payload has half a word: it was cut short or altered";
    case Error::kEscape:
      return "an escaped symbol is malformed: the payload was altered";
    case Error::kRange:
      return "a symbol exceeds 32 bits: the payload was altered";
    case Error::kEnd:
      return "the payload does not end where it should: it was altered, or decoded with other "
             "tables";
    case Error::kIndex:
      return "an index has no table";
    case Error::kCapacity:
      return "the payload is larger than the buffer for it";
    case Error::kNone:
      break;
  }
  return "no error";
}

// The bytes are not what an encoder wrote. Becomes mlic_fast.errors.CorruptStreamError in Python.
struct CorruptStream : std::runtime_error {
  using std::runtime_error::runtime_error;
  explicit CorruptStream(Error error) : std::runtime_error(message_of(error)) {}
};

// encode or decode after finish. Becomes ValueError in Python.
struct UsedAfterFinish : std::logic_error {
  using std::logic_error::logic_error;
};

}  // namespace mlic::rans
