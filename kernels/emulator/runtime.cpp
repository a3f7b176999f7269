// The emulator's runtime: fibers, their scheduler, barriers, warp collectives, tensor core and copy instructions.
//
// A launch runs its blocks one after another. In a block every CUDA thread is a fiber with a stack of its own; a fiber runs until
// it must wait for others (barrier, collective) or ends, then the next runnable one is taken: in order, or drawn from the seed.
//
// This file is never compiled with instrumentation. The build that carries a sanitizer defines CUDA_EMULATOR_ASAN or
// CUDA_EMULATOR_TSAN, and the runtime then tells the sanitizer about its fibers. Nothing is allocated while a fiber runs: memory
// that one fiber allocates and another frees would be a race in ThreadSanitizer's eyes.
#include "runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "float16.h"

#if defined(CUDA_EMULATOR_ASAN)
extern "C" void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, std::size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* size);
#endif
#if defined(CUDA_EMULATOR_TSAN)
extern "C" void* __tsan_get_current_fiber();
extern "C" void* __tsan_create_fiber(unsigned flags);
extern "C" void __tsan_destroy_fiber(void* fiber);
extern "C" void __tsan_switch_to_fiber(void* fiber, unsigned flags);
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
extern "C" void __tsan_write_range(void* address, unsigned long size);
extern "C" void __tsan_read_range(void* address, unsigned long size);
#endif

// ---- context switch --------------------------------------------------------------------------------------------------------
// swapcontext makes two system calls a switch, and a tile of attention takes thousands of switches.

#if defined(__x86_64__) && !defined(CUDA_EMULATOR_UCONTEXT)  // which shows, on x86-64 too, that the other way works

// Saves the registers that a call preserves (System V ABI) on the stack, leaves the stack pointer in *save, takes the other stack.
extern "C" void cuda_emulator_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.type cuda_emulator_switch, @function
cuda_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulator_switch, .-cuda_emulator_switch
)");

namespace {

struct Context {
  void* stack_pointer = nullptr;

  void prepare(unsigned char* stack, std::size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + bytes);
    *--top = nullptr;  // entry() is "called" with the stack aligned as after a call, and has nowhere to return to
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer = top;
  }
  void leave_for(Context& other) { cuda_emulator_switch(&stack_pointer, other.stack_pointer); }
};

}  // namespace

#else

#include <ucontext.h>

namespace {

struct Context {
  ucontext_t state;

  void prepare(unsigned char* stack, std::size_t bytes, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack;
    state.uc_stack.ss_size = bytes;
    state.uc_link = nullptr;
    makecontext(&state, entry, 0);
  }
  void leave_for(Context& other) { swapcontext(&state, &other.state); }
};

}  // namespace

#endif

namespace cuda_emulator {

Thread* current = nullptr;

namespace {

constexpr std::size_t kStackBytes = 256 << 10;  // unoptimised sanitizer frames are large; untouched pages cost nothing
constexpr unsigned kMaxBlockThreads = 1024;     // Programming Guide, "Technical Specifications per Compute Capability"
constexpr std::uint64_t kMaxSharedBytes = 227 << 10;
constexpr int kWarp = 32;
constexpr int kMeetings = kWarp / 2;      // masks of two lanes: the most groups of one warp that can wait at once
constexpr unsigned kCopies = 256;         // cp.async instructions that one thread may have in flight
constexpr unsigned kCopyGroups = 16;

struct Copy {
  void* destination;
  const void* source;
  int bytes, source_bytes;
};

struct Fiber {
  Context context;
  Thread thread;
  unsigned char* stack = nullptr;
  void* fake_stack = nullptr;   // AddressSanitizer's
  void* tsan = nullptr;         // ThreadSanitizer's
  bool exited = false;
  Copy copies[kCopies];                // a ring
  unsigned copies_done = 0, copies_issued = 0;
  unsigned group_end[kCopyGroups];     // a ring: where each committed group ends in `copies`
  unsigned groups_done = 0, groups_committed = 0;
};

using Combine = void (*)(void* const (&in)[kWarp], void* const (&out)[kWarp], int extra);

// Lanes of one warp that wait for each other. Disjoint masks may meet at the same time.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  unsigned order = 0;  // its place in Warp::orders
  const char* name = nullptr;
  void* in[kWarp];
  void* out[kWarp];
};

struct Warp {
  Meeting meetings[kMeetings];
  unsigned exited = 0;
  // ThreadSanitizer's handles for __syncwarp. Each meeting takes the next: a lane that runs ahead to the meeting after must not
  // release what a lane that has yet to leave this one acquires, else a race between the two would look ordered.
  char orders[64] = {};
  unsigned next_order = 0;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  unsigned char* stacks = nullptr;
  std::size_t stacks_bytes = 0;
  std::vector<unsigned> ready;  // a ring of threads: capacity is a power of two above any block
  std::size_t head = 0, tail = 0;
  Fiber* active = nullptr;  // null: the launch itself
  Context main_context;
  void* main_fake_stack = nullptr;
  const void* main_bottom = nullptr;
  std::size_t main_size = 0;
  void* main_tsan = nullptr;
  void* active_tsan = nullptr;
  bool whole_blocks = false;  // for ThreadSanitizer a block is one thread: CUDA_EMULATOR_RACES_OF_BLOCKS

