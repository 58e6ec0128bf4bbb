// Nearest codebook entry: candidates out of a tree where there is one, else all codes, a block of positions at a time.
#pragma once

#include <type_traits>

#include "codebook_tree.h"
#include "kernels.h"

namespace sctrt {

// Dimensions is that of a code, or 0 when known only at run time. Tree is WithTree or NoTree.
template <int Lanes, int Dimensions, class Tree>
struct NearestCode {
  static constexpr int kChunk = 512;    // positions of a row: enough rows for the threads, whole blocks of lanes
  static constexpr int kTogether = 16;  // codes of which only the least distance is kept at first
  static constexpr int kStored = Dimensions ? Dimensions : kMaxDimensions;
  static constexpr int kLeft = Lanes == 1 ? 1 : kChunk;  // positions that one call may have to compare with all codes
  static_assert(kChunk % Lanes == 0, "a row is whole blocks");

  AnySamples latent;
  const float* codes;
  int dimensions;
  std::int64_t positions, chunks, count;
  std::int32_t* index;
  AnySamples quantised;
  Tree tree;

  SCTRT_BODY int size() const { return Dimensions ? Dimensions : dimensions; }

  SCTRT_BODY void operator()(std::int64_t row, std::int64_t first, std::int64_t last) const {
    const std::int64_t image = row / chunks, origin = row % chunks * kChunk;
    const int begin = static_cast<int>(first), end = static_cast<int>(smaller(last, positions - origin));
    const std::int64_t corner = image * size() * positions + origin;
    std::int32_t* found = index + image * positions + origin;
    std::int16_t left[kLeft];
    int count_left = 0;
    for (int start = begin; start < end; start += Lanes) {
      const int some = smaller(Lanes, end - start);
      tree.template nearest<Lanes>(latent, corner + start, positions, some, found + start);
    }
    for (int position = begin; position < end; ++position)
      if (found[position] < 0) left[count_left++] = static_cast<std::int16_t>(position);
    for (int start = 0; start < count_left; start += Lanes)
      compare_all(corner, left + start, smaller(Lanes, count_left - start), found);
    for (int d = 0; d < size(); ++d)
      for (int position = begin; position < end; ++position)
        quantised.store(corner + d * positions + position, codes[found[position] * std::int64_t{size()} + d]);
  }

  // Only the least distance of each kTogether codes is kept; which code has it is looked up in the end. The lanes past
  // `valid` repeat the last position and are not stored.
  SCTRT_BODY void compare_all(std::int64_t corner, const std::int16_t* place, int valid, std::int32_t* found) const {
    float z[kStored][Lanes], nearest[Lanes];
    std::int32_t start[Lanes];
    for (int d = 0; d < size(); ++d)
      for (int lane = 0; lane < Lanes; ++lane)
        z[d][lane] = latent.load(corner + d * positions + place[smaller(lane, valid - 1)]);
    for (int lane = 0; lane < Lanes; ++lane) {
      nearest[lane] = bit_cast<float>(0x7f800000u);  // infinity
      start[lane] = 0;
    }
    for (std::int32_t k = 0; k < count; k += kTogether) {
      float least[Lanes];
      for (int lane = 0; lane < Lanes; ++lane) least[lane] = bit_cast<float>(0x7f800000u);
      const std::int32_t end = static_cast<std::int32_t>(smaller<std::int64_t>(k + kTogether, count));
      for (std::int32_t one = k; one < end; ++one) lower(z, codes + one * std::int64_t{size()}, least);
      SCTRT_SIMD
      for (int lane = 0; lane < Lanes; ++lane) {
        const bool nearer = least[lane] < nearest[lane];
        nearest[lane] = nearer ? least[lane] : nearest[lane];
        start[lane] = nearer ? k : start[lane];
      }
    }
    for (int lane = 0; lane < valid; ++lane) found[place[lane]] = first_at(z, lane, start[lane], nearest[lane]);
  }

