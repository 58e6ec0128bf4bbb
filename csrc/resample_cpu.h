// The resampler's loops on a CPU: lines for Separable maps, tiles for the others. See Note [Resampling].
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <vector>

#include "resample.h"

namespace sctrt {

constexpr std::int64_t kCacheLine = 64 / sizeof(float);  // in floats

#ifdef __SSE2__
// Four lanes of mix(); without kCentres no part may be 0.
template <bool kCentres>
SCTRT_BODY __m128 mix4(__m128 low, __m128 high, __m128 part) {
  const __m128 mixed = _mm_add_ps(low, _mm_mul_ps(part, _mm_sub_ps(high, low)));
  if (!kCentres) return mixed;
  const __m128 centre = _mm_cmpeq_ps(part, _mm_setzero_ps());
  return _mm_or_ps(_mm_and_ps(centre, low), _mm_andnot_ps(centre, mixed));
}

// a[0], a[1], b[0], b[1]: a load for two neighbours, where a gather would take one for each.
SCTRT_BODY __m128 pairs(const float* a, const float* b) {
  const __m128 low = _mm_loadl_pi(_mm_setzero_ps(), reinterpret_cast<const __m64*>(a));
  return _mm_loadh_pi(low, reinterpret_cast<const __m64*>(b));
}

SCTRT_BODY __m128 firsts(__m128 ab, __m128 cd) { return _mm_shuffle_ps(ab, cd, _MM_SHUFFLE(2, 0, 2, 0)); }
SCTRT_BODY __m128 seconds(__m128 ab, __m128 cd) { return _mm_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 1, 3, 1)); }
#endif

// Writes finished voxels. A large output goes past the caches: it would only drive the input out of them.
struct Store {
  static constexpr std::int64_t kStreamBytes = std::int64_t{32} << 20;  // a last-level cache's worth

  bool stream;

  explicit Store(Grid to) : stream(to.z * to.y * to.x * std::int64_t{sizeof(float)} > kStreamBytes) {}

  // Floats from the start of the cache line to `pointer`.
  static SCTRT_BODY std::int64_t in_line(const float* pointer) {
    return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(pointer) / sizeof(float)) % kCacheLine;
  }

  SCTRT_BODY void run(const float* from, std::int64_t count, float* to) const {
    std::int64_t done = 0;
#ifdef __SSE2__
    if (stream) {
      const std::int64_t head = smaller(count, (kCacheLine - in_line(to)) % kCacheLine);
      const std::int64_t whole = head + (count - head) / kCacheLine * kCacheLine;
      for (; done < head; ++done) to[done] = from[done];
      for (; done < whole; done += 4) _mm_stream_ps(to + done, _mm_loadu_ps(from + done));
    }
#endif
    for (; done < count; ++done) to[done] = from[done];
  }

  // kCacheLine lines [count] of `from` become columns: to[i * step + line] = from[line * pitch + i].
  SCTRT_BODY void turn(const float* from, std::int64_t pitch, std::int64_t lines, std::int64_t count, float* to,
                       std::int64_t step) const {
    std::int64_t done = 0;
#ifdef __SSE2__
    const bool aligned = in_line(to) == 0 && step % kCacheLine == 0;
    if (lines == kCacheLine && stream && aligned)
      for (; done + 4 <= count; done += 4)
        turn4(from + done, pitch, to + done * step, step, [](float* p, __m128 v) { _mm_stream_ps(p, v); });
    else if (lines == kCacheLine)
      for (; done + 4 <= count; done += 4)
        turn4(from + done, pitch, to + done * step, step, [](float* p, __m128 v) { _mm_storeu_ps(p, v); });
#endif
    for (; done < count; ++done)
      for (std::int64_t line = 0; line < lines; ++line) to[done * step + line] = from[line * pitch + done];
  }

#ifdef __SSE2__
  template <class Put>
  static SCTRT_BODY void turn4(const float* from, std::int64_t pitch, float* to, std::int64_t step, const Put& put) {
    __m128 part[4][4];  // four columns of four lines each
    for (int lines = 0; lines < 4; ++lines) {
      for (int i = 0; i < 4; ++i) part[lines][i] = _mm_loadu_ps(from + (4 * lines + i) * pitch);
      _MM_TRANSPOSE4_PS(part[lines][0], part[lines][1], part[lines][2], part[lines][3]);
    }
    for (int i = 0; i < 4; ++i)
      for (int lines = 0; lines < 4; ++lines) put(to + i * step + 4 * lines, part[lines][i]);
  }
