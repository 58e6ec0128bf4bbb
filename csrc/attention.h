// Attention over all positions of an image, for some queries at a time.
#pragma once

#include "product.h"

namespace sctrt {
namespace {

constexpr std::int64_t kKeys = 256;  // at a time, a multiple of kPanel
constexpr float kLowest = -3.4e38f;

// Of a query, a key or a value.
std::int64_t words(const Attention& a) { return a.pairs ? a.channels / 2 : a.channels; }

// Where pairs of values lie: behind the keys. [positions / 2, channels] words.
float* value_pairs(const Attention& a) { return a.panels + parts(a.positions, kPanel) * kPanel * words(a); }

// Panels first..last-1 of keys^T, [words, kPanel] each; behind the last position are zeros.
void pack_keys(const Attention& a, std::int64_t first, std::int64_t last) {
  for (std::int64_t panel = first; panel < last; ++panel) {
    float* to = a.panels + panel * kPanel * words(a);
    const std::int64_t count = least(kPanel, a.positions - panel * kPanel);
    const float* from = a.keys + panel * kPanel * a.step;
#if defined(__AVX512BF16__)
    if (a.pairs) {
      float rounded[kLanes / 2];
      for (std::int64_t i = 0; i < kPanel; ++i)
        for (std::int64_t c = 0; c < a.channels; c += kLanes) {
          store_pairs(rounded, i < count ? load(from + i * a.step + c) : Vector{});
          for (int j = 0; j < kLanes / 2; ++j) to[(c / 2 + j) * kPanel + i] = rounded[j];
        }
      const float* values = a.values + panel * kPanel * a.step;
      float* pair = value_pairs(a) + panel * kPanel / 2 * a.channels;
      for (std::int64_t i = 0; i < kPanel; i += 2, pair += a.channels)
        for (std::int64_t c = 0; c < a.channels; c += kLanes)
          store(pair + c, pairs(i < count ? load(values + i * a.step + c) : Vector{},
                                i + 1 < count ? load(values + (i + 1) * a.step + c) : Vector{}));
      continue;
    }
#endif
    for (std::int64_t c = 0; c < a.channels; ++c)
      for (std::int64_t i = 0; i < kPanel; ++i) to[c * kPanel + i] = i < count ? from[i * a.step + c] : 0;
  }
}

std::int64_t attention_scratch(const Attention& a) {
  return kQueries * (kKeys + kChannelBlock) + 2 * kQueries * a.channels + 2 * kQueries;
}

// Scores [count] of one query -> powers of 2 of them over the largest so far; sum and out [channels] follow it.
template <bool kPairs>
void weigh(float* scores, std::int64_t count, float* largest, float* total, float* out, std::int64_t channels) {
  Vector top = splat(*largest);
  for (std::int64_t i = 0; i < count; i += kLanes) top = larger(top, load(scores + i));
  const float now = largest_of(top);
  Vector sum{};
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const Vector weight = power_of_2(load(scores + i) - now);
    sum += weight;
#if defined(__AVX512BF16__)
    if constexpr (kPairs)
      store_pairs(scores + i / 2, weight);
    else
#endif
      store(scores + i, weight);
  }
  const float factor = power_of_2(splat(*largest - now))[0];
  *total = *total * factor + sum_of(sum);
  *largest = now;
  for (std::int64_t c = 0; c < channels; c += kLanes) store(out + c, load(out + c) * factor);
}

template <bool kPairs>
void attention_blocks(const Attention& a, std::int64_t first, std::int64_t last, float* scratch) {
  constexpr std::int64_t kStep = kKeys + kChannelBlock;
  float* scores = scratch;
  float* sums = scores + kQueries * kStep;
  float* rounded = sums + kQueries * a.channels;
  float* largest = rounded + kQueries * a.channels;
  float* total = largest + kQueries;
  const std::int64_t length = words(a);
  for (std::int64_t block = first; block < last; ++block) {
    const std::int64_t begin = block * kQueries, queries = least(kQueries, a.positions - begin);
    for (std::int64_t i = 0; i < queries * a.channels; ++i) sums[i] = 0;
    for (std::int64_t i = 0; i < queries; ++i) {
      largest[i] = kLowest;
      total[i] = 0;
    }
    Rows rows{a.queries + begin * a.step, a.step, 1, 0, length};
#if defined(__AVX512BF16__)
    if constexpr (kPairs) {
      for (std::int64_t i = 0; i < queries; ++i)
        for (std::int64_t c = 0; c < a.channels; c += kLanes)
          store_pairs(rounded + i * length + c / 2, load(rows.data + i * a.step + c));
      rows.data = rounded;
      rows.step = length;
    }
#endif
    for (std::int64_t key = 0; key < a.positions; key += kKeys) {
      const std::int64_t keys = least(kKeys, a.positions - key);
      for (std::int64_t i = 0; i < keys; i += kPanel)
        product<false, kPairs>(rows, queries, a.panels + (key + i) * length, kPanel, kPanel, scores + i, kStep);
      for (std::int64_t q = 0; q < queries; ++q) {
        float* row = scores + q * kStep;
        for (std::int64_t i = keys; i < parts(keys, kLanes) * kLanes; ++i) row[i] = kLowest;
        weigh<kPairs>(row, keys, largest + q, total + q, sums + q * a.channels, a.channels);
      }
      const float* values = kPairs ? value_pairs(a) + key / 2 * a.channels : a.values + key * a.step;
      const std::int64_t pitch = kPairs ? a.channels : a.step, summed = kPairs ? parts(keys, 2) : keys;
      for (std::int64_t c = 0; c < a.channels; c += kPanel)
        product<true, kPairs>({scores, kStep, 1, 0, summed}, queries, values + c, pitch, least(kPanel, a.channels - c),
                              sums + c, a.channels);
    }
    for (std::int64_t q = 0; q < queries; ++q)
      for (std::int64_t c = 0; c < a.channels; c += kLanes)
        store(a.out + (begin + q) * a.channels + c, load(sums + q * a.channels + c) / total[q]);
  }
}

// Queries first * kQueries up to last * kQueries.
void attention(const Attention& a, std::int64_t first, std::int64_t last, float* scratch) {
  if constexpr (kHasPairs)
    if (a.pairs) return attention_blocks<true>(a, first, last, scratch);
  attention_blocks<false>(a, first, last, scratch);
}

}  // namespace
}  // namespace sctrt
