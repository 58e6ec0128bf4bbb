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
// elements, where the elements lie side by side. Axial and coronal slices lie so in the source too: a copy of lines,
// one behind the other in a group and channel. In sagittal ones the lines of the source lie side by side instead (its
// line step is 1): a transposition.
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
  static constexpr std::int64_t kAhead = 512;  // elements

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
      const From* source = from + copy.from_offset(group, channel, line, 0);
      copy_line(source, source + copy.line.from, inner, run);
      fill_line(copy.element.count - inner, run);
    }
    run.finish();
    end_stream();
  }

  SCTRT_BODY void copy_line(const From* source, const From* next, std::int64_t elements, RunWriter<To>& run) const {
    for (std::int64_t at = 0; at < elements; at += run.kRoom) {
      const std::int64_t count = smaller(elements - at, run.kRoom), ahead = at + kAhead;
      ask_for(ahead < elements ? source + ahead : next + (ahead - elements), count);
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

// A task is a run of elements of all lines of some groups of one channel, turned a tile at a time in the first-level
// cache. In the source a tile is at least one cache line wide, and its lines are runs to write, as long as they may be.
template <class From, class To, class Map>
struct CopyTransposed {
  static constexpr std::int64_t kLines = 16, kMostLines = 64, kRun = 256, kGap = 16;
  static constexpr std::int64_t kShort = 256 / sizeof(To);  // a run of few whole lines is stored as usual

  PlaneCopy copy;
  const From* from;
  To* to;
  Map map;
  To fill;
  bool streamed;
  std::int64_t runs, groups, parts;  // runs of a line; groups of a task; tasks that cover all groups
  std::int64_t pitch, lines, tiles;  // of a tile; its lines; tiles that cover all lines

  // The pitch keeps a tile's lines from crowding into one set of the cache.
  void set_sizes() {
    constexpr std::int64_t kTask = 1 << 15;  // elements
    const std::int64_t run = smaller(kRun, copy.element.count);
    runs = (copy.element.count + kRun - 1) / kRun;
    pitch = (run + 15) / 16 * 16 + kGap;
    lines = larger(kLines, smaller(kMostLines, kLines * (kRun + kGap) / pitch / kLines * kLines));
    tiles = (copy.line.count + lines - 1) / lines;
    groups = larger(std::int64_t{1}, kTask / (run * copy.line.count));
    parts = (copy.group.count + groups - 1) / groups;
    streamed = streamed && run >= kShort;
  }

  struct Place {
    const From* source;
    To* target;
    std::int64_t inner, lines;  // elements to copy; lines of this tile
  };

  SCTRT_BODY Place place(std::int64_t channel, std::int64_t group, std::int64_t line, std::int64_t element) const {
    const std::int64_t inner = copy.is_inside(group, line) ? copy.element.inner - element : 0;
    return {from + copy.from_offset(group, channel, line, element), to + copy.to_offset(group, channel, line, element),
            larger(std::int64_t{0}, smaller(kRun, inner)), smaller(lines, copy.line.count - line)};
  }

  SCTRT_BODY void operator()(std::int64_t task, std::int64_t, std::int64_t) const {
    const std::int64_t element = task % runs * kRun, count = smaller(kRun, copy.element.count - element);
    const std::int64_t first = task / runs % parts * groups, channel = task / runs / parts;
    const std::int64_t steps = smaller(groups, copy.group.count - first) * tiles;
    alignas(64) std::uint32_t tile[kLines * (kRun + kGap)];
    Place now = place(channel, first, 0, element);
    for (std::int64_t step = 0; step < steps; ++step) {
      const std::int64_t next_step = smaller(step + 1, steps - 1);
      const Place next = place(channel, first + next_step / tiles, next_step % tiles * lines, element);
      transpose(now.source, now.inner, now.lines, tile);
      for (std::int64_t line = 0; line < now.lines; ++line) {
        ask_for_next(next, line, count);
        write(tile + line * pitch, now.inner, count, now.target + line * copy.line.to);
      }
      now = next;
    }
    end_stream();
  }

  // A share of what the next tile reads, and the lines of a short run, which its stores change in part.
  SCTRT_BODY void ask_for_next(const Place& next, std::int64_t line, std::int64_t count) const {
    const std::int64_t share = (next.inner + next.lines - 1) / next.lines, first = line * share;
    for (std::int64_t e = first; e < smaller(first + share, next.inner); ++e) {
      const From* row = next.source + e * copy.element.from;
      ask_for(row, next.lines);
      ask_for(row + next.lines - 1, 1);
    }
    if (count < kShort) ask_for(next.target + line * copy.line.to, count);
  }

  SCTRT_BODY void transpose(const From* source, std::int64_t elements, std::int64_t count, std::uint32_t* tile) const {
    const std::int64_t step = copy.element.from;
    std::int64_t e = 0;
#ifdef SCTRT_SSE2
    for (; e + 4 <= elements; e += 4) {
      const From* four = source + e * step;
      std::int64_t l = 0;
      for (; l + 4 <= count; l += 4) transpose_four(four + l, step, tile + l * pitch + e);
      for (; l < count; ++l)
        for (int i = 0; i < 4; ++i) tile[l * pitch + e + i] = bits_of(four[i * step + l]);
    }
#endif
    for (; e < elements; ++e)
      for (std::int64_t l = 0; l < count; ++l) tile[l * pitch + e] = bits_of(source[e * step + l]);
  }

#ifdef SCTRT_SSE2
  SCTRT_BODY void transpose_four(const From* source, std::int64_t step, std::uint32_t* tile) const {
    __m128 a = bits_of_four(source), b = bits_of_four(source + step);
    __m128 c = bits_of_four(source + 2 * step), d = bits_of_four(source + 3 * step);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    float* out = reinterpret_cast<float*>(tile);
    _mm_store_ps(out, a);
    _mm_store_ps(out + pitch, b);
    _mm_store_ps(out + 2 * pitch, c);
    _mm_store_ps(out + 3 * pitch, d);
  }
#endif

  SCTRT_BODY void write(const std::uint32_t* bits, std::int64_t inner, std::int64_t count, To* line) const {
    RunWriter<To> run(line, streamed);
    for (std::int64_t at = 0; at < count; at += run.kRoom) {
      const std::int64_t end = smaller(count - at, run.kRoom), copied = smaller(end, inner - at);
      To* target = run.room();
      SCTRT_SIMD
      for (std::int64_t i = 0; i < copied; ++i) {
        From sample;
        from_bits(bits[at + i], sample);
        map(sample, target[i]);
      }
      for (std::int64_t i = larger(copied, std::int64_t{0}); i < end; ++i) target[i] = fill;
      run.put(end);
    }
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
    CopyTransposed<From, To, Map> kernel{copy, from, to, map, filled, streamed, 0, 0, 0, 0, 0, 0};
    kernel.set_sizes();
    const std::int64_t columns = kernel.groups * copy.element.count * copy.line.count / kernel.runs;
    parallel_for(device, copy.channel.count * kernel.parts * kernel.runs, columns, kernel);
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
