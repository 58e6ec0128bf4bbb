// Small kernels, right and wrong ones, by which tests/test_shim.py judges csrc/shim: shim_kernels CASE SEED
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <vector>

#include "device.h"

namespace {

using sctrt::Cuda;
using sctrt::launch;

constexpr int kThreads = 64;

template <class T>
struct Array {
  explicit Array(int count) : data(static_cast<T*>(shim_allocate(count * sizeof(T), 0))), size(count) {}
  ~Array() { shim_free(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  T* data;
  int size;
};

template <bool Barrier>
__global__ void reverse_blocks(int* values) {
  __shared__ int tile[kThreads];
  const int at = blockIdx.x * kThreads;
  tile[threadIdx.x] = values[at + threadIdx.x];
  if (Barrier) __syncthreads();
  values[at + threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// Each block adds up all `count` numbers, a tile at a time.
template <bool Barrier>
__global__ void sums(const int* values, int count, int* out) {
  __shared__ int tile[kThreads];
  int sum = 0;
  for (int first = 0; first < count; first += kThreads) {
    tile[threadIdx.x] = values[first + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < kThreads; ++i) sum += tile[i];
    if (Barrier) __syncthreads();
  }
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

__global__ void leave_early() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void part_ways() {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void tell_order() { std::printf("%u.%u ", blockIdx.x, threadIdx.x); }

__global__ void tell_place(int* places) {
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned before = threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z;
  __syncthreads();  // other threads ran; this one is still who it was
  const bool same = before == threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z;
  places[block * blockDim.x * blockDim.y * blockDim.z + thread] = same ? thread : -2;
}

__global__ void count_threads(int* count, bool barrier) {
  if (barrier) __syncthreads();
  ++*count;
}

__global__ void large_locals(int* out) {
  volatile int local[8 << 10];  // 32 KiB
  for (int i = 0; i < (8 << 10); ++i) local[i] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = local[threadIdx.x];
}

__global__ void write(int* values, int past) { values[kThreads - 1 + past] = 1; }

__global__ void write_shared(int past) {
  __shared__ int tile[kThreads];
  int* start = tile;  // so that it is the address that is checked, not the bounds of an array that the compiler knows
  asm("" : "+r"(start));
  start[kThreads - 1 + past] = 1;
}

__global__ void add(int* values, int most) { values[0] = most + static_cast<int>(threadIdx.x); }

__global__ void load_vector(float* values, int offset) {
  values[8] = reinterpret_cast<const float4*>(values + offset)->w;
}

int wrong(const Array<int>& values, const std::function<int(int)>& expected) {
  int count = 0;
  for (int i = 0; i < values.size; ++i) count += values.data[i] != expected(i);
  return count;
}

template <bool Barrier>
int reverse_wrong(Cuda gpu) {
  Array<int> values(4 * kThreads);
  for (int i = 0; i < values.size; ++i) values.data[i] = i;
  launch(gpu, reverse_blocks<Barrier>, 4, kThreads, values.data);
  return wrong(values, [](int i) { return i / kThreads * kThreads + kThreads - 1 - i % kThreads; });
}

template <bool Barrier>
int sums_wrong(Cuda gpu) {
  Array<int> values(8 * kThreads), out(3 * kThreads);
  for (int i = 0; i < values.size; ++i) values.data[i] = i;
  launch(gpu, sums<Barrier>, 3, kThreads, values.data, values.size, out.data);
  return wrong(out, [&](int) { return values.size * (values.size - 1) / 2; });
}

int places_wrong(Cuda gpu) {
  Array<int> places(2 * 3 * 2 * 5 * 3 * 2);
  launch(gpu, tell_place, dim3(2, 3, 2), dim3(5, 3, 2), places.data);
  return wrong(places, [](int i) { return i % (5 * 3 * 2); });
}

int locals_wrong(Cuda gpu) {
  Array<int> out(kThreads);
  launch(gpu, large_locals, 1, kThreads, out.data);
  return wrong(out, [](int i) { return i; });
}

int million(Cuda gpu, bool barrier) {
  Array<int> count(1);
  count.data[0] = 0;
  launch(gpu, count_threads, 4000, 250, count.data, barrier);
  return count.data[0];
}

int first_bytes() {
  Array<int> fresh(3);
  return wrong(fresh, [](int) { return -1; });
}

// Wrong elements of a right kernel after a launch that failed.
int wrong_afterwards(Cuda gpu) {
  try {
    launch(gpu, leave_early, 1, kThreads);
  } catch (const std::logic_error&) {
    return reverse_wrong<true>(gpu);
  }
  return -1;
}

void refused(Cuda gpu, dim3 blocks, dim3 threads) {
  try {
    launch(gpu, leave_early, blocks, threads);
  } catch (const sctrt::DeviceError& error) {
    std::printf("%s\n", error.what());
  }
}

}  // namespace

int main(int, char** arguments) {
  const std::string name = arguments[1];
  shim_reset(1, std::strtoull(arguments[2], nullptr, 10));
  const Cuda gpu{0, 0};
  Array<int> values(kThreads);
  Array<float> floats(9);
  const std::map<std::string, std::function<void()>> cases{
      {"reverse", [&] { std::printf("%d", reverse_wrong<true>(gpu)); }},
      {"reverse without barrier", [&] { std::printf("%d", reverse_wrong<false>(gpu)); }},
      {"sums", [&] { std::printf("%d", sums_wrong<true>(gpu)); }},
      {"sums without second barrier", [&] { std::printf("%d", sums_wrong<false>(gpu)); }},
      {"leave early", [&] { launch(gpu, leave_early, 1, kThreads); }},
      {"part ways", [&] { launch(gpu, part_ways, 1, kThreads); }},
      {"order", [&] { launch(gpu, tell_order, 3, 5); }},
      {"places", [&] { std::printf("%d", places_wrong(gpu)); }},
      {"large locals", [&] { std::printf("%d", locals_wrong(gpu)); }},
      {"million", [&] { std::printf("%d", million(gpu, false)); }},
      {"million with barrier", [&] { std::printf("%d", million(gpu, true)); }},
      {"after a failure", [&] { std::printf("%d", wrong_afterwards(gpu)); }},
      {"first bytes", [&] { std::printf("%d", first_bytes()); }},
      {"no blocks", [&] { refused(gpu, 0, kThreads); }},
      {"too many threads", [&] { refused(gpu, 1, 2048); }},
      {"too many rows", [&] { refused(gpu, dim3(1, 65536), kThreads); }},
      {"write inside", [&] { launch(gpu, write, 1, 1, values.data, 0); }},
      {"write past the end", [&] { launch(gpu, write, 1, 1, values.data, 1); }},
      {"write past shared memory", [&] { launch(gpu, write_shared, 1, 1, 1); }},
      {"overflow", [&] { launch(gpu, add, 1, 2, values.data, std::numeric_limits<int>::max()); }},
      {"unaligned vector", [&] { launch(gpu, load_vector, 1, 1, floats.data, 1); }},
  };
  cases.at(name)();
}
