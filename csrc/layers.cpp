// Shares the layers out among threads and picks the instruction set.
#include "layers.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "device.h"

namespace sctrt {
namespace {

// The thread's own memory, kept for the next call.
float* scratch(std::int64_t floats) {
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<float, Free> memory;
  thread_local std::int64_t size = 0;
  if (size < floats) {
    constexpr std::size_t kAlignment = 4096;
    const std::size_t bytes = (static_cast<std::size_t>(floats) * sizeof(float) / kAlignment + 1) * kAlignment;
    memory.reset();
    size = 0;
    memory.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
    if (!memory) throw std::bad_alloc();
    size = floats;
  }
  return memory.get();
}

// run(first, last, scratch) for 0..count-1, each thread one range. An exception leaves no parallel region.
template <class Run>
void share(std::int64_t count, std::int64_t floats, const Run& run) {
#ifdef _OPENMP
  bool failed = false;
#pragma omp parallel reduction(|| : failed)
  {
    const std::int64_t threads = omp_get_num_threads(), index = omp_get_thread_num();
    try {
      const std::int64_t first = count * index / threads, last = count * (index + 1) / threads;
      if (first < last) run(first, last, scratch(floats));
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  }
  if (failed) throw std::bad_alloc();
#else
  run(std::int64_t{0}, count, scratch(floats));
#endif
}

}  // namespace

int layer_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

void set_layer_threads([[maybe_unused]] int threads) {
#ifdef _OPENMP
  omp_set_num_threads(threads);
#endif
}

const LayerKernels* layer_kernels(const char* instructions) {
  const std::string best = cpu_instructions(), wanted = instructions;
  const bool any = wanted.empty();
#ifdef SCTRT_LAYERS_X86
  if (best == "avx512" && __builtin_cpu_supports("avx512bf16") && (any || wanted == "avx512bf16"))
    return &kLayersAvx512Bf16;
  if (best == "avx512" && (any || wanted == "avx512")) return &kLayersAvx512;
  if (best != "baseline" && (any || wanted == "avx2")) return &kLayersAvx2;
#endif
  return any || wanted == "baseline" ? &kLayersBaseline : nullptr;
}

void convolve_winograd(const LayerKernels& kernels, const Convolution& c) {
  share((c.out_height + kTile - 1) / kTile, kernels.winograd_scratch(c),
        [&](std::int64_t first, std::int64_t last, float* memory) { kernels.winograd(c, first, last, memory); });
}

void convolve(const LayerKernels& kernels, const Convolution& c) {
  share(c.out_height, kernels.direct_scratch(c),
        [&](std::int64_t first, std::int64_t last, float* memory) { kernels.direct(c, first, last, memory); });
}

void normalise(const GroupNorm& g) {
  const std::int64_t each = g.channels / g.groups;
  for (std::int64_t c = 0; c < g.padded; ++c) g.scale[c] = g.shift[c] = 0;
  for (std::int64_t first = 0; first < g.channels; first += each) {
    double sum = 0, squares = 0;
    for (std::int64_t row = 0; row < g.rows; ++row)
      for (std::int64_t c = first; c < first + each; ++c) {
        sum += g.sums[2 * row * g.padded + c];
        squares += g.sums[(2 * row + 1) * g.padded + c];
      }
    const double count = static_cast<double>(g.pixels * each), mean = sum / count;
    const double deviation = std::sqrt(std::max(squares / count - mean * mean, 0.0) + g.eps);
    for (std::int64_t c = first; c < first + each; ++c) {
      const double scale = g.weight[c] / deviation;
      g.scale[c] = static_cast<float>(scale);
      g.shift[c] = static_cast<float>(g.bias[c] - scale * mean);
    }
  }
}

void attend(const LayerKernels& kernels, const Attention& a) {
  share((a.positions + kPanel - 1) / kPanel, 1,
        [&](std::int64_t first, std::int64_t last, float*) { kernels.pack_keys(a, first, last); });
  share((a.positions + kQueries - 1) / kQueries, kernels.attention_scratch(a),
        [&](std::int64_t first, std::int64_t last, float* memory) { kernels.attention(a, first, last, memory); });
}

}  // namespace sctrt