  const Kernel* kernel = nullptr;
  const void* parameters = nullptr;
  unsigned threads = 0, live = 0;
  unsigned char* shared = nullptr;
  std::size_t shared_bytes = 0;

  unsigned at_barrier = 0;
  const char* barrier_file = nullptr;
  int barrier_line = 0;
  int votes = 0, vote_result = 0;
  std::vector<unsigned> barrier_waiters;
  unsigned barrier_generation = 0;
  char barrier_orders[2] = {}, fence_order = 0, end_order = 0;  // ThreadSanitizer's handles; barriers take turns, see Warp

  std::uint64_t random = 0;  // state; 0: keep the order
  cuda_emulator_statistics statistics{};
  bool failed = false;
  char message[2048] = "";
};

Machine& machine = *new Machine;  // never destroyed: after a failure fibers that still stand would race with the destructor
std::mutex launch_mutex;
Kernel* kernels = nullptr;

#if defined(CUDA_EMULATOR_TSAN)
// Barriers order the threads of a block; where a block is one thread, they must not order it with the blocks before.
bool orders(const void* handle) {
  return !machine.whole_blocks || handle == &machine.fence_order || handle == &machine.end_order;
}
#endif

void order_release(void* handle) {
#if defined(CUDA_EMULATOR_TSAN)
  if (orders(handle)) __tsan_release(handle);
#else
  (void)handle;
#endif
}

void order_acquire(void* handle) {
#if defined(CUDA_EMULATOR_TSAN)
  if (orders(handle)) __tsan_acquire(handle);
#else
  (void)handle;
#endif
}

std::uint64_t draw() {  // xorshift64 (Marsaglia 2003)
  std::uint64_t& x = machine.random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x;
}

// ---- scheduler -------------------------------------------------------------------------------------------------------------

void make_ready(unsigned thread) { machine.ready[machine.tail++ & (machine.ready.size() - 1)] = thread; }

void switch_to(Fiber* next) {
  Fiber* const self = machine.active;
  if (self == next) return;
  machine.active = next;
  current = next ? &next->thread : nullptr;
  ++machine.statistics.switches;
#if defined(CUDA_EMULATOR_TSAN)
  void* const tsan = next ? next->tsan : machine.main_tsan;
  if (tsan != machine.active_tsan) __tsan_switch_to_fiber(tsan, 1);  // 1: the switch orders nothing
  machine.active_tsan = tsan;
#endif
#if defined(CUDA_EMULATOR_ASAN)
  void** fake = self ? (self->exited ? nullptr : &self->fake_stack) : &machine.main_fake_stack;
  __sanitizer_start_switch_fiber(fake, next ? next->stack : machine.main_bottom, next ? kStackBytes : machine.main_size);
#endif
  (self ? self->context : machine.main_context).leave_for(next ? next->context : machine.main_context);
#if defined(CUDA_EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(self ? self->fake_stack : machine.main_fake_stack, nullptr, nullptr);
#endif
}

// Gives the CPU to the next runnable thread, or to the launch when there is none.
void run_next() {
  if (machine.head == machine.tail) return switch_to(nullptr);
  const std::size_t mask = machine.ready.size() - 1;
  if (machine.random) {
    const std::size_t pick = machine.head + draw() % (machine.tail - machine.head);
    std::swap(machine.ready[pick & mask], machine.ready[machine.head & mask]);
  }
  switch_to(&machine.fibers[machine.ready[machine.head++ & mask]]);
}

void fiber_main() {
#if defined(CUDA_EMULATOR_ASAN)
  const void* bottom;
  std::size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!machine.main_bottom) machine.main_bottom = bottom, machine.main_size = size;
#endif
  Fiber* const self = machine.active;
  machine.kernel->call(machine.parameters);
  if (self->copies_done != self->copies_issued)
    fail("the thread ended with %u cp.async that it never waited for", self->copies_issued - self->copies_done);
  self->exited = true;
  --machine.live;
  order_release(&machine.end_order);
  Warp& warp = machine.warps[self->thread.linear / kWarp];
  warp.exited |= 1u << (self->thread.linear % kWarp);
  for (const Meeting& meeting : warp.meetings)
    if (meeting.arrived && (meeting.mask & warp.exited))
      fail("the thread ended while lanes of its warp wait for it in %s (mask %08x)", meeting.name, meeting.mask);
  if (machine.at_barrier)
    fail("the thread ended while %u threads wait for it at __syncthreads (%s:%d)", machine.at_barrier, machine.barrier_file,
         machine.barrier_line);
  run_next();
  std::abort();  // an ended fiber is never switched to again
}

