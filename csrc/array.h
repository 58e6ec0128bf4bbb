// Any Python array -> View: pointer, dtype, shape, place. Copies nothing, and knows no array library by name.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <utility>
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
  Shape shape;        // whose elements' bytes can be counted: see set_layout
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
constexpr std::int32_t kMaxAxes = 64;  // as NumPy
// DLDataTypeCode; a dtype's name is one of these and its bits.
constexpr const char* kNames[] = {"int", "uint", "float", nullptr, "bfloat", "complex", "bool"};

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
      return bytes == 1 ? "bool" : "a bool of " + bits + " bits";
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

// The attribute, or None; what a property raises (torch: a tensor that requires grad) goes on to the caller.
inline py::object attribute_or_none(const py::object& object, const char* name) {
  if (PyObject* found = PyObject_GetAttrString(object.ptr(), name)) return py::reinterpret_steal<py::object>(found);
  if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
  PyErr_Clear();
  return py::none();
}

// NumPy cannot say bfloat16 in a typestr or a buffer's format, but the object can: its dtype's own name, or "".
inline std::string dtype_of(const py::object& object) {
  const py::object dtype = attribute_or_none(object, "dtype"), name = attribute_or_none(dtype, "name");
  if (dtype.is_none()) return "";
  const std::string full = py::str(name.is_none() ? dtype : name).cast<std::string>();
  return full.substr(full.rfind('.') + 1);  // "torch.bfloat16"
}

[[noreturn]] inline void refuse(const View& view, const std::string& expected, const std::string& given) {
  throw py::value_error(view.name + " does not describe an array: expected " + expected + ", got " + given +
                        "; mend the object, or pass a copy made with an array library");
}

