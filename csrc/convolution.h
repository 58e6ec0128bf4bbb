// Convolutions: what they read of an image, by Winograd, and as they are written.
#pragma once

#include "product.h"

namespace sctrt {
namespace {

void clear(float* to, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = 0;
}

SCTRT_INLINE Vector activated(const Convolution& c, Vector value, std::int64_t channel) {
  value = value * load(c.scale + channel) + load(c.shift + channel);
  return c.silu ? silu(value) : value;
}

// Columns -pad.. of one row of the activated (and doubled) image, zeros where there is none: to [columns, channels].
void read_row(const Convolution& c, std::int64_t row, std::int64_t columns, float* to) {
  const std::int64_t n = c.channels, twice = c.doubled ? 2 : 1, width = twice * c.width;
  if (row < 0 || row >= twice * c.height) return clear(to, columns * n);
  const float* from = c.in + row / twice * c.width * n;
  const std::int64_t used = least(width, columns - c.pad);
  clear(to, c.pad * n);
  clear(to + (c.pad + used) * n, (columns - c.pad - used) * n);
  to += c.pad * n;
  if (!c.scale && !c.doubled) {
    for (std::int64_t i = 0; i < used * n; ++i) to[i] = from[i];
    return;
  }
  for (std::int64_t x = 0; x < used; x += twice)
    for (std::int64_t k = 0; k < n; k += kLanes) {
      Vector value = load(from + x / twice * n + k);
      if (c.scale) value = activated(c, value, k);
      store(to + x * n + k, value);
      if (c.doubled && x + 1 < used) store(to + (x + 1) * n + k, value);
    }
}

// Sum and sum of squares of one channel per lane: single precision around a value that is one of them.
struct Sums {
  Vector around{}, sum{}, squares{};

  SCTRT_INLINE void start(Vector value) {
    around = value;
    sum = squares = Vector{};
  }
  SCTRT_INLINE void add(Vector value) {
    const Vector off = value - around;
    sum += off;
    squares += off * off;
  }
  void finish(std::int64_t count, double* sums, double* squared) const {
    for (int i = 0; i < kLanes; ++i) {
      const double middle = around[i], offs = sum[i];
      sums[i] += static_cast<double>(count) * middle + offs;
      squared[i] += static_cast<double>(squares[i]) + middle * (2 * offs + static_cast<double>(count) * middle);
    }
  }
};

// Note [Winograd]
// F(4x4, 3x3) (Lavin and Gray, Fast algorithms for convolutional neural networks, 2016) computes a tile of 4x4 output
// pixels from a window of 6x6 input pixels in 36 products a pair of channels in place of 144. Its polynomials are
// evaluated at 0, +-kA, +-kB and infinity. With 5/8 and 3/2, in place of the usual 1 and 2, the rounding error falls by
// more than half, to 1.6 times that of the convolution as it is written.
constexpr float kA = 0.625f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;

// The window's values become those of the polynomials.
SCTRT_INLINE void into_products(const Vector* d, Vector* p) {
  const Vector even_a = d[4] - kB2 * d[2], odd_a = d[3] - kB2 * d[1];
  const Vector even_b = d[4] - kA2 * d[2], odd_b = d[3] - kA2 * d[1];
  p[0] = d[4] + (kA2 * kB2 * d[0] - (kA2 + kB2) * d[2]);
  p[1] = even_a + kA * odd_a;
  p[2] = even_a - kA * odd_a;
  p[3] = even_b + kB * odd_b;
  p[4] = even_b - kB * odd_b;
  p[5] = d[5] + (kA2 * kB2 * d[1] - (kA2 + kB2) * d[3]);
}

// The products become the tile's values.
SCTRT_INLINE void out_of_products(const Vector* p, Vector* y) {
  const Vector sum_a = p[1] + p[2], difference_a = p[1] - p[2];
  const Vector sum_b = p[3] + p[4], difference_b = p[3] - p[4];
  y[0] = p[0] + sum_a + sum_b;
  y[1] = kA * difference_a + kB * difference_b;
  y[2] = kA2 * sum_a + kB2 * sum_b;
  y[3] = p[5] + (kA * kA2 * difference_a + kB * kB2 * difference_b);
}

// Of one pixel's channels in a product.
std::int64_t words(const Convolution& c) { return c.pairs ? c.channels / 2 : c.channels; }

// How a strip of tiles lies in scratch memory.
struct Strip {
  static constexpr std::int64_t kBytes = 1100 << 10;  // of products: about a core's own cache

  std::int64_t tile_rows, tile_columns;  // of the whole image
  std::int64_t columns;                  // of the rows that are read
  std::int64_t most;                     // tiles at a time
  std::int64_t rows;                     // of tiles at a time