unsigned char* map_pages(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<unsigned char*>(memory);
}

void prepare_memory(unsigned threads) {
  const std::size_t bytes = threads * kStackBytes;
#if defined(CUDA_EMULATOR_TSAN)
  // Fresh pages for every block: the stacks and the shared memory of one block must not look shared with the next block's.
  if (machine.stacks) munmap(machine.stacks, machine.stacks_bytes);
  if (machine.shared) munmap(machine.shared, machine.shared_bytes + 1);
  machine.stacks = map_pages(bytes);
  machine.shared = map_pages(machine.shared_bytes + 1);
  machine.stacks_bytes = bytes;
#else
  if (machine.stacks_bytes < bytes) {
    if (machine.stacks) munmap(machine.stacks, machine.stacks_bytes);
    machine.stacks = map_pages(bytes);
    machine.stacks_bytes = bytes;
    for (std::size_t at = 0; at < bytes; at += kStackBytes) mprotect(machine.stacks + at, 4096, PROT_NONE);  // overflow faults
  }
  if (!machine.shared) {  // exactly as large as asked for, so that AddressSanitizer sees the first byte beyond
    void* shared = nullptr;
    if (posix_memalign(&shared, 128, std::max<std::size_t>(1, machine.shared_bytes)) != 0) std::abort();
    machine.shared = static_cast<unsigned char*>(shared);
  }
#endif
  std::memset(machine.shared, 0xff, machine.shared_bytes);  // NaN in fp16, bfloat16, fp32 and fp64
}

void release_shared() {
#if defined(CUDA_EMULATOR_TSAN)
  munmap(machine.shared, machine.shared_bytes + 1);
#else
  std::free(machine.shared);
#endif
  machine.shared = nullptr;
}

void report_deadlock() {
  char* out = machine.message;
  std::size_t left = sizeof machine.message;
  auto say = [&](const char* format, auto... values) {
    const int n = std::snprintf(out, left, format, values...);
    const std::size_t used = std::min<std::size_t>(n < 0 ? 0 : n, left - 1);
    out += used;
    left -= used;
  };
  const Index3 b = machine.fibers[0].thread.block_index;
  say("deadlock in block (%u,%u,%u): %u of %u threads never finish;", b.x, b.y, b.z, machine.live, machine.threads);
  if (machine.at_barrier) say(" %u wait at __syncthreads (%s:%d);", machine.at_barrier, machine.barrier_file, machine.barrier_line);
  for (std::size_t w = 0; w < machine.warps.size(); ++w)
    for (const Meeting& meeting : machine.warps[w].meetings)
      if (meeting.arrived)
        say(" warp %zu: %s with mask %08x was reached by lanes %08x only;", w, meeting.name, meeting.mask, meeting.arrived);
  say(" a barrier or a warp collective is in divergent code");
  machine.failed = true;
}

