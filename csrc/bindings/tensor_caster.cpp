#include "bindings/tensor_caster.h"

#include "bindings/tensor_device.h"
#include "core/check.h"

namespace py = pybind11;

namespace fastnn {

namespace {

// Tensor and nn.Parameter alternate in every call, and both are needed often: the last few types are kept.
// Types are held alive, so that their addresses cannot be reused by another type.
struct CachedApi {
  PyTypeObject* type = nullptr;
  const dlpack::ExchangeApi* api = nullptr;
};
constexpr int kCachedTypes = 4;
CachedApi cache[kCachedTypes];
int next_slot = 0;

const dlpack::ExchangeApi* find_api(PyTypeObject* type) {
  PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), dlpack::kTypeAttribute);
  if (!capsule) {
    PyErr_Clear();
    return nullptr;
  }
  void* pointer = PyCapsule_GetPointer(capsule, dlpack::kCapsuleName);
  Py_DECREF(capsule);
  if (!pointer) {
    PyErr_Clear();
    return nullptr;
  }
  const auto* header = static_cast<const dlpack::ApiHeader*>(pointer);
  while (header && header->major != dlpack::kMajorVersion) header = header->previous;
  return reinterpret_cast<const dlpack::ExchangeApi*>(header);
}

}  // namespace

bool read_dtype(const dlpack::DataType& from, DType& to) {
  if (from.lanes != 1) return false;
  switch (from.code) {
    case dlpack::kFloat:
      if (from.bits == 32) return to = DType::f32, true;
      if (from.bits == 64) return to = DType::f64, true;
      if (from.bits == 16) return to = DType::f16, true;
      return false;
    case dlpack::kBfloat:
      return to = DType::bf16, from.bits == 16;
    case dlpack::kInt:
      return to = DType::i64, from.bits == 64;
    case dlpack::kUInt:
      return to = DType::u8, from.bits == 8;
    case dlpack::kBool:
      return to = DType::b8, from.bits == 8;
    default:
      return false;
  }
}

// torch's name for a dtype that DType does not have.
std::string kind_name(const dlpack::DataType& type) {
  const std::string bits = std::to_string(type.bits);
  switch (type.code) {
    case dlpack::kInt:
      return "int" + bits;
    case dlpack::kUInt:
      return "uint" + bits;
    case dlpack::kComplex:
      return "complex" + bits;
    case dlpack::kBool:
      return "bool";
    default:
      return "unknown to them";
  }
}

const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
  for (const CachedApi& entry : cache)
    if (entry.type == type) return entry.api;
  const dlpack::ExchangeApi* api = find_api(type);
  if (api) {
    CachedApi& entry = cache[next_slot];
    next_slot = (next_slot + 1) % kCachedTypes;
    Py_XDECREF(reinterpret_cast<PyObject*>(entry.type));
    Py_INCREF(reinterpret_cast<PyObject*>(type));
    entry = {type, api};
  }
  return api;
}

bool read_tensor(PyObject* object, TensorView& view) {
  const dlpack::ExchangeApi* api = exchange_api(Py_TYPE(object));
  if (!api) return false;
  before_reading();
  dlpack::Tensor tensor;
  if (api->tensor_from_py_object_no_sync(object, &tensor) != 0) throw py::error_already_set();
  view.cuda_device = TensorView::kNoCudaDevice;
  check<Unreadable>(read_device(tensor.device, view), "fastnn: a ", kKernelsOf,
                    " kernel was given a tensor of device type ", tensor.device.type);
  check<Unreadable>(tensor.ndim <= TensorView::kMaxDims, "fastnn: a tensor has ", tensor.ndim,
                    " dimensions, kernels take at most ", TensorView::kMaxDims);
  check<Unreadable>(read_dtype(tensor.dtype, view.dtype), "fastnn: kernels do not take tensors of dtype ",
                    kind_name(tensor.dtype));
  view.ndim = tensor.ndim;
  int64_t dense = 1;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    view.shape[d] = tensor.shape[d];
    const int64_t stride = tensor.strides ? tensor.strides[d] : dense;
    view.strides[d] = tensor.shape[d] == 1 ? 0 : stride;
    dense *= tensor.shape[d];
  }
  view.data = static_cast<char*>(tensor.data) + (tensor.data ? tensor.byte_offset : 0);
  // FakeTensor, functional tensors and a storage resized to 0 report no memory for a nonzero shape.
  check<Unreadable>(view.data || dense == 0, "fastnn: a tensor of shape ", shape_string(view),
                    " has no memory");
  return true;
}

}  // namespace fastnn
