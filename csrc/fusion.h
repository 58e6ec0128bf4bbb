// Median or a weighted mean of the three planes' predictions and their spread, in one pass.
#pragma once

#include "kernels.h"
#include "stream.h"

namespace sctrt {

// Fused value and spread of one voxel, before the mask.
template <Middle kind>
SCTRT_BODY void fuse_voxel(const Fusion& how, float a, float b, float c, float& fused, float& spread) {
  const float low = smaller(a, b), high = larger(a, b), unit = how.scale < 0 ? -how.scale : how.scale;
  float middle = larger(low, smaller(high, c));
  if constexpr (kind != Middle::median) {
    float wa = how.weights[0], wb = how.weights[1], wc = how.weights[2];
    if constexpr (kind == Middle::nearest) {
      const float ab = high - low, ac = larger(a, c) - smaller(a, c), bc = larger(b, c) - smaller(b, c);
      wa = 1.0f / (smaller(ab, ac) * unit + how.agreement);
      wb = 1.0f / (smaller(ab, bc) * unit + how.agreement);
      wc = 1.0f / (smaller(ac, bc) * unit + how.agreement);
    }
    middle = (a * wa + b * wb + c * wc) / (wa + wb + wc);
  }
  const float range = (larger(high, c) - smaller(low, c)) * unit;
  const float limited = smaller(larger(middle * how.scale + how.offset, how.low), how.high);
  const bool number = (a == a) & (b == b) & (c == c);
  const float nan = bit_cast<float>(0x7fc00000u);
  fused = number ? limited : nan;
  spread = number ? range : nan;
}

// Rounds half to even, saturates; NaN becomes -32768. The sum with 1.5 * 2^23 has the integer in its lowest bits.
SCTRT_BODY void convert(float from, std::int16_t& to) {
  constexpr float kInteger = 12582912.0f;
  const float limited = smaller(from > -32768.0f ? from : -32768.0f, 32767.0f);
  to = static_cast<std::int16_t>(bit_cast<std::uint32_t>(limited + kInteger) - bit_cast<std::uint32_t>(kInteger));
}

template <class Sample, class Out>
struct FusePlanes {
  static constexpr std::int64_t kTask = 1 << 16, kBlock = RunWriter<Out>::kRoom, kAhead = 1024;  // voxels

  const Sample *axial, *coronal, *sagittal;
  std::int64_t voxels;
  Fusion how;
  Out *fused, *spread;
  bool streamed;

  // Outputs may be inputs: what is written was read before, in its own block.
  SCTRT_BODY void operator()(std::int64_t task, std::int64_t, std::int64_t) const {
    const std::int64_t first = task * kTask, last = smaller(first + kTask, voxels);
    RunWriter<Out> fused_run(fused + first, streamed), spread_run(spread + first, streamed);
    for (std::int64_t at = first; at < last; at += kBlock) {
      const std::int64_t count = smaller(kBlock, last - at);
      for (const Sample* in : {axial, coronal, sagittal}) ask_for(in + at + kAhead, kBlock);
      if constexpr (sizeof(Out) == sizeof(float)) {
        fuse_block(at, count, fused_run.room(), spread_run.room());
      } else {
        float middle[kBlock], range[kBlock];
        fuse_block(at, count, middle, range);
        round(middle, count, fused_run.room());
        round(range, count, spread_run.room());
      }
      fused_run.put(count);
      spread_run.put(count);
    }
    fused_run.finish();
    spread_run.finish();
    end_stream();
  }

  SCTRT_BODY void fuse_block(std::int64_t at, std::int64_t count, float* middle, float* range) const {
    if (how.middle == Middle::median)
      fuse<Middle::median>(at, count, middle, range);
    else if (how.middle == Middle::mean)
      fuse<Middle::mean>(at, count, middle, range);
    else
      fuse<Middle::nearest>(at, count, middle, range);
    if (how.mask) mask(at, count, middle, range);
  }

  template <Middle kind>
  SCTRT_BODY void fuse(std::int64_t at, std::int64_t count, float* middle, float* range) const {
    SCTRT_SIMD
    for (std::int64_t i = 0; i < count; ++i) {
      float a, b, c;
      convert(axial[at + i], a);
      convert(coronal[at + i], b);
      convert(sagittal[at + i], c);
      fuse_voxel<kind>(how, a, b, c, middle[i], range[i]);
    }
  }

  SCTRT_BODY void mask(std::int64_t at, std::int64_t count, float* middle, float* range) const {
    SCTRT_SIMD
    for (std::int64_t i = 0; i < count; ++i) {
      const bool inside = how.mask[at + i] != 0;
      middle[i] = inside ? middle[i] : how.background;
      range[i] = inside ? range[i] : 0.0f;
    }
  }

  static SCTRT_BODY void round(const float* values, std::int64_t count, Out* out) {
    SCTRT_SIMD
    for (std::int64_t i = 0; i < count; ++i) convert(values[i], out[i]);
  }
};

template <class Sample, class Out>
void fuse_planes_on(Cpu device, const Sample* axial, const Sample* coronal, const Sample* sagittal, std::int64_t voxels,
                    Fusion how, Out* fused, Out* spread) {
  using Kernel = FusePlanes<Sample, Out>;
  const std::int64_t tasks = (voxels + Kernel::kTask - 1) / Kernel::kTask;
  parallel_for(device, tasks, Kernel::kTask,
               Kernel{axial, coronal, sagittal, voxels, how, fused, spread, is_streamed<Out>(voxels)});
}

template <class Device, class Sample, class Out>
void fuse_planes(Device device, const Sample* axial, const Sample* coronal, const Sample* sagittal, std::int64_t voxels,
                 Fusion how, Out* fused, Out* spread) {
  fuse_planes_on(device, axial, coronal, sagittal, voxels, how, fused, spread);  // on a GPU: fusion_cuda.h
}

}  // namespace sctrt
