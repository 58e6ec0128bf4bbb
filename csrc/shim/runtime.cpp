// Runs the threads of a block as fibers of one CPU thread, and answers for the CUDA runtime.
//
// Note [Shim]
// Blocks run one after the other, and the threads of a block one at a time, each until a barrier or its end; then, when
// all of them wait at the same barrier, again each to its next. A thread that needs no barrier costs a function call:
// a fiber takes one thread after the other and is left only where one waits. The order of blocks and threads is
// scattered (Order), anew for each block and after each barrier, so that what a missing barrier allows does happen.
// __shared__ arrays are static: a block finds in them what the one before it left, as it may on a GPU. Memory is the
// host's, but known to cudaPointerGetAttributes only when it was allocated here. What this does not show: anything of
// warps, of memory order between blocks, or of speed.
#include <cuda_runtime.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define SHIM_EXPORT __attribute__((visibility("default")))

namespace shim {
namespace {

constexpr unsigned kMaxThreads = 1024, kMaxThreadsZ = 64, kMaxGridX = 2147483647, kMaxGridYZ = 65535;  // as all GPUs

#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kStack = 256 << 10;
#else
constexpr std::size_t kStack = 64 << 10;
#endif
constexpr std::size_t kGuard = 64 << 10;  // a multiple of every page size

std::uint64_t mix(std::uint64_t value) {  // splitmix64, https://prng.di.unimi.it/splitmix64.c
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// A permutation of 0..count-1, count below 2^32 (a launch of more would not end): i -> (factor * i + first) % count.
class Order {
 public:
  Order(std::uint64_t count, std::uint64_t seed) : count_(count) {
    if (seed == 0) return;
    first_ = mix(seed) % count;
    factor_ = mix(seed + 1) % count;
    while (std::gcd(factor_, count) != 1) ++factor_;
  }
  std::uint64_t operator[](std::uint64_t i) const { return (factor_ * i + first_) % count_; }

 private:
  std::uint64_t count_, first_ = 0, factor_ = 1;
};

uint3 index_of(std::uint64_t linear, dim3 size) {
  const std::uint64_t slab = std::uint64_t{size.x} * size.y;
  return {static_cast<unsigned>(linear % size.x), static_cast<unsigned>(linear % slab / size.x),
          static_cast<unsigned>(linear / slab)};
}

struct Context {
  void* state[5];    // https://gcc.gnu.org/onlinedocs/gcc/Nonlocal-Gotos.html
  ucontext_t entry;  // of a fiber that has not run yet
  bool fresh = false;
  const void* stack = nullptr;
  std::size_t stack_bytes = 0;
  void* fake_stack = nullptr;
};

// A fiber that runs threads of the present block; where its thread waits, it waits with it.
struct Fiber {
  Context context;
  uint3 thread;
  const char* file;
  int line;
};

// By GCC's own setjmp: swapcontext asks the kernel for the signal mask, and AddressSanitizer, which would also take
// note of a longjmp, need not know more than is said below.
__attribute__((noinline, no_sanitize_address)) void resume_from(Context& to) {
  if (!to.fresh) __builtin_longjmp(to.state, 1);
  to.fresh = false;
  setcontext(&to.entry);
}

__attribute__((noinline)) void switch_to(Context& from, Context& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
  if (__builtin_setjmp(from.state) == 0) resume_from(to);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack, &to.stack, &to.stack_bytes);  // back from `to`, always
#endif
}

class Block {
 public:
  void (*call)(const void*);
  const void* body;

  void run(std::uint64_t threads, std::uint64_t seed) {
    threads_ = threads;
    begun_ = 0;
    order_ = Order(threads, seed);
    while (begun_ < threads_) resume(idle_fiber());
    while (!waiting_.empty()) {
      check_barrier();
      std::vector<Fiber*> ready;
      ready.swap(waiting_);
      const Order order(threads_, seed ? ++seed : 0);
      for (std::uint64_t i = 0; i < threads_; ++i) resume(ready[order[i]]);
    }
  }

  void wait(const char* file, int line) {
    Fiber* self = running_;
    self->thread = threadIdx;
    self->file = file;
    self->line = line;
    waiting_.push_back(self);
    switch_to(self->context, scheduler_);
    threadIdx = self->thread;
  }

 private:
  std::uint64_t threads_ = 0, begun_ = 0;
  Order order_{1, 0};
  Context scheduler_;
  Fiber* running_ = nullptr;
  std::vector<Fiber*> waiting_, idle_;
  std::vector<std::unique_ptr<Fiber>> fibers_;

  void resume(Fiber* fiber) {
    running_ = fiber;
    switch_to(scheduler_, fiber->context);
  }

  // A launch that fails leaves its waiting fibers as they are, never to be resumed.
  void check_barrier() {
    const Fiber& first = *waiting_[0];
    const auto place = [](const Fiber& fiber) { return std::string(fiber.file) + ":" + std::to_string(fiber.line); };
    std::string wrong;
    if (waiting_.size() != threads_)
      wrong = "the barrier at " + place(first) + " was reached by " + std::to_string(waiting_.size()) + " of " +
              std::to_string(threads_) + " threads of a block";
    for (const Fiber* other : waiting_)
      if (other->line != first.line || std::strcmp(other->file, first.file) != 0)
        wrong = "threads of a block wait at different barriers, " + place(first) + " and " + place(*other);
    if (wrong.empty()) return;
    waiting_.clear();
    throw std::logic_error("shim: " + wrong);
  }