#endif

  // Orders streamed stores before what this thread does next.
  SCTRT_BODY void finish() const {
#ifdef __SSE2__
    if (stream) _mm_sfence();
#endif
  }
};

SCTRT_BODY void normalise(const Normaliser& normaliser, std::int64_t count, float* values) {
  if (normaliser.identity()) return;
  if (normaliser.whole) {
    SCTRT_SIMD
    for (std::int64_t i = 0; i < count; ++i)
      values[i] = Normaliser::curve(normaliser.whole_power(normaliser.ratio(values[i])));
  } else {
    for (std::int64_t i = 0; i < count; ++i) values[i] = normaliser(values[i]);
  }
}

// Neighbours on an input axis for each index on the output axis that it runs along.
struct AxisTable {
  std::vector<std::int32_t> low;
  std::vector<float> part;
  std::int64_t first = 0, last = 0;  // the indices that the input reaches

  AxisTable(const Resampling& task, const Separable& order, int axis)
      : low(task.to_size(order.along[axis])), part(low.size()) {
    for (std::size_t i = 0; i < low.size(); ++i) {
      const double position = order.position(task.map, axis, static_cast<std::int64_t>(i));
      const Neighbours at = neighbours(position, task.from_size(axis));
      low[i] = at.low;
      part[i] = at.part;
      if (!reaches(position, task.from_size(axis))) continue;
      if (last == 0) first = static_cast<std::int64_t>(i);
      last = static_cast<std::int64_t>(i) + 1;
    }
  }
};

// A stretch of an output line along the input's x, and the input columns that it reads.
struct Segment {
  std::int64_t first, last;    // of the line
  std::int64_t begin, end;     // those of them that the input reaches
  std::int64_t column, count;  // of the input's rows
  int step;                    // 1 or -1 where the line follows the input column by column, else 0

  Segment(const AxisTable& x, std::int64_t first_, std::int64_t last_, std::int64_t size)
      : first(first_), last(last_), column(0), count(0), step(0) {
    begin = smaller(larger(x.first, first), last);
    end = larger(smaller(x.last, last), begin);
    if (begin == end) return;
    const std::int64_t one = x.low[begin], other = x.low[end - 1];
    column = smaller(one, other);
    count = smaller(larger(one, other) + 2, size) - column;
    if (end - begin == 1) return;
    step = x.low[begin + 1] - x.low[begin];
    for (std::int64_t i = begin + 1; i < end; ++i)
      if (x.low[i] - x.low[i - 1] != step || step * step != 1) step = 0;
  }
};

// For Separable maps: mixes input rows along z and y, and reads the result along x. A call does kLines lines: of the
// output's x they are its rows; otherwise they are turned, a cache line of the output at a time.
struct ResampleLines {
  static constexpr std::int64_t kColumns = 2048;  // of the input a segment: three such rows stay in the L1 cache
  static constexpr std::int64_t kMaxStep = 16;    // input columns a voxel: beyond, whole rows are not worth mixing
  static constexpr std::int64_t kLines = kCacheLine;
  static constexpr std::int64_t kLongest = 2048, kLongestTurned = 256;  // segments
  static constexpr std::int64_t kCost = 4;

  struct Axis {  // y or z of the input, and the output axis along it
    const std::int32_t* low;
    const float* part;
    std::int64_t first, last;    // see AxisTable
    std::int64_t step;           // of the input [elements]
    std::int64_t count, stride;  // of the output, in voxels and elements

    SCTRT_BODY bool reached(std::int64_t index) const { return index >= first && index < last; }
  };

  Resampling task;
  Store store;
  const std::int32_t* low;  // of x
  const float* part;
  std::int64_t stride;  // of a line in the output; 1 if it is not turned
  Axis y, z;
  bool along_z;  // kLines neighbouring lines run along the input's z, not y
  const Segment* segments;
  std::int64_t segment_count, blocks;
  std::int64_t shift;  // lines that the first block lacks, so that the others begin with a cache line

  // Input rows of a segment, mixed: one element more, which is read where there is no neighbour, and not used.
  struct Rows {
    alignas(64) float along_z[2][kColumns + kCacheLine];  // the latest even and the latest odd one
    alignas(64) float along_y[kColumns + kCacheLine];
    std::int64_t held[2] = {-1, -1}, z = -1;
  };

