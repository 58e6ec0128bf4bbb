// The resampler's loops on a GPU: a block of threads does a box of the output. See Note [Resampling].
//
// Consumer GPUs have one float64 unit for 64 of float32. Where the map is Separable, a box works out the neighbours on
// each axis once; in other maps, each voxel adds one or three products on each axis and splits the sum.
#pragma once

#include "resample.h"

namespace sctrt {

// Boxes of the output. Neighbouring threads lie along the axis that runs most along the input's x, so that they read
// neighbouring values. If that is not the output's x, the box is turned in shared memory before it is stored.
struct Boxes {
  static constexpr int kThreads = 32;  // along the first axis of a box
  static constexpr int kRows = 8;      // of threads
  static constexpr int kSlots = 128;   // voxels of a box along the other two axes together

  int axis[3];             // of the output (0: x, 1: y, 2: z): along the threads, and the other two
  int size[3];             // of a box
  std::int64_t extent[3];  // of the output
  std::int64_t stride[3];
  std::int64_t count[3];  // boxes
  bool second_is_inner;   // slots count along the second axis first

  Boxes(Grid to, int threads, int second, int third) : axis{threads, second, third}, size{kThreads, 16, 8} {
    if (second == 0) size[1] = kThreads, size[2] = kSlots / kThreads;
    if (third == 0) size[1] = kSlots / kThreads, size[2] = kThreads;
    second_is_inner = third != 0;
    const std::int64_t extents[3] = {to.x, to.y, to.z}, strides[3] = {1, to.x, to.y * to.x};
    for (int i = 0; i < 3; ++i) {
      extent[i] = extents[axis[i]];
      stride[i] = strides[axis[i]];
      count[i] = (extent[i] + size[i] - 1) / size[i];
    }
  }

  SCTRT_BODY std::int64_t total() const { return count[0] * count[1] * count[2]; }

  // A grid of one dimension: the others end at 65535 blocks.
  dim3 blocks() const { return dim3(static_cast<unsigned>(smaller(total(), std::int64_t{0x7fffffff}))); }

  SCTRT_BODY void origin(std::int64_t box, std::int64_t* at) const {
    at[0] = box % count[0] * size[0];
    at[1] = box / count[0] % count[1] * size[1];
    at[2] = box / count[0] / count[1] * size[2];
  }

  SCTRT_BODY int slot(int second, int third) const {
    return second_is_inner ? third * size[1] + second : second * size[2] + third;
  }
  SCTRT_BODY int second(int slot) const { return second_is_inner ? slot % size[1] : slot / size[2]; }
  SCTRT_BODY int third(int slot) const { return second_is_inner ? slot / size[1] : slot % size[2]; }

  SCTRT_BODY bool holds(const std::int64_t* origin, int slot) const {
    return origin[1] + second(slot) < extent[1] && origin[2] + third(slot) < extent[2];
  }

