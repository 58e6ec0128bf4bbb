// Fusion on a GPU: a thread loads, fuses and stores four neighbouring voxels at once.
#pragma once

#include "cuda_pack.h"
#include "fusion.h"

namespace sctrt {

template <class Sample, class Out>
struct Predictions {
  const Sample *axial, *coronal, *sagittal;
  std::int64_t voxels;
  Fusion how;
  Out *fused, *spread;
};

template <int width, class Sample, class Out>
__device__ __forceinline__ void fuse_pack(const Predictions<Sample, Out>& p, std::int64_t at) {
  using Samples = Pack<Sample, width>;
  const Samples a = load<width>(p.axial, at), b = load<width>(p.coronal, at), c = load<width>(p.sagittal, at);
  Pack<std::uint8_t, width> inside;
  if (p.how.mask) inside = load<width>(p.how.mask, at);
  Pack<Out, width> fused, spread;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    float axial, coronal, sagittal, value, range;
    convert(a.at[i], axial);
    convert(b.at[i], coronal);
    convert(c.at[i], sagittal);
    if (p.how.middle == Middle::median)
      fuse_voxel<Middle::median>(p.how, axial, coronal, sagittal, value, range);
    else if (p.how.middle == Middle::mean)
      fuse_voxel<Middle::mean>(p.how, axial, coronal, sagittal, value, range);
    else
      fuse_voxel<Middle::nearest>(p.how, axial, coronal, sagittal, value, range);
    const bool outside = p.how.mask && inside.at[i] == 0;
    convert(outside ? p.how.background : value, fused.at[i]);
    convert(outside ? 0.0f : range, spread.at[i]);
  }
  store<width>(fused, p.fused, at);
  store<width>(spread, p.spread, at);
}

// The voxels that do not fill a last pack are left to as many threads of the block that follows in the line.
template <int width, class Sample, class Out>
__global__ void fuse_kernel(Predictions<Sample, Out> p) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x, packs = p.voxels / width;
  const std::int64_t rest = packs * width + (thread - packs);
  if (thread < packs)
    fuse_pack<width>(p, thread * width);
  else if (rest < p.voxels)
    fuse_pack<1>(p, rest);
}

template <class Sample, class Out>
void fuse_planes_on(Cuda device, const Sample* axial, const Sample* coronal, const Sample* sagittal,
                    std::int64_t voxels, Fusion how, Out* fused, Out* spread) {
  constexpr int kThreads = 256, kWidth = 4;
  const Predictions<Sample, Out> predictions{axial, coronal, sagittal, voxels, how, fused, spread};
  const bool aligned = is_aligned<kWidth>(axial) && is_aligned<kWidth>(coronal) && is_aligned<kWidth>(sagittal) &&
                       is_aligned<kWidth>(how.mask) && is_aligned<kWidth>(fused) && is_aligned<kWidth>(spread);
  const std::int64_t threads = aligned ? voxels / kWidth + voxels % kWidth : voxels;
  const dim3 blocks(static_cast<unsigned>((threads + kThreads - 1) / kThreads));  // up to 2^39 voxels
  if (aligned)
    launch(device, fuse_kernel<kWidth, Sample, Out>, blocks, dim3(kThreads), predictions);
  else
    launch(device, fuse_kernel<1, Sample, Out>, blocks, dim3(kThreads), predictions);
}

}  // namespace sctrt