void run_block(const cuda_emulator_launch& launch, Index3 block) {
  const unsigned threads = launch.block[0] * launch.block[1] * launch.block[2];
  prepare_memory(threads);
  if (machine.fibers.size() < threads) machine.fibers.resize(threads);
  machine.warps.assign((threads + kWarp - 1) / kWarp, Warp{});
  machine.threads = machine.live = threads;
  machine.head = machine.tail = 0;
  machine.at_barrier = 0;
  machine.barrier_waiters.clear();
  machine.barrier_waiters.reserve(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = machine.fibers[i];
    const unsigned x = launch.block[0], y = launch.block[1];
    fiber.thread = {{i % x, i / x % y, i / (x * y)},
                    block,
                    {launch.block[0], launch.block[1], launch.block[2]},
                    {launch.grid[0], launch.grid[1], launch.grid[2]},
                    i};
    fiber.exited = false;
    fiber.copies_done = fiber.copies_issued = fiber.groups_done = fiber.groups_committed = 0;
    fiber.stack = machine.stacks + i * kStackBytes;
    fiber.fake_stack = nullptr;
    fiber.context.prepare(fiber.stack, kStackBytes, fiber_main);
#if defined(CUDA_EMULATOR_TSAN)
    // New for every block: blocks stay unordered, and a race between them is seen.
    fiber.tsan = machine.whole_blocks && i ? machine.fibers[0].tsan : __tsan_create_fiber(0);
#endif
    make_ready(i);
  }
  run_next();
#if defined(CUDA_EMULATOR_TSAN)
  for (unsigned i = 0; i < (machine.whole_blocks ? 1 : threads); ++i) __tsan_destroy_fiber(machine.fibers[i].tsan);
#endif
  if (!machine.failed && machine.live) report_deadlock();
}

// ---- warp collectives ------------------------------------------------------------------------------------------------------

void meet(unsigned mask, const char* name, void* in, void* out, Combine combine, int extra) {
  const unsigned thread = current->linear, lane = thread % kWarp;
  Warp& warp = machine.warps[thread / kWarp];
  if (!(mask >> lane & 1u)) fail("%s: the mask %08x does not name the calling lane %u", name, mask, lane);
  const unsigned lanes = machine.threads - thread / kWarp * kWarp;  // the last warp may be partial
  if (lanes < kWarp) mask &= (1u << lanes) - 1u;
  if (mask & warp.exited) fail("%s: the mask %08x names lanes that have ended (%08x)", name, mask, mask & warp.exited);

  Meeting* meeting = nullptr;
  for (Meeting& other : warp.meetings) {
    if (!other.arrived) {
      if (!meeting) meeting = &other;
      continue;
    }
    if (!(other.mask & mask)) continue;
    if (other.mask != mask)
      fail("%s with mask %08x overlaps %s with mask %08x, which lanes %08x wait in", name, mask, other.name, other.mask,
           other.arrived);
    if (std::strcmp(other.name, name) != 0)
      fail("lanes of a warp meet in different collectives: %s and %s (mask %08x)", name, other.name, mask);
    meeting = &other;
    break;
  }
  if (!meeting) fail("%s: more than %d groups of lanes of a warp wait", name, kMeetings);
  if (!meeting->arrived) {
    meeting->mask = mask;
    meeting->name = name;
    meeting->order = warp.next_order++ % sizeof warp.orders;
    std::fill(meeting->in, meeting->in + kWarp, nullptr);
    std::fill(meeting->out, meeting->out + kWarp, nullptr);
  }
  meeting->in[lane] = in;
  meeting->out[lane] = out;
  meeting->arrived |= 1u << lane;
  char* const order = combine ? nullptr : &warp.orders[meeting->order];  // only __syncwarp orders memory
  if (order) order_release(order);
  if (meeting->arrived != mask) {
    run_next();
  } else {
    if (combine) combine(meeting->in, meeting->out, extra);
    ++machine.statistics.collectives;
    meeting->arrived = 0;
    for (unsigned other = 0; other < kWarp; ++other)
      if (other != lane && mask >> other & 1u) make_ready(thread - lane + other);
  }
  if (order) order_acquire(order);
}

struct ShuffleIn {
  std::uint64_t value;
  unsigned source;
};

void combine_shuffle(void* const (&in)[kWarp], void* const (&out)[kWarp], int) {
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!in[lane]) continue;
    const auto* mine = static_cast<const ShuffleIn*>(in[lane]);
    const void* source = in[mine->source & 31u];
    if (!source) fail("a shuffle reads lane %u, which does not take part", mine->source & 31u);
    *static_cast<std::uint64_t*>(out[lane]) = static_cast<const ShuffleIn*>(source)->value;
  }
}