  // least = min(least, squared distance to the code)
  SCTRT_BODY void lower(const float (&z)[kStored][Lanes], const float* code, float (&least)[Lanes]) const {
    if constexpr (Dimensions != 0) {
      SCTRT_SIMD
      for (int lane = 0; lane < Lanes; ++lane) {
        float sum = squared(z[0][lane] - code[0]);
        for (int d = 1; d < Dimensions; ++d) sum += squared(z[d][lane] - code[d]);
        least[lane] = sum < least[lane] ? sum : least[lane];
      }
    } else {
      float sum[Lanes] = {};
      for (int d = 0; d < size(); ++d) {
        SCTRT_SIMD
        for (int lane = 0; lane < Lanes; ++lane) sum[lane] += squared(z[d][lane] - code[d]);
      }
      SCTRT_SIMD
      for (int lane = 0; lane < Lanes; ++lane) least[lane] = sum[lane] < least[lane] ? sum[lane] : least[lane];
    }
  }

  // The first code from `start` on at this distance; `start` where none is, as for a NaN.
  SCTRT_BODY std::int32_t first_at(const float (&z)[kStored][Lanes], int lane, std::int32_t start,
                                   float distance) const {
    const std::int64_t end = smaller<std::int64_t>(start + kTogether, count);
    for (std::int32_t k = start; k < end; ++k) {
      float sum = 0;
      for (int d = 0; d < size(); ++d) sum += squared(z[d][lane] - codes[k * std::int64_t{size()} + d]);
      if (sum == distance) return sum < bit_cast<float>(0x7f800000u) ? k : 0;
    }
    return start;
  }
};

// nearest: index of the code nearest to each of `count` latents whose dimensions lie at `at` and every `step` on; -1
// where all codes have to be compared.
struct NoTree {
  template <int Lanes>
  SCTRT_BODY void nearest(AnySamples, std::int64_t, std::int64_t, int count, std::int32_t* found) const {
    for (int i = 0; i < count; ++i) found[i] = -1;
  }
};

struct WithTree {
  CodebookTree tree;

  template <int Lanes>
  SCTRT_BODY void nearest(AnySamples latent, std::int64_t at, std::int64_t step, int count, std::int32_t* found) const {
    float z[Lanes][CodebookTree::kDimensions];
    CodebookCell cell[Lanes];
    for (int i = 0; i < count; ++i) {
      for (int d = 0; d < CodebookTree::kDimensions; ++d) z[i][d] = latent.load(at + i + d * step);
      cell[i] = tree.cell_of(z[i]);
      tree.prefetch(cell[i]);
    }
    for (int i = 0; i < count; ++i) found[i] = tree.nearest(z[i], cell[i]);
  }
};

template <int Dimensions, class Tree, class Device>
void nearest_code_of(Device device, AnySamples latent, Codebook codebook, std::int64_t images, std::int64_t positions,
                     std::int32_t* index, AnySamples quantised, Tree tree, std::int64_t cost) {
  using Kernel = NearestCode<Device::kLanes, Dimensions, Tree>;
  const std::int64_t chunks = (positions + Kernel::kChunk - 1) / Kernel::kChunk;
  parallel_for(device, images * chunks, Kernel::kChunk,
               Kernel{latent, codebook.codes, static_cast<int>(codebook.dimensions), positions, chunks, codebook.count,
                      index, quantised, tree},
               cost);
}

template <class Device>
void nearest_code(Device device, AnySamples latent, Codebook codebook, std::int64_t images, std::int64_t positions,
                  std::int32_t* index, AnySamples quantised) {
  constexpr std::int64_t kSearch = 100;  // operations of a search in a tree, about
  if (codebook.tree)
    return nearest_code_of<CodebookTree::kDimensions>(device, latent, codebook, images, positions, index, quantised,
                                                      WithTree{*codebook.tree}, kSearch);
  const auto compare_all = [&](auto dimensions) {
    nearest_code_of<decltype(dimensions)::value>(device, latent, codebook, images, positions, index, quantised,
                                                 NoTree{}, codebook.count * codebook.dimensions);
  };
  if (codebook.dimensions == 3) return compare_all(std::integral_constant<int, 3>{});  // vq-f4
  if (codebook.dimensions == 4) return compare_all(std::integral_constant<int, 4>{});  // vq-f8
  if (codebook.dimensions == 8) return compare_all(std::integral_constant<int, 8>{});
  compare_all(std::integral_constant<int, 0>{});
}

}  // namespace sctrt
