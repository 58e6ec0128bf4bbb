// Attention over all positions of an image, for some queries at a time.
#pragma once

#include "product.h"

namespace sctrt {
namespace {

constexpr std::int64_t kKeys = 256;  // at a time, a multiple of kPanel
constexpr float kLowest = -3.4e38f;

// Panels first..last-1 of keys^T, [channels, kPanel] each; behind the last position are zeros.
void pack_keys(const Attention& a, std::int64_t first, std::int64_t last) {
  for (std::int64_t panel = first; panel < last; ++panel) {
    float* to = a.panels + panel * kPanel * a.channels;
    const std::int64_t count = least(kPanel, a.positions - panel * kPanel);
    const float* from = a.keys + panel * kPanel * a.step;
    for (std::int64_t c = 0; c < a.channels; ++c)
      for (std::int64_t i = 0; i < kPanel; ++i) to[c * kPanel + i] = i < count ? from[i * a.step + c] : 0;
  }
}

std::int64_t attention_scratch(const Attention& a) {
  return kQueries * (kKeys + kChannelBlock) + kQueries * a.channels + 2 * kQueries;
}

// Scores [count] of one query -> powers of 2 of them over the largest so far; sum and out [channels] follow it.
void weigh(float* scores, std::int64_t count, float* largest, float* total, float* out, std::int64_t channels) {
  Vector top = splat(*largest);
  for (std::int64_t i = 0; i < count; i += kLanes) top = larger(top, load(scores + i));
  const float now = largest_of(top);
  Vector sum{};
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const Vector weight = power_of_2(load(scores + i) - now);
    store(scores + i, weight);
    sum += weight;
  }
  const float factor = power_of_2(splat(*largest - now))[0];
  *total = *total * factor + sum_of(sum);
  *largest = now;
  for (std::int64_t c = 0; c < channels; c += kLanes) store(out + c, load(out + c) * factor);
}

// Queries first * kQueries up to last * kQueries.
void attention(const Attention& a, std::int64_t first, std::int64_t last, float* scratch) {
  constexpr std::int64_t kStep = kKeys + kChannelBlock;
  float* scores = scratch;
  float* sums = scores + kQueries * kStep;
  float* largest = sums + kQueries * a.channels;
  float* total = largest + kQueries;
  for (std::int64_t block = first; block < last; ++block) {
    const std::int64_t begin = block * kQueries, queries = least(kQueries, a.positions - begin);
    for (std::int64_t i = 0; i < queries * a.channels; ++i) sums[i] = 0;
    for (std::int64_t i = 0; i < queries; ++i) {
      largest[i] = kLowest;
      total[i] = 0;
    }
    for (std::int64_t key = 0; key < a.positions; key += kKeys) {
      const std::int64_t keys = least(kKeys, a.positions - key);
      const Rows rows{a.queries + begin * a.step, a.step, 1, 0, a.channels};
      for (std::int64_t i = 0; i < keys; i += kPanel)
        product<false>(rows, queries, a.panels + (key + i) * a.channels, kPanel, kPanel, scores + i, kStep);
      for (std::int64_t q = 0; q < queries; ++q) {
        float* row = scores + q * kStep;
        for (std::int64_t i = keys; i < parts(keys, kLanes) * kLanes; ++i) row[i] = kLowest;
        weigh(row, keys, largest + q, total + q, sums + q * a.channels, a.channels);
      }
      const float* values = a.values + key * a.step;
      for (std::int64_t c = 0; c < a.channels; c += kPanel)
        product<true>({scores, kStep, 1, 0, keys}, queries, values + c, a.step, least(kPanel, a.channels - c), sums + c,
                      a.channels);
    }
    for (std::int64_t q = 0; q < queries; ++q)
      for (std::int64_t c = 0; c < a.channels; c += kLanes)
        store(a.out + (begin + q) * a.channels + c, load(sums + q * a.channels + c) / total[q]);
  }
}

}  // namespace
}  // namespace sctrt