void combine_reduce(void* const (&in)[kWarp], void* const (&out)[kWarp], int operation) {
  std::uint32_t result = 0;
  bool first = true;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!in[lane]) continue;
    const std::uint32_t value = *static_cast<const std::uint32_t*>(in[lane]);
    const auto s = [](std::uint32_t bits) { return static_cast<std::int32_t>(bits); };
    if (static_cast<Reduce>(operation) == Reduce::kBallot)
      result |= (value ? 1u : 0u) << lane;
    else if (first)
      result = value;
    else
      switch (static_cast<Reduce>(operation)) {
        case Reduce::kAddInt: result += value; break;
        case Reduce::kMinInt: result = s(value) < s(result) ? value : result; break;
        case Reduce::kMaxInt: result = s(value) > s(result) ? value : result; break;
        case Reduce::kMinUnsigned: result = std::min(result, value); break;
        case Reduce::kMaxUnsigned: result = std::max(result, value); break;
        case Reduce::kAnd: result &= value; break;
        case Reduce::kOr: result |= value; break;
        default: result ^= value; break;
      }
    first = false;
  }
  for (int lane = 0; lane < kWarp; ++lane)
    if (out[lane]) *static_cast<std::uint32_t*>(out[lane]) = result;
}

void combine_match(void* const (&in)[kWarp], void* const (&out)[kWarp], int) {
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!in[lane]) continue;
    std::uint32_t same = 0;
    for (int other = 0; other < kWarp; ++other)
      if (in[other] && *static_cast<const std::uint64_t*>(in[other]) == *static_cast<const std::uint64_t*>(in[lane]))
        same |= 1u << other;
    *static_cast<std::uint32_t*>(out[lane]) = same;
  }
}

// ---- ldmatrix and mma ------------------------------------------------------------------------------------------------------

std::uint16_t element(const MatrixRow& row, int column) {
  return static_cast<std::uint16_t>(row.bytes[column / 4] >> (16 * (column % 4)));
}

void combine_ldmatrix(void* const (&in)[kWarp], void* const (&out)[kWarp], int extra) {
  const int matrices = extra >> 1;
  const bool transposed = extra & 1;
  for (int m = 0; m < matrices; ++m) {
    const MatrixRow* rows[8];
    for (int r = 0; r < 8; ++r) {
      rows[r] = static_cast<const MatrixRow*>(in[8 * m + r]);
      if (!rows[r]) fail("ldmatrix: lane %d, which holds a row address, does not take part", 8 * m + r);
    }
    // Shared memory gives 128 bytes a pass, 32 banks of 4 bytes: rows in the same 16-byte column take a pass each.
    int in_column[8] = {}, passes = 1;
    for (int r = 0; r < 8; ++r) passes = std::max(passes, ++in_column[rows[r]->address / 16 % 8]);
    machine.statistics.bank_conflicts += passes - 1;
    ++machine.statistics.ldmatrix;
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!out[lane]) continue;
      const int group = lane / 4, pair = lane % 4 * 2;
      const std::uint16_t low = transposed ? element(*rows[pair], group) : element(*rows[group], pair);
      const std::uint16_t high = transposed ? element(*rows[pair + 1], group) : element(*rows[group], pair + 1);
      static_cast<std::uint32_t*>(out[lane])[m] = low | static_cast<std::uint32_t>(high) << 16;
    }
  }
}

struct MmaIn {
  const std::uint32_t *a, *b;
};

// 16-bit formats, A [16, 16], B [16, 8], C [16, 8]; lane = 4 * group + t:
//   a[i] holds A[group + 8 * (i % 2)][2t + 8 * (i / 2) .. +1], b[i] holds B[2t + 8i .. +1][group],
//   c[i] is C[group + 8 * (i / 2)][2t + i % 2].
// Products are exact in float; sums are in float in order of k. The device adds in an order and with a rounding of its own.
template <float (*Convert)(std::uint16_t)>
void combine_mma_float(void* const (&in)[kWarp], void* const (&out)[kWarp], int) {
  alignas(64) float a[16][16], b[16][8];  // b by k: the inner loop runs over the 8 columns
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!in[lane]) fail("mma.sync: lane %d does not take part", lane);
    const auto* fragments = static_cast<const MmaIn*>(in[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 2; ++half)
        a[group + i % 2 * 8][pair + i / 2 * 8 + half] = Convert(static_cast<std::uint16_t>(fragments->a[i] >> (16 * half)));
    for (int i = 0; i < 2; ++i)
      for (int half = 0; half < 2; ++half)
        b[pair + i * 8 + half][group] = Convert(static_cast<std::uint16_t>(fragments->b[i] >> (16 * half)));
  }
  for (int row = 0; row < 16; ++row) {
    float sums[8] = {};
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) sums[column] += a[row][k] * b[k][column];
    for (int column = 0; column < 8; ++column) {
      float* c = static_cast<float*>(out[row % 8 * 4 + column / 2]);
      c[row / 8 * 2 + column % 2] += sums[column];
    }
  }
}

