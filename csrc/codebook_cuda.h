// Comparing all codes on a GPU: a tile of the codebook in shared memory, several positions a thread. For codes of
// common dimensions without a tree; the tree's search and other dimensions run the body in codebook.h.
#pragma once

#include "codebook.h"

namespace sctrt {

template <int Dimensions>
struct CompareAll {
  static constexpr int kThreads = 128, kPositions = 4;  // of a block; of a thread
  static constexpr int kPadded = (Dimensions + 3) / 4 * 4;
  static constexpr int kTile = 4096 / kPadded;  // codes: 16 KiB
  using Kernel = NearestCode<kPositions, Dimensions, NoTree>;

  Kernel kernel;
  std::int64_t all;  // positions of all images

  // Of a thread's positions, the place where dimension 0 of the latent lies.
  __device__ std::int64_t corner(std::int64_t position) const {
    return position / kernel.positions * Dimensions * kernel.positions + position % kernel.positions;
  }
};

template <int Dimensions>
__global__ void compare_all_codes(CompareAll<Dimensions> job) {
  using Job = CompareAll<Dimensions>;
  constexpr int kTogether = Job::Kernel::kTogether;
  static_assert(Job::kTile % kTogether == 0, "codes that are kept together lie in one tile");
  __shared__ float4 tile[Job::kTile * Job::kPadded / 4];
  float* flat = &tile[0].x;
  const typename Job::Kernel& kernel = job.kernel;
  const std::int64_t first = std::int64_t{blockIdx.x} * Job::kThreads * Job::kPositions + threadIdx.x;
  float z[Dimensions][Job::kPositions], nearest[Job::kPositions];
  std::int32_t start[Job::kPositions];
  for (int p = 0; p < Job::kPositions; ++p) {
    const std::int64_t corner = job.corner(smaller(first + p * Job::kThreads, job.all - 1));
    for (int d = 0; d < Dimensions; ++d) z[d][p] = kernel.latent.load(corner + d * kernel.positions);
    nearest[p] = bit_cast<float>(0x7f800000u);  // infinity
    start[p] = 0;
  }
  for (std::int64_t begin = 0; begin < kernel.count; begin += Job::kTile) {
    const int count = static_cast<int>(smaller<std::int64_t>(Job::kTile, kernel.count - begin));
    __syncthreads();  // the tile before is done with
    for (int i = threadIdx.x; i < count * Dimensions; i += Job::kThreads)
      flat[i / Dimensions * Job::kPadded + i % Dimensions] = kernel.codes[begin * Dimensions + i];
    __syncthreads();
    for (int k = 0; k < count; k += kTogether) {
      float least[Job::kPositions];
      for (int p = 0; p < Job::kPositions; ++p) least[p] = bit_cast<float>(0x7f800000u);
      const int end = smaller(k + kTogether, count);
      for (int one = k; one < end; ++one) {
        float code[Job::kPadded];
        for (int q = 0; q < Job::kPadded / 4; ++q) {
          const float4 part = tile[one * (Job::kPadded / 4) + q];
          code[4 * q] = part.x, code[4 * q + 1] = part.y, code[4 * q + 2] = part.z, code[4 * q + 3] = part.w;
        }
        kernel.lower(z, code, least);
      }
      for (int p = 0; p < Job::kPositions; ++p) {
        const bool nearer = least[p] < nearest[p];
        nearest[p] = nearer ? least[p] : nearest[p];
        start[p] = nearer ? static_cast<std::int32_t>(begin) + k : start[p];
      }
    }
  }
#pragma unroll  // so that z stays in registers
  for (int p = 0; p < Job::kPositions; ++p) {
    const std::int64_t position = first + p * Job::kThreads;
    if (position >= job.all) return;
    const std::int32_t found = kernel.first_at(z, p, start[p], nearest[p]);
    kernel.index[position] = found;
    const std::int64_t corner = job.corner(position);
    for (int d = 0; d < Dimensions; ++d)
      kernel.quantised.store(corner + d * kernel.positions, kernel.codes[found * std::int64_t{Dimensions} + d]);
  }
}

template <int Dimensions>
void nearest_code_of(Cuda device, AnySamples latent, Codebook codebook, std::int64_t images, std::int64_t positions,
                     std::int32_t* index, AnySamples quantised, NoTree, std::int64_t cost) {
  if constexpr (Dimensions == 0) {
    nearest_code_of<0, NoTree, Cuda>(device, latent, codebook, images, positions, index, quantised, NoTree{}, cost);
  } else {
    using Job = CompareAll<Dimensions>;
    const Job job{{latent, codebook.codes, Dimensions, positions, 0, codebook.count, index, quantised, NoTree{}},
                  images * positions};
    constexpr std::int64_t kBlock = Job::kThreads * Job::kPositions;
    const dim3 blocks(static_cast<unsigned>((job.all + kBlock - 1) / kBlock));
    launch(device, compare_all_codes<Dimensions>, blocks, dim3(Job::kThreads), job);
  }
}

}  // namespace sctrt
