// Neighbouring elements that a GPU thread loads and stores in one go.
#pragma once

#include <initializer_list>

#include "device.h"

namespace sctrt {

template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
  T at[width];
};

// `offset` in elements, a multiple of the width; `base` is aligned to the pack. (From a pointer to the elements
// themselves the compiler may go back to single ones.)
template <int width, class T>
__device__ __forceinline__ Pack<T, width> load(const T* base, std::int64_t offset) {
  return reinterpret_cast<const Pack<T, width>*>(base)[static_cast<std::uint64_t>(offset) / width];
}

template <int width, class T>
__device__ __forceinline__ void store(const Pack<T, width>& pack, T* base, std::int64_t offset) {
  reinterpret_cast<Pack<T, width>*>(base)[static_cast<std::uint64_t>(offset) / width] = pack;
}

// Whether packs can be taken from `base` on, at offsets that are sums of multiples of `steps`.
template <int width, class T>
bool is_aligned(const T* base, std::initializer_list<std::int64_t> steps = {}) {
  bool aligned = reinterpret_cast<std::uintptr_t>(base) % sizeof(Pack<T, width>) == 0;
  for (std::int64_t step : steps) aligned = aligned && step % width == 0;
  return aligned;
}

}  // namespace sctrt