// int8, A [16, 32], B [32, 8]: as above with four elements a register, A columns 4t + 16 * (i / 2) .. +3, B rows 4t + 16i .. +3.
void combine_mma_int8(void* const (&in)[kWarp], void* const (&out)[kWarp], int) {
  std::int8_t a[16][32], b[32][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!in[lane]) fail("mma.sync: lane %d does not take part", lane);
    const auto* fragments = static_cast<const MmaIn*>(in[lane]);
    const int group = lane / 4, quad = lane % 4 * 4;
    for (int i = 0; i < 4; ++i)
      for (int byte = 0; byte < 4; ++byte)
        a[group + i % 2 * 8][quad + i / 2 * 16 + byte] = static_cast<std::int8_t>(fragments->a[i] >> (8 * byte));
    for (int i = 0; i < 2; ++i)
      for (int byte = 0; byte < 4; ++byte)
        b[quad + i * 16 + byte][group] = static_cast<std::int8_t>(fragments->b[i] >> (8 * byte));
  }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      std::uint32_t sum = 0;  // wraps, as without .satfinite
      for (int k = 0; k < 32; ++k) sum += static_cast<std::uint32_t>(a[row][k] * b[k][column]);
      int* c = static_cast<int*>(out[row % 8 * 4 + column / 2]) + row / 8 * 2 + column % 2;
      *c = static_cast<int>(static_cast<std::uint32_t>(*c) + sum);
    }
}

}  // namespace

// ---- what kernels call -----------------------------------------------------------------------------------------------------

void fail(const char* format, ...) {
  char what[1024];
  va_list values;
  va_start(values, format);
  std::vsnprintf(what, sizeof what, format, values);
  va_end(values);
  const Thread& t = *current;
  std::snprintf(machine.message, sizeof machine.message, "%s; block (%u,%u,%u), thread (%u,%u,%u)", what, t.block_index.x,
                t.block_index.y, t.block_index.z, t.thread_index.x, t.thread_index.y, t.thread_index.z);
  machine.failed = true;
  order_release(&machine.end_order);
  switch_to(nullptr);  // the other fibers are dropped where they stand
  std::abort();
}

int block_barrier(const char* file, int line, Vote vote, int predicate) {
  if (machine.live != machine.threads)
    fail("__syncthreads (%s:%d) after %u threads of the block have ended", file, line, machine.threads - machine.live);
  if (machine.at_barrier && (machine.barrier_line != line || std::strcmp(machine.barrier_file, file) != 0))
    fail("threads of the block meet at different barriers: %s:%d and %s:%d", machine.barrier_file, machine.barrier_line, file,
         line);
  if (!machine.at_barrier) machine.votes = 0;
  machine.barrier_file = file;
  machine.barrier_line = line;
  machine.votes += predicate;
  char* const order = &machine.barrier_orders[machine.barrier_generation & 1u];
  order_release(order);
  if (++machine.at_barrier == machine.threads) {
    const int votes = machine.votes, all = static_cast<int>(machine.threads);
    machine.vote_result = vote == Vote::kAnd ? votes == all : vote == Vote::kOr ? votes != 0 : votes;
    machine.at_barrier = 0;
    ++machine.barrier_generation;
    ++machine.statistics.barriers;
    for (unsigned waiter : machine.barrier_waiters) make_ready(waiter);
    machine.barrier_waiters.clear();
  } else {
    machine.barrier_waiters.push_back(current->linear);
    run_next();
  }
  order_acquire(order);
  return machine.vote_result;  // nobody reaches the next barrier's end before this thread arrives there
}

