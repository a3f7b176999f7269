// What the headers of the emulator ask of its runtime. Kernels include cuda_emulator.h, not this file.
//
// The functions here are compiled without sanitizer instrumentation: they move data on behalf of other lanes, which is what the
// hardware does and is not an access of the program. Everything a kernel itself reads or writes happens in the headers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_emulator {

struct Index3 {
  unsigned x, y, z;
};

// One CUDA thread, as the builtin variables show it.
struct Thread {
  Index3 thread_index, block_index, block_size, grid_size;
  unsigned linear;  // x fastest; lane = linear % 32, warp = linear / 32
};

// The thread that runs now; null between blocks. Everything runs on one OS thread, so this needs no thread_local.
extern Thread* current;

// ---- barriers and collectives ----------------------------------------------------------------------------------------------

enum class Vote { kNone, kAnd, kOr, kCount };

// __syncthreads and its voting forms; `file` and `line` tell barriers apart.
int block_barrier(const char* file, int line, Vote vote, int predicate);

// __syncwarp: lanes of `mask` meet, and their memory accesses before are ordered before those after.
void warp_barrier(unsigned mask);

// shfl.sync: every lane of `mask` gives up to 8 bytes and gets those of lane `source`.
std::uint64_t shuffle(unsigned mask, const char* name, std::uint64_t value, unsigned source);

enum class Reduce { kBallot, kAddInt, kMinInt, kMaxInt, kMinUnsigned, kMaxUnsigned, kAnd, kOr, kXor };

// vote.sync and redux.sync: all lanes of `mask` get the reduction of their values.
std::uint32_t reduce(unsigned mask, const char* name, Reduce operation, std::uint32_t value);

// match.any.sync: the lanes of `mask` that hold this lane's value.
std::uint32_t match_any(unsigned mask, std::uint64_t value);

// ---- tensor core and copy instructions -------------------------------------------------------------------------------------

struct MatrixRow {
  std::uint64_t bytes[2];  // 8 elements of 16 bits
  std::uintptr_t address;  // for the bank count
};

void ldmatrix(const char* name, const MatrixRow& row, std::uint32_t* registers, int matrices, bool transposed);

enum class Format { kHalf, kBfloat16, kInt8 };

// mma.sync.aligned.m16n8k16 (16-bit formats; accumulators are float) or m16n8k32 (int8; accumulators are int).
void mma(Format format, void* accumulators, const std::uint32_t* a, const std::uint32_t* b);

void cp_async(void* destination, const void* source, int bytes, int source_bytes);
void cp_async_commit();
void cp_async_wait(int groups_left);

void fence();

unsigned char* dynamic_shared(std::size_t* bytes);

// Ends the launch with a message that names the block and the thread; does not return to the kernel.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- kernels ---------------------------------------------------------------------------------------------------------------

// A kernel registers itself when its library is loaded; `call` runs it for one thread with a pointer to its parameter struct.
struct Kernel {
  Kernel(const char* name, std::size_t parameter_bytes, unsigned max_threads, void (*call)(const void*));
  const char* name;
  std::size_t parameter_bytes;
  unsigned max_threads;
  void (*call)(const void*);
  Kernel* next;
};

}  // namespace cuda_emulator

// ---- the C interface of a built library ------------------------------------------------------------------------------------

extern "C" {

enum { CUDA_EMULATOR_FORWARD = 0, CUDA_EMULATOR_REVERSED = 1, CUDA_EMULATOR_SHUFFLED = 2 };

// ThreadSanitizer knows some 250 threads at a time, fewer than two blocks may have. So it looks twice: for races between the
// threads of a block, and for races between blocks, each of which it then takes for one thread.
enum { CUDA_EMULATOR_RACES_OF_THREADS = 0, CUDA_EMULATOR_RACES_OF_BLOCKS = 1 };

struct cuda_emulator_statistics {
  std::uint64_t switches;        // from one thread to another
  std::uint64_t barriers;        // completed __syncthreads
  std::uint64_t collectives;     // completed warp collectives, of every kind
  std::uint64_t ldmatrix;        // 8x8 matrices loaded
  std::uint64_t bank_conflicts;  // extra shared memory passes those loads would have taken
  std::uint64_t async_bytes;     // moved by cp.async
};

struct cuda_emulator_launch {
  std::uint32_t grid[3];
  std::uint32_t block[3];
  std::uint64_t shared_bytes;
  std::uint64_t seed;         // 0: threads in order; else the order of runnable threads is drawn from this seed
  std::uint32_t block_order;  // CUDA_EMULATOR_FORWARD, _REVERSED, _SHUFFLED (by seed)
  std::uint32_t races;        // CUDA_EMULATOR_RACES_OF_THREADS, _OF_BLOCKS; of no effect without ThreadSanitizer
};

// Runs a kernel to its end. Returns 0, or 1 with a message of at most `message_bytes` bytes; `statistics` may be null.
int cuda_emulator_run(const char* kernel, const void* parameters, std::size_t parameter_bytes,
                      const cuda_emulator_launch* launch, cuda_emulator_statistics* statistics, char* message,
                      std::size_t message_bytes);

// The kernels of this library by number; null past the last one.
const char* cuda_emulator_kernel(std::size_t index, std::size_t* parameter_bytes, unsigned* max_threads);
}
