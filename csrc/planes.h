// Slices out of a volume and back: padded, scaled and cast.
#pragma once

#include "kernels.h"
#include "stream.h"

namespace sctrt {

// Copies of one kind keep their bits.
SCTRT_BODY void convert(Half from, Half& to) { to = from; }
SCTRT_BODY void convert(Bfloat16 from, Bfloat16& to) { to = from; }

// What happens to a sample on its way: Scaled in an extraction, Unscaled in an insertion.
struct Scaled {
  float scale, offset;

  template <class To>
  SCTRT_BODY void operator()(float from, To& to) const {
    convert(from * scale + offset, to);
  }
};

struct Unscaled {
  template <class From, class To>
  SCTRT_BODY void operator()(From from, To& to) const {
    convert(from, to);
  }
};

// Note [Plane copies]
// An extraction and an insertion are copies along four axes, named by what is written: groups of channels of lines of
// elements, where the elements lie side by side. Axial and coronal slices lie so in the source too: a copy of lines, one
// behind the other in a group and channel. In sagittal ones the lines of the source lie side by side instead (its line
// step is 1): a transposition.
struct Axis {
  std::int64_t count, inner;  // to be written; of them the first `inner` are copied, the others filled
  std::int64_t from, to;      // steps in elements
};

struct PlaneCopy {
  Axis group, channel, line, element;
  std::int64_t from_start, to_start;  // offsets of the first element

  SCTRT_BODY std::int64_t from_offset(std::int64_t g, std::int64_t c, std::int64_t l, std::int64_t e) const {
    return from_start + g * group.from + c * channel.from + l * line.from + e * element.from;
  }
  SCTRT_BODY std::int64_t to_offset(std::int64_t g, std::int64_t c, std::int64_t l, std::int64_t e) const {
    return to_start + g * group.to + c * channel.to + l * line.to + e;
  }
  SCTRT_BODY bool is_inside(std::int64_t g, std::int64_t l) const { return g < group.inner && l < line.inner; }
};

inline PlaneCopy extraction(const PlaneBatch& batch) {
  const Slices s = slices_of(batch.grid, batch.plane);
  const std::int64_t channels = batch.grid.channels, height = batch.height, width = batch.width;
  const Axis slice{batch.count, batch.count, s.slice_step, channels * height * width};
  const Axis channel{channels, channels, s.channel_step, height * width};
  const Axis row{height, s.height, s.row_step, width};
  const Axis column{width, s.width, s.column_step, 1};
  const std::int64_t start = batch.start * s.slice_step;
  if (batch.plane == Plane::sagittal) return {row, channel, slice, column, start, 0};
  return {slice, channel, row, column, start, 0};
}

inline PlaneCopy insertion(const PlaneBatch& batch) {
  const Slices s = slices_of(batch.grid, batch.plane);
  const std::int64_t channels = batch.grid.channels, height = batch.height, width = batch.width;
  const Axis slice{batch.count, batch.count, channels * height * width, s.slice_step};
  const Axis channel{channels, channels, height * width, s.channel_step};
  const Axis row{s.height, s.height, width, s.row_step};
  const Axis column{s.width, s.width, 1, s.column_step};
  const std::int64_t start = batch.start * s.slice_step;
  if (batch.plane == Plane::axial) return {slice, channel, row, column, 0, start};
  if (batch.plane == Plane::coronal) return {row, channel, slice, column, 0, start};
  return {row, channel, column, slice, 0, start};
}

// A task is some lines of one group and channel.
template <class From, class To, class Map>
struct CopyLines {
  PlaneCopy copy;
  const From* from;
  To* to;
  Map map;
  To fill;
  bool streamed;
  std::int64_t lines, parts;  // lines of a task; tasks that cover them all

