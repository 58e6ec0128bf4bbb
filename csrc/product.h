// Products of small matrices, held in registers while their sums run.
#pragma once

#include "layers.h"
#include "vector.h"

namespace sctrt {
namespace {

// Rows of the left matrix: row r begins at data + r * step and consists of `runs` runs of `length` floats, each
// `run_step` after the other.
struct Rows {
  const float* data;
  std::int64_t step, runs, run_step, length;
};

// to[kRows, kColumns registers] = (to if kAdd) + left * right, right [runs * length, ...] with rows `pitch` apart; of
// pairs (see Note [Pairs]) if kPairs.
template <int kRows, int kColumns, bool kAdd, bool kPairs>
void product_block(Rows left, const float* right, std::int64_t pitch, float* to, std::int64_t to_step) {
  Vector sums[kRows][kColumns];
  SCTRT_UNROLL
  for (int r = 0; r < kRows; ++r) SCTRT_UNROLL
  for (int j = 0; j < kColumns; ++j) sums[r][j] = kAdd ? load(to + r * to_step + j * kLanes) : Vector{};
  for (std::int64_t run = 0; run < left.runs; ++run) {
    const float* row[kRows];
    SCTRT_UNROLL
    for (int r = 0; r < kRows; ++r) row[r] = left.data + run * left.run_step + r * left.step;
    for (std::int64_t k = 0; k < left.length; ++k) {
      Vector columns[kColumns];
      SCTRT_UNROLL
      for (int j = 0; j < kColumns; ++j) columns[j] = load(right + j * kLanes);
      right += pitch;
      SCTRT_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Vector value = splat(row[r][k]);
        SCTRT_UNROLL
        for (int j = 0; j < kColumns; ++j) {
#if defined(__AVX512BF16__)
          if constexpr (kPairs)
            sums[r][j] = add_product(sums[r][j], value, columns[j]);
          else
#endif
            sums[r][j] += value * columns[j];
        }
      }
    }
  }
  SCTRT_UNROLL
  for (int r = 0; r < kRows; ++r) SCTRT_UNROLL
  for (int j = 0; j < kColumns; ++j) store(to + r * to_step + j * kLanes, sums[r][j]);
}

// The most rows that fit into registers beside a row of the right matrix and a value of the left one.
#if defined(__AVX512F__)
constexpr int kMostRows[] = {0, 14, 12, 8, 6};
#elif defined(__AVX__)
constexpr int kMostRows[] = {0, 8, 6};
#else
constexpr int kMostRows[] = {0, 6, 5};
#endif
constexpr int kMostColumns = static_cast<int>(sizeof kMostRows / sizeof *kMostRows) - 1;

// product_block for a number of rows that is known at run time, 1..kRows.
template <int kRows, int kColumns, bool kAdd, bool kPairs>
SCTRT_INLINE void product_rows(std::int64_t rows, const Rows& left, const float* right, std::int64_t pitch, float* to,
                               std::int64_t to_step) {
  if constexpr (kRows == 1) {
    product_block<1, kColumns, kAdd, kPairs>(left, right, pitch, to, to_step);
  } else {
    if (rows == kRows)
      product_block<kRows, kColumns, kAdd, kPairs>(left, right, pitch, to, to_step);
    else
      product_rows<kRows - 1, kColumns, kAdd, kPairs>(rows, left, right, pitch, to, to_step);
  }
}

template <int kColumns, bool kAdd, bool kPairs>
void product_column(Rows left, std::int64_t rows, const float* right, std::int64_t pitch, float* to,
                    std::int64_t to_step) {
  constexpr int kMost = kMostRows[kColumns];
  for (std::int64_t groups = parts(rows, kMost); groups > 0; --groups) {  // as equal as can be
    const std::int64_t count = parts(rows, groups);
    product_rows<kMost, kColumns, kAdd, kPairs>(count, left, right, pitch, to, to_step);
    left.data += count * left.step;
    to += count * to_step;
    rows -= count;
  }
}

// to [rows, columns] = (to if kAdd) + left * right [.., columns], columns a multiple of kChannelBlock.
template <bool kAdd, bool kPairs>
void product(Rows left, std::int64_t rows, const float* right, std::int64_t pitch, std::int64_t columns, float* to,
             std::int64_t to_step) {
  std::int64_t at = 0;
  for (; at + kMostColumns * kLanes <= columns; at += kMostColumns * kLanes)
    product_column<kMostColumns, kAdd, kPairs>(left, rows, right + at, pitch, to + at, to_step);
  if constexpr (kMostColumns == 4) {
    if (at + 3 * kLanes == columns) product_column<3, kAdd, kPairs>(left, rows, right + at, pitch, to + at, to_step);
    if (at + 2 * kLanes == columns) product_column<2, kAdd, kPairs>(left, rows, right + at, pitch, to + at, to_step);
    if (at + kLanes == columns) product_column<1, kAdd, kPairs>(left, rows, right + at, pitch, to + at, to_step);
  }
}

}  // namespace
}  // namespace sctrt
