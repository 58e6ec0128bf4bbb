// Instantiates every kernel of kernels.h for the device SCTRT_DEVICE. Included by cpu.cpp and cuda.cu alone.
#include "codebook.h"
#include "fusion.h"
#include "planes.h"
#include "resample.h"

namespace sctrt {

template void nearest_code(SCTRT_DEVICE, AnySamples, Codebook, std::int64_t, std::int64_t, std::int32_t*, AnySamples);
#define SCTRT_SAMPLE(Sample)                                                                                         \
  template void extract_planes(SCTRT_DEVICE, const float*, PlaneBatch, float, float, float, Sample*);                \
  template void insert_planes(SCTRT_DEVICE, const Sample*, PlaneBatch, Sample*);                                     \
  template void fuse_planes(SCTRT_DEVICE, const Sample*, const Sample*, const Sample*, std::int64_t, Fusion, float*, \
                            float*);                                                                                 \
  template void fuse_planes(SCTRT_DEVICE, const Sample*, const Sample*, const Sample*, std::int64_t, Fusion,         \
                            std::int16_t*, std::int16_t*);
SCTRT_SAMPLE(float)
SCTRT_SAMPLE(Half)
SCTRT_SAMPLE(Bfloat16)
#undef SCTRT_SAMPLE
template void insert_planes(SCTRT_DEVICE, const Half*, PlaneBatch, float*);
template void insert_planes(SCTRT_DEVICE, const Bfloat16*, PlaneBatch, float*);
template void resample(SCTRT_DEVICE, const float*, Grid, IndexMap, Grid, float, Curve, float*);

}  // namespace sctrt
