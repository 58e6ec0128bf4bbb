// Stands in for CUDA's header when g++ compiles a .cu file for tests: kernels run on the CPU, where their logic,
// barriers and memory accesses can be checked without a GPU. Not for speed. See Note [Shim] in runtime.cpp.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static
#define __syncthreads() shim::barrier(__FILE__, __LINE__)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Kernels load and store arrays of other types through these.
#define SHIM_VECTOR(Name, T, N, Bytes, ...)                \
  struct __attribute__((may_alias, aligned(Bytes))) Name { \
    T __VA_ARGS__;                                         \
  };                                                       \
  static_assert(sizeof(Name) == N * sizeof(T) && sizeof(Name) == Bytes, "as CUDA lays it out");

SHIM_VECTOR(float2, float, 2, 8, x, y)
SHIM_VECTOR(int2, int, 2, 8, x, y)
SHIM_VECTOR(uint2, unsigned, 2, 8, x, y)
SHIM_VECTOR(float4, float, 4, 16, x, y, z, w)
SHIM_VECTOR(int4, int, 4, 16, x, y, z, w)
SHIM_VECTOR(uint4, unsigned, 4, 16, x, y, z, w)
#undef SHIM_VECTOR

inline float2 make_float2(float x, float y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <class T>
inline T __ldg(const T* address) {
  return *address;
}

// Of the thread that runs; set whenever the shim goes from one to another.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorNoDevice };
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};
using cudaStream_t = struct ShimStream*;
#define CUDART_VERSION 13000

cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace shim {

// All threads of the block meet here; where only some come, the launch throws std::logic_error, with the place.
void barrier(const char* file, int line);

// Runs call(body), the kernel on its arguments, once for each thread of each block.
void run_threads(void (*call)(const void*), const void* body, dim3 blocks, dim3 threads, cudaStream_t stream);

template <class Body>
void launch(const Body& body, dim3 blocks, dim3 threads, cudaStream_t stream) {
  run_threads([](const void* given) { (*static_cast<const Body*>(given))(); }, &body, blocks, threads, stream);
}

}  // namespace shim

// What tests ask and set, through ctypes.
extern "C" {
// The machine as it is at first: no devices; with `devices` of them, no current one but 0. Threads and blocks run in
// order for seed 0, else in another order for each seed, block and barrier.
void shim_reset(int devices, std::uint64_t seed);
// As cudaMalloc on a device, every byte 0xff: a float NaN, an integer -1.
void* shim_allocate(std::size_t bytes, int device);
void shim_free(void* pointer);
// Of the last launch.
std::uintptr_t shim_last_stream();
int shim_last_device();
}