  SCTRT_BODY void store(float* out, const std::int64_t* origin, int first, int slot, float value) const {
    const std::int64_t a = origin[0] + first, b = origin[1] + second(slot), c = origin[2] + third(slot);
    if (a < extent[0] && holds(origin, slot)) out[a * stride[0] + b * stride[1] + c * stride[2]] = value;
  }
};

// The finished voxels of a turned box; a row is longer than a warp, so that its columns lie in different banks.
using Turned = float[Boxes::kSlots][Boxes::kThreads + 1];

// All threads of the block store the box, neighbours along the output's x, which is the slots' inner axis.
__device__ __forceinline__ void store_turned(const Boxes& boxes, float* out, const std::int64_t* origin,
                                             const Turned& box) {
  for (int row = threadIdx.y; row < Boxes::kSlots; row += Boxes::kRows) {
    const int first = row % Boxes::kThreads, slot = row / Boxes::kThreads * Boxes::kThreads + threadIdx.x;
    boxes.store(out, origin, first, slot, box[slot][first]);
  }
}

struct Place {
  Neighbours at;
  bool inside;
};

// A column of the input's x, z mixed: the values at x.low and beside it in one of the input's rows.
struct Column {
  float left, right;
};

__device__ __forceinline__ Column column_along_z(const Resampling& task, Neighbours x, std::int32_t y, Neighbours z) {
  const std::int64_t slab = task.from.y * task.from.x;
  const float* near = task.volume + z.low * slab + y * task.from.x + x.low;
  const float* far = near + (z.low + 1 < task.from.z ? slab : 0);
  const int right = x.low + 1 < task.from.x;
  return {mix(near[0], far[0], z.part), mix(near[right], far[right], z.part)};
}

// For Separable maps; the axes of a box run along the input's x, y and z. A thread walks along y and keeps the two
// columns that it has: most next voxels need one new one, or none.
template <bool kTurned>
__global__ void __launch_bounds__(Boxes::kThreads* Boxes::kRows)
    resample_separable(Resampling task, Separable order, Boxes boxes) {
  constexpr int kWalk = 16;
  __shared__ Place places[3][Boxes::kThreads];
  __shared__ float turned[kTurned ? Boxes::kSlots : 1][Boxes::kThreads + 1];
  const int walk = smaller(kWalk, boxes.size[1]), walks = boxes.size[1] / walk;
  for (std::int64_t box = blockIdx.x; box < boxes.total(); box += gridDim.x) {
    std::int64_t origin[3];
    boxes.origin(box, origin);
    __syncthreads();  // the last box is done with
    const int axis = threadIdx.y;
    if (axis < 3) {
      const double position = order.position(task.map, axis, origin[axis] + threadIdx.x);
      places[axis][threadIdx.x] = {neighbours(position, task.from_size(axis)), reaches(position, task.from_size(axis))};
    }
    __syncthreads();
    const Place x = places[0][threadIdx.x];
    for (int item = threadIdx.y; item < walks * boxes.size[2]; item += Boxes::kRows) {
      const int third = item / walks, first_second = item % walks * walk;
      const Place z = places[2][third];
      std::int32_t held = -2;
      Column near{0, 0}, far{0, 0};
      for (int second = first_second; second < first_second + walk; ++second) {
        const Place y = places[1][second];
        float value = task.fill;
        if (x.inside && y.inside && z.inside) {
          const std::int32_t next = y.at.low + 1 < task.from.y ? y.at.low + 1 : y.at.low;
          if (y.at.low != held) {
            const Column before = near;
            near = y.at.low == held + 1 ? far : column_along_z(task, x.at, y.at.low, z.at);
            far = y.at.low == held - 1 ? before : column_along_z(task, x.at, next, z.at);
            held = y.at.low;
          }
          value = mix(mix(near.left, far.left, y.at.part), mix(near.right, far.right, y.at.part), x.at.part);
        }
        value = task.normaliser(value);
        if constexpr (kTurned)
          turned[boxes.slot(second, third)][threadIdx.x] = value;
        else
          boxes.store(task.out, origin, threadIdx.x, boxes.slot(second, third), value);
      }
    }
    if constexpr (kTurned) {
      __syncthreads();
      store_turned(boxes, task.out, origin, turned);
    }
  }
}

// The sum of a position, taken apart: what the thread adds to what its voxel's slot gives, on each axis. Rounded as
// Resampling::position and base round it.
template <bool kTurned>
struct Terms {
  double x[3][kTurned ? Boxes::kSlots : 1];  // product of the output's x
  double rest[3][Boxes::kSlots];             // base; or product of the axis that is neither x nor along the threads

  __device__ __forceinline__ void fill(const Resampling& task, const Boxes& boxes, const std::int64_t* origin, int axis,
                                       int slot) {
    std::int64_t at[3] = {0, 0, 0};
    at[boxes.axis[1]] = origin[1] + boxes.second(slot);
    at[boxes.axis[2]] = origin[2] + boxes.third(slot);
    const double* m = task.map.row[axis];
    if constexpr (kTurned) x[axis][slot] = m[0] * static_cast<double>(at[0]);
    const int other = boxes.axis[boxes.axis[1] == 0 ? 2 : 1];
    rest[axis][slot] = kTurned ? m[other] * static_cast<double>(at[other]) : task.base(axis, at[1], at[2]);
  }