  SCTRT_BODY void operator()(std::int64_t row, std::int64_t, std::int64_t) const {
    const Segment segment = segments[row / blocks % segment_count];
    const std::int64_t other = row / blocks / segment_count, block = row % blocks * kLines - shift;
    const Axis &across = along_z ? z : y, &outer = along_z ? y : z;
    const std::int64_t first = larger(block, std::int64_t{0}), last = smaller(block + kLines, across.count);
    const std::int64_t count = segment.last - segment.first;
    float* to = task.out + segment.first * stride + first * across.stride + other * outer.stride;
    Rows rows;
    alignas(64) float lines[kLines * kLongestTurned];
    static_assert(kLines * kLongestTurned >= kLongest, "a line that is not turned fits");
    for (std::int64_t line = first; line < last; ++line) {
      const std::int64_t at_y = along_z ? other : line, at_z = along_z ? line : other;
      float* target = to + (line - first) * across.stride;
      const bool direct = stride == 1 && !store.stream;
      float* finished = direct ? target : stride == 1 ? lines : lines + (line - first) * kLongestTurned;
      make_line(segment, at_y, at_z, rows, finished);
      if (stride == 1 && !direct) store.run(finished, count, target);
    }
    if (stride != 1) store.turn(lines, kLongestTurned, last - first, count, to, stride);
    store.finish();
  }

  SCTRT_BODY void make_line(const Segment& segment, std::int64_t at_y, std::int64_t at_z, Rows& rows, float* to) const {
    const bool inside = y.reached(at_y) && z.reached(at_z);
    const std::int64_t begin = inside ? segment.begin : segment.last, end = inside ? segment.end : segment.last;
    for (std::int64_t i = segment.first; i < begin; ++i) to[i - segment.first] = task.fill;
    for (std::int64_t i = end; i < segment.last; ++i) to[i - segment.first] = task.fill;
    if (begin < end) {
      const float* row = mixed_row(segment, at_y, at_z, rows);
      read_row(segment, row, to + (begin - segment.first));
    }
    normalise(task.normaliser, segment.last - segment.first, to);
  }

  SCTRT_BODY const float* mixed_row(const Segment& segment, std::int64_t at_y, std::int64_t at_z, Rows& rows) const {
    const float* near = row_along_z(segment, y.low[at_y], at_z, rows);
    if (y.part[at_y] == 0) return near;
    const float* far = row_along_z(segment, y.low[at_y] + 1, at_z, rows);
    mix_rows(near, far, y.part[at_y], segment.count, rows.along_y);
    return rows.along_y;
  }

  SCTRT_BODY const float* row_along_z(const Segment& segment, std::int64_t input_y, std::int64_t at_z,
                                      Rows& rows) const {
    if (rows.z != at_z) rows.held[0] = rows.held[1] = -1;
    rows.z = at_z;
    float* row = rows.along_z[input_y % 2];
    if (rows.held[input_y % 2] == input_y) return row;
    rows.held[input_y % 2] = input_y;
    const float* near = task.volume + z.low[at_z] * z.step + input_y * y.step + segment.column;
    mix_rows(near, near + z.step, z.part[at_z], segment.count, row);
    return row;
  }

  // At part 0 there may be no row `far`.
  static SCTRT_BODY void mix_rows(const float* near, const float* far, float part, std::int64_t count, float* to) {
    if (part == 0) {
      SCTRT_SIMD
      for (std::int64_t i = 0; i < count; ++i) to[i] = near[i];
    } else {
      SCTRT_SIMD
      for (std::int64_t i = 0; i < count; ++i) to[i] = near[i] + part * (far[i] - near[i]);
    }
    to[count] = 0;
  }

  SCTRT_BODY void read_row(const Segment& segment, const float* row, float* to) const {
    const std::int64_t count = segment.end - segment.begin;
    const std::int32_t* at = low + segment.begin;
    const float* parts = part + segment.begin;
    if (segment.step == 1) return follow<1>(row + (at[0] - segment.column), parts, count, to);
    if (segment.step == -1) return follow<-1>(row + (at[0] - segment.column), parts, count, to);
    std::int64_t i = 0;
#ifdef __SSE2__
    const std::int64_t column = segment.column;
    for (; i + 4 <= count; i += 4) {
      const __m128 ab = pairs(row + (at[i] - column), row + (at[i + 1] - column));
      const __m128 cd = pairs(row + (at[i + 2] - column), row + (at[i + 3] - column));
      _mm_storeu_ps(to + i, mix4<true>(firsts(ab, cd), seconds(ab, cd), _mm_loadu_ps(parts + i)));
    }
#endif
    for (; i < count; ++i) to[i] = mix(row[at[i] - segment.column], row[at[i] - segment.column + 1], parts[i]);
  }

