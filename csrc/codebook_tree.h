// A codebook of three dimensions cut into cells, each with the few codes that can be nearest to a latent in it.
//
// Note [Codebook tree]
// Boxes of 2, 8, 32, ... times the codebook's size lie around each other; a latent belongs to the smallest that holds
// it. Each box is a grid of 8^3 cells, and a cell is a list of candidates or a node of 4^3 cells, and so on down to
// 2^17 units along an axis. Codes are left out of a list only where they cannot be nearest, nor equally near, to any
// point of the cell in float32 arithmetic either (see codebook_tree.cpp), so a search of the list gives what a search
// of all codes gives, to the bit. Where no list is kept (far outside, or where too many codes are equally near) the
// search says so and all codes are compared.
#pragma once

#include <vector>

#include "kernels.h"

namespace sctrt {

SCTRT_BODY float squared(float value) { return value * value; }

// begin: of its groups of candidates, or of its 64 cells where count is kNode. kMany: no list is kept.
struct CodebookCell {
  static constexpr std::int32_t kNode = -1, kMany = -2;

  std::int32_t begin, count;
};

// Candidates that are compared at once; of those that fill up a list's last group the codes are infinite.
struct CodebookGroup {
  static constexpr int kSize = 8;

  float code[3][kSize];
  std::int32_t index[kSize];
};

struct CodebookTree {
  static constexpr int kDimensions = 3;
  static constexpr int kBits = 17, kRootBits = 3, kNodeBits = 2;  // of a latent's place in a box, along each axis
  static constexpr int kBoxes = 6;
  static constexpr float kHalf = 1 << (kBits - 1);  // units from a box's centre to its sides
  static constexpr float kGrowth = 4;               // from box to box; 2 of the 8 root cells are the box within

  const CodebookCell* cells;  // the boxes' root cells, box by box, then the nodes
  const CodebookGroup* groups;
  float centre[kDimensions];
  float scale[kDimensions];  // units of the innermost box per unit of the latent, powers of two

  // The cell that a latent lies in; kMany where there is none.
  SCTRT_BODY CodebookCell cell_of(const float z[kDimensions]) const {
    float units[kDimensions];
    std::int64_t box = 0;
    // Powers of two scale exactly: z - centre is the only rounding on the way to a cell.
    for (int d = 0; d < kDimensions; ++d) units[d] = (z[d] - centre[d]) * scale[d];
    while (!(inside(units[0]) && inside(units[1]) && inside(units[2]))) {
      if (++box == kBoxes) return {0, CodebookCell::kMany};
      for (int d = 0; d < kDimensions; ++d) units[d] *= 1 / kGrowth;
    }
    const std::int32_t x = place(units[0]), y = place(units[1]), z_ = place(units[2]);
    int shift = kBits - kRootBits;
    CodebookCell cell = cells[(box << 3 * kRootBits) + within(x, y, z_, shift, kRootBits)];
    while (cell.count == CodebookCell::kNode) {
      shift -= kNodeBits;
      cell = cells[cell.begin + within(x, y, z_, shift, kNodeBits)];
    }
    return cell;
  }

  // Asks for a cell's first groups, which are too many for the caches that are near.
  SCTRT_BODY void prefetch([[maybe_unused]] CodebookCell cell) const {
#ifndef __CUDACC__
    if (cell.count <= 0) return;
    const char* first = reinterpret_cast<const char*>(groups + cell.begin);
    __builtin_prefetch(first);
    __builtin_prefetch(first + 64);
#endif
  }

  // Index of the code nearest to z among those of its cell, lowest of equals; -1 where no list is kept.
  SCTRT_BODY std::int32_t nearest(const float z[kDimensions], CodebookCell cell) const {
    if (cell.count < 0) return -1;
    constexpr int kSize = CodebookGroup::kSize;
    float least[kSize];
    std::int32_t index[kSize];
    for (int lane = 0; lane < kSize; ++lane) {
      least[lane] = bit_cast<float>(0x7f800000u);  // infinity
      index[lane] = 0;
    }
    for (std::int32_t g = cell.begin; g < cell.begin + cell.count; ++g) {
      const CodebookGroup& group = groups[g];
      SCTRT_SIMD
      for (int lane = 0; lane < kSize; ++lane) {
        float distance = squared(z[0] - group.code[0][lane]);
        for (int d = 1; d < kDimensions; ++d) distance += squared(z[d] - group.code[d][lane]);
        const bool nearer = distance < least[lane];
        index[lane] = nearer ? group.index[lane] : index[lane];
        least[lane] = nearer ? distance : least[lane];
      }
    }
    for (int half = kSize / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane) {
        const float other = least[lane + half];
        const std::int32_t code = index[lane + half];
        const bool nearer = (other < least[lane]) | ((other == least[lane]) & (code < index[lane]));
        index[lane] = nearer ? code : index[lane];
        least[lane] = nearer ? other : least[lane];
      }
    return index[0];
  }

  static SCTRT_BODY bool inside(float units) { return units >= -kHalf && units < kHalf; }

  // 0..2^kBits - 1
  static SCTRT_BODY std::int32_t place(float units) {
    const std::int32_t truncated = static_cast<std::int32_t>(units);
    return truncated - (units < static_cast<float>(truncated)) + static_cast<std::int32_t>(kHalf);
  }

  static SCTRT_BODY std::int32_t within(std::int32_t x, std::int32_t y, std::int32_t z, int shift, int bits) {
    const std::int32_t mask = (1 << bits) - 1;
    return (((z >> shift & mask) << bits | (y >> shift & mask)) << bits) | (x >> shift & mask);
  }
};

// What a CodebookTree points to, on the host. No cells: the codes have no tree (see build_codebook_tree).
struct CodebookTreeData {
  std::vector<CodebookCell> cells;
  std::vector<CodebookGroup> groups;
  float centre[CodebookTree::kDimensions], scale[CodebookTree::kDimensions];
};

// codes: [count, 3]. Codes with NaN or infinity are never nearest and are left out. There is no tree where the finite
// ones do not span a box whose size and squares are normal float32 numbers: then all codes have to be compared.
CodebookTreeData build_codebook_tree(const float* codes, std::int64_t count);

}  // namespace sctrt
