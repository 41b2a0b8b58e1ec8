// For ThreadSanitizer: the kept inputs of `kernels`, by callers side by side, each on 8 threads.
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
  if (argc != 2) return 1;
  std::vector<std::vector<char>> inputs;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    std::ifstream file(entry.path(), std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  const auto work = [&](size_t first) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const auto& input = inputs[(first + i) % inputs.size()];
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
    }
  };
  std::vector<std::thread> callers;
  for (size_t c = 0; c < 3; ++c) callers.emplace_back(work, c * inputs.size() / 3);
  for (std::thread& caller : callers) caller.join();
  return inputs.empty();
}
