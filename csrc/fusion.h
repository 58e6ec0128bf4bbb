// Median of the three planes' predictions and their spread, in one pass.
#pragma once

#include "kernels.h"

namespace sctrt {

struct FusePlanes {
  static constexpr std::int64_t kRow = 8192;  // voxels: a thread's share fits in its first-level cache

  const float *axial, *coronal, *sagittal;
  std::int64_t voxels;
  float scale, offset;
  float *fused, *spread;

  SCTRT_BODY void operator()(std::int64_t row, std::int64_t first, std::int64_t last) const {
    const std::int64_t end = smaller(row * kRow + last, voxels);
    const float spread_scale = scale < 0 ? -scale : scale;
    const float nan = bit_cast<float>(0x7fc00000u);
    SCTRT_SIMD
    for (std::int64_t i = row * kRow + first; i < end; ++i) {
      const float a = axial[i], b = coronal[i], c = sagittal[i];
      const float low = smaller(a, b), high = larger(a, b);
      const float median = larger(low, smaller(high, c)) * scale + offset;
      const float range = (larger(high, c) - smaller(low, c)) * spread_scale;
      const bool number = (a == a) & (b == b) & (c == c);
      fused[i] = number ? median : nan;
      spread[i] = number ? range : nan;
    }
  }
};

template <class Device>
void fuse_planes(Device device, const float* axial, const float* coronal, const float* sagittal, std::int64_t voxels,
                 float scale, float offset, float* fused, float* spread) {
  const std::int64_t rows = (voxels + FusePlanes::kRow - 1) / FusePlanes::kRow;
  parallel_for(device, rows, FusePlanes::kRow,
               FusePlanes{axial, coronal, sagittal, voxels, scale, offset, fused, spread});
}

}  // namespace sctrt
