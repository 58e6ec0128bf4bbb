// What every binding checks before a kernel runs: dtype, axes, shape, contiguity, place, overlap.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>

#include "array.h"

namespace sctrt {

using Given = std::optional<View>;

inline std::string text(const Shape& shape) {
  std::string joined;
  for (std::int64_t extent : shape) joined += (joined.empty() ? "" : ", ") + std::to_string(extent);
  return "(" + joined + (shape.size() == 1 ? ",)" : ")");
}

// The dtypes of an engine's tensors.
inline const std::vector<std::string> kSamples{"float32", "float16", "bfloat16"};

// Bytes of an element of a dtype that kernels take.
inline std::int64_t item_size(const std::string& dtype) {
  if (dtype == "uint8" || dtype == "bool") return 1;
  if (dtype == "float64") return 8;
  return dtype == "float16" || dtype == "bfloat16" || dtype == "int16" ? 2 : 4;
}

template <class T>
struct Type {
  using Sample = T;
};

// Calls visitor(Type<float>{}), or Half or Bfloat16, for one of kSamples.
template <class Visitor>
void visit_sample(const std::string& dtype, const Visitor& visitor) {
  if (dtype == "float16") return visitor(Type<Half>{});
  if (dtype == "bfloat16") return visitor(Type<Bfloat16>{});
  visitor(Type<float>{});
}

inline Given view_given(const py::object& object, const char* name) {
  if (object.is_none()) return std::nullopt;
  return view(object, name);
}

inline void expect_same_place(const View& first, std::initializer_list<const View*> others) {
  for (const View* other : others)
    if (other && !(other->place == first.place))
      throw DeviceError(other->name + " must lie where " + first.name + " does, on " + first.place.name() + ", got " +
                        other->place.name() + "; move one of them first");
}

inline const View* pointer(const Given& given) { return given ? &*given : nullptr; }

// `layout` names the axes as the caller should see them; `ranks` are the numbers of axes that fit it.
inline void expect(const View& view, const std::vector<std::string>& dtypes, const std::string& layout,
                   const std::vector<std::size_t>& ranks) {
  std::string wanted = dtypes[0];
  for (std::size_t i = 1; i < dtypes.size(); ++i) wanted += " or " + dtypes[i];
  const std::string expected = view.name + " must be " + wanted + " " + layout + ", got ";
  const std::string given = view.dtype + " " + text(view.shape);
  if (std::find(dtypes.begin(), dtypes.end(), view.dtype) == dtypes.end())
    throw py::value_error(expected + given + "; convert it first, for example with numpy.asarray(" + view.name + ", '" +
                          dtypes[0] + "')");
  if (std::find(ranks.begin(), ranks.end(), view.shape.size()) == ranks.end())
    throw py::value_error(expected + given + "; add or remove axes first");
  if (view.size() == 0) throw py::value_error(expected + given + "; every axis needs at least one element");
  const auto address = reinterpret_cast<std::uintptr_t>(view.data);
  if (!view.contiguous || address % item_size(view.dtype))
    throw py::value_error(view.name + " must be C-contiguous and aligned, got a strided view of shape " +
                          text(view.shape) + "; copy it first, for example with numpy.ascontiguousarray(" + view.name +
                          ") or " + view.name + ".contiguous()");
}

inline void expect_one_of(const std::vector<std::string>& dtypes, const std::string& dtype, const std::string& what) {
  if (std::find(dtypes.begin(), dtypes.end(), dtype) != dtypes.end()) return;
  std::string wanted = dtypes[0];
  for (std::size_t i = 1; i < dtypes.size(); ++i) wanted += (i + 1 < dtypes.size() ? ", " : " or ") + dtypes[i];
  throw py::value_error(what + " must be " + wanted + ", got " + dtype + "; pass one of them as dtype");
}

inline void expect_shape(const View& view, const Shape& shape, const std::string& reason) {
  if (view.shape != shape)
    throw py::value_error(view.name + " must have the shape " + text(shape) + " " + reason + ", got " +
                          text(view.shape) + "; pass arrays that belong together");
}

inline View output(Given given, const char* name, const Shape& shape, const std::string& dtype, const View& like,
                   const py::function& allocate) {
  View out = given ? std::move(*given) : view(allocate(like.object, py::tuple(py::cast(shape)), dtype), name);
  expect_same_place(like, {&out});
  expect(out, {dtype}, text(shape), {shape.size()});
  expect_shape(out, shape, "to hold the result");
  if (!out.writable)
    throw py::value_error(out.name +
                          " must be writable, got a read-only array; pass another, or none to have one made");
  return out;
}

// Views keep their bytes apart: a kernel may not read what it has written over.
inline void expect_apart(const View& out, const View& in) {
  const auto bytes = [](const View& view) { return view.size() * item_size(view.dtype); };
  const char *a = out.as<char>(), *b = in.as<char>();
  if (a < b + bytes(in) && b < a + bytes(out))
    throw py::value_error(out.name + " must not overlap " + in.name +
                          " in memory, got two views of the same array; pass a "
                          "separate array, or none to have one made");
}

// Equal arrays of elements of one size are fine, element by element; shifted ones are not.
inline void expect_equal_or_apart(const View& out, const View& in) {
  if (out.data != in.data || item_size(out.dtype) != item_size(in.dtype)) expect_apart(out, in);
}

// Runs kernel(device) without the GIL on the device where `view` lies.
template <class Kernel>
inline void run_on([[maybe_unused]] const View& view, [[maybe_unused]] std::uintptr_t stream, const Kernel& kernel) {
  const py::gil_scoped_release release;
#ifdef SCTRT_CUDA
  if (view.place.gpu >= 0) return kernel(Cuda{view.place.gpu, stream});
#endif
  kernel(Cpu{});
}

}  // namespace sctrt
