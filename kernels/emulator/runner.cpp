// Runs one launch that a file describes, in a process of its own: sanitizers end the process when they find something, and their
// runtime must be there from its start. Every buffer is an allocation of exactly its size, so that overruns are seen.
//
//   runner REQUEST RESULT
//
// REQUEST (little endian, u32 unless said otherwise): name bytes, name, cuda_emulator_launch, parameter bytes, parameters,
// relocation count, {offset in the parameters, buffer, u64 offset in the buffer} each, buffer count, {u64 bytes, data} each.
// RESULT: cuda_emulator_statistics, then the buffers' data. Exit code 3: the emulator refused; the message is on stderr.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "runtime.h"

namespace {

std::FILE* request;

void read(void* into, std::size_t bytes) {
  if (bytes && std::fread(into, 1, bytes, request) != bytes) {
    std::fprintf(stderr, "runner: the request is cut short\n");
    std::exit(2);
  }
}

template <class T>
T read() {
  T value;
  read(&value, sizeof value);
  return value;
}

bool run(const std::string& kernel, const void* parameters, std::size_t parameter_bytes, const cuda_emulator_launch& launch,
         cuda_emulator_statistics& statistics) {
  char message[2048];
  if (!cuda_emulator_run(kernel.c_str(), parameters, parameter_bytes, &launch, &statistics, message, sizeof message)) return true;
  std::fprintf(stderr, "%s\n", message);
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 || !(request = std::fopen(argv[1], "rb"))) {
    std::fprintf(stderr, "usage: runner REQUEST RESULT\n");
    return 2;
  }
  std::string name(read<std::uint32_t>(), '\0');
  read(&name[0], name.size());
  const auto launch = read<cuda_emulator_launch>();
  const auto parameter_bytes = read<std::uint32_t>();
  // 16: at least the alignment of a parameter struct on the device
  auto* parameters = static_cast<unsigned char*>(std::aligned_alloc(16, (parameter_bytes + 15) / 16 * 16 + 16));
  read(parameters, parameter_bytes);
  struct Relocation {
    std::uint32_t at, buffer;
    std::uint64_t offset;
  };
  std::vector<Relocation> relocations(read<std::uint32_t>());
  for (auto& relocation : relocations) {
    relocation.at = read<std::uint32_t>();
    relocation.buffer = read<std::uint32_t>();
    relocation.offset = read<std::uint64_t>();
  }
  std::vector<unsigned char*> buffers(read<std::uint32_t>());
  std::vector<std::size_t> sizes;
  for (auto& buffer : buffers) {
    sizes.push_back(read<std::uint64_t>());
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, sizes.back()) != 0) return 2;  // cuMemAlloc aligns to 256
    buffer = static_cast<unsigned char*>(memory);
    read(buffer, sizes.back());
  }
  std::fclose(request);
  for (const auto& relocation : relocations) {
    unsigned char* const pointer = buffers.at(relocation.buffer) + relocation.offset;
    std::memcpy(parameters + relocation.at, &pointer, sizeof pointer);
  }

  cuda_emulator_statistics statistics;
#if defined(CUDA_EMULATOR_TSAN)
  // Once more, on the same contents, for the races between blocks.
  std::vector<std::vector<unsigned char>> contents;
  for (std::size_t i = 0; i < buffers.size(); ++i) contents.emplace_back(buffers[i], buffers[i] + sizes[i]);
  auto of_blocks = launch;
  of_blocks.races = CUDA_EMULATOR_RACES_OF_BLOCKS;
  if (!run(name, parameters, parameter_bytes, of_blocks, statistics)) return 3;
  for (std::size_t i = 0; i < buffers.size(); ++i) std::copy(contents[i].begin(), contents[i].end(), buffers[i]);
#endif
  if (!run(name, parameters, parameter_bytes, launch, statistics)) return 3;
  std::FILE* result = std::fopen(argv[2], "wb");
  if (!result) return 2;
  bool written = std::fwrite(&statistics, sizeof statistics, 1, result) == 1;
  for (std::size_t i = 0; i < buffers.size(); ++i) written &= std::fwrite(buffers[i], 1, sizes[i], result) == sizes[i];
  written &= std::fclose(result) == 0;
  for (auto* buffer : buffers) std::free(buffer);
  std::free(parameters);
  return written ? 0 : 2;
}
