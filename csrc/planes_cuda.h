// Slicing on a GPU: reads and writes run along whole memory transactions in all three planes, and no element costs a
// division.
#pragma once

#include "cuda_pack.h"
#include "planes.h"

namespace sctrt {

constexpr int kBlockThreads = 256;

template <class From, class To, class Map>
struct CudaCopy {
  PlaneCopy copy;
  const From* from;
  To* to;
  Map map;
  To fill;
  unsigned tiles;                // along the axis that blockIdx.x counts first
  bool wide_loads, wide_stores;  // packs are aligned in `from`, in `to`
};

// A block of 32 x 8 threads copies 32 lines of 128 elements; a thread four neighbours where they can be stored at once,
// else every 32nd.
constexpr int kLineTile = 32, kElementTile = 128, kWide = 4;

// Four neighbours at offsets `from` and `to`, of which the first `inner` are copied.
template <class From, class To, class Map>
__device__ __forceinline__ void copy_four(const CudaCopy<From, To, Map>& job, std::int64_t from, std::int64_t inner,
                                          std::int64_t to) {
  Pack<From, kWide> in;
  Pack<To, kWide> out;
  if (inner >= kWide && job.wide_loads) {
    in = load<kWide>(job.from, from);
#pragma unroll
    for (int i = 0; i < kWide; ++i) job.map(in.at[i], out.at[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      out.at[i] = job.fill;
      if (i < inner) job.map(job.from[from + i], out.at[i]);
    }
  }
  store<kWide>(out, job.to, to);
}

// Of the line at offsets `from` and `to` the tile from `first` on; `inner` of the line's elements are copied.
template <class From, class To, class Map>
__device__ __forceinline__ void copy_part_of_line(const CudaCopy<From, To, Map>& job, std::int64_t first,
                                                  std::int64_t from, std::int64_t inner, std::int64_t to) {
  const std::int64_t count = job.copy.element.count;
  if (job.wide_stores) {
    const std::int64_t mine = first + kWide * threadIdx.x;
    if (mine < count) copy_four(job, from + mine, inner - mine, to + mine);
    return;
  }
#pragma unroll
  for (int i = 0; i < kWide; ++i) {
    const std::int64_t mine = first + threadIdx.x + 32 * i;
    if (mine >= count) return;
    To out = job.fill;
    if (mine < inner) job.map(job.from[from + mine], out);
    job.to[to + mine] = out;
  }
}

template <class From, class To, class Map>
__global__ void copy_lines_kernel(CudaCopy<From, To, Map> job) {
  const PlaneCopy& copy = job.copy;
  const std::int64_t element = std::int64_t{blockIdx.x % job.tiles} * kElementTile;
  const std::int64_t first = std::int64_t{blockIdx.x / job.tiles} * kLineTile + threadIdx.y;
  for (std::int64_t channel = blockIdx.z; channel < copy.channel.count; channel += gridDim.z)
    for (std::int64_t group = blockIdx.y; group < copy.group.count; group += gridDim.y)
#pragma unroll 4
      for (int i = 0; i < kLineTile; i += 8) {
        const std::int64_t line = first + i;
        if (line >= copy.line.count) break;
        const std::int64_t inner = copy.is_inside(group, line) ? copy.element.inner : 0;
        copy_part_of_line(job, element, copy.from_offset(group, channel, line, 0), inner,
                          copy.to_offset(group, channel, line, 0));
      }
}

// A block reads a tile along its lines, which lie side by side in `from`, and writes it along its elements, two at once
// where they are aligned. The odd pitch (or, of 8 lines, the multiple of 4) keeps a warp's accesses in different banks.
template <int lines>
struct TransposeTile {
  static constexpr int kLines = lines, kElements = 2048 / lines;
  static constexpr int kPitch = kElements + (lines < 32 ? 32 / lines : 1);
};

template <class Tile, class From>
__device__ __forceinline__ void load_tile(const From* from, std::int64_t step, int lines, int elements, From* tile) {
  const int line = threadIdx.x % Tile::kLines, first = threadIdx.x / Tile::kLines;
  if (line >= lines) return;
#pragma unroll
  for (int i = 0; i < Tile::kElements; i += kBlockThreads / Tile::kLines)
    if (first + i < elements) tile[line * Tile::kPitch + first + i] = from[(first + i) * step + line];
}

// Two elements of a line that has `elements` in the tile, the first `inner` of them to be copied, at offset `to`.
template <class From, class To, class Map>
__device__ __forceinline__ void store_two(const CudaCopy<From, To, Map>& job, const From* tile, int first, int second,
                                          int inner, int elements, std::int64_t to) {
  Pack<To, 2> out;
  job.map(tile[first], out.at[0]);
  job.map(tile[second], out.at[1]);
  if (first >= inner) out.at[0] = job.fill;
  if (second >= inner) out.at[1] = job.fill;
  if (job.wide_stores && second < elements) return store<2>(out, job.to, to + first);
  if (first < elements) job.to[to + first] = out.at[0];
  if (second < elements) job.to[to + second] = out.at[1];
}

template <class Tile, class From, class To, class Map>
__device__ __forceinline__ void store_tile(const CudaCopy<From, To, Map>& job, const From* tile, int lines, int inner,
                                           int elements, std::int64_t to) {
  constexpr int kPairs = Tile::kElements / 2;
  const int pair = threadIdx.x % kPairs;
  const int first = job.wide_stores ? 2 * pair : pair, second = job.wide_stores ? first + 1 : first + kPairs;
#pragma unroll
  for (int i = 0; i < Tile::kLines; i += kBlockThreads / kPairs) {
    const int line = threadIdx.x / kPairs + i;
    if (line < lines)
      store_two(job, tile + line * Tile::kPitch, first, second, inner, elements, to + line * job.copy.line.to);
  }
}

SCTRT_BODY int clamped(std::int64_t left, int most) {
  return static_cast<int>(larger(std::int64_t{0}, smaller(left, std::int64_t{most})));
}

template <class Tile, class From, class To, class Map>
__global__ void copy_transposed_kernel(CudaCopy<From, To, Map> job) {
  __shared__ From tile[Tile::kLines * Tile::kPitch];
  const PlaneCopy& copy = job.copy;
  const std::int64_t line = std::int64_t{blockIdx.x % job.tiles} * Tile::kLines;
  const std::int64_t element = std::int64_t{blockIdx.x / job.tiles} * Tile::kElements;
  const int lines = clamped(copy.line.count - line, Tile::kLines);
  const int elements = clamped(copy.element.count - element, Tile::kElements);
  for (std::int64_t channel = blockIdx.z; channel < copy.channel.count; channel += gridDim.z)
    for (std::int64_t group = blockIdx.y; group < copy.group.count; group += gridDim.y) {
      const int inner = copy.is_inside(group, line) ? clamped(copy.element.inner - element, elements) : 0;
      load_tile<Tile>(job.from + copy.from_offset(group, channel, line, element), copy.element.from, lines, inner,
                      tile);
      __syncthreads();
      store_tile<Tile>(job, tile, lines, inner, elements, copy.to_offset(group, channel, line, element));
      __syncthreads();
    }
}

// Tiles lie along the grid's first axis, groups and channels along the others; blocks take those beyond the grid in
// strides. A grid has 65,535 blocks at most along these axes (CUDA C++ Programming Guide, compute capabilities); fewer
// keep every GPU busy.
inline dim3 copy_blocks(const PlaneCopy& copy, std::int64_t tiles) {
  constexpr std::int64_t kMostBlocks = 1024;
  return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(smaller(copy.group.count, kMostBlocks)),
              static_cast<unsigned>(smaller(copy.channel.count, kMostBlocks)));
}

template <class Tile, class From, class To, class Map>
void copy_transposed(Cuda device, CudaCopy<From, To, Map> job) {
  const PlaneCopy& copy = job.copy;
  const std::int64_t line_tiles = (copy.line.count + Tile::kLines - 1) / Tile::kLines;
  const std::int64_t element_tiles = (copy.element.count + Tile::kElements - 1) / Tile::kElements;
  job.tiles = static_cast<unsigned>(line_tiles);
  job.wide_stores = is_aligned<2>(job.to, {copy.to_start, copy.group.to, copy.channel.to, copy.line.to});
  launch(device, copy_transposed_kernel<Tile, From, To, Map>, copy_blocks(copy, line_tiles * element_tiles),
         dim3(kBlockThreads), job);
}

template <class From, class To, class Map>
void copy_lines(Cuda device, CudaCopy<From, To, Map> job) {
  const PlaneCopy& copy = job.copy;
  const std::int64_t line_tiles = (copy.line.count + kLineTile - 1) / kLineTile;
  const std::int64_t element_tiles = (copy.element.count + kElementTile - 1) / kElementTile;
  job.tiles = static_cast<unsigned>(element_tiles);
  job.wide_loads = is_aligned<kWide>(job.from, {copy.from_start, copy.group.from, copy.channel.from, copy.line.from});
  job.wide_stores =
      is_aligned<kWide>(job.to, {copy.to_start, copy.group.to, copy.channel.to, copy.line.to, copy.element.count});
  launch(device, copy_lines_kernel<From, To, Map>, copy_blocks(copy, line_tiles * element_tiles),
         dim3(32, kBlockThreads / 32), job);
}

template <class From, class To, class Map>
void copy_planes_on(Cuda device, const PlaneCopy& copy, bool transposed, const From* from, Map map, float fill,
                    std::int64_t, To* to) {
  CudaCopy<From, To, Map> job{copy, from, to, map, {}, 0, false, false};
  convert(fill, job.fill);
  if (!transposed)
    copy_lines(device, job);
  else if (copy.line.count <= 8)
    copy_transposed<TransposeTile<8>>(device, job);
  else if (copy.element.count <= 8)
    copy_transposed<TransposeTile<256>>(device, job);
  else
    copy_transposed<TransposeTile<32>>(device, job);
}

}  // namespace sctrt
