// Any Python array -> View: pointer, dtype, shape, place. Copies nothing, and knows no array library by name.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "device.h"

namespace sctrt {

namespace py = pybind11;

struct Place {
  int gpu = -1;  // as CUDA counts; -1 is the host

  bool operator==(const Place& other) const { return gpu == other.gpu; }
  std::string name() const { return gpu < 0 ? "the CPU" : "cuda:" + std::to_string(gpu); }
};

using Shape = std::vector<std::int64_t>;

// An argument of a kernel as its Python object describes it; keeps what it borrows alive. Needs the GIL to be
// destroyed.
struct View {
  std::string name;   // of the argument, for messages
  py::object object;  // as passed
  void* data = nullptr;
  std::string dtype;  // NumPy's name: "float32"
  Shape shape;
  Place place;
  bool contiguous = true, writable = true;
  py::object owner;  // what `data` is borrowed from
  std::optional<py::buffer_info> buffer;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  std::int64_t size() const {
    std::int64_t count = 1;
    for (std::int64_t extent : shape) count *= extent;
    return count;
  }
};

// DLPack's C structures, as https://dmlc.github.io/dlpack/latest/c_api.html lays them out.
namespace dlpack {

constexpr int kCpu = 1, kCudaHost = 3;
constexpr std::uint64_t kReadOnly = 1;

struct Tensor {
  void* data;
  std::int32_t device_type, device_id, ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t *shape, *strides;  // in elements; no strides: C-contiguous
  std::uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void *context, *deleter;
};

struct ManagedVersioned {
  std::uint32_t major, minor;
  void *context, *deleter;
  std::uint64_t flags;
  Tensor tensor;
};

}  // namespace dlpack

inline std::string dtype_name(char kind, std::int64_t bytes) {
  const std::string bits = std::to_string(8 * bytes);
  switch (kind) {
    case 'f':
      return "float" + bits;
    case 'i':
      return "int" + bits;
    case 'u':
      return "uint" + bits;
    case 'c':
      return "complex" + bits;
    case 'b':
      return "bool";
    default:
      return std::string("a dtype of kind '") + kind + "'";
  }
}

// Kind of a buffer's struct-module format, such as "f" or "<f"; '?' stands for what kernels never take.
inline char buffer_kind(const std::string& format) {
  std::size_t at = !format.empty() && std::string("@=<|").find(format[0]) != std::string::npos ? 1 : 0;
  if (format.size() != at + 1) return '?';
  const char code = format[at];
  if (std::string("efdg").find(code) != std::string::npos) return 'f';
  if (std::string("bhilqn").find(code) != std::string::npos) return 'i';
  if (std::string("BHILQN").find(code) != std::string::npos) return 'u';
  return code == '?' ? 'b' : '?';
}

inline bool is_contiguous(const Shape& shape, const std::int64_t* strides, std::int64_t unit) {
  std::int64_t expected = unit;
  for (std::size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

inline void view_cuda(View& view, const py::dict& interface) {
  if (cuda_device_count() == 0)
    throw DeviceError(view.name + " lies on a GPU (it has __cuda_array_interface__), but " +
                      (cuda_version() ? "no GPU is visible to CUDA; check the driver with nvidia-smi"
                                      : "this sctrt was built without CUDA; install it where nvcc is found") +
                      ", or pass an array of the host");
  const auto data = interface["data"].cast<py::tuple>();
  const auto type = interface["typestr"].cast<std::string>();
  const std::int64_t bytes = std::stoll(type.substr(2));
  view.data = reinterpret_cast<void*>(data[0].cast<std::uintptr_t>());
  view.writable = !data[1].cast<bool>();
  view.dtype = (type[0] == '>' ? "big-endian " : "") + dtype_name(type[1], bytes);
  view.shape = interface["shape"].cast<Shape>();
  // Some producers give strides even where none are needed.
  if (interface.contains("strides") && !interface["strides"].is_none())
    view.contiguous = is_contiguous(view.shape, interface["strides"].cast<Shape>().data(), bytes);
  view.place.gpu = view.size() ? cuda_device_of(view.data) : 0;
  if (view.place.gpu < 0)
    throw DeviceError(view.name +
                      " says that it lies on a GPU (__cuda_array_interface__), but CUDA does not know its "
                      "address; pass an array that is allocated in device memory");
}

inline void view_buffer(View& view) {
  view.buffer = py::reinterpret_borrow<py::buffer>(view.object).request();
  const py::buffer_info& info = *view.buffer;
  view.data = info.ptr;
  view.writable = !info.readonly;
  const char kind = buffer_kind(info.format);
  view.dtype = kind == '?' ? "the buffer format '" + info.format + "'" : dtype_name(kind, info.itemsize);
  view.shape.assign(info.shape.begin(), info.shape.end());
  const std::vector<std::int64_t> strides(info.strides.begin(), info.strides.end());
  view.contiguous = is_contiguous(view.shape, strides.data(), info.itemsize);
}

inline void view_dlpack(View& view) {
  const int device = view.object.attr("__dlpack_device__")().cast<py::tuple>()[0].cast<int>();
  if (device != dlpack::kCpu && device != dlpack::kCudaHost)
    throw DeviceError(view.name + " lies on a device that DLPack numbers " + std::to_string(device) +
                      ", expected the host or an array with __cuda_array_interface__; move it to one of them first");
  try {
    view.owner = view.object.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    view.owner = view.object.attr("__dlpack__")();  // a producer older than DLPack 1.0
  }
  // The capsule stays ours, unconsumed: its own destructor returns the memory.
  const dlpack::Tensor* tensor;
  if (PyCapsule_IsValid(view.owner.ptr(), "dltensor_versioned")) {
    auto* managed =
        static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(view.owner.ptr(), "dltensor_versioned"));
    tensor = &managed->tensor;
    view.writable = !(managed->flags & dlpack::kReadOnly);
  } else {
    auto* managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(view.owner.ptr(), "dltensor"));
    if (!managed) throw py::error_already_set();
    tensor = &managed->tensor;
  }
  static const std::string kinds = "iuf";  // DLDataTypeCode 0, 1, 2
  const char kind = tensor->code < kinds.size() && tensor->lanes == 1 ? kinds[tensor->code] : '?';
  view.data = static_cast<char*>(tensor->data) + tensor->byte_offset;
  view.dtype = kind == '?' ? "DLPack's type code " + std::to_string(tensor->code) : dtype_name(kind, tensor->bits / 8);
  view.shape.assign(tensor->shape, tensor->shape + tensor->ndim);
  if (tensor->strides) view.contiguous = is_contiguous(view.shape, tensor->strides, 1);
}

// The attribute, or None; what a property raises (torch: a tensor that requires grad) goes on to the caller.
inline py::object attribute_or_none(const py::object& object, const char* name) {
  if (PyObject* found = PyObject_GetAttrString(object.ptr(), name)) return py::reinterpret_steal<py::object>(found);
  if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
  PyErr_Clear();
  return py::none();
}

// Tries __cuda_array_interface__ (torch, CuPy, Numba, PyCUDA), the buffer protocol (NumPy, read-only too), DLPack (CPU
// tensors of torch, JAX and others), in this order.
inline View view(const py::object& object, const char* name) {
  View view;
  view.name = name;
  view.object = object;
  const py::object interface = attribute_or_none(object, "__cuda_array_interface__");
  if (!interface.is_none())
    view_cuda(view, interface.cast<py::dict>());
  else if (PyObject_CheckBuffer(object.ptr()))
    view_buffer(view);
  else if (py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__"))
    view_dlpack(view);
  else
    throw py::value_error(view.name + " must be an array (with __cuda_array_interface__, the buffer protocol or " +
                          "__dlpack__), got " + py::str(py::type::of(object).attr("__name__")).cast<std::string>() +
                          "; make one first, for example with numpy.asarray");
  return view;
}

}  // namespace sctrt
