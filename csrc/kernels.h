// The native API: each kernel declared once, for both devices. Pointers lie on the device, arrays are C-contiguous and
// do not overlap (but for fuse_planes, which may write over its inputs); shapes stand beside their pointers.
// Defined in codebook.h, planes.h, fusion.h and resample.h; instantiated in cpu.cpp and cuda.cu.
#pragma once

#include "device.h"

namespace sctrt {

constexpr int kMaxDimensions = 64;  // of a code

// A codebook [count, dimensions] with dimensions in 1..kMaxDimensions; `tree` finds candidates where there is one.
struct CodebookTree;
struct Codebook {
  const float* codes;
  std::int64_t count, dimensions;
  const CodebookTree* tree;  // on the host; what it points to lies on the device; or null
};

// index = argmin over codes k of sum over d of (latent[d] - codes[k, d])^2, lowest k of equals; 0 when no distance is a
// number below infinity. float32, summed in the order of d, unfused: the same bits on every device, with a tree or not.
template <class Device>
void nearest_code(Device device,
                  AnySamples latent,  // [images, dimensions, positions]
                  Codebook codebook, std::int64_t images, std::int64_t positions,
                  std::int32_t* index,    // [images, positions]
                  AnySamples quantised);  // [images, dimensions, positions]

struct Grid {
  std::int64_t channels, z, y, x;
};

enum class Plane { axial, coronal, sagittal };

// How the slices of a plane lie in a volume [channels, z, y, x]: their number and size, and the steps in elements.
struct Slices {
  std::int64_t count, height, width;
  std::int64_t channel_step, slice_step, row_step, column_step;
};

inline Slices slices_of(Grid grid, Plane plane) {
  const std::int64_t row = grid.x, slab = grid.y * grid.x, all = grid.z * slab;
  switch (plane) {
    case Plane::axial:
      return {grid.z, grid.y, grid.x, all, slab, row, 1};
    case Plane::coronal:
      return {grid.y, grid.z, grid.x, all, row, slab, 1};
    default:
      return {grid.x, grid.z, grid.y, all, 1, slab, row};
  }
}

// Slices start..start+count-1 of a volume and the padded planes that hold them: slice s of channel c lies in the upper
// left corner of planes[s - start, c].
struct PlaneBatch {
  Grid grid;
  Plane plane;
  std::int64_t start, count, height, width;  // height and width of a plane, at least those of a slice
};

// volume * scale + offset, unfused in float32, then rounded to Sample (float, Half or Bfloat16); `fill` as it is to the
// right and below.
template <class Device, class Sample>
void extract_planes(Device device,
                    const float* volume,  // [channels, z, y, x]
                    PlaneBatch batch, float scale, float offset, float fill,
                    Sample* planes);  // [count, channels, height, width]

// The inverse without scale: the upper left corner of each plane to its slice. Voxel is float or Sample.
template <class Device, class Sample, class Voxel>
void insert_planes(Device device,
                   const Sample* planes,  // [count, channels, height, width]
                   PlaneBatch batch,
                   Voxel* volume);  // [channels, z, y, x]

// How three predictions become one. In float32, each operation rounded:
//   middle = the median, or (axial * w0 + coronal * w1 + sagittal * w2) / (w0 + w1 + w2); the weights are given (mean),
//            or of each prediction 1 / (|distance to the nearer of the others| * |scale| + agreement) (nearest)
//   fused = middle * scale + offset, clamped to low..high;  spread = (maximum - minimum) * |scale|
// Both are NaN where any prediction is; where the mask is 0, fused is `background` and spread 0.
enum class Middle { median, mean, nearest };

struct Fusion {
  Middle middle;
  float weights[3];
  float agreement;  // in the unit of scale and offset, above 0: predictions that differ by less count alike
  float scale, offset, low, high;
  const std::uint8_t* mask;  // [voxels], or null: all voxels are inside
  float background;
};

// Sample is float, Half or Bfloat16; Out is float or int16 (rounded half to even, saturated, NaN becomes -32768).
template <class Device, class Sample, class Out>
void fuse_planes(Device device, const Sample* axial, const Sample* coronal, const Sample* sagittal,  // [voxels]
                 std::int64_t voxels, Fusion how, Out* fused,
                 Out* spread);  // [voxels], in the unit of scale and offset

// Rows of the affine map from an output voxel's index (x, y, z, 1) to the input's (x, y, z), in voxels.
struct IndexMap {
  double row[3][4];
};

// The PET normaliser, 1 - 2 / (1 + r^exponent) of r = max(value, 0) / reference; none where the reference is 0.
struct Curve {
  float reference, exponent;
};

// Trilinear. Up to half a voxel outside the first and last centres the edge is continued; beyond, `fill`. Then the
// curve, of `fill` too. Extents are below 2^31.
template <class Device>
void resample(Device device,
              const float* volume,  // [from.z, from.y, from.x]
              Grid from, IndexMap map, Grid to, float fill, Curve curve,
              float* out);  // [to.z, to.y, to.x]

}  // namespace sctrt