  SCTRT_BODY void operator()(std::int64_t task, std::int64_t, std::int64_t) const {
    const std::int64_t first = task % parts * lines, last = smaller(first + lines, copy.line.count);
    const std::int64_t channel = task / parts % copy.channel.count, group = task / parts / copy.channel.count;
    RunWriter<To> run(to + copy.to_offset(group, channel, first, 0), streamed);
    for (std::int64_t line = first; line < last; ++line) {
      const std::int64_t inner = copy.is_inside(group, line) ? copy.element.inner : 0;
      copy_line(from + copy.from_offset(group, channel, line, 0), inner, run);
      fill_line(copy.element.count - inner, run);
    }
    run.finish();
    end_stream();
  }

  SCTRT_BODY void copy_line(const From* source, std::int64_t elements, RunWriter<To>& run) const {
    for (std::int64_t at = 0; at < elements; at += run.kRoom) {
      const std::int64_t count = smaller(elements - at, run.kRoom);
      To* target = run.room();
      SCTRT_SIMD
      for (std::int64_t i = 0; i < count; ++i) map(source[at + i], target[i]);
      run.put(count);
    }
  }

  SCTRT_BODY void fill_line(std::int64_t elements, RunWriter<To>& run) const {
    for (std::int64_t at = 0; at < elements; at += run.kRoom) {
      const std::int64_t count = smaller(elements - at, run.kRoom);
      To* target = run.room();
      SCTRT_SIMD
      for (std::int64_t i = 0; i < count; ++i) target[i] = fill;
      run.put(count);
    }
  }
};

// A sample's bits in 32, so that samples of both sizes are transposed alike, and back.
SCTRT_BODY std::uint32_t bits_of(float sample) { return bit_cast<std::uint32_t>(sample); }
template <class Sample>
SCTRT_BODY std::uint32_t bits_of(Sample sample) {
  return sample.bits;
}
SCTRT_BODY void from_bits(std::uint32_t bits, float& sample) { sample = bit_cast<float>(bits); }
template <class Sample>
SCTRT_BODY void from_bits(std::uint32_t bits, Sample& sample) {
  sample.bits = static_cast<std::uint16_t>(bits);
}

#ifdef SCTRT_SSE2
SCTRT_BODY __m128 bits_of_four(const float* samples) { return _mm_loadu_ps(samples); }
template <class Sample>
SCTRT_BODY __m128 bits_of_four(const Sample* samples) {
  const __m128i four = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(samples));
  return _mm_castsi128_ps(_mm_unpacklo_epi16(four, _mm_setzero_si128()));
}
#endif

// A task is a run of elements of every line of one group and channel, turned a tile of lines at a time in the
// first-level cache: a tile is one cache line of float32 wide in the source, and its lines are long runs to write.
template <class From, class To, class Map>
struct CopyTransposed {
  static constexpr std::int64_t kTile = 16, kRun = 512;
  static constexpr std::int64_t kPitch = kRun + 16;  // of the tile's lines: they do not crowd one set of the cache

  PlaneCopy copy;
  const From* from;
  To* to;
  Map map;
  To fill;
  bool streamed;
  std::int64_t runs;  // that cover the elements of a line

  SCTRT_BODY void operator()(std::int64_t task, std::int64_t, std::int64_t) const {
    const std::int64_t first = task % runs * kRun, count = smaller(kRun, copy.element.count - first);
    const std::int64_t channel = task / runs % copy.channel.count, group = task / runs / copy.channel.count;
    const std::int64_t rest = copy.is_inside(group, 0) ? copy.element.inner - first : 0;
    const std::int64_t inner = larger(std::int64_t{0}, smaller(count, rest));
    alignas(64) std::uint32_t tile[kTile * kPitch];
    for (std::int64_t line = 0; line < copy.line.count; line += kTile) {
      const std::int64_t lines = smaller(kTile, copy.line.count - line);
      transpose(from + copy.from_offset(group, channel, line, first), inner, lines, tile);
      for (std::int64_t l = 0; l < lines; ++l)
        write(tile + l * kPitch, inner, count, to + copy.to_offset(group, channel, line + l, first));
    }
    end_stream();
  }