inline bool is_contiguous(const Shape& shape, const std::int64_t* strides, std::int64_t unit) {
  std::int64_t expected = unit;
  for (std::size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

// Called with data, dtype and shape set: from here on size() and the address of the last byte can be trusted not to
// overflow. `strides` in steps of which an element has `unit`; null: C-contiguous.
inline void set_layout(View& view, std::int64_t item_bytes, const std::int64_t* strides, std::int64_t unit) {
  std::int64_t bytes = larger(item_bytes, std::int64_t{1});
  for (std::int64_t extent : view.shape) {
    if (extent < 0) refuse(view, "a shape of no negative extents", std::to_string(extent));
    if (bytes > std::numeric_limits<std::int64_t>::max() / larger(extent, std::int64_t{1}))
      refuse(view, "a shape of fewer than 2^63 bytes", "more");
    bytes *= larger(extent, std::int64_t{1});
  }
  if (view.size() == 0) return;
  const auto address = reinterpret_cast<std::uintptr_t>(view.data);
  if (address == 0) refuse(view, "the address of its elements", "a null pointer");
  if (address > std::numeric_limits<std::uintptr_t>::max() - static_cast<std::uintptr_t>(bytes))
    refuse(view, "elements inside the address space", std::to_string(bytes) + " bytes beyond its end");
  if (strides) view.contiguous = is_contiguous(view.shape, strides, unit);
}

// An entry of an array interface; `expected` says what it must be.
template <class T>
T entry(const View& view, const py::dict& interface, const char* key, const char* expected) {
  if (!interface.contains(key)) refuse(view, std::string("'") + key + "', " + expected, "an interface without it");
  const py::object value = interface[key];
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    refuse(view, std::string(expected) + " under '" + key + "'", py::repr(value).cast<std::string>());
  }
}

// Dtype and bytes of an element from a typestr such as "<f4": byte order, kind, bytes.
inline std::int64_t read_typestr(View& view, const std::string& type) {
  constexpr std::size_t kMaxDigits = 9;
  const bool number =
      type.size() > 2 && type.size() - 2 <= kMaxDigits && type.find_first_not_of("0123456789", 2) == std::string::npos;
  if (!number || std::string("<>|=").find(type[0]) == std::string::npos)
    refuse(view, "a typestr like '<f4'", "'" + type + "'");
  const std::int64_t bytes = std::stoll(type.substr(2));
  const bool bfloat16 = type[1] == 'V' && bytes == 2 && dtype_of(view.object) == "bfloat16";
  view.dtype = (type[0] == '>' ? "big-endian " : "") + (bfloat16 ? "bfloat16" : dtype_name(type[1], bytes));
  return bytes;
}

// The dictionary of __cuda_array_interface__ or __array_interface__. Returns the bytes of an element.
inline std::int64_t read_interface(View& view, const py::object& object) {
  if (!py::isinstance<py::dict>(object))
    refuse(view, "an array interface that is a dict", py::repr(py::type::of(object)).cast<std::string>());
  const auto interface = object.cast<py::dict>();
  view.shape = entry<Shape>(view, interface, "shape", "a tuple of integers");
  const auto type = entry<std::string>(view, interface, "typestr", "a string");
  const auto data = entry<std::pair<std::uintptr_t, bool>>(view, interface, "data", "(address, read-only)");
  view.data = reinterpret_cast<void*>(data.first);
  view.writable = !data.second;
  const std::int64_t bytes = read_typestr(view, type);
  if (interface.contains("mask") && !interface["mask"].is_none()) refuse(view, "no mask", "a masked array");
  std::optional<Shape> strides;  // some producers (PyCUDA) give them even where none are needed
  if (interface.contains("strides"))
    strides = entry<std::optional<Shape>>(view, interface, "strides", "a tuple of integers or None");
  if (strides && strides->size() != view.shape.size())
    refuse(view, std::to_string(view.shape.size()) + " strides, one an axis", std::to_string(strides->size()));
  set_layout(view, bytes, strides ? strides->data() : nullptr, bytes);
  return bytes;
}

inline void view_cuda(View& view, const py::object& interface) {
  const std::int64_t item_bytes = read_interface(view, interface);
  if (cuda_device_count() == 0)
    throw DeviceError(view.name + " lies on a GPU (it has __cuda_array_interface__), but " +
                      (cuda_version() ? "no GPU is visible to CUDA; check the driver with nvidia-smi"
                                      : "this sctrt was built without CUDA; install it where nvcc is found") +
                      ", or pass an array of the host");
  view.place.gpu = view.size() ? cuda_device_of(view.data) : 0;
  if (view.place.gpu < 0)
    throw DeviceError(view.name +
                      " says that it lies on a GPU (__cuda_array_interface__), but CUDA does not know its "
                      "address; pass an array that is allocated in device memory");
  const std::int64_t bytes = view.size() * item_bytes;
  if (bytes && view.contiguous && cuda_device_of(view.as<char>() + bytes - 1) != view.place.gpu)
    refuse(view, std::to_string(bytes) + " bytes on " + view.place.name(), "fewer");
}

// False where the object refuses, as NumPy does for dtypes that the struct module does not know.
inline bool view_buffer(View& view) {
  try {
    view.buffer = py::reinterpret_borrow<py::buffer>(view.object).request();
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_ValueError) && !error.matches(PyExc_BufferError)) throw;
    return false;
  }
  const py::buffer_info& info = *view.buffer;
  view.data = info.ptr;
  view.writable = !info.readonly;
  const char kind = buffer_kind(info.format);
  view.dtype = kind == '?' ? "the buffer format '" + info.format + "'" : dtype_name(kind, info.itemsize);
  view.shape.assign(info.shape.begin(), info.shape.end());
  const std::vector<std::int64_t> strides(info.strides.begin(), info.strides.end());
  set_layout(view, info.itemsize, strides.data(), info.itemsize);
  return true;
}