  void run_threads() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_.stack, &scheduler_.stack_bytes);
#endif
    for (;;) {
      while (begun_ < threads_) {
        threadIdx = index_of(order_[begun_++], blockDim);
        call(body);
      }
      idle_.push_back(running_);
      switch_to(running_->context, scheduler_);
    }
  }

  static void enter();

  Fiber* idle_fiber() {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      Context& context = fibers_.back()->context;
      void* memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE)) throw std::bad_alloc();
      context.stack = static_cast<char*>(memory) + kGuard;
      context.stack_bytes = kStack;
      context.fresh = true;
      getcontext(&context.entry);
      context.entry.uc_stack.ss_sp = static_cast<char*>(memory) + kGuard;
      context.entry.uc_stack.ss_size = context.stack_bytes;
      makecontext(&context.entry, enter, 0);
      idle_.push_back(fibers_.back().get());
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }
};

struct Allocation {
  std::size_t bytes;
  int device;
};

struct Machine {
  std::recursive_mutex mutex;  // one launch at a time: blockIdx and __shared__ arrays are there once
  int devices = 0, device = 0;
  std::uint64_t seed = 0;
  cudaError_t error = cudaSuccess;
  std::uintptr_t last_stream = 0;
  int last_device = -1;
  std::map<std::uintptr_t, Allocation> memory;
  Block block;
};

Machine& machine() {
  static Machine* const one = new Machine;  // outlives every array that Python lets go of late
  return *one;
}

using Lock = std::lock_guard<std::recursive_mutex>;

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) machine().error = error;
  return error;
}

void Block::enter() { machine().block.run_threads(); }

bool fits(dim3 blocks, dim3 threads) {
  const bool some = blocks.x && blocks.y && blocks.z && threads.x && threads.y && threads.z;
  const std::uint64_t all = std::uint64_t{threads.x} * threads.y * threads.z;
  return some && threads.x <= kMaxThreads && threads.y <= kMaxThreads && threads.z <= kMaxThreadsZ &&
         all <= kMaxThreads && blocks.x <= kMaxGridX && blocks.y <= kMaxGridYZ && blocks.z <= kMaxGridYZ;
}

}  // namespace

void barrier(const char* file, int line) { machine().block.wait(file, line); }

void run_threads(void (*call)(const void*), const void* body, dim3 blocks, dim3 threads, cudaStream_t stream) {
  Machine& here = machine();
  const Lock lock(here.mutex);
  if (!fits(blocks, threads)) return (void)report(cudaErrorInvalidConfiguration);
  here.last_stream = reinterpret_cast<std::uintptr_t>(stream);
  here.last_device = here.device;
  here.block.call = call;
  here.block.body = body;
  gridDim = blocks;
  blockDim = threads;
  const std::uint64_t count = std::uint64_t{blocks.x} * blocks.y * blocks.z;
  const Order order(count, here.seed);
  for (std::uint64_t i = 0; i < count; ++i) {
    blockIdx = index_of(order[i], blocks);
    here.block.run(std::uint64_t{threads.x} * threads.y * threads.z, here.seed ? mix(here.seed + i) | 1 : 0);
  }
}

}  // namespace shim

using shim::Lock;
using shim::machine;
using shim::report;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = machine().devices;
  return report(*count ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int* device) {
  *device = machine().device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= machine().devices) return report(cudaErrorInvalidValue);
  machine().device = device;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const Lock lock(machine().mutex);
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  auto after = machine().memory.upper_bound(address);
  *attributes = {cudaMemoryTypeUnregistered, -1};
  if (after == machine().memory.begin()) return cudaSuccess;
  const auto& [start, allocation] = *--after;
  if (address < start + allocation.bytes) *attributes = {cudaMemoryTypeDevice, allocation.device};
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = machine().error;
  machine().error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    default:
      return "invalid argument";
  }
}

SHIM_EXPORT void shim_reset(int devices, std::uint64_t seed) {
  const Lock lock(machine().mutex);
  machine().devices = devices;
  machine().device = 0;
  machine().seed = seed;
  machine().error = cudaSuccess;
  machine().last_stream = 0;
  machine().last_device = -1;
}

SHIM_EXPORT void* shim_allocate(std::size_t bytes, int device) {
  constexpr std::size_t kAlignment = 256;  // as cudaMalloc; the end is exact, so that AddressSanitizer guards it
  void* pointer = nullptr;
  if (posix_memalign(&pointer, kAlignment, bytes)) throw std::bad_alloc();
  std::memset(pointer, 0xff, bytes);
  const Lock lock(machine().mutex);
  machine().memory[reinterpret_cast<std::uintptr_t>(pointer)] = {bytes, device};
  return pointer;
}

SHIM_EXPORT void shim_free(void* pointer) {
  const Lock lock(machine().mutex);
  machine().memory.erase(reinterpret_cast<std::uintptr_t>(pointer));
  std::free(pointer);
}

SHIM_EXPORT std::uintptr_t shim_last_stream() { return machine().last_stream; }

SHIM_EXPORT int shim_last_device() { return machine().last_device; }
