// Trilinear interpolation of a volume on another grid. Positions are computed in float64, values in float32.
#pragma once

#include "kernels.h"

namespace sctrt {

struct Resample {
  // Half a voxel and the rounding of a map from millimetres: grids that share their outer edge keep it.
  static constexpr double kReach = 0.5 + 1e-6;

  static constexpr std::int64_t kCost = 16;

  const float* volume;
  Grid from, to;
  IndexMap map;
  float fill;
  float* out;

  struct Neighbours {
    std::int64_t low, high;  // indices of the centres on either side
    float part;              // of the way from low to high
  };

  static SCTRT_BODY bool reaches(double position, std::int64_t size) {
    return position >= -kReach && position <= static_cast<double>(size - 1) + kReach;
  }

  static SCTRT_BODY Neighbours neighbours(double position, std::int64_t size) {
    const double clamped = larger(0.0, smaller(position, static_cast<double>(size - 1)));
    const std::int64_t low = static_cast<std::int64_t>(clamped);
    return {low, smaller(low + 1, size - 1), static_cast<float>(clamped - static_cast<double>(low))};
  }

  // On a centre its value comes back bit for bit, whatever stands beside it.
  static SCTRT_BODY float mix(float low, float high, float part) { return part == 0 ? low : low + part * (high - low); }

  SCTRT_BODY float line(std::int64_t start, Neighbours x) const {
    return mix(volume[start + x.low], volume[start + x.high], x.part);
  }

  SCTRT_BODY float at(double px, double py, double pz) const {
    if (!(reaches(px, from.x) && reaches(py, from.y) && reaches(pz, from.z))) return fill;
    const Neighbours x = neighbours(px, from.x), y = neighbours(py, from.y), z = neighbours(pz, from.z);
    const std::int64_t low = z.low * from.y, high = z.high * from.y;
    const float near = mix(line((low + y.low) * from.x, x), line((low + y.high) * from.x, x), y.part);
    const float far = mix(line((high + y.low) * from.x, x), line((high + y.high) * from.x, x), y.part);
    return mix(near, far, z.part);
  }

  SCTRT_BODY void operator()(std::int64_t row, std::int64_t first, std::int64_t last) const {
    const double y = static_cast<double>(row % to.y), z = static_cast<double>(row / to.y);
    const double base[3] = {map.row[0][1] * y + map.row[0][2] * z + map.row[0][3],
                            map.row[1][1] * y + map.row[1][2] * z + map.row[1][3],
                            map.row[2][1] * y + map.row[2][2] * z + map.row[2][3]};
    for (std::int64_t column = first; column < last; ++column) {
      const double x = static_cast<double>(column);
      out[row * to.x + column] =
          at(map.row[0][0] * x + base[0], map.row[1][0] * x + base[1], map.row[2][0] * x + base[2]);
    }
  }
};

template <class Device>
void resample(Device device, const float* volume, Grid from, IndexMap map, Grid to, float fill, float* out) {
  parallel_for(device, to.z * to.y, to.x, Resample{volume, from, to, map, fill, out}, Resample::kCost);
}

}  // namespace sctrt
