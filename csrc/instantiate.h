// Instantiates every kernel of kernels.h for the device SCTRT_DEVICE. Included by cpu.cpp and cuda.cu alone.
#include "codebook.h"
#include "fusion.h"
#include "planes.h"
#include "resample.h"

namespace sctrt {

template void nearest_code(SCTRT_DEVICE, AnySamples, Codebook, std::int64_t, std::int64_t, std::int32_t*, AnySamples);
template void extract_planes(SCTRT_DEVICE, const float*, Grid, Plane, std::int64_t, std::int64_t, std::int64_t,
                             std::int64_t, float, float*);
template void extract_planes(SCTRT_DEVICE, const float*, Grid, Plane, std::int64_t, std::int64_t, std::int64_t,
                             std::int64_t, float, Half*);
template void insert_planes(SCTRT_DEVICE, const float*, Grid, Plane, std::int64_t, std::int64_t, std::int64_t,
                            std::int64_t, float*);
template void insert_planes(SCTRT_DEVICE, const Half*, Grid, Plane, std::int64_t, std::int64_t, std::int64_t,
                            std::int64_t, float*);
template void fuse_planes(SCTRT_DEVICE, const float*, const float*, const float*, std::int64_t, float, float, float*,
                          float*);
template void resample(SCTRT_DEVICE, const float*, Grid, IndexMap, Grid, float, Curve, float*);

}  // namespace sctrt
