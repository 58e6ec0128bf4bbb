// Writing large results past a CPU's caches, a whole cache line at a time.
#pragma once

#include "device.h"

#if defined(__SSE2__) && !defined(__CUDACC__)
#include <emmintrin.h>
#define SCTRT_SSE2 1
#endif

namespace sctrt {

// Note [Streaming]
// An ordinary store reads the line that it changes, so filling memory moves half as many bytes again as it writes.
// Lines written past the caches are not read, but whoever reads them next waits for memory. Arrays from this size on
// leave the caches anyway before they are read; smaller ones, such as a batch that an engine takes at once, are stored
// as usual.
constexpr std::int64_t kStreamedBytes = 16 << 20;  // half of a large last-level cache

template <class T>
bool is_streamed([[maybe_unused]] std::int64_t elements) {
#ifdef SCTRT_SSE2
  return elements * static_cast<std::int64_t>(sizeof(T)) >= kStreamedBytes;
#else
  return false;
#endif
}

// Asks for the lines of `count` elements, so that reading memory goes on while others are written. Any address will do.
template <class T>
SCTRT_BODY void ask_for(const T* elements, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += 64 / static_cast<std::int64_t>(sizeof(T))) __builtin_prefetch(elements + i);
}

// Waits until what this thread streamed can be seen by others.
SCTRT_BODY void end_stream() {
#ifdef SCTRT_SSE2
  _mm_sfence();
#endif
}

// Writes a run of elements: fill room() with up to kRoom of them, put() as many, ..., finish(). Streamed ones wait
// until they make whole lines; the lines that the run begins and ends in are not its own and are stored as usual.
// See Note [Streaming].
template <class T>
class RunWriter {
 public:
  static constexpr std::int64_t kRoom = 64;  // a few lines: longer bursts to two arrays in turn halve the speed

  SCTRT_BODY RunWriter(T* to, bool streamed) : to_(to), streamed_(streamed) {
    if (!streamed) return;
    foreign_ = waiting_ = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(to) % kLineBytes / sizeof(T));
    to_ -= foreign_;
  }

  SCTRT_BODY T* room() { return streamed_ ? lines_ + waiting_ : to_; }

  SCTRT_BODY void put(std::int64_t count) {
    if (!streamed_) {
      to_ += count;
      return;
    }
    waiting_ += count;
    const std::int64_t whole = waiting_ / kLine * kLine;
    if (whole == 0) return;
    std::int64_t at = 0;
    if (foreign_ > 0) {
      store(foreign_, kLine);
      foreign_ = 0;
      at = kLine;
    }
    for (; at < whole; at += kLine) stream_line(lines_ + at, to_ + at);
    memcpy(lines_, lines_ + whole, kLineBytes);
    to_ += whole;
    waiting_ -= whole;
  }

  SCTRT_BODY void finish() {
    if (streamed_) store(foreign_, waiting_);
  }

 private:
  static constexpr std::int64_t kLineBytes = 64, kLine = kLineBytes / sizeof(T);

  SCTRT_BODY void store(std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) to_[i] = lines_[i];
  }

  static SCTRT_BODY void stream_line([[maybe_unused]] const T* from, [[maybe_unused]] T* to) {
#ifdef SCTRT_SSE2
    const auto* source = reinterpret_cast<const __m128i*>(from);
    auto* target = reinterpret_cast<__m128i*>(to);
    for (int i = 0; i < 4; ++i) _mm_stream_si128(target + i, _mm_load_si128(source + i));
#endif
  }

  T* to_;  // streamed: the line that lines_ begins with
  bool streamed_;
  std::int64_t foreign_ = 0, waiting_ = 0;  // elements of lines_: before the run; in all
  alignas(kLineBytes) T lines_[kRoom + 2 * kLine];
};

}  // namespace sctrt
