// The kernels on a CPU; what a build without CUDA answers about GPUs.
#define SCTRT_DEVICE Cpu
#include "instantiate.h"
#include "resample_cpu.h"

#ifndef SCTRT_CUDA
namespace sctrt {

int cuda_device_count() { return 0; }
int cuda_device_of(const void*) { return -1; }
int cuda_version() { return 0; }

}  // namespace sctrt
#endif
