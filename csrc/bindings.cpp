// Python -> views, checks (checks.h), GIL release, device visit. Outputs that are not given are made by `allocate`, a
// Python function (like, shape, dtype) -> array, so that this module needs no array library.
#include <array>
#include <cmath>

#include "bindings_layers.h"
#include "checks.h"
#include "codebook_tree.h"
#include "kernels.h"

namespace sctrt {
namespace {

AnySamples any_samples(const View& view) {
  using Type = AnySamples::Type;
  const Type type = view.dtype == "float16" ? Type::float16 : view.dtype == "bfloat16" ? Type::bfloat16 : Type::float32;
  return {view.data, type};
}

// What build_codebook_tree of this file returned, its arrays perhaps moved to a GPU since.
using TreeTuple = std::tuple<py::object, py::object, std::vector<float>, std::vector<float>>;

py::tuple bind_nearest_code(const py::object& latent_, const py::object& codes_, const std::optional<TreeTuple>& tree_,
                            const py::object& index_, const py::object& quantised_,
                            const std::optional<std::string>& dtype_, const py::function& allocate,
                            std::uintptr_t stream) {
  const View latent = view(latent_, "latent"), codes = view(codes_, "codebook");
  Given given_index = view_given(index_, "index"), given_quantised = view_given(quantised_, "quantised");
  expect_same_place(latent, {&codes, pointer(given_index), pointer(given_quantised)});
  expect(latent, kSamples, "[n, d, h, w]", {4});
  expect(codes, {"float32"}, "[k, d]", {2});
  const Shape& shape = latent.shape;
  const std::int64_t count = codes.shape[0], dimensions = shape[1];
  if (dimensions > kMaxDimensions)
    throw py::value_error("latent must have 1 to " + std::to_string(kMaxDimensions) + " channels, got " +
                          std::to_string(dimensions) + " in " + text(shape) + "; pass it as [n, d, h, w]");
  expect_shape(codes, {count, dimensions}, "to match the channels of latent");
  if (count > std::numeric_limits<std::int32_t>::max())
    throw py::value_error("codebook must have fewer than 2^31 codes, got " + std::to_string(count));
  const std::string dtype = dtype_ ? *dtype_ : given_quantised ? given_quantised->dtype : latent.dtype;
  expect_one_of(kSamples, dtype, "quantised");
  const View index = output(std::move(given_index), "index", {shape[0], shape[2], shape[3]}, "int32", latent, allocate);
  const View quantised = output(std::move(given_quantised), "quantised", shape, dtype, latent, allocate);
  for (const View* in : {&latent, &codes}) {
    expect_apart(index, *in);
    expect_apart(quantised, *in);
  }
  expect_apart(index, quantised);
  std::optional<CodebookTree> tree;
  std::vector<View> borrowed;
  if (tree_) {
    borrowed.push_back(view(std::get<0>(*tree_), "codebook"));
    borrowed.push_back(view(std::get<1>(*tree_), "codebook"));
    expect_same_place(latent, {&borrowed[0], &borrowed[1]});
    tree.emplace();
    tree->cells = borrowed[0].as<const CodebookCell>();
    tree->groups = borrowed[1].as<const CodebookGroup>();
    std::copy_n(std::get<2>(*tree_).begin(), CodebookTree::kDimensions, tree->centre);
    std::copy_n(std::get<3>(*tree_).begin(), CodebookTree::kDimensions, tree->scale);
  }
  const Codebook codebook{codes.as<const float>(), count, dimensions, tree ? &*tree : nullptr};
  run_on(latent, stream, [&](auto device) {
    nearest_code(device, any_samples(latent), codebook, shape[0], shape[2] * shape[3], index.as<std::int32_t>(),
                 any_samples(quantised));
  });
  return py::make_tuple(index.object, quantised.object);
}

// Cells [n, 2] and groups of candidates [m, 32] as int32 arrays beside `codes`, centre and scale; None where there is
// no tree.
py::object bind_build_codebook_tree(const py::object& codes_, const py::function& allocate) {
  const View codes = view(codes_, "codes");
  if (codes.place.gpu >= 0) throw DeviceError("codes must lie on the CPU, got " + codes.place.name());
  expect(codes, {"float32"}, "[k, 3]", {2});
  expect_shape(codes, {codes.shape[0], CodebookTree::kDimensions}, "of a tree");
  CodebookTreeData data;
  {
    const py::gil_scoped_release release;
    data = build_codebook_tree(codes.as<const float>(), codes.shape[0]);
  }
  if (data.cells.empty()) return py::none();
  const auto array = [&](const auto& values, std::int64_t columns) {
    const View out =
        output(std::nullopt, "tree", {static_cast<std::int64_t>(values.size()), columns}, "int32", codes, allocate);
    std::memcpy(out.data, values.data(), values.size() * sizeof(values[0]));
    return out.object;
  };
  return py::make_tuple(array(data.cells, 2), array(data.groups, sizeof(CodebookGroup) / 4),
                        std::vector<float>(data.centre, data.centre + CodebookTree::kDimensions),
                        std::vector<float>(data.scale, data.scale + CodebookTree::kDimensions));
}

Plane plane_named(const std::string& name) {
  if (name == "axial") return Plane::axial;
  if (name == "coronal") return Plane::coronal;
  if (name == "sagittal") return Plane::sagittal;
  throw py::value_error("plane must be 'axial', 'coronal' or 'sagittal', got '" + name + "'");
}

Grid grid_of(const View& volume) {
  const Shape& s = volume.shape;
  return s.size() == 4 ? Grid{s[0], s[1], s[2], s[3]} : Grid{1, s[0], s[1], s[2]};
}

void expect_range(const Slices& slices, const std::string& plane, std::int64_t start, std::int64_t count) {
  if (start < 0 || count < 1 || count > slices.count || start > slices.count - count)
    throw py::value_error("start and count must name slices 0 to " + std::to_string(slices.count - 1) + " of the " +
                          plane + " plane, got start " + std::to_string(start) + " and count " + std::to_string(count) +
                          "; shorten the last batch");
}

void expect_cover(const Slices& slices, const std::string& plane, std::int64_t height, std::int64_t width) {
  if (height < slices.height || width < slices.width)
    throw py::value_error("height and width must be at least those of the " + plane + " slices, " +
                          text({slices.height, slices.width}) + ", got " + text({height, width}) +
                          "; planes are padded, never cropped");
}

py::object bind_extract_planes(const py::object& volume_, const std::string& plane_name, std::int64_t start,
                               std::int64_t count, std::optional<std::int64_t> height_,
                               std::optional<std::int64_t> width_, float fill, float scale, float offset,
                               const std::optional<std::string>& dtype_, const py::object& out_,
                               const py::function& allocate, std::uintptr_t stream) {
  const Plane plane = plane_named(plane_name);
  const View volume = view(volume_, "volume");
  Given given = view_given(out_, "out");
  expect_same_place(volume, {pointer(given)});
  expect(volume, {"float32"}, "[c, z, y, x] or [z, y, x]", {3, 4});
  const Grid grid = grid_of(volume);
  const Slices slices = slices_of(grid, plane);
  const std::int64_t height = height_.value_or(slices.height), width = width_.value_or(slices.width);
  const std::string dtype = dtype_ ? *dtype_ : given ? given->dtype : "float32";
  expect_range(slices, plane_name, start, count);
  expect_cover(slices, plane_name, height, width);
  expect_one_of(kSamples, dtype, "planes");
  const View out = output(std::move(given), "out", {count, grid.channels, height, width}, dtype, volume, allocate);
  expect_apart(out, volume);
  run_on(volume, stream, [&](auto device) {
    visit_sample(dtype, [&](auto type) {
      using Sample = typename decltype(type)::Sample;
      extract_planes(device, volume.as<const float>(), PlaneBatch{grid, plane, start, count, height, width}, scale,
                     offset, fill, out.as<Sample>());
    });
  });
  return out.object;
}

py::object bind_insert_planes(const py::object& planes_, const py::object& volume_, const std::string& plane_name,
                              std::int64_t start, std::uintptr_t stream) {
  const Plane plane = plane_named(plane_name);
  const View planes = view(planes_, "planes"), volume = view(volume_, "volume");
  expect_same_place(planes, {&volume});
  expect(planes, kSamples, "[n, c, height, width]", {4});
  const bool same = planes.dtype == volume.dtype && planes.dtype != "float32";
  expect(volume, {same ? planes.dtype : "float32"}, "[c, z, y, x] or [z, y, x]", {3, 4});
  const Grid grid = grid_of(volume);
  const Slices slices = slices_of(grid, plane);
  const std::int64_t count = planes.shape[0], height = planes.shape[2], width = planes.shape[3];
  expect_shape(planes, {count, grid.channels, height, width}, "to match the channels of volume");
  expect_range(slices, plane_name, start, count);
  expect_cover(slices, plane_name, height, width);
  if (!volume.writable) throw py::value_error("volume must be writable, got a read-only array; pass a copy of it");
  expect_apart(volume, planes);
  run_on(volume, stream, [&](auto device) {
    visit_sample(planes.dtype, [&](auto type) {
      using Sample = typename decltype(type)::Sample;
      const PlaneBatch batch{grid, plane, start, count, height, width};
      if (same)
        insert_planes(device, planes.as<const Sample>(), batch, volume.as<Sample>());
      else
        insert_planes(device, planes.as<const Sample>(), batch, volume.as<float>());
    });
  });
  return volume.object;
}

Middle middle_named(const std::string& method) {
  if (method == "median") return Middle::median;
  if (method == "mean") return Middle::mean;
  if (method == "inverse-nearest") return Middle::nearest;
  throw py::value_error("method must be 'median', 'mean' or 'inverse-nearest', got '" + method + "'");
}

Fusion fusion_named(const std::string& method, const std::array<float, 3>& weights, float agreement, float scale,
                    float offset, std::optional<std::pair<float, float>> limits, float background) {
  const Middle middle = middle_named(method);
  if (!(agreement > 0) || !std::isfinite(agreement))
    throw py::value_error("agreement must be a finite number above 0, got " + std::to_string(agreement));
  float total = 0;
  bool fits = true;
  for (float weight : weights) {
    fits = fits && weight >= 0;
    total += weight;
  }
  if (!fits || !(total > 0) || !std::isfinite(total))
    throw py::value_error("weights must be three finite numbers, none below 0 and not all 0, got " +
                          py::str(py::cast(weights)).cast<std::string>());
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto [low, high] = limits.value_or(std::pair(-kInfinity, kInfinity));
  if (!(low <= high))
    throw py::value_error("limits must be (low, high), low at most high, got " +
                          py::str(py::cast(*limits)).cast<std::string>());
  return {middle, {weights[0], weights[1], weights[2]}, agreement, scale, offset, low, high, nullptr, background};
}

// Of the given outputs and `dtype_`, which may be absent, the dtype of both outputs.
std::string fused_dtype(const std::optional<std::string>& dtype_, const Given& fused, const Given& spread) {
  const std::string dtype = dtype_ ? *dtype_ : fused ? fused->dtype : spread ? spread->dtype : "float32";
  expect_one_of({"float32", "int16"}, dtype, "fused and spread");
  return dtype;
}

py::tuple bind_fuse_planes(const py::object& axial_, const py::object& coronal_, const py::object& sagittal_,
                           const std::string& method, const std::array<float, 3>& weights, float agreement, float scale,
                           float offset, std::optional<std::pair<float, float>> limits, const py::object& mask_,
                           float background, const std::optional<std::string>& dtype_, const py::object& fused_,
                           const py::object& spread_, const py::function& allocate, std::uintptr_t stream) {
  Fusion how = fusion_named(method, weights, agreement, scale, offset, limits, background);
  const View axial = view(axial_, "axial"), coronal = view(coronal_, "coronal"), sagittal = view(sagittal_, "sagittal");
  const Given mask = view_given(mask_, "mask");
  Given given_fused = view_given(fused_, "fused"), given_spread = view_given(spread_, "spread");
  expect_same_place(axial, {&coronal, &sagittal, pointer(mask), pointer(given_fused), pointer(given_spread)});
  expect(axial, kSamples, "[z, y, x]", {3});
  for (const View* in : {&coronal, &sagittal}) {
    expect(*in, {axial.dtype}, "[z, y, x], as axial is", {3});
    expect_shape(*in, axial.shape, "of axial");
  }
  if (mask) {
    expect(*mask, {"bool", "uint8"}, "[z, y, x]", {3});
    expect_shape(*mask, axial.shape, "of axial");
    how.mask = mask->as<const std::uint8_t>();
  }
  const std::string dtype = fused_dtype(dtype_, given_fused, given_spread);
  const View fused = output(std::move(given_fused), "fused", axial.shape, dtype, axial, allocate);
  const View spread = output(std::move(given_spread), "spread", axial.shape, dtype, axial, allocate);
  for (const View* out : {&fused, &spread}) {
    for (const View* in : {&axial, &coronal, &sagittal}) expect_equal_or_apart(*out, *in);
    if (mask) expect_apart(*out, *mask);
  }
  expect_apart(spread, fused);
  run_on(axial, stream, [&](auto device) {
    visit_sample(axial.dtype, [&](auto type) {
      using Sample = typename decltype(type)::Sample;
      const Sample *a = axial.as<Sample>(), *b = coronal.as<Sample>(), *c = sagittal.as<Sample>();
      if (dtype == "int16")
        fuse_planes(device, a, b, c, axial.size(), how, fused.as<std::int16_t>(), spread.as<std::int16_t>());
      else
        fuse_planes(device, a, b, c, axial.size(), how, fused.as<float>(), spread.as<float>());
    });
  });
  return py::make_tuple(fused.object, spread.object);
}

IndexMap index_map(const std::vector<std::vector<double>>& matrix) {
  bool fits = matrix.size() == 3 || matrix.size() == 4;
  for (const auto& row : matrix) {
    fits = fits && row.size() == 4;
    for (double value : row) fits = fits && std::isfinite(value);
  }
  if (fits && matrix.size() == 4) fits = matrix[3] == std::vector<double>{0, 0, 0, 1};
  if (!fits)
    throw py::value_error(
        "matrix must be finite [3, 4], or [4, 4] with the last row 0, 0, 0, 1, from output to input voxel index (x, y, "
        "z), "
        "got something else; make it with grid_matrix");
  IndexMap map{};
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 4; ++j) map.row[i][j] = matrix[i][j];
  return map;
}

Curve curve_of(std::optional<double> reference, double exponent) {
  if (!reference) return {0, 1};
  const Curve curve{static_cast<float>(*reference), static_cast<float>(exponent)};
  for (float value : {curve.reference, curve.exponent})
    if (!(value > 0 && std::isfinite(value)))
      throw py::value_error("reference and exponent must be positive float32 numbers, got " +
                            py::repr(py::float_(*reference)).cast<std::string>() + " and " +
                            py::repr(py::float_(exponent)).cast<std::string>());
  return curve;
}

py::object bind_resample(const py::object& volume_, const std::vector<std::vector<double>>& matrix, const Shape& shape,
                         float fill, std::optional<double> reference, double exponent, const py::object& out_,
                         const py::function& allocate, std::uintptr_t stream) {
  const IndexMap map = index_map(matrix);
  const Curve curve = curve_of(reference, exponent);
  const View volume = view(volume_, "volume");
  Given given = view_given(out_, "out");
  expect_same_place(volume, {pointer(given)});
  expect(volume, {"float32"}, "[z, y, x]", {3});
  if (shape.size() != 3 || std::any_of(shape.begin(), shape.end(), [](std::int64_t extent) { return extent < 1; }))
    throw py::value_error("shape must be (z, y, x), each at least 1, got " + text(shape));
  for (const Shape* extents : {&volume.shape, &shape})
    if (*std::max_element(extents->begin(), extents->end()) > std::numeric_limits<std::int32_t>::max())
      throw py::value_error("volume and out must have fewer than 2^31 voxels on each axis, got " + text(*extents) +
                            "; split the axis");
  const View out = output(std::move(given), "out", shape, "float32", volume, allocate);
  expect_apart(out, volume);
  run_on(volume, stream, [&](auto device) {
    resample(device, volume.as<const float>(), grid_of(volume), map, grid_of(out), fill, curve, out.as<float>());
  });
  return out.object;
}

py::dict build_info() {
  py::dict info;
#ifdef __VERSION__
  info["compiler"] = __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  const int version = cuda_version();
  info["cuda"] = py::none();
  if (version) info["cuda"] = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  info["cuda_architectures"] = SCTRT_CUDA_ARCHITECTURES;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["cpu_instructions"] = cpu_instructions();
  return info;
}

void raise_as_python(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const DeviceError& error) {
    const py::object type = py::module_::import("sctrt.errors").attr("DeviceError");
    PyErr_SetString(type.ptr(), error.what());
  }
}

}  // namespace
}  // namespace sctrt

PYBIND11_MODULE(_native, module) {
  using namespace sctrt;
  module.doc() = "The kernels as sctrt.ops calls them; see there.";
  py::register_local_exception_translator(raise_as_python);
  module.def("nearest_code", bind_nearest_code);
  module.def("build_codebook_tree", bind_build_codebook_tree);
  module.def("extract_planes", bind_extract_planes);
  module.def("insert_planes", bind_insert_planes);
  module.def("fuse_planes", bind_fuse_planes);
  module.def("resample", bind_resample);
  add_layers(module);
  module.def("cuda_device_count", cuda_device_count);
  module.def("build_info", build_info);
}
