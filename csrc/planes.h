// Slices out of a volume and back, padded and cast.
#pragma once

#include "kernels.h"

namespace sctrt {

// A row is a run of columns of one plane's row. Sagittal columns lie far apart in the volume, slices side by side:
// there a row is short and the next row belongs to the next slice, so that the volume's cache lines are used while they
// are hot.
struct PlaneRows {
  static constexpr std::int64_t kShortRun = 64;

  Slices slices;
  std::int64_t channels, start, count, height, width;
  std::int64_t run, runs;  // columns of a row; rows that cover the width

  PlaneRows(Grid grid, Plane plane, std::int64_t start_, std::int64_t count_, std::int64_t height_, std::int64_t width_)
      : slices(slices_of(grid, plane)),
        channels(grid.channels),
        start(start_),
        count(count_),
        height(height_),
        width(width_) {
    run = slices.column_step == 1 ? width : smaller(kShortRun, width);
    runs = (width + run - 1) / run;
  }

  std::int64_t rows(std::int64_t plane_rows) const { return channels * plane_rows * runs * count; }

  struct Place {
    std::int64_t height_index, left;    // of the row's first column in its plane
    std::int64_t in_volume, in_planes;  // offsets of that column
  };

  SCTRT_BODY Place place(std::int64_t row, std::int64_t plane_rows) const {
    const std::int64_t slice = row % count, left = row / count % runs * run;
    const std::int64_t line = row / count / runs, h = line % plane_rows, channel = line / plane_rows;
    return {h, left,
            channel * slices.channel_step + (start + slice) * slices.slice_step + h * slices.row_step +
                left * slices.column_step,
            ((slice * channels + channel) * height + h) * width + left};
  }
};

template <class Sample>
struct ExtractPlanes {
  PlaneRows shape;
  const float* volume;
  float fill;
  Sample* planes;

  SCTRT_BODY void operator()(std::int64_t row, std::int64_t first, std::int64_t last) const {
    const PlaneRows::Place place = shape.place(row, shape.height);
    const std::int64_t inside = place.height_index < shape.slices.height ? shape.slices.width - place.left : 0;
    const std::int64_t step = shape.slices.column_step;
    last = smaller(last, shape.width - place.left);
    const float* from = volume + place.in_volume;
    Sample* to = planes + place.in_planes;
    SCTRT_SIMD
    for (std::int64_t column = first; column < smaller(last, inside); ++column)
      convert(from[column * step], to[column]);
    SCTRT_SIMD
    for (std::int64_t column = larger(first, inside); column < last; ++column) convert(fill, to[column]);
  }
};

template <class Sample>
struct InsertPlanes {
  PlaneRows shape;
  const Sample* planes;
  float* volume;

  SCTRT_BODY void operator()(std::int64_t row, std::int64_t first, std::int64_t last) const {
    const PlaneRows::Place place = shape.place(row, shape.slices.height);
    const std::int64_t step = shape.slices.column_step;
    last = smaller(last, shape.slices.width - place.left);
    const Sample* from = planes + place.in_planes;
    float* to = volume + place.in_volume;
    SCTRT_SIMD
    for (std::int64_t column = first; column < last; ++column) convert(from[column], to[column * step]);
  }
};

template <class Device, class Sample>
void extract_planes(Device device, const float* volume, Grid grid, Plane plane, std::int64_t start, std::int64_t count,
                    std::int64_t height, std::int64_t width, float fill, Sample* planes) {
  const PlaneRows shape(grid, plane, start, count, height, width);
  parallel_for(device, shape.rows(height), shape.run, ExtractPlanes<Sample>{shape, volume, fill, planes});
}

template <class Device, class Sample>
void insert_planes(Device device, const Sample* planes, Grid grid, Plane plane, std::int64_t start, std::int64_t count,
                   std::int64_t height, std::int64_t width, float* volume) {
  const PlaneRows shape(grid, plane, start, count, height, width);
  parallel_for(device, shape.rows(shape.slices.height), shape.run, InsertPlanes<Sample>{shape, planes, volume});
}

}  // namespace sctrt
