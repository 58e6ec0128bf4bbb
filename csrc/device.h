// The two devices and what a kernel body may use on both: parallel_for, float16, checks.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SCTRT_BODY __host__ __device__ __forceinline__
#else
// Kernel bodies are inlined into one loop per instruction set (see run_row below), and compiled for it there.
#define SCTRT_BODY inline __attribute__((always_inline))
#endif

// Marks a loop whose iterations are independent; on a GPU each thread runs one of them.
#ifdef __CUDACC__
#define SCTRT_SIMD
#else
#define SCTRT_SIMD _Pragma("omp simd")
#endif

namespace sctrt {

struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Cpu {
  static constexpr int kLanes = 64;  // positions one body of nearest_code carries: 4 AVX-512 or 8 AVX2 registers
};

struct Cuda {
  static constexpr int kLanes = 1;
  int index;              // of the GPU, as CUDA counts
  std::uintptr_t stream;  // cudaStream_t to enqueue on; 0 is the default stream
};

// Number of GPUs that can be used; any error (no driver, no permission) and a build without CUDA mean none.
int cuda_device_count();
// Index of the GPU that owns `pointer`; -1 when none does.
int cuda_device_of(const void* pointer);
// CUDA runtime version, 1000 * major + 10 * minor; 0 in a build without CUDA.
int cuda_version();

// IEEE half precision. On the host it is converted in integer arithmetic, which every compiler vectorises.
struct Half {
  std::uint16_t bits;
};

// The upper half of a float32.
struct Bfloat16 {
  std::uint16_t bits;
};

template <class To, class From>
SCTRT_BODY To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

SCTRT_BODY void convert(float from, float& to) { to = from; }

// Rounds to nearest, ties to even; overflows to infinity; NaN stays NaN.
SCTRT_BODY void convert(float from, Half& to) {
#ifdef __CUDA_ARCH__
  to.bits = __half_as_ushort(__float2half_rn(from));
#else
  constexpr std::uint32_t kInfinity = 255u << 23, kOverflow = (127u + 16u) << 23, kNormal = 113u << 23;
  constexpr std::uint32_t kSubnormalMagic = (127u - 15u + 23u - 10u + 1u) << 23;
  const std::uint32_t all = bit_cast<std::uint32_t>(from);
  const std::uint32_t sign = all & 0x80000000u, magnitude = all ^ sign;
  const std::uint32_t special = magnitude > kInfinity ? 0x7e00u : 0x7c00u;
  const float shifted = bit_cast<float>(magnitude) + bit_cast<float>(kSubnormalMagic);
  const std::uint32_t subnormal = bit_cast<std::uint32_t>(shifted) - kSubnormalMagic;
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const std::uint32_t finite = magnitude < kNormal ? subnormal : normal;
  to.bits = static_cast<std::uint16_t>((magnitude >= kOverflow ? special : finite) | (sign >> 16));
#endif
}

// Exact.
SCTRT_BODY void convert(Half from, float& to) {
#ifdef __CUDA_ARCH__
  to = __half2float(__ushort_as_half(from.bits));
#else
  constexpr std::uint32_t kExponent = 0x7c00u << 13, kSmallest = 113u << 23;
  const std::uint32_t moved = (from.bits & 0x7fffu) << 13, exponent = moved & kExponent;
  const std::uint32_t rebiased = moved + (112u << 23);
  const float subnormal = bit_cast<float>(rebiased + (1u << 23)) - bit_cast<float>(kSmallest);
  const std::uint32_t special = rebiased + (112u << 23);
  const std::uint32_t finite = exponent == 0 ? bit_cast<std::uint32_t>(subnormal) : rebiased;
  to = bit_cast<float>((exponent == kExponent ? special : finite) | ((from.bits & 0x8000u) << 16));
#endif
}

// Rounds to nearest, ties to even; NaN stays NaN.
SCTRT_BODY void convert(float from, Bfloat16& to) {
  const std::uint32_t all = bit_cast<std::uint32_t>(from);
  const std::uint32_t rounded = (all + 0x7fffu + ((all >> 16) & 1u)) >> 16;
  const bool number = (all & 0x7fffffffu) <= 0x7f800000u;
  to.bits = static_cast<std::uint16_t>(number ? rounded : ((all >> 16) | 0x40u));
}

// Exact.
SCTRT_BODY void convert(Bfloat16 from, float& to) { to = bit_cast<float>(std::uint32_t{from.bits} << 16); }

// Samples of a type that is known at run time: for loads and stores beside much other work.
struct AnySamples {
  enum class Type { float32, float16, bfloat16 };

  void* data;
  Type type;

  SCTRT_BODY float load(std::int64_t at) const {
    float value;
    if (type == Type::float32)
      value = static_cast<const float*>(data)[at];
    else if (type == Type::float16)
      convert(static_cast<const Half*>(data)[at], value);
    else
      convert(static_cast<const Bfloat16*>(data)[at], value);
    return value;
  }

