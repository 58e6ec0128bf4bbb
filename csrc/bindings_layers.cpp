// The network's layers: Python -> views, checks (checks.h), GIL release. Outputs and workspaces are the caller's.
#include "bindings_layers.h"

#include <algorithm>

#include "checks.h"
#include "layers.h"

namespace sctrt {
namespace {

const LayerKernels& kernels_named(const std::string& instructions) {
  const LayerKernels* kernels = layer_kernels(instructions.c_str());
  if (!kernels)
    throw py::value_error("instructions must be '' or among those that this machine has, got '" + instructions + "'");
  return *kernels;
}

View host_view(const py::object& object, const char* name, const std::string& dtype, const std::string& layout,
               std::size_t rank) {
  View found = view(object, name);
  if (found.place.gpu >= 0) throw DeviceError(found.name + " must lie on the CPU, got " + found.place.name());
  expect(found, {dtype}, layout, {rank});
  return found;
}

void expect_blocks(const View& view, std::size_t axis) {
  if (view.shape[axis] % kChannelBlock)
    throw py::value_error(view.name + " must have a multiple of " + std::to_string(kChannelBlock) +
                          " channels, got shape " + text(view.shape) + "; pad it with zeros");
}

void expect_writable(const View& view) {
  if (!view.writable) throw py::value_error(view.name + " must be writable, got a read-only array; pass another");
}

std::optional<View> activation(const py::object& object, const char* name, const View& image) {
  if (object.is_none()) return std::nullopt;
  View found = host_view(object, name, "float32", "[channels]", 1);
  expect_shape(found, {image.shape[2]}, "of the channels of image");
  expect_blocks(image, 2);
  return found;
}

void expect_pairs(const LayerKernels& kernels) {
  if (!kernels.pairs)
    throw py::value_error("pairs of bfloat16 need AVX-512 BF16, got " + std::string(kernels.instructions));
}

void bind_convolve(const py::object& image_, const py::object& weights_, const py::object& bias_, std::int64_t side,
                   std::int64_t stride, std::int64_t pad, bool winograd, bool pairs, const py::object& scale_,
                   const py::object& shift_, bool silu, bool doubled, const py::object& out_, bool accumulate,
                   const py::object& sums_, const std::string& instructions) {
  const LayerKernels& kernels = kernels_named(instructions);
  const View image = host_view(image_, "image", "float32", "[height, width, channels]", 3);
  const View bias = host_view(bias_, "bias", "float32", "[out_channels]", 1);
  const View out = host_view(out_, "out", "float32", "[height, width, out_channels]", 3);
  const std::int64_t channels = image.shape[2], outputs = bias.shape[0];
  expect_blocks(bias, 0);
  const std::optional<View> scale = activation(scale_, "scale", image), shift = activation(shift_, "shift", image);
  if (scale.has_value() != shift.has_value()) throw py::value_error("expected scale and shift together, got only one");
  if (doubled || winograd || pairs) expect_blocks(image, 2);
  if (pairs) expect_pairs(kernels);
  if (side < 1 || stride < 1 || pad < 0 || pad >= side || (winograd && (side != 3 || stride != 1 || pad != 1)))
    throw py::value_error("expected side, stride and pad of a convolution, 3, 1 and 1 by Winograd, got " +
                          text({side, stride, pad}));
  const View weights = host_view(weights_, "weights", "float32", "[products * channels * out_channels]", 1);
  expect_shape(weights, {(winograd ? kProducts : side * side) * channels / (pairs ? 2 : 1) * outputs},
               "of the convolution");
  const std::int64_t twice = doubled ? 2 : 1;
  const Shape shape{(twice * image.shape[0] - 1) / stride + 1, (twice * image.shape[1] - 1) / stride + 1, outputs};
  expect_shape(out, shape, "to hold the result");
  expect_writable(out);
  for (const View* in : {&image, &weights, &bias}) expect_apart(out, *in);
  std::optional<View> sums;
  if (!sums_.is_none()) {
    sums = host_view(sums_, "sums", "float64", "[rows, 2, out_channels]", 3);
    const std::int64_t rows = winograd ? (shape[0] + kTile - 1) / kTile : shape[0];
    expect_shape(*sums, {rows, 2, outputs}, "of the rows of out");
    expect_writable(*sums);
  }
  const Convolution c{image.as<const float>(),
                      image.shape[0],
                      image.shape[1],
                      channels,
                      scale ? scale->as<const float>() : nullptr,
                      shift ? shift->as<const float>() : nullptr,
                      silu,
                      doubled,
                      side,
                      stride,
                      pad,
                      pairs,
                      weights.as<const float>(),
                      bias.as<const float>(),
                      shape[0],
                      shape[1],
                      outputs,
                      out.as<float>(),
                      accumulate,
                      sums ? sums->as<double>() : nullptr};
  const py::gil_scoped_release release;
  if (sums) std::fill_n(c.sums, sums->shape[0] * sums->shape[1] * sums->shape[2], 0.0);
  if (winograd)
    convolve_winograd(kernels, c);
  else
    convolve(kernels, c);
}

void bind_attend(const py::object& inputs_, const py::object& panels_, const py::object& out_, bool pairs,
                 const std::string& instructions) {
  const LayerKernels& kernels = kernels_named(instructions);
  if (pairs) expect_pairs(kernels);
  const View inputs = host_view(inputs_, "inputs", "float32", "[positions, 3 * channels]", 2);
  const View out = host_view(out_, "out", "float32", "[positions, channels]", 2);
  const View panels = host_view(panels_, "panels", "float32", "[floats]", 1);
  const std::int64_t positions = inputs.shape[0], channels = out.shape[1];
  expect_blocks(out, 1);
  expect_shape(inputs, {out.shape[0], 3 * channels}, "of the queries, keys and values of out");
  expect_shape(panels, {(positions + kPanel - 1) / kPanel * kPanel * channels}, "for the keys of inputs");
  for (const View* written : {&out, &panels}) {
    expect_writable(*written);
    expect_apart(*written, inputs);
  }
  expect_apart(out, panels);
  const float* data = inputs.as<const float>();
  const Attention a{pairs,    data,         data + channels,    data + 2 * channels, positions,
                    channels, 3 * channels, panels.as<float>(), out.as<float>()};
  const py::gil_scoped_release release;
  attend(kernels, a);
}

void bind_normalise(const py::object& sums_, std::int64_t pixels, const py::object& weight_, const py::object& bias_,
                    std::int64_t groups, double eps, const py::object& scale_, const py::object& shift_) {
  const View sums = host_view(sums_, "sums", "float64", "[rows, 2, padded channels]", 3);
  const View weight = host_view(weight_, "weight", "float32", "[channels]", 1);
  const View bias = host_view(bias_, "bias", "float32", "[channels]", 1);
  const View scale = host_view(scale_, "scale", "float32", "[padded channels]", 1);
  const View shift = host_view(shift_, "shift", "float32", "[padded channels]", 1);
  const std::int64_t channels = weight.shape[0], padded = scale.shape[0];
  expect_shape(bias, weight.shape, "of weight");
  expect_shape(shift, scale.shape, "of scale");
  expect_shape(sums, {sums.shape[0], 2, padded}, "of scale");
  if (pixels < 1 || groups < 1 || channels % groups || channels > padded)
    throw py::value_error("expected pixels, and groups that divide the channels, which scale holds, got " +
                          text({pixels, groups, channels, padded}));
  expect_writable(scale);
  expect_writable(shift);
  normalise({sums.as<const double>(), sums.shape[0], pixels, channels, padded, groups, eps, weight.as<const float>(),
             bias.as<const float>(), scale.as<float>(), shift.as<float>()});
}

void bind_set_layer_threads(int threads) {
  if (threads < 1) throw py::value_error("expected 1 thread or more, got " + std::to_string(threads));
  set_layer_threads(threads);
}

std::vector<std::string> layer_instructions() {
  std::vector<std::string> known;
  for (const char* name : {"avx512bf16", "avx512", "avx2", "baseline"})
    if (layer_kernels(name)) known.push_back(name);
  return known;
}

}  // namespace

void add_layers(py::module_& module) {
  module.def("convolve", bind_convolve);
  module.def("attend", bind_attend);
  module.def("normalise", bind_normalise);
  module.def("layers_multiply_bfloat16", [] { return layer_kernels("")->pairs; });
  module.def("layer_instructions", layer_instructions);
  module.def("layer_threads", layer_threads);
  module.def("set_layer_threads", bind_set_layer_threads);
  // A forked process has none of its parent's OpenMP threads, and would wait for them for ever.
  if (const py::object os = py::module_::import("os"); py::hasattr(os, "register_at_fork"))
    os.attr("register_at_fork")(py::arg("after_in_child") = py::cpp_function([] { set_layer_threads(1); }));
}

}  // namespace sctrt