  __device__ __forceinline__ double position(int axis, int slot, double thread, double offset) const {
    return kTurned ? x[axis][slot] + ((thread + rest[axis][slot]) + offset) : thread + rest[axis][slot];
  }
};

// Whether a corner of the box lies so that all eight neighbours exist; true of all corners, it is so of all voxels.
__device__ __forceinline__ bool corner_is_interior(const Resampling& task, const Boxes& boxes,
                                                   const std::int64_t* origin, int axis, int corner) {
  std::int64_t at[3];
  for (int i = 0; i < 3; ++i) {
    const std::int64_t last = smaller(origin[i] + boxes.size[i], boxes.extent[i]) - 1;
    at[boxes.axis[i]] = corner >> i & 1 ? last : origin[i];
  }
  const double position = task.position(axis, at[0], task.base(axis, at[1], at[2]));
  return position >= 0 && position < static_cast<double>(task.from_size(axis) - 1);
}

// A position between the first and the last centre.
__device__ __forceinline__ Neighbours split(double position) {
  const std::int32_t low = static_cast<std::int32_t>(position);
  return {low, static_cast<float>(position - static_cast<double>(low))};
}

// For any map.
template <bool kTurned>
__global__ void __launch_bounds__(Boxes::kThreads* Boxes::kRows) resample_oblique(Resampling task, Boxes boxes) {
  __shared__ Terms<kTurned> terms;
  __shared__ bool interior;
  __shared__ float turned[kTurned ? Boxes::kSlots : 1][Boxes::kThreads + 1];
  const int thread = threadIdx.y * Boxes::kThreads + threadIdx.x;
  for (std::int64_t box = blockIdx.x; box < boxes.total(); box += gridDim.x) {
    std::int64_t origin[3];
    boxes.origin(box, origin);
    __syncthreads();  // the last box is done with
    if (thread == 0) interior = true;
    for (int i = thread; i < 3 * Boxes::kSlots; i += Boxes::kThreads * Boxes::kRows)
      terms.fill(task, boxes, origin, i / Boxes::kSlots, i % Boxes::kSlots);
    __syncthreads();
    if (thread < 24 && !corner_is_interior(task, boxes, origin, thread / 8, thread % 8)) interior = false;
    __syncthreads();
    const double along = static_cast<double>(origin[0] + threadIdx.x);
    const double mine[3] = {task.map.row[0][boxes.axis[0]] * along, task.map.row[1][boxes.axis[0]] * along,
                            task.map.row[2][boxes.axis[0]] * along};
    const bool within = origin[0] + threadIdx.x < boxes.extent[0];
    for (int slot = threadIdx.y; slot < Boxes::kSlots; slot += Boxes::kRows) {
      const double x = terms.position(0, slot, mine[0], task.map.row[0][3]);
      const double y = terms.position(1, slot, mine[1], task.map.row[1][3]);
      const double z = terms.position(2, slot, mine[2], task.map.row[2][3]);
      float value = 0;
      if (!interior)
        value = task.at(x, y, z);
      else if (within && boxes.holds(origin, slot))
        value = task.value(split(x), split(y), split(z));
      if constexpr (kTurned)
        turned[slot][threadIdx.x] = value;
      else
        boxes.store(task.out, origin, threadIdx.x, slot, value);
    }
    if constexpr (kTurned) {
      __syncthreads();
      store_turned(boxes, task.out, origin, turned);
    }
  }
}

inline void run_resampling(Cuda device, const Resampling& task) {
  const Separable order(task.map);
  int along[3] = {order.along[0], order.along[1], order.along[2]};
  if (!order.found) {
    const double* m = task.map.row[0];
    for (int axis = 0; axis < 3; ++axis)
      if (fabs(m[axis]) > fabs(m[along[0]])) along[0] = axis;
    along[1] = along[0] == 0 ? 1 : 0;
    along[2] = 3 - along[0] - along[1];
  }
  const Boxes boxes(task.to, along[0], along[1], along[2]);
  const dim3 threads(Boxes::kThreads, Boxes::kRows);
  const bool turned = along[0] != 0;
  if (order.found)
    launch(device, turned ? resample_separable<true> : resample_separable<false>, boxes.blocks(), threads, task, order,
           boxes);
  else
    launch(device, turned ? resample_oblique<true> : resample_oblique<false>, boxes.blocks(), threads, task, boxes);
}

}  // namespace sctrt
