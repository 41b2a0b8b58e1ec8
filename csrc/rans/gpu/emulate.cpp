// The kernels on the host, block after block.
#include <cstring>
#include <memory>
#include <vector>

#include "rans/gpu/decode.h"
#include "rans/gpu/encode.h"
#include "rans/gpu/launch.h"

namespace mlic::rans::device {
namespace {

constexpr uint32_t kStagedLimit = 94 * 1024;  // so that tables of some tests fit and others do not

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

// The shared memory of a block of the decoder: what does not fit it is not there.
class DecodeRoom {
 public:
  DecodeRoom(const TableRange& range, uint32_t size, uint32_t part)
      : shared_(make_shared_memory<DecodeShared>()), lists_(range.count), bounds_(range.bounds) {
    uint32_t left = kStagedLimit - staged_bytes(range);
    const auto take = [&](auto& memory, uint32_t bytes, uint32_t count) {
      if (bytes > left) return;
      left -= bytes;
      memory.resize(count);
      std::memset(static_cast<void*>(memory.data()), 0xa5, count * sizeof(memory[0]));
    };
    take(cells_, cell_bytes(range), range.cells);
    take(ranks_, place_bytes(size), place_bytes(size) / sizeof(uint32_t));
    take(within_, part * sizeof(uint32_t), part);
  }

  bool has_cells() const { return !cells_.empty(); }

  DecodeMemory memory() {
    return {*shared_,
            {lists_.data(), bounds_.data(), has_cells() ? cells_.data() : nullptr,
             ranks_.empty() ? nullptr : reinterpret_cast<uint8_t*>(ranks_.data()),
             within_.empty() ? nullptr : within_.data()}};
  }

 private:
  std::unique_ptr<DecodeShared> shared_;
  std::vector<StagedList> lists_;
  std::vector<uint32_t> bounds_, ranks_, within_;
  std::vector<Cell> cells_;
};

void run_decode(const DecodeArgs& args, uint32_t batch, Target) {
  const uint32_t size = args.shape.size();
  const uint32_t blocks = args.blocks != 0 ? args.blocks : blocks_of(size);
  for (uint32_t column = 0; column < batch; ++column) {
    std::vector<DecodeRoom> rooms;
    std::vector<DecodeMemory> memories;
    for (uint32_t row = 0; row < blocks; ++row) {
      rooms.emplace_back(args.range, size, part_size(blocks, size));
      memories.push_back(rooms.back().memory());
    }
    HostCluster<DecodeMemory> cluster(column, memories);
    if (rooms[0].has_cells()) {
      decode_pass<true>(cluster, args);
    } else {
      decode_pass<false>(cluster, args);
    }
  }
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