  SCTRT_BODY void store(std::int64_t at, float value) const {
    if (type == Type::float32)
      static_cast<float*>(data)[at] = value;
    else if (type == Type::float16)
      convert(value, static_cast<Half*>(data)[at]);
    else
      convert(value, static_cast<Bfloat16*>(data)[at]);
  }
};

template <class T>
SCTRT_BODY T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
SCTRT_BODY T larger(T a, T b) {
  return a < b ? b : a;
}

// Note [Kernels]
// A kernel is a copyable function object called as kernel(row, first, last): it writes the output elements
// first..last-1 of one row. parallel_for shares the rows among a CPU's threads and gives a whole row to each call, so
// that loops over first..last vectorise; on a GPU each thread gets one element, last = first + 1. Columns past a row's
// end are the kernel's to refuse (last = smaller(last, end)). Arithmetic is not contracted to fused multiply-adds
// (CMakeLists.txt), so both devices round alike.

#ifndef __CUDACC__

#if defined(__x86_64__) && defined(__GNUC__)
#define SCTRT_X86 1
#define SCTRT_AVX2 __attribute__((target("avx2,fma,bmi2")))
#define SCTRT_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2,prefer-vector-width=512")))
#endif

// By value: a kernel that nobody else sees is kept in registers, and its loops vectorise.
template <class Kernel>
void run_row(Kernel kernel, std::int64_t row, std::int64_t columns) {
  kernel(row, std::int64_t{0}, columns);
}

#ifdef SCTRT_X86
template <class Kernel>
SCTRT_AVX2 void run_row_avx2(Kernel kernel, std::int64_t row, std::int64_t columns) {
  kernel(row, std::int64_t{0}, columns);
}

template <class Kernel>
SCTRT_AVX512 void run_row_avx512(Kernel kernel, std::int64_t row, std::int64_t columns) {
  kernel(row, std::int64_t{0}, columns);
}
#endif

// Instruction set that parallel_for chooses on this machine.
inline const char* cpu_instructions() {
#ifdef SCTRT_X86
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return "avx512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return "avx2";
#endif
  return "baseline";
}

// cost: operations that an element takes, roughly.
template <class Kernel>
void parallel_for(Cpu, std::int64_t rows, std::int64_t columns, const Kernel& kernel, std::int64_t cost = 1) {
  [[maybe_unused]] constexpr double kWorthSharing =
      1 << 18;                           // operations; about 0.1 ms, well above what waking the threads takes
  constexpr std::int64_t kChunks = 256;  // shared out one by one: a busy core delays only what it has begun
  void (*run)(Kernel, std::int64_t, std::int64_t) = run_row<Kernel>;
#ifdef SCTRT_X86
  static const std::string instructions = cpu_instructions();
  if (instructions == "avx512") run = run_row_avx512<Kernel>;
  if (instructions == "avx2") run = run_row_avx2<Kernel>;
#endif
  [[maybe_unused]] const double work =
      static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(cost);
  [[maybe_unused]] const std::int64_t chunk = larger(rows / kChunks, std::int64_t{1});
#pragma omp parallel for schedule(dynamic, chunk) if (work > kWorthSharing)
  for (std::int64_t row = 0; row < rows; ++row) run(kernel, row, columns);
}

#else

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw DeviceError(std::string(what) + " failed: " + cudaGetErrorString(error));
}

template <class Kernel>
__global__ void run_rows(Kernel kernel, std::int64_t rows, std::int64_t columns) {
  const std::int64_t column = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  const std::int64_t stride = std::int64_t{gridDim.y} * blockDim.y;
  for (std::int64_t row = std::int64_t{blockIdx.y} * blockDim.y + threadIdx.y; row < rows; row += stride)
    kernel(row, column, column + 1);
}

// Makes a GPU current for as long as the object lives.
class CurrentGpu {
 public:
  explicit CurrentGpu(int index) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (index != before_) check_cuda(cudaSetDevice(index), "cudaSetDevice");
  }
  ~CurrentGpu() { cudaSetDevice(before_); }
  CurrentGpu(const CurrentGpu&) = delete;
  CurrentGpu& operator=(const CurrentGpu&) = delete;

 private:
  int before_ = 0;
};

// Enqueues kernel<<<blocks, threads>>>(arguments...) on the device's stream.
template <class... Parameters, class... Arguments>
void launch(Cuda device, void (*kernel)(Parameters...), dim3 blocks, dim3 threads, Arguments... arguments) {
  const CurrentGpu current(device.index);
  const auto stream = reinterpret_cast<cudaStream_t>(device.stream);
#ifdef SCTRT_SHIM
  shim::launch([&] { kernel(arguments...); }, blocks, threads, stream);
#else
  // clang-format off
  kernel<<<blocks, threads, 0, stream>>>(arguments...);
  // clang-format on
#endif
  check_cuda(cudaGetLastError(), "the kernel launch");
}

template <class Kernel>
void parallel_for(Cuda device, std::int64_t rows, std::int64_t columns, const Kernel& kernel, std::int64_t = 1) {
  constexpr std::int64_t kMaxGridY = 65535;  // CUDA C++ Programming Guide, compute capabilities
  const dim3 threads(32, 8);
  const std::int64_t blocks_x = (columns + threads.x - 1) / threads.x;
  const std::int64_t blocks_y = (rows + threads.y - 1) / threads.y;
  const dim3 blocks(static_cast<unsigned>(blocks_x), static_cast<unsigned>(smaller(blocks_y, kMaxGridY)));
  launch(device, run_rows<Kernel>, blocks, threads, kernel, rows, columns);
}

#endif

}  // namespace sctrt
