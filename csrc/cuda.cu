// The kernels on a GPU, and what the CUDA runtime answers about GPUs.
#include "codebook_cuda.h"
#include "fusion_cuda.h"
#include "planes_cuda.h"

#define SCTRT_DEVICE Cuda
#include "instantiate.h"
#include "resample_cuda.h"

namespace sctrt {

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();  // an error left behind would be reported by the next launch
  return 0;
}

int cuda_device_of(const void* pointer) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, pointer) != cudaSuccess) {
    (void)cudaGetLastError();
    return -1;
  }
  const bool reachable = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return reachable ? attributes.device : -1;
}

int cuda_version() { return CUDART_VERSION; }

}  // namespace sctrt