  SCTRT_BODY void transpose(const From* source, std::int64_t elements, std::int64_t lines, std::uint32_t* tile) const {
    const std::int64_t step = copy.element.from;
    std::int64_t e = 0;
#ifdef SCTRT_SSE2
    for (; e + 4 <= elements; e += 4) {
      const From* four = source + e * step;
      std::int64_t l = 0;
      for (; l + 4 <= lines; l += 4) transpose_four(four + l, step, tile + l * kPitch + e);
      for (; l < lines; ++l)
        for (int i = 0; i < 4; ++i) tile[l * kPitch + e + i] = bits_of(four[i * step + l]);
      for (int i = 0; i < 4; ++i) __builtin_prefetch(four + i * step + 2 * kTile - 1);  // of the next tile
    }
#endif
    for (; e < elements; ++e)
      for (std::int64_t l = 0; l < lines; ++l) tile[l * kPitch + e] = bits_of(source[e * step + l]);
  }

#ifdef SCTRT_SSE2
  static SCTRT_BODY void transpose_four(const From* source, std::int64_t step, std::uint32_t* tile) {
    __m128 a = bits_of_four(source), b = bits_of_four(source + step);
    __m128 c = bits_of_four(source + 2 * step), d = bits_of_four(source + 3 * step);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    float* out = reinterpret_cast<float*>(tile);
    _mm_store_ps(out, a);
    _mm_store_ps(out + kPitch, b);
    _mm_store_ps(out + 2 * kPitch, c);
    _mm_store_ps(out + 3 * kPitch, d);
  }
#endif

  SCTRT_BODY void write(const std::uint32_t* bits, std::int64_t inner, std::int64_t count, To* line) const {
    RunWriter<To> run(line, streamed);
    To* target = run.room();
    SCTRT_SIMD
    for (std::int64_t i = 0; i < inner; ++i) {
      From sample;
      from_bits(bits[i], sample);
      map(sample, target[i]);
    }
    for (std::int64_t i = inner; i < count; ++i) target[i] = fill;
    run.put(count);
    run.finish();
  }
};

// `size`: elements of the array that `to` points to.
template <class From, class To, class Map>
void copy_planes_on(Cpu device, const PlaneCopy& copy, bool transposed, const From* from, Map map, float fill,
                    std::int64_t size, To* to) {
  constexpr std::int64_t kTask = 1 << 14;  // elements
  const bool streamed = is_streamed<To>(size);
  To filled;
  convert(fill, filled);
  const std::int64_t images = copy.group.count * copy.channel.count;
  if (transposed) {
    using Kernel = CopyTransposed<From, To, Map>;
    const std::int64_t runs = (copy.element.count + Kernel::kRun - 1) / Kernel::kRun;
    const std::int64_t columns = smaller(Kernel::kRun, copy.element.count) * copy.line.count;
    parallel_for(device, images * runs, columns, Kernel{copy, from, to, map, filled, streamed, runs});
  } else {
    const std::int64_t lines = larger(std::int64_t{1}, kTask / copy.element.count);
    const std::int64_t parts = (copy.line.count + lines - 1) / lines;
    const std::int64_t columns = smaller(lines, copy.line.count) * copy.element.count;
    parallel_for(device, images * parts, columns,
                 CopyLines<From, To, Map>{copy, from, to, map, filled, streamed, lines, parts});
  }
}

// On a GPU copy_planes_on is that of planes_cuda.h.
template <class Device, class Sample>
void extract_planes(Device device, const float* volume, PlaneBatch batch, float scale, float offset, float fill,
                    Sample* planes) {
  const std::int64_t size = batch.count * batch.grid.channels * batch.height * batch.width;
  copy_planes_on(device, extraction(batch), batch.plane == Plane::sagittal, volume, Scaled{scale, offset}, fill, size,
                 planes);
}

template <class Device, class Sample, class Voxel>
void insert_planes(Device device, const Sample* planes, PlaneBatch batch, Voxel* volume) {
  const std::int64_t size = batch.grid.channels * batch.grid.z * batch.grid.y * batch.grid.x;
  copy_planes_on(device, insertion(batch), batch.plane == Plane::sagittal, planes, Unscaled{}, 0.0f, size, volume);
}

}  // namespace sctrt
