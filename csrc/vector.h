// A register of floats, as wide as the instruction set that this file is compiled for has them.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>

namespace sctrt {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef float Unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

#define SCTRT_INLINE inline __attribute__((always_inline))
// Of loops over an array of registers: unrolled later, the array would begin and end on the stack.
#define SCTRT_UNROLL _Pragma("GCC unroll 16")

SCTRT_INLINE Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
SCTRT_INLINE void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

SCTRT_INLINE Vector splat(float value) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(value);
#elif defined(__AVX__)
  return _mm256_set1_ps(value);
#else
  return Vector{value, value, value, value};
#endif
}

SCTRT_INLINE Vector larger(Vector a, Vector b) { return a < b ? b : a; }  // a where either is no number
SCTRT_INLINE Vector smaller(Vector a, Vector b) { return b < a ? b : a; }

inline float sum_of(Vector v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

inline float largest_of(Vector v) {
  float most = v[0];
  for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// 2^whole * 2^part, whole an integer in -127..127 (2^-127 counts as 0) and part in -0.5..0.5.
SCTRT_INLINE Vector power_of_2(Vector whole, Vector part) {
  // Least squares of the relative error at Chebyshev's nodes; 2e-9.
  Vector p = splat(0.00015337577497120947f);
  p = p * part + 0.0013399859890341759f;
  p = p * part + 0.009618519805371761f;
  p = p * part + 0.05550329014658928f;
  p = p * part + 0.24022646248340607f;
  p = p * part + 0.6931471824645996f;
  p = p * part + 1.0f;
  const Integers bits = (__builtin_convertvector(whole, Integers) + 127) << 23;
  return p * (Vector)bits;
}

SCTRT_INLINE Vector nearest_integer(Vector x) {  // of |x| < 2^22
  const Vector big = splat(12582912.0f);
  return (x + big) - big;
}

// 2^x for x <= 0; what is below 2^-126 becomes 0.
SCTRT_INLINE Vector power_of_2(Vector x) {
  x = larger(x, splat(-127.0f));
  const Vector whole = nearest_integer(x);
  return power_of_2(whole, x - whole);
}

// x / (1 + exp(-x))
SCTRT_INLINE Vector silu(Vector x) {
  const Vector bounded = smaller(larger(x, splat(-87.0f)), splat(87.0f));
  const Vector whole = nearest_integer(bounded * -1.44269504088896341f);
  // -x / ln 2 - whole, with 1 / ln 2 in two parts.
  const Vector part = bounded * -1.92596299112661746e-8f + (bounded * -1.44269502162933349609f - whole);
  const Vector denominator = power_of_2(whole, part) + 1.0f;
#if defined(__AVX512F__)
  const Vector rough = _mm512_maskz_rcp14_ps(0xffff, denominator);
  return x * (rough * (2.0f - denominator * rough));
#else
  return x / denominator;
#endif
}

// Note [Pairs]
// In bfloat16 a word holds two neighbouring values along the sum of a product, and the CPU multiplies and adds both at
// once (vdpbf16ps), so that matrices of pairs look like matrices of floats with half as many columns, or rows.
#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;

SCTRT_INLINE Vector add_product(Vector sum, Vector a, Vector b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// kLanes floats become half as many words.
SCTRT_INLINE void store_pairs(float* to, Vector values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(values));
}

// Words whose lower halves are of `first` and upper halves of `second`.
SCTRT_INLINE Vector pairs(Vector first, Vector second) {
  typedef std::uint16_t Halves __attribute__((vector_size(2 * kLanes)));
  typedef std::uint32_t Words __attribute__((vector_size(4 * kLanes)));
  const Words low = __builtin_convertvector((Halves)_mm512_cvtneps_pbh(first), Words);
  const Words high = __builtin_convertvector((Halves)_mm512_cvtneps_pbh(second), Words);
  return (Vector)(low | high << 16);
}
#else
constexpr bool kHasPairs = false;
#endif

SCTRT_INLINE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
SCTRT_INLINE std::int64_t most(std::int64_t a, std::int64_t b) { return a < b ? b : a; }
SCTRT_INLINE std::int64_t parts(std::int64_t whole, std::int64_t part) { return (whole + part - 1) / part; }

}  // namespace
}  // namespace sctrt