  template <int kStep>
  static SCTRT_BODY void follow(const float* row, const float* parts, std::int64_t count, float* to) {
    SCTRT_SIMD
    for (std::int64_t i = 0; i < count; ++i) to[i] = mix(row[i * kStep], row[i * kStep + 1], parts[i]);
  }
};

// Any map, voxel by voxel.
struct ResampleVoxels {
  static constexpr std::int64_t kCost = 64;

  Resampling task;

  SCTRT_BODY void operator()(std::int64_t row, std::int64_t first, std::int64_t last) const {
    const std::int64_t y = row % task.to.y, z = row / task.to.y;
    const double base[3] = {task.base(0, y, z), task.base(1, y, z), task.base(2, y, z)};
    for (std::int64_t x = first; x < last; ++x)
      task.out[row * task.to.x + x] =
          task.at(task.position(0, x, base[0]), task.position(1, x, base[1]), task.position(2, x, base[2]));
  }
};

#ifdef __SSE2__
// Any map, of a volume of two columns or more: a call does a box of the output, which is a compact part of the input
// however the axes lie, so that the input's cache lines are used while they are hot. Offset holds the input's offsets.
template <class Offset>
struct ResampleTiles {
  static constexpr std::int64_t kX = 64, kY = 8, kZ = 8;
  static constexpr std::int64_t kCost = 16;
  static constexpr float kLastColumn = 2;  // instead of a part along x: the last column is the right one of its pair

  Resampling task;
  Store store;
  std::int64_t tiles_x, tiles_y;
  bool coarse;  // neighbouring voxels share few cache lines: a run's are asked for together, which hides their latency

  struct Lanes {                               // of kX neighbouring voxels
    alignas(64) Offset at[kX];                 // of the lower neighbours
    alignas(64) Offset below[kX], behind[kX];  // from there to the next along y and z
    alignas(64) float x[kX], y[kX], z[kX];     // parts
    alignas(64) std::uint32_t inside[kX];      // all bits or none
  };

  SCTRT_BODY void operator()(std::int64_t row, std::int64_t, std::int64_t) const {
    const std::int64_t x = row % tiles_x * kX, first_y = row / tiles_x % tiles_y * kY;
    const std::int64_t first_z = row / tiles_x / tiles_y * kZ, count = smaller(kX, task.to.x - x);
    const std::int64_t last_y = smaller(first_y + kY, task.to.y), last_z = smaller(first_z + kZ, task.to.z);
    for (std::int64_t z = first_z; z < last_z; ++z)
      for (std::int64_t y = first_y; y < last_y; ++y) {
        alignas(64) float values[kX];
        make_run(x, y, z, count, values);
        normalise(task.normaliser, count, values);
        store.run(values, count, task.out + (z * task.to.y + y) * task.to.x + x);
      }
    store.finish();
  }

  SCTRT_BODY void make_run(std::int64_t x, std::int64_t y, std::int64_t z, std::int64_t count, float* to) const {
    const double base[3] = {task.base(0, y, z), task.base(1, y, z), task.base(2, y, z)};
    for (int axis = 0; axis < 3; ++axis)
      if (apart(axis, task.position(axis, x, base[axis]), task.position(axis, x + count - 1, base[axis]))) {
        for (std::int64_t i = 0; i < count; ++i) to[i] = task.fill;
        return;
      }
    Lanes lanes;
    find(static_cast<double>(x), base, lanes);
    if (coarse) prefetch(lanes, count);
    for (std::int64_t i = 0; i < count; i += 4) mix_voxels(lanes, i, to + i);
  }

  // Whether no position between the two is reached.
  SCTRT_BODY bool apart(int axis, double a, double b) const {
    const double end = static_cast<double>(task.from_size(axis) - 1) + kReach;
    return !(larger(a, b) >= -kReach) || !(smaller(a, b) <= end);
  }