void warp_barrier(unsigned mask) { meet(mask, "__syncwarp", nullptr, nullptr, nullptr, 0); }

std::uint64_t shuffle(unsigned mask, const char* name, std::uint64_t value, unsigned source) {
  ShuffleIn in{value, source};
  std::uint64_t out = 0;
  meet(mask, name, &in, &out, combine_shuffle, 0);
  return out;
}

std::uint32_t reduce(unsigned mask, const char* name, Reduce operation, std::uint32_t value) {
  std::uint32_t out = 0;
  meet(mask, name, &value, &out, combine_reduce, static_cast<int>(operation));
  return out;
}

std::uint32_t match_any(unsigned mask, std::uint64_t value) {
  std::uint32_t out = 0;
  meet(mask, "__match_any_sync", &value, &out, combine_match, 0);
  return out;
}

void ldmatrix(const char* name, const MatrixRow& row, std::uint32_t* registers, int matrices, bool transposed) {
  MatrixRow in = row;
  meet(0xffffffffu, name, &in, registers, combine_ldmatrix, matrices << 1 | (transposed ? 1 : 0));
}

void mma(Format format, void* accumulators, const std::uint32_t* a, const std::uint32_t* b) {
  MmaIn in{a, b};
  switch (format) {
    case Format::kHalf: return meet(~0u, "mma.m16n8k16.f16", &in, accumulators, combine_mma_float<half_to_float>, 0);
    case Format::kBfloat16: return meet(~0u, "mma.m16n8k16.bf16", &in, accumulators, combine_mma_float<bfloat16_to_float>, 0);
    case Format::kInt8: return meet(~0u, "mma.m16n8k32.s8", &in, accumulators, combine_mma_int8, 0);
  }
}

void cp_async(void* destination, const void* source, int bytes, int source_bytes) {
  Fiber& self = *machine.active;
  if (self.copies_issued - self.copies_done == kCopies) fail("more than %u cp.async of one thread in flight", kCopies);
  self.copies[self.copies_issued++ % kCopies] = {destination, source, bytes, source_bytes};
  machine.statistics.async_bytes += static_cast<std::uint64_t>(source_bytes);
}

void cp_async_commit() {
  Fiber& self = *machine.active;
  if (self.groups_committed - self.groups_done == kCopyGroups) fail("more than %u cp.async groups in flight", kCopyGroups);
  self.group_end[self.groups_committed++ % kCopyGroups] = self.copies_issued;
}

// The copies happen as late as they may: when the thread waits for their group.
void cp_async_wait(int groups_left) {
  Fiber& self = *machine.active;
  while (self.groups_committed - self.groups_done > static_cast<unsigned>(groups_left)) {
    const unsigned end = self.group_end[self.groups_done++ % kCopyGroups];
    for (; self.copies_done != end; ++self.copies_done) {
      const Copy& copy = self.copies[self.copies_done % kCopies];
#if defined(CUDA_EMULATOR_TSAN)
      __tsan_write_range(copy.destination, copy.bytes);
      if (copy.source_bytes) __tsan_read_range(const_cast<void*>(copy.source), copy.source_bytes);
#endif
      std::memset(copy.destination, 0, copy.bytes);
      std::memcpy(copy.destination, copy.source, copy.source_bytes);
    }
  }
}

// A fence orders what comes before it with what comes after any later fence. That is more than the device promises (there an
// atomic must carry the order), so a missing atomic between two fences is not seen; a missing fence is.
void fence() {
  order_release(&machine.fence_order);
  order_acquire(&machine.fence_order);
}

unsigned char* dynamic_shared(std::size_t* bytes) {
  if (bytes) *bytes = machine.shared_bytes;
  return machine.shared;
}

Kernel::Kernel(const char* kernel_name, std::size_t bytes, unsigned threads, void (*function)(const void*))
    : name(kernel_name), parameter_bytes(bytes), max_threads(threads), call(function), next(kernels) {
  kernels = this;
}