  explicit Strip(const Convolution& c)
      : tile_rows(parts(c.out_height, kTile)),
        tile_columns(parts(c.out_width, kTile)),
        columns(kTile * tile_columns + kWindow - kTile) {
    const std::int64_t each = kProducts * 4 * (words(c) + least(c.out_channels, kPanel));
    most = least(48, kBytes / each / 6 * 6);
    most = ::sctrt::most(most, 6);
    rows = least(::sctrt::most(most / tile_columns, 1), tile_rows);
  }

  // A step between products; not a multiple of 4096 bytes, which would keep them all in a few sets of the cache.
  static std::int64_t step(std::int64_t tiles, std::int64_t words) { return tiles * words + kChannelBlock; }
  std::int64_t image_floats(const Convolution& c) const { return (kTile * rows + 2) * columns * c.channels; }
  std::int64_t tiles() const { return rows == 1 ? least(most, tile_columns) : rows * tile_columns; }
};

std::int64_t winograd_scratch(const Convolution& c) {
  const Strip strip(c);
  return strip.image_floats(c) +
         kProducts * (Strip::step(strip.tiles(), words(c)) + Strip::step(strip.tiles(), kPanel));
}

// window: of the rows that are read, `row` floats apart; to: the first of the products, `step` apart.
template <bool kPairs>
void transform_window(const float* window, std::int64_t row, std::int64_t channels, float* to, std::int64_t step) {
  for (std::int64_t k = 0; k < channels; k += kLanes) {
    Vector half[kWindow][kWindow];
    for (int x = 0; x < kWindow; ++x) {
      Vector d[kWindow], p[kWindow];
      for (int y = 0; y < kWindow; ++y) d[y] = load(window + y * row + x * channels + k);
      into_products(d, p);
      for (int y = 0; y < kWindow; ++y) half[y][x] = p[y];
    }
    for (int y = 0; y < kWindow; ++y) {
      Vector p[kWindow];
      into_products(half[y], p);
      for (int x = 0; x < kWindow; ++x) {
#if defined(__AVX512BF16__)
        if constexpr (kPairs)
          store_pairs(to + (y * kWindow + x) * step + k / 2, p[x]);
        else
#endif
          store(to + (y * kWindow + x) * step + k, p[x]);
      }
    }
  }
}

SCTRT_INLINE void tile_of(const float* products, std::int64_t step, Vector tile[kTile][kTile]) {
  Vector half[kTile][kWindow];
  SCTRT_UNROLL
  for (int x = 0; x < kWindow; ++x) {
    Vector p[kWindow], y[kTile];
    SCTRT_UNROLL
    for (int i = 0; i < kWindow; ++i) p[i] = load(products + (i * kWindow + x) * step);
    out_of_products(p, y);
    SCTRT_UNROLL
    for (int i = 0; i < kTile; ++i) half[i][x] = y[i];
  }
  SCTRT_UNROLL
  for (int i = 0; i < kTile; ++i) out_of_products(half[i], tile[i]);
}

// One row of tiles from `first_column` on, of one panel: products [.., count, width], `step` apart.
void write_tiles(const Convolution& c, std::int64_t tile_row, std::int64_t first_column, std::int64_t count,
                 std::int64_t panel, std::int64_t width, const float* products, std::int64_t step) {
  const std::int64_t height = least(kTile, c.out_height - tile_row * kTile), n = c.out_channels;
  for (std::int64_t k = 0; k < width; k += kLanes) {
    const Vector bias = load(c.bias + panel + k);
    Sums sums;
    std::int64_t summed = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t left = (first_column + i) * kTile, across = least(kTile, c.out_width - left);
      Vector tile[kTile][kTile];
      tile_of(products + i * width + k, step, tile);
      float* to = c.out + (tile_row * kTile * c.out_width + left) * n + panel + k;
      SCTRT_UNROLL
      for (int y = 0; y < kTile; ++y) SCTRT_UNROLL
      for (int x = 0; x < kTile; ++x) {
        if (y >= height || x >= across) continue;
        float* pixel = to + (y * c.out_width + x) * n;
        Vector value = tile[y][x] + bias;
        if (c.accumulate) value += load(pixel);
        store(pixel, value);
        if (!c.sums) continue;
        if (summed++ == 0) sums.start(value);
        sums.add(value);
      }
    }
    if (c.sums) {
      double* to = c.sums + tile_row * 2 * n + panel + k;
      sums.finish(summed, to, to + n);
    }
  }
}

template <bool kPairs>
void winograd_rows(const Convolution& c, std::int64_t first, std::int64_t last, float* scratch) {
  const Strip strip(c);
  const std::int64_t row = strip.columns * c.channels;
  float* image = scratch;
  float* products = image + strip.image_floats(c);
  const std::int64_t length = words(c);
  float* sums = products + kProducts * Strip::step(strip.tiles(), length);
  for (std::int64_t at = first, rows = 0; at < last; at += rows) {
    const std::int64_t kept = at == first ? 0 : kWindow - kTile;  // rows that the strip before has read already
    for (std::int64_t i = 0; i < kept * row; ++i) image[i] = image[kTile * rows * row + i];
    rows = parts(last - at, parts(last - at, strip.rows));
    for (std::int64_t y = kept; y < kTile * rows + 2; ++y)
      read_row(c, at * kTile - 1 + y, strip.columns, image + y * row);
    std::int64_t pieces = parts(rows * strip.tile_columns, strip.most);
    if (rows > 1) pieces = 1;
    for (std::int64_t begin = 0, across = 0; pieces > 0; --pieces, begin += across) {
      across = parts(strip.tile_columns - begin, pieces);
      const std::int64_t tiles = rows * across;
      const std::int64_t step = Strip::step(tiles, length);
      for (std::int64_t y = 0; y < rows; ++y)
        for (std::int64_t x = 0; x < across; ++x)
          transform_window<kPairs>(image + y * kTile * row + (begin + x) * kTile * c.channels, row, c.channels,
                                   products + (y * across + x) * length, step);
      const float* weights = c.weights;
      for (std::int64_t panel = 0; panel < c.out_channels; panel += kPanel) {
        const std::int64_t width = least(kPanel, c.out_channels - panel), sum_step = Strip::step(tiles, width);
        for (std::int64_t i = 0; i < kProducts; ++i, weights += length * width)
          product<false, kPairs>({products + i * step, length, 1, 0, length}, tiles, weights, width, width,
                                 sums + i * sum_step, width);
        for (std::int64_t y = 0; y < rows; ++y)
          write_tiles(c, at + y, begin, across, panel, width, sums + y * across * width, sum_step);
      }
    }
  }
}

// Rows first..last-1 of tiles.
void winograd(const Convolution& c, std::int64_t first, std::int64_t last, float* scratch) {
  if constexpr (kHasPairs)
    if (c.pairs) return winograd_rows<true>(c, first, last, scratch);
  winograd_rows<false>(c, first, last, scratch);
}

std::int64_t direct_columns(const Convolution& c) { return (c.out_width - 1) * c.stride + c.side; }

std::int64_t direct_scratch(const Convolution& c) {
  return c.side * direct_columns(c) * c.channels + c.out_width * least(c.out_channels, kPanel);
}

template <bool kPairs>
void direct_rows(const Convolution& c, std::int64_t first, std::int64_t last, float* scratch) {
  const std::int64_t columns = direct_columns(c), row = columns * c.channels, n = c.out_channels, length = words(c);
  float* image = scratch;
  float* made = image + c.side * row;
  for (std::int64_t y = first; y < last; ++y) {
    for (std::int64_t i = 0; i < c.side; ++i) {
      read_row(c, y * c.stride - c.pad + i, columns, image + i * row);
#if defined(__AVX512BF16__)
      if constexpr (kPairs)
        for (std::int64_t k = 0; k < row; k += kLanes) store_pairs(image + i * row + k / 2, load(image + i * row + k));
#endif
    }
    const float* weights = c.weights;
    for (std::int64_t panel = 0; panel < n; panel += kPanel) {
      const std::int64_t width = least(kPanel, n - panel);
      product<false, kPairs>({image, c.stride * length, c.side, row, c.side * length}, c.out_width, weights, width,
                             width, made, width);
      weights += c.side * c.side * length * width;
      for (std::int64_t k = 0; k < width; k += kLanes) {
        const Vector bias = load(c.bias + panel + k);
        float* to = c.out + y * c.out_width * n + panel + k;
        Sums sums;
        for (std::int64_t x = 0; x < c.out_width; ++x) {
          Vector value = load(made + x * width + k) + bias;
          if (c.accumulate) value += load(to + x * n);
          store(to + x * n, value);
          if (!c.sums) continue;
          if (x == 0) sums.start(value);
          sums.add(value);
        }
        if (c.sums) {
          double* row_sums = c.sums + y * 2 * n + panel + k;
          sums.finish(c.out_width, row_sums, row_sums + n);
        }
      }
    }
  }
}

// Rows first..last-1 of the output.
void direct(const Convolution& c, std::int64_t first, std::int64_t last, float* scratch) {
  if constexpr (kHasPairs)
    if (c.pairs) return direct_rows<true>(c, first, last, scratch);
  direct_rows<false>(c, first, last, scratch);
}

}  // namespace
}  // namespace sctrt