  SCTRT_BODY void prefetch(const Lanes& lanes, std::int64_t count) const {
    for (std::int64_t i = 0; i < count; ++i) {
      const float *near = task.volume + lanes.at[i], *far = near + lanes.behind[i];
      for (const float* row : {near, near + lanes.below[i], far, far + lanes.below[i]})
        _mm_prefetch(reinterpret_cast<const char*>(row), _MM_HINT_T0);
    }
  }

  // One axis at a time: loops of one kind of lane vectorise.
  SCTRT_BODY void find(double x, const double* base, Lanes& lanes) const {
    alignas(64) std::int32_t low_x[kX], low_y[kX], low_z[kX];
    for (int i = 0; i < kX; ++i) lanes.inside[i] = ~0u;
    find_axis(0, x, base[0], low_x, lanes.x, lanes.inside);
    find_axis(1, x, base[1], low_y, lanes.y, lanes.inside);
    find_axis(2, x, base[2], low_z, lanes.z, lanes.inside);
    const std::int32_t last_x = static_cast<std::int32_t>(task.from.x - 1);
    const std::int32_t last_y = static_cast<std::int32_t>(task.from.y - 1);
    const std::int32_t last_z = static_cast<std::int32_t>(task.from.z - 1);
    const Offset row = static_cast<Offset>(task.from.x), slab = static_cast<Offset>(task.from.x * task.from.y);
    SCTRT_SIMD
    for (int i = 0; i < kX; ++i) {
      const std::int32_t pair = smaller(low_x[i], last_x - 1);
      lanes.at[i] = static_cast<Offset>(low_z[i]) * slab + static_cast<Offset>(low_y[i]) * row + pair;
      lanes.below[i] = low_y[i] < last_y ? row : 0;
      lanes.behind[i] = low_z[i] < last_z ? slab : 0;
      lanes.x[i] = low_x[i] > pair ? kLastColumn : lanes.x[i];
    }
  }

  SCTRT_BODY void find_axis(int axis, double x, double base, std::int32_t* low, float* part,
                            std::uint32_t* inside) const {
    const double step = task.map.row[axis][0];
    const std::int64_t size = task.from_size(axis);
    SCTRT_SIMD
    for (int i = 0; i < kX; ++i) {
      const double position = step * (x + static_cast<double>(i)) + base;
      const Neighbours at = neighbours(position, size);
      low[i] = at.low;
      part[i] = at.part;
      inside[i] &= reaches(position, size) ? ~0u : 0u;
    }
  }

  // Voxels i to i + 3.
  SCTRT_BODY void mix_voxels(const Lanes& lanes, std::int64_t i, float* to) const {
    const __m128 x = _mm_load_ps(lanes.x + i), y = _mm_load_ps(lanes.y + i), z = _mm_load_ps(lanes.z + i);
    const __m128 inside = _mm_castsi128_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(lanes.inside + i)));
    const __m128 zero = _mm_setzero_ps(), end = _mm_cmpgt_ps(x, _mm_set1_ps(1));
    const __m128 special =
        _mm_or_ps(_mm_or_ps(_mm_cmpeq_ps(x, zero), _mm_cmpeq_ps(y, zero)), _mm_or_ps(_mm_cmpeq_ps(z, zero), end));
    __m128 value;
    if (_mm_movemask_ps(special)) {
      const __m128 ab = mix_pairs<true>(lanes, i, _mm_unpacklo_ps(y, y), _mm_unpacklo_ps(z, z));
      const __m128 cd = mix_pairs<true>(lanes, i + 2, _mm_unpackhi_ps(y, y), _mm_unpackhi_ps(z, z));
      const __m128 high = seconds(ab, cd);
      const __m128 low = _mm_or_ps(_mm_and_ps(end, high), _mm_andnot_ps(end, firsts(ab, cd)));
      value = mix4<true>(low, high, _mm_andnot_ps(end, x));
    } else {
      const __m128 ab = mix_pairs<false>(lanes, i, _mm_unpacklo_ps(y, y), _mm_unpacklo_ps(z, z));
      const __m128 cd = mix_pairs<false>(lanes, i + 2, _mm_unpackhi_ps(y, y), _mm_unpackhi_ps(z, z));
      value = mix4<false>(firsts(ab, cd), seconds(ab, cd), x);
    }
    _mm_store_ps(to, _mm_or_ps(_mm_and_ps(inside, value), _mm_andnot_ps(inside, _mm_set1_ps(task.fill))));
  }

  // Left and right of voxels i and i + 1.
  template <bool kCentres>
  SCTRT_BODY __m128 mix_pairs(const Lanes& lanes, std::int64_t i, __m128 y, __m128 z) const {
    const float *a = task.volume + lanes.at[i], *b = task.volume + lanes.at[i + 1];
    const float *a_below = a + lanes.below[i], *b_below = b + lanes.below[i + 1];
    const std::int64_t a_behind = lanes.behind[i], b_behind = lanes.behind[i + 1];
    const __m128 near = mix4<kCentres>(pairs(a, b), pairs(a + a_behind, b + b_behind), z);
    const __m128 far = mix4<kCentres>(pairs(a_below, b_below), pairs(a_below + a_behind, b_below + b_behind), z);
    return mix4<kCentres>(near, far, y);
  }
};