namespace {

bool check_launch(const char* name, std::size_t parameter_bytes, const cuda_emulator_launch& launch, char* message,
                  std::size_t message_bytes) {
  machine.kernel = nullptr;
  for (const Kernel* kernel = kernels; kernel; kernel = kernel->next)
    if (std::strcmp(kernel->name, name) == 0) machine.kernel = kernel;
  const std::uint64_t threads = std::uint64_t{launch.block[0]} * launch.block[1] * launch.block[2];
  if (!machine.kernel)
    std::snprintf(message, message_bytes, "the library has no kernel %s", name);
  else if (machine.kernel->parameter_bytes != parameter_bytes)
    std::snprintf(message, message_bytes, "%s takes a parameter struct of %zu bytes, got %zu", name,
                  machine.kernel->parameter_bytes, parameter_bytes);
  else if (threads == 0 || threads > kMaxBlockThreads || threads > machine.kernel->max_threads || launch.block[2] > 64)
    std::snprintf(message, message_bytes, "%s runs with 1 to %u threads a block, got %u x %u x %u", name,
                  std::min(kMaxBlockThreads, machine.kernel->max_threads), launch.block[0], launch.block[1], launch.block[2]);
  else if (!launch.grid[0] || !launch.grid[1] || !launch.grid[2] || launch.grid[1] > 65535 || launch.grid[2] > 65535)
    std::snprintf(message, message_bytes, "a grid of %u x %u x %u is not possible: 1 to 65535 blocks in y and z", launch.grid[0],
                  launch.grid[1], launch.grid[2]);
  else if (launch.shared_bytes > kMaxSharedBytes)
    std::snprintf(message, message_bytes, "%llu bytes of shared memory; no device has more than %llu",
                  static_cast<unsigned long long>(launch.shared_bytes), static_cast<unsigned long long>(kMaxSharedBytes));
  else
    return true;
  return false;
}

}  // namespace
}  // namespace cuda_emulator

using namespace cuda_emulator;

int cuda_emulator_run(const char* kernel, const void* parameters, std::size_t parameter_bytes,
                      const cuda_emulator_launch* launch, cuda_emulator_statistics* statistics, char* message,
                      std::size_t message_bytes) {
  const std::lock_guard<std::mutex> only_one(launch_mutex);
  if (!check_launch(kernel, parameter_bytes, *launch, message, message_bytes)) return 1;
  machine.parameters = parameters;
  machine.failed = false;
  machine.active = nullptr;
  machine.main_bottom = nullptr;  // the launch may come from another OS thread than the last one
  machine.statistics = {};
  machine.random = launch->seed ? launch->seed * 0x9e3779b97f4a7c15ull | 1u : 0;
  machine.ready.resize(2 * kMaxBlockThreads);
  machine.shared_bytes = launch->shared_bytes;
#if defined(CUDA_EMULATOR_TSAN)
  machine.main_tsan = machine.active_tsan = __tsan_get_current_fiber();
  machine.whole_blocks = launch->races == CUDA_EMULATOR_RACES_OF_BLOCKS;
#endif

  const std::uint64_t gx = launch->grid[0], gy = launch->grid[1], blocks = gx * gy * launch->grid[2];
  std::vector<std::uint64_t> shuffled;
  if (launch->block_order == CUDA_EMULATOR_SHUFFLED) {
    if (!machine.random) machine.random = 1;
    for (std::uint64_t i = 0; i < blocks; ++i) shuffled.push_back(i);
    for (std::uint64_t i = blocks; i > 1; --i) std::swap(shuffled[i - 1], shuffled[draw() % i]);
    if (!launch->seed) machine.random = 0;
  }
  for (std::uint64_t i = 0; i < blocks && !machine.failed; ++i) {
    const std::uint64_t b = launch->block_order == CUDA_EMULATOR_REVERSED ? blocks - 1 - i : shuffled.empty() ? i : shuffled[i];
    run_block(*launch, {static_cast<unsigned>(b % gx), static_cast<unsigned>(b / gx % gy), static_cast<unsigned>(b / (gx * gy))});
  }
  current = nullptr;
  release_shared();
  order_acquire(&machine.end_order);
  if (statistics) *statistics = machine.statistics;
  if (machine.failed) std::snprintf(message, message_bytes, "%s: %s", kernel, machine.message);
  return machine.failed ? 1 : 0;
}

const char* cuda_emulator_kernel(std::size_t index, std::size_t* parameter_bytes, unsigned* max_threads) {
  const Kernel* kernel = kernels;
  while (kernel && index--) kernel = kernel->next;
  if (!kernel) return nullptr;
  *parameter_bytes = kernel->parameter_bytes;
  *max_threads = kernel->max_threads;
  return kernel->name;
}
