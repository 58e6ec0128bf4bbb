// Nearest codebook entry: brute force over the codes, a block of positions at a time, no positions x codes matrix.
#pragma once

#include "kernels.h"

namespace sctrt {

// Dimensions is that of a code, or 0 when known only at run time.
template <int Lanes, int Dimensions>
struct NearestCode {
  static constexpr std::int64_t kChunk = 512;  // positions of a row: enough rows for the threads, whole blocks of lanes
  static_assert(kChunk % Lanes == 0, "a row is whole blocks");

  const float* latent;
  const float* codebook;
  int dimensions;
  std::int64_t positions, chunks, codes;
  std::int32_t* index;
  float* quantised;

  SCTRT_BODY void operator()(std::int64_t row, std::int64_t first, std::int64_t last) const {
    const std::int64_t image = row / chunks, origin = row % chunks * kChunk;
    last = smaller(last, positions - origin);
    for (std::int64_t position = first; position < last; position += Lanes)
      block(image, origin + position, static_cast<int>(smaller<std::int64_t>(Lanes, last - position)));
  }

  // Positions start..start+valid-1 of one image; the lanes past them repeat the last one and are not stored.
  SCTRT_BODY void block(std::int64_t image, std::int64_t start, int valid) const {
    constexpr int kStored = Dimensions ? Dimensions : kMaxDimensions;
    const int size = Dimensions ? Dimensions : dimensions;
    const std::int64_t corner = image * size * positions + start;
    float z[kStored][Lanes], nearest[Lanes];
    std::int32_t code[Lanes];
    for (int d = 0; d < size; ++d)
      for (int lane = 0; lane < Lanes; ++lane) z[d][lane] = latent[corner + d * positions + smaller(lane, valid - 1)];
    for (int lane = 0; lane < Lanes; ++lane) {
      nearest[lane] = bit_cast<float>(0x7f800000u);  // infinity
      code[lane] = 0;
    }
    for (std::int32_t k = 0; k < codes; ++k) {
      const float* entry = codebook + k * std::int64_t{size};
      if constexpr (Dimensions != 0) {
        SCTRT_SIMD
        for (int lane = 0; lane < Lanes; ++lane) {
          float sum = 0;
          for (int d = 0; d < Dimensions; ++d) sum += squared(z[d][lane] - entry[d]);
          keep_nearer(sum, k, nearest[lane], code[lane]);
        }
      } else {
        float sum[Lanes] = {};
        for (int d = 0; d < size; ++d) {
          SCTRT_SIMD
          for (int lane = 0; lane < Lanes; ++lane) sum[lane] += squared(z[d][lane] - entry[d]);
        }
        SCTRT_SIMD
        for (int lane = 0; lane < Lanes; ++lane) keep_nearer(sum[lane], k, nearest[lane], code[lane]);
      }
    }
    for (int lane = 0; lane < valid; ++lane) index[image * positions + start + lane] = code[lane];
    for (int d = 0; d < size; ++d)
      for (int lane = 0; lane < valid; ++lane)
        quantised[corner + d * positions + lane] = codebook[code[lane] * std::int64_t{size} + d];
  }

  static SCTRT_BODY float squared(float value) { return value * value; }

  static SCTRT_BODY void keep_nearer(float distance, std::int32_t k, float& nearest, std::int32_t& code) {
    const bool nearer = distance < nearest;
    nearest = nearer ? distance : nearest;
    code = nearer ? k : code;
  }
};

template <class Device, int Dimensions>
void nearest_code_of(Device device, const float* latent, const float* codebook, std::int64_t images,
                     std::int64_t dimensions, std::int64_t positions, std::int64_t codes, std::int32_t* index,
                     float* quantised) {
  using Kernel = NearestCode<Device::kLanes, Dimensions>;
  const std::int64_t chunks = (positions + Kernel::kChunk - 1) / Kernel::kChunk;
  parallel_for(device, images * chunks, Kernel::kChunk,
               Kernel{latent, codebook, static_cast<int>(dimensions), positions, chunks, codes, index, quantised},
               codes * dimensions);
}

template <class Device>
void nearest_code(Device device, const float* latent, const float* codebook, std::int64_t images,
                  std::int64_t dimensions, std::int64_t positions, std::int64_t codes, std::int32_t* index,
                  float* quantised) {
  auto run = nearest_code_of<Device, 0>;
  if (dimensions == 3) run = nearest_code_of<Device, 3>;  // vq-f4
  if (dimensions == 4) run = nearest_code_of<Device, 4>;  // vq-f8
  run(device, latent, codebook, images, dimensions, positions, codes, index, quantised);
}

}  // namespace sctrt