template <class Offset>
void resample_tiles(Cpu device, const Resampling& task) {
  using Tiles = ResampleTiles<Offset>;
  const std::int64_t x = (task.to.x + Tiles::kX - 1) / Tiles::kX, y = (task.to.y + Tiles::kY - 1) / Tiles::kY;
  const std::int64_t z = (task.to.z + Tiles::kZ - 1) / Tiles::kZ;
  double step = 0;  // input voxels a voxel
  for (int column = 0; column < 3; ++column)
    step = larger(step, hypot(hypot(task.map.row[0][column], task.map.row[1][column]), task.map.row[2][column]));
  parallel_for(device, x * y * z, Tiles::kX * Tiles::kY * Tiles::kZ, Tiles{task, Store(task.to), x, y, step > 2},
               Tiles::kCost);
}
#endif

inline void resample_voxels(Cpu device, const Resampling& task) {
#ifdef __SSE2__
  constexpr std::int64_t kSmall = std::int64_t{1} << 31;
  if (task.from.x > 1)
    return task.from.z * task.from.y * task.from.x < kSmall ? resample_tiles<std::int32_t>(device, task)
                                                            : resample_tiles<std::int64_t>(device, task);
#endif
  parallel_for(device, task.to.z * task.to.y, task.to.x, ResampleVoxels{task}, ResampleVoxels::kCost);
}

inline void resample_lines(Cpu device, const Resampling& task, const Separable& order) {
  using Lines = ResampleLines;
  const AxisTable x(task, order, 0), y(task, order, 1), z(task, order, 2);
  const std::int64_t strides[3] = {1, task.to.x, task.to.y * task.to.x};
  const auto axis = [&](const AxisTable& table, int which, std::int64_t step) {
    return Lines::Axis{
        table.low.data(),           table.part.data(), table.first, table.last, step, task.to_size(order.along[which]),
        strides[order.along[which]]};
  };
  const bool turned = order.along[0] != 0, along_z = order.along[2] == 0;
  const std::int64_t length = task.to_size(order.along[0]);
  const double step = larger(1.0, fabs(task.map.row[0][order.along[0]]));
  const std::int64_t longest = smaller(turned ? Lines::kLongestTurned : Lines::kLongest,
                                       static_cast<std::int64_t>(static_cast<double>(Lines::kColumns - 4) / step));
  std::vector<Segment> segments;
  for (std::int64_t first = 0; first < length; first += longest)
    segments.emplace_back(x, first, smaller(first + longest, length), task.from.x);

  Lines lines{task,
              Store(task.to),
              x.low.data(),
              x.part.data(),
              strides[order.along[0]],
              axis(y, 1, task.from.x),
              axis(z, 2, task.from.y * task.from.x),
              along_z,
              segments.data(),
              static_cast<std::int64_t>(segments.size()),
              0,
              0};
  if (turned && task.to.x % kCacheLine == 0) lines.shift = Store::in_line(task.out);
  const std::int64_t across = (along_z ? lines.z : lines.y).count, outer = (along_z ? lines.y : lines.z).count;
  lines.blocks = (across + lines.shift + Lines::kLines - 1) / Lines::kLines;
  parallel_for(device, outer * lines.segment_count * lines.blocks, Lines::kLines * smaller(longest, length), lines,
               Lines::kCost);
}

inline void run_resampling(Cpu device, const Resampling& task) {
  const Separable order(task.map);
  const bool dense = fabs(task.map.row[0][order.along[0]]) <= static_cast<double>(ResampleLines::kMaxStep);
  if (order.found && dense)
    resample_lines(device, task, order);
  else
    resample_voxels(device, task);
}

}  // namespace sctrt
