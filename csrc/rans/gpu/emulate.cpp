// The kernels on the host, block after block.
#include <cstring>
#include <memory>
#include <vector>

#include "rans/gpu/decode.h"
#include "rans/gpu/encode.h"
#include "rans/gpu/launch.h"

namespace mlic::rans::device {
namespace {

constexpr size_t kStagedLimit = 94 * 1024;  // of the GPUs with the least shared memory

// Shared memory holds anything at first.
template <class Shared>
std::unique_ptr<Shared> make_shared_memory() {
  auto shared = std::make_unique<Shared>();
  std::memset(static_cast<void*>(shared.get()), 0xa5, sizeof(Shared));
  return shared;
}

template <class Shared, class Kernel>
void run(uint32_t columns, uint32_t rows, Kernel&& kernel) {
  for (uint32_t row = 0; row < rows; ++row) {
    for (uint32_t column = 0; column < columns; ++column) {
      HostBlock block(column, row);
      kernel(block, *make_shared_memory<Shared>());
    }
  }
}

void run_begin(const BeginArgs& args, uint32_t batch, Target) {
  run<BeginShared>(batch, 1, [&](HostBlock& block, BeginShared& shared) {  //
    begin(block, shared, args);
  });
}

void run_decode(const DecodeArgs& args, uint32_t batch, Target) {
  const TableRange& range = args.range;
  const size_t bytes = value_bytes(args.shape.size());
  const bool fits = staged_bytes(range) + cell_bytes(range) <= kStagedLimit;
  const bool all_fit = fits && staged_bytes(range) + cell_bytes(range) + bytes <= kStagedLimit;
  run<DecodeShared>(batch, 1, [&](HostBlock& block, DecodeShared& shared) {
    std::vector<StagedList> lists(range.count);
    std::vector<uint32_t> bounds(range.bounds), values(all_fit ? bytes / sizeof(uint32_t) : 0);
    std::vector<Cell> cells(fits ? range.cells : 0);
    auto* value_bytes = all_fit ? reinterpret_cast<int8_t*>(values.data()) : nullptr;
    if (fits) {
      decode_pass<true>(block, shared, {lists.data(), bounds.data(), cells.data(), value_bytes},
                        args);
    } else {
      decode_pass<false>(block, shared, {lists.data(), bounds.data(), nullptr, nullptr}, args);
    }
  });
}

void run_finish(const FinishArgs& args, uint32_t batch, Target) {
  run<FinishShared>(batch, 1,
                    [&](HostBlock& block, FinishShared& shared) { finish(block, shared, args); });
}

void run_prepare(const EncodeArgs& args, const EncodePass& pass, uint32_t number, uint32_t batch,
                 Target) {
  run<PrepareShared>(batch, 1, [&](HostBlock& block, PrepareShared& shared) {
    prepare(block, shared, args, pass, number);
  });
}

void run_encode(const EncodeArgs& args, const PassList& passes, uint32_t batch, Target) {
  run<CollectShared>(batch, passes.count, [&](HostBlock& block, CollectShared& shared) {
    collect(block, shared, args, passes);
  });
  run<WriteShared>(batch, 1, [&](HostBlock& block, WriteShared& shared) {  //
    write(block, shared, args, passes);
  });
}

}  // namespace

const Launchers kHostLaunchers = {run_begin, run_decode, run_finish, run_prepare, run_encode};

}  // namespace mlic::rans::device