// The object's DLPack capsule; what the producer says against it is the cause of the ValueError.
inline py::object dlpack_capsule(const View& view) {
  try {
    try {
      return view.object.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
    } catch (const py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      return view.object.attr("__dlpack__")();  // a producer older than DLPack 1.0
    }
  } catch (py::error_already_set& error) {
    py::raise_from(error, PyExc_ValueError,
                   (view.name + " cannot be read: its __dlpack__ refuses; pass a plain array of numbers").c_str());
    throw py::error_already_set();
  }
}

inline void view_dlpack(View& view) {
  int device = 0;
  try {
    device = view.object.attr("__dlpack_device__")().cast<std::pair<int, int>>().first;
  } catch (const py::cast_error&) {
    refuse(view, "two integers from __dlpack_device__", "something else");
  }
  if (device != dlpack::kCpu && device != dlpack::kCudaHost)
    throw DeviceError(view.name + " lies on a device that DLPack numbers " + std::to_string(device) +
                      ", expected the host or an array with __cuda_array_interface__; move it to one of them first");
  view.owner = dlpack_capsule(view);
  // The capsule stays ours, unconsumed: its own destructor returns the memory.
  const dlpack::Tensor* tensor = nullptr;
  if (PyCapsule_IsValid(view.owner.ptr(), "dltensor_versioned")) {
    auto* managed =
        static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(view.owner.ptr(), "dltensor_versioned"));
    if (managed->major != 1) refuse(view, "DLPack 1", "DLPack " + std::to_string(managed->major));
    tensor = &managed->tensor;
    view.writable = !(managed->flags & dlpack::kReadOnly);
  } else if (PyCapsule_IsValid(view.owner.ptr(), "dltensor")) {
    tensor = &static_cast<dlpack::Managed*>(PyCapsule_GetPointer(view.owner.ptr(), "dltensor"))->tensor;
  } else {
    refuse(view, "a new DLPack capsule from __dlpack__", py::repr(view.owner).cast<std::string>());
  }
  if (tensor->ndim < 0 || tensor->ndim > dlpack::kMaxAxes || (tensor->ndim && !tensor->shape))
    refuse(view, "a DLPack shape of 0 to 64 axes", std::to_string(tensor->ndim) + " axes");
  const char* name = tensor->code < std::size(dlpack::kNames) ? dlpack::kNames[tensor->code] : nullptr;
  view.dtype = "DLPack's type code " + std::to_string(tensor->code);
  if (name && tensor->lanes == 1) view.dtype = name + (tensor->code == 6 ? "" : std::to_string(tensor->bits));
  view.shape.assign(tensor->shape, tensor->shape + tensor->ndim);
  const auto address = reinterpret_cast<std::uintptr_t>(tensor->data);
  view.data = reinterpret_cast<void*>(address ? address + tensor->byte_offset : 0);
  set_layout(view, (std::int64_t{tensor->bits} * tensor->lanes + 7) / 8, tensor->strides, 1);
}

// Tries __cuda_array_interface__ (torch, CuPy, Numba, PyCUDA), the buffer protocol (NumPy, read-only too),
// __array_interface__ for NumPy's bfloat16, DLPack (CPU tensors of torch, JAX and others), in this order.
inline View view(const py::object& object, const char* name) {
  View view;
  view.name = name;
  view.object = object;
  const py::object interface = attribute_or_none(object, "__cuda_array_interface__");
  if (!interface.is_none())
    view_cuda(view, interface);
  else if (PyObject_CheckBuffer(object.ptr()) && view_buffer(view))
    return view;
  else if (py::hasattr(object, "__array_interface__") && dtype_of(object) == "bfloat16")
    read_interface(view, object.attr("__array_interface__"));
  else if (py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__"))
    view_dlpack(view);
  else
    throw py::value_error(view.name + " must be an array (with __cuda_array_interface__, the buffer protocol or " +
                          "__dlpack__), got " + py::str(py::type::of(object).attr("__name__")).cast<std::string>() +
                          "; make one first, for example with numpy.asarray");
  return view;
}

}  // namespace sctrt
