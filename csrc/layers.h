// The network's layers on a CPU: convolutions with what lies before them (group normalisation, SiLU, doubling of the
// image) and behind (bias, residual sum, sums for the next normalisation), and attention. float32, pixel by pixel:
// images are [height, width, channels]. Declared once, compiled for each instruction set (layers_isa.cpp), shared out
// among threads in layers.cpp. Every output value is computed alike whatever the number of threads.
#pragma once

#include <cstdint>

namespace sctrt {

constexpr std::int64_t kChannelBlock = 16;  // channels of all images but the first are padded to multiples of it
// Matrices [rows, columns] of weights are stored in panels of this many columns, the last one perhaps narrower:
// panel after panel, each [rows, its columns]. So a product reads them from the first to the last byte.
constexpr std::int64_t kPanel = 64;
// Of F(4x4, 3x3): output pixels on a side of a tile, input pixels, and products a tile and pair of channels.
constexpr std::int64_t kTile = 4, kWindow = 6, kProducts = kWindow * kWindow;

// out = (out if accumulate, else 0) + bias + weights * activated(in), and where `sums` is given, of each row of output
// (of each row of tiles, by Winograd) and channel the sum and the sum of squares.
// activated(x) = y or y / (1 + exp(-y)) with y = x * scale + shift, of each channel; outside the image it is 0.
struct Convolution {
  const float* in;  // [height, width, channels]
  std::int64_t height, width, channels;
  const float *scale, *shift;  // [channels] each, or null: in as it is
  bool silu;
  bool doubled;                    // the image is doubled before the convolution: each pixel becomes 2 x 2
  std::int64_t side, stride, pad;  // of the kernel; pixels of zeros above and left (below and right as needed)
  bool pairs;                      // weights and images are rounded to bfloat16: see Note [Pairs] in vector.h
  const float* weights;            // panels of [side, side, channels][out_channels]; by Winograd see there
  const float* bias;               // [out_channels]
  std::int64_t out_height, out_width, out_channels;
  float* out;  // [out_height, out_width, out_channels]
  bool accumulate;
  double* sums;  // [rows, 2, out_channels], or null; added to: cleared by who calls
};

// out = softmax_2(queries keys^T) values, softmax to base 2, of each position over all.
struct Attention {
  bool pairs;                            // rounded to bfloat16 before they are multiplied
  const float *queries, *keys, *values;  // [positions, channels], each position `step` floats after the other
  std::int64_t positions, channels, step;
  float* panels;  // workspace, positions rounded up to kPanel * channels floats: keys^T, and of pairs the values too
  float* out;     // [positions, channels]
};

// Group normalisation of an image from its sums, as a scale and a shift of each channel; 0 of padding.
struct GroupNorm {
  const double* sums;  // [rows, 2, padded channels], from a Convolution
  std::int64_t rows, pixels, channels, padded, groups;
  double eps;                  // added to the variance
  const float *weight, *bias;  // [channels]
  float *scale, *shift;        // [padded channels]
};

// A layer for one range of rows, blocks or panels; `scratch` is the thread's own.
struct LayerKernels {
  const char* instructions;
  bool pairs;                                            // whether it multiplies pairs of bfloat16
  std::int64_t (*winograd_scratch)(const Convolution&);  // floats
  void (*winograd)(const Convolution&, std::int64_t first, std::int64_t last, float* scratch);
  std::int64_t (*direct_scratch)(const Convolution&);
  void (*direct)(const Convolution&, std::int64_t first, std::int64_t last, float* scratch);
  std::int64_t (*attention_scratch)(const Attention&);
  void (*pack_keys)(const Attention&, std::int64_t first, std::int64_t last);
  void (*attention)(const Attention&, std::int64_t first, std::int64_t last, float* scratch);
};

constexpr std::int64_t kQueries = 48;  // of one block of attention

extern const LayerKernels kLayersBaseline;
#ifdef SCTRT_LAYERS_X86
extern const LayerKernels kLayersAvx2, kLayersAvx512, kLayersAvx512Bf16;
#endif

// The kernels of the named instruction set; of the best that this machine has for "". Null where it has not.
const LayerKernels* layer_kernels(const char* instructions);

// By Winograd's F(4x4, 3x3): side 3, stride 1, pad 1, channels in blocks. weights: panels of the products' [products,
// channels, out_channels], the whole of a panel's products after another.
void convolve_winograd(const LayerKernels&, const Convolution&);
// As it is written.
void convolve(const LayerKernels&, const Convolution&);
void attend(const LayerKernels&, const Attention&);
void normalise(const GroupNorm&);

// Threads that layers of the calling thread are shared out among.
int layer_threads();
void set_layer_threads(int threads);

}  // namespace sctrt
