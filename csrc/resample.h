// Trilinear interpolation of a volume on another grid: the arithmetic that both devices share. The loops are in
// resample_cpu.h and resample_cuda.h.
#pragma once

#include <math.h>

#include "kernels.h"

namespace sctrt {

// Note [Resampling]
// An output voxel's position in the input, on each axis (row of the map), is m0 x + (m1 y + m2 z + t), every operation
// rounded to float64. It is clamped to the first and last centres, split into the centre below it and the part of the
// way to the next, and the eight values are mixed in float32 along z, then y, then x. So a map that takes each output
// axis along one input axis (a Separable one: other spacings, crops, flips, other orders of the axes) may mix whole
// input rows along z and y first and then read them along x: the same operations, hence the same bits, on every way
// through the loops and on both devices.
// Rounding is monotone, so a position never falls while an index rises (or never rises): the output voxels that the
// input reaches on an axis are one run of indices, and the positions in a box of output voxels lie between those of
// its corners.

// Half a voxel and the rounding of a map from millimetres: grids that share their outer edge keep it.
constexpr double kReach = 0.5 + 1e-6;

SCTRT_BODY bool reaches(double position, std::int64_t size) {
  return (position >= -kReach) & (position <= static_cast<double>(size - 1) + kReach);
}

// The centres on either side of a position are low and, where there is one, low + 1.
struct Neighbours {
  std::int32_t low;
  float part;  // of the way from low to the next; 0 on the last
};

SCTRT_BODY Neighbours neighbours(double position, std::int64_t size) {
  const double clamped = larger(0.0, smaller(position, static_cast<double>(size - 1)));
  const std::int32_t low = static_cast<std::int32_t>(clamped);
  return {low, static_cast<float>(clamped - static_cast<double>(low))};
}

// On a centre its value comes back bit for bit, whatever stands beside it.
SCTRT_BODY float mix(float low, float high, float part) { return part == 0 ? low : low + part * (high - low); }

// The PET normaliser: value -> 1 - 2 / (1 + r^exponent), r = max(value, 0) / reference. Exponents 1 to 8 multiply, so
// that every device gives the same bits. NaN stays NaN.
struct Normaliser {
  float reference, exponent;
  int whole;  // the exponent, where it is 1 to 8; else 0

  explicit Normaliser(Curve curve) : reference(curve.reference), exponent(curve.exponent), whole(0) {
    if (exponent >= 1 && exponent <= 8 && exponent == floorf(exponent)) whole = static_cast<int>(exponent);
  }

  SCTRT_BODY bool identity() const { return reference == 0; }

  SCTRT_BODY float ratio(float value) const { return (value < 0 ? 0.0f : value) / reference; }

  static SCTRT_BODY float curve(float power) { return 1 - 2 / (1 + power); }

  SCTRT_BODY float whole_power(float r) const {
    const float square = r * r, fourth = square * square;
    const float low = (whole & 1 ? r : 1.0f) * (whole & 2 ? square : 1.0f);
    return low * (whole & 4 ? fourth : 1.0f) * (whole & 8 ? fourth * fourth : 1.0f);
  }

  SCTRT_BODY float operator()(float value) const {
    if (identity()) return value;
    const float r = ratio(value);
    return curve(whole ? whole_power(r) : powf(r, exponent));
  }
};

// What is to be done, as the loops see it.
struct Resampling {
  const float* volume;
  Grid from, to;
  IndexMap map;
  float fill;
  Normaliser normaliser;
  float* out;

  // Of an output row's column 0, on the input's axis 0 (x), 1 (y) or 2 (z).
  SCTRT_BODY double base(int axis, std::int64_t y, std::int64_t z) const {
    const double* m = map.row[axis];
    return m[1] * static_cast<double>(y) + m[2] * static_cast<double>(z) + m[3];
  }

  SCTRT_BODY double position(int axis, std::int64_t x, double base) const {
    return map.row[axis][0] * static_cast<double>(x) + base;
  }

  SCTRT_BODY std::int64_t from_size(int axis) const { return axis == 0 ? from.x : axis == 1 ? from.y : from.z; }
  SCTRT_BODY std::int64_t to_size(int axis) const { return axis == 0 ? to.x : axis == 1 ? to.y : to.z; }

  SCTRT_BODY float value(Neighbours x, Neighbours y, Neighbours z) const {
    const std::int64_t right = x.low + 1 < from.x, below = y.low + 1 < from.y ? from.x : 0;
    const float* a = volume + (z.low * from.y + y.low) * from.x + x.low;
    const float* b = a + (z.low + 1 < from.z ? from.y * from.x : 0);
    const float left_line = mix(mix(a[0], b[0], z.part), mix(a[below], b[below], z.part), y.part);
    const float right_line =
        mix(mix(a[right], b[right], z.part), mix(a[below + right], b[below + right], z.part), y.part);
    return normaliser(mix(left_line, right_line, x.part));
  }

  SCTRT_BODY float at(double x, double y, double z) const {
    if (!(reaches(x, from.x) && reaches(y, from.y) && reaches(z, from.z))) return normaliser(fill);
    return value(neighbours(x, from.x), neighbours(y, from.y), neighbours(z, from.z));
  }
};

// A map whose every input axis runs along an output axis of its own: along[0] is the one (0: x, 1: y, 2: z) that the
// input's x runs along.
struct Separable {
  int along[3];
  bool found;

  explicit Separable(const IndexMap& map) : along{0, 1, 2}, found(false) {
    constexpr int kOrders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (const auto& order : kOrders) {
      bool fits = true;
      for (int axis = 0; axis < 3; ++axis)
        for (int column = 0; column < 3; ++column) fits = fits && (column == order[axis] || map.row[axis][column] == 0);
      if (!fits || found) continue;
      for (int axis = 0; axis < 3; ++axis) along[axis] = order[axis];
      found = true;
    }
  }

  // On the input's axis, where the output's index on the axis that it runs along is given.
  SCTRT_BODY double position(const IndexMap& map, int axis, std::int64_t index) const {
    return map.row[axis][along[axis]] * static_cast<double>(index) + map.row[axis][3];
  }
};

template <class Device>
void resample(Device device, const float* volume, Grid from, IndexMap map, Grid to, float fill, Curve curve,
              float* out) {
  run_resampling(device, Resampling{volume, from, to, map, fill, Normaliser(curve), out});
}

}  // namespace sctrt
