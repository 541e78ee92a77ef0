// A "cuda" device whose memory is the CPU's. Each kernel is the CPU's own, run on aliases, counted and checked.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <set>

#include <unordered_set>

using at::Tensor;
using c10::Device;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using torch::jit::Stack;

static const Device GPU(c10::kCUDA, 0);
static const DispatchKeySet ON_CPU(DispatchKey::CPU);
static const DispatchKeySet ON_GPU(DispatchKey::CUDA);

// ---------------------------------------------------------------------------------------------------- counts

struct Count {
  int64_t launches = 0, graphed = 0, syncs = 0, h2d = 0, h2d_bytes = 0, d2h = 0, bytes = 0, flops = 0, replays = 0;
  int64_t peak = 0;
};

static std::map<std::string, Count> counts;                        // by phase
static std::map<std::string, std::map<std::string, int64_t>> ops;  // phase -> operator -> launches
static std::string phase = "setup";
static std::mutex mutex;
static thread_local int quiet = 0;      // inside a fused kernel or a replay, nothing is counted
static py::object* on_event = nullptr;  // called with kind and operator; may raise

static void event(const char* kind, const std::string& op) {
  py::gil_scoped_acquire gil;
  if (on_event && !on_event->is_none()) (*on_event)(kind, op);
}

// ---------------------------------------------------------------------------------------------------- memory

struct Block {
  void* data;
  int64_t size;
  bool captured;  // allocated while a graph was recorded
};

struct Graph;
static Graph* capturing = nullptr;

static int64_t used = 0, limit = INT64_MAX;
static int64_t highest = 0;  // most bytes in use since the last reset

static void note_peak() {
  auto& peak = counts[phase].peak;
  peak = std::max(peak, used);
  highest = std::max(highest, used);
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    std::lock_guard<std::mutex> lock(mutex);
    TORCH_CHECK_WITH(OutOfMemoryError, quiet || used + (int64_t)size <= limit, "CUDA out of memory. Tried to allocate ",
                     size, " bytes; ", used, " of ", limit, " are in use");
    used += size;
    if (!quiet) note_peak();  // what a kernel computes on its way has no memory on a GPU
    auto* block = new Block{size ? c10::alloc_cpu(size) : nullptr, (int64_t)size, capturing != nullptr};
    return {block->data, block, &release, GPU};
  }

  static void release(void* pointer) {
    auto* block = static_cast<Block*>(pointer);
    {
      std::lock_guard<std::mutex> lock(mutex);
      used -= block->size;
    }
    if (block->data) c10::free_cpu(block->data);
    delete block;
  }

  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
} memory;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return GPU; }
  Device getDevice() const override { return GPU; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, GPU); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, GPU); }
};

namespace c10::impl {
using Guard = ::Guard;
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
}  // namespace c10::impl

// ---------------------------------------------------------------------------------------------------- graphs

struct Record {
  std::optional<c10::OperatorHandle> op;
  Stack in, out;
  py::object python;  // a kernel in Python, which runs again when it is called
};

// Kernels run again on the tensors that they ran on. A GPU gives the memory of one that is dropped while a graph is
// recorded to the next: only the most that exist at once, the pool of the graphs that share it, stays in use.
struct Graph {
  std::vector<Record> records;
  int64_t pool = 0, reused = 0;  // reused: bytes that are allocated here and would not be on a GPU
  int64_t peak = 0, highest = 0;

  void begin(int64_t id);
  void end();
  ~Graph() { used += reused; }
};

static std::map<int64_t, int64_t> pools;  // bytes by pool

static void sync(const std::string& op) {
  if (quiet) return;
  TORCH_CHECK(!capturing, "CUDA error: operation not permitted when stream is capturing (", op, ")");
  {
    std::lock_guard<std::mutex> lock(mutex);
    counts[phase].syncs++;
  }
  event("sync", op);
}

// --------------------------------------------------------------------------------------------------- aliases

// Tensors of the CPU on the memory of tensors of the GPU, and back.
struct Aliases {
  std::unordered_map<c10::StorageImpl*, c10::Storage> storages;
  std::unordered_map<c10::StorageImpl*, Tensor> owners;  // by the storage of an alias
  std::vector<std::pair<Tensor, Tensor>> pairs;          // alias, original

  Tensor of(const Tensor& t) {
    if (!t.defined() || !t.is_cuda()) return t;
    for (auto& [alias, original] : pairs)
      if (original.is_same(t)) return alias;
    Tensor alias = t.storage().nbytes() == 0 ? empty_like(t) : view_of(t);
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) alias.unsafeGetTensorImpl()->set_wrapped_number(true);
    pairs.emplace_back(alias, t);
    return alias;
  }

  static Tensor empty_like(const Tensor& t) {
    return at::detail::empty_generic(t.sizes(), c10::GetCPUAllocator(), ON_CPU, t.scalar_type(), std::nullopt);
  }

  Tensor view_of(const Tensor& t) {
    auto* impl = t.storage().unsafeGetStorageImpl();
    if (!storages.count(impl)) {
      auto* keep = new c10::Storage(t.storage());
      auto release = [](void* storage) { delete static_cast<c10::Storage*>(storage); };
      c10::DataPtr data(impl->mutable_data(), keep, release, Device(c10::kCPU));
      storages[impl] = c10::Storage(c10::Storage::use_byte_size_t(), impl->nbytes(), std::move(data), nullptr, false);
      owners[storages[impl].unsafeGetStorageImpl()] = t;
    }
    Tensor alias = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storages[impl]), ON_CPU, t.dtype());
    alias.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
    if (t.is_conj()) alias._set_conj(true);
    return alias;
  }

  Tensor back(const Tensor& r) {
    if (!r.defined() || !r.is_cpu()) return r;
    for (auto& [alias, original] : pairs)
      if (alias.is_same(r)) return original;
    auto owner = owners.find(r.storage().unsafeGetStorageImpl());
    if (owner != owners.end())
      return at::native::as_strided_tensorimpl(owner->second, r.sizes(), r.strides(), r.storage_offset());
    Tensor t = at::detail::empty_strided_generic(r.sizes(), r.strides(), &memory, ON_GPU, r.scalar_type());
    if (r.numel()) Aliases().of(t).copy_(r);
    return t;
  }

  // Resize the originals of outputs that a kernel has resized.
  void finish() {
    for (auto& [alias, original] : pairs) {
      bool resized = alias.sizes() != original.sizes();
      if (resized) at::native::resize_(original, alias.sizes());
      if ((resized || original.storage().nbytes() == 0) && alias.numel()) Aliases().of(original).copy_(alias);
    }
  }
};

template <class F>
static void each(const IValue& value, F f) {
  if (value.isTensor())
    f(value.toTensor());
  else if (value.isTensorList())
    for (const Tensor& t : value.toTensorList()) f(t);
  else if (value.isList())
    for (const IValue& item : value.toListRef()) each(item, f);
}

static IValue changed(const IValue& value, const std::function<Tensor(const Tensor&)>& f) {
  if (value.isTensor()) return f(value.toTensor());
  if (value.isDevice()) return value.toDevice().is_cuda() ? IValue(Device(c10::kCPU)) : value;
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& t : value.toTensorList()) list.push_back(f(t));
    return list;
  }
  if (!value.isList()) return value;
  auto kind = value.toList().elementType()->kind();
  if (kind == c10::TypeKind::OptionalType) {
    c10::List<std::optional<Tensor>> list;
    for (const IValue& item : value.toListRef())
      list.push_back(item.isTensor() ? std::optional<Tensor>(f(item.toTensor())) : std::nullopt);
    return list;
  }
  if (kind == c10::TypeKind::ListType) {  // of collectives
    auto list = c10::impl::GenericList(value.toList().elementType());
    for (const IValue& item : value.toListRef()) list.push_back(changed(item, f));
    return list;
  }
  return value;
}

static void run(const c10::OperatorHandle& op, Stack& stack) {
  Aliases aliases;
  for (auto& value : stack) value = changed(value, [&](const Tensor& t) { return aliases.of(t); });
  op.redispatchBoxed(ON_CPU, &stack);
  aliases.finish();
  for (auto& value : stack) value = changed(value, [&](const Tensor& t) { return aliases.back(t); });
}

void Graph::begin(int64_t id) {
  pool = id;
  peak = counts[phase].peak;
  highest = ::highest;
  capturing = this;
}

void Graph::end() {
  capturing = nullptr;
  struct Life {
    int64_t size;
    size_t first, last;
  };
  std::map<c10::StorageImpl*, Life> lives;  // of what is allocated for the graph
  for (size_t i = 0; i < records.size(); i++) {
    auto see = [&](const Tensor& t) {
      if (!t.defined() || !t.is_cuda()) return;
      auto* storage = t.storage().unsafeGetStorageImpl();
      auto* block = static_cast<Block*>(storage->data_ptr().get_context());
      if (block && block->captured) lives.try_emplace(storage, Life{block->size, i, i}).first->second.last = i;
    };
    for (auto& value : records[i].in) each(value, see);
    for (auto& value : records[i].out) each(value, see);
  }
  std::vector<int64_t> change(records.size() + 1);
  int64_t sum = 0, most = 0, now = 0;
  for (auto& [storage, life] : lives) {
    change[life.first] += life.size;
    change[life.last + 1] -= life.size;
    sum += life.size;
  }
  for (int64_t bytes : change) most = std::max(most, now += bytes);
  int64_t added = std::max<int64_t>(0, most - pools[pool]);
  pools[pool] += added;
  reused = sum - added;
  used -= reused;
  counts[phase].peak = peak;
  ::highest = highest;
  note_peak();
}

// --------------------------------------------------------------------------------------------------- kernels

static int64_t bytes_of(const Tensor& t) {
  return std::min<int64_t>(t.numel() * t.element_size(), t.storage().nbytes());
}

static bool begins(const std::string& name, std::initializer_list<const char*> list) {
  return std::any_of(list.begin(), list.end(), [&](const char* start) { return name.rfind(start, 0) == 0; });
}

static int64_t flops_of(const std::string& name, const Stack& in) {
  auto size = [&](size_t i, int d) { return in[i].toTensor().size(d); };
  if (begins(name, {"aten::mm"})) return 2 * size(0, 0) * size(0, 1) * size(1, 1);
  if (begins(name, {"aten::addmm"})) return 2 * size(1, 0) * size(1, 1) * size(2, 1);
  if (begins(name, {"aten::bmm"})) return 2 * size(0, 0) * size(0, 1) * size(0, 2) * size(1, 2);
  return 0;
}

static void count(const std::string& name, const Stack& in, const Stack& out) {
  if (quiet) return;
  std::lock_guard<std::mutex> lock(mutex);
  Count& c = counts[phase];
  (capturing ? c.graphed : c.launches)++;
  ops[phase][name]++;
  auto add = [&](const Tensor& t) {
    if (t.defined() && t.is_cuda()) c.bytes += bytes_of(t);
  };
  for (auto& value : in) each(value, add);
  bool writes = name.find("out") != std::string::npos || name.find("_.") != std::string::npos || name.back() == '_';
  if (!writes)
    for (auto& value : out) each(value, add);
  c.flops += flops_of(name, in);
}

// Raise unless all tensors are on the GPU, as CUDA's kernels do; an index may be on the CPU and is copied.
static void check_devices(const std::string& name, const Stack& in) {
  static const auto TAKE_NO_SCALARS = {"aten::cat", "aten::stack", "aten::gather", "aten::index_select",
                                       "aten::scatter"};
  bool indexed = begins(name, {"aten::index.", "aten::index_put", "aten::_index_put_impl", "aten::_unsafe_index"});
  for (auto& value : in)
    each(value, [&](const Tensor& t) {
      if (!t.defined() || !t.is_cpu()) return;
      bool scalar = t.dim() == 0 && !begins(name, TAKE_NO_SCALARS);
      TORCH_CHECK(scalar || indexed,
                  "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
                  name, ")");
      if (!scalar) {
        sync(name + " with an index on the CPU");
        counts[phase].h2d++;
      }
    });
}

static void fallback(const c10::OperatorHandle& op, DispatchKeySet, Stack* stack) {
  static const auto SIZES_DEPEND_ON_VALUES = {"aten::nonzero", "aten::masked_select", "aten::_unique",
                                              "aten::unique",  "aten::equal",         "aten::repeat_interleave.Tensor",
                                              "aten::bincount"};
  auto& overload = op.schema().overload_name();
  std::string name = op.schema().name() + (overload.empty() ? "" : "." + overload);
  size_t arguments = op.schema().arguments().size();
  Stack in(stack->end() - arguments, stack->end());
  stack->resize(stack->size() - arguments);
  if (!quiet) check_devices(name, in);
  if (begins(name, SIZES_DEPEND_ON_VALUES)) sync(name);
  Stack out = in;
  run(op, out);
  count(name, in, out);
  if (capturing && !quiet) capturing->records.push_back({op, in, out, {}});
  for (auto& value : out) stack->push_back(value);
}

// Collectives run on the CPU's backend. `run` would drop the aliases before an asynchronous one has ended; it keeps the
// memory, which they share.
static void collective(const c10::OperatorHandle& op, DispatchKeySet, Stack* stack) {
  size_t arguments = op.schema().arguments().size();
  Stack in(stack->end() - arguments, stack->end());
  stack->resize(stack->size() - arguments);
  run(op, in);
  count(op.schema().name(), {}, {});
  for (auto& value : in) stack->push_back(value);
}

static void count_copy(const Tensor& to, const Tensor& from, bool non_blocking) {
  bool down = from.is_cuda();
  TORCH_CHECK(!capturing, "CUDA error: operation not permitted when stream is capturing (copy between CPU and GPU)");
  {
    std::lock_guard<std::mutex> lock(mutex);
    Count& c = counts[phase];
    (down ? c.d2h : c.h2d)++;
    if (!down) c.h2d_bytes += bytes_of(from);
  }
  bool waits = !non_blocking || (down && !to.is_pinned());
  if (waits) sync(down ? "copy to the CPU" : "copy from the CPU");
  if (!down && !from.is_pinned() && from.numel() > 1) event("pageable", "copy from the CPU");
}

static Tensor& copy_(Tensor& self, const Tensor& src, bool non_blocking) {
  if (!quiet && self.is_cuda() != src.is_cuda()) count_copy(self, src, non_blocking);
  {
    Aliases aliases;
    Tensor to = aliases.of(self);
    to.copy_(aliases.of(src));
  }
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
  Stack in{self, src, non_blocking};
  if (self.is_cuda() && src.is_cuda()) count("aten::copy_", in, {self});
  if (capturing && !quiet) capturing->records.push_back({op, in, {self}, {}});
  return self;
}

static at::Scalar scalar_of(const Tensor& self) {
  sync("item");
  Aliases aliases;
  return at::_local_scalar_dense(aliases.of(self));
}

static Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                    std::optional<Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, ON_GPU, at::dtype_or_default(dtype), format);
}

static Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                            std::optional<at::Layout>, std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, ON_GPU, at::dtype_or_default(dtype));
}

// The kernel that torch selects for a compute capability (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp). cuDNN's
// is counted, but another one runs.
static py::object* properties;  // of the device, as torch.cuda.get_device_properties returns them
static int64_t sdpa_choice(const Tensor& q, const Tensor& k, const Tensor&, const std::optional<Tensor>& mask, double,
                           bool causal, std::optional<double>, bool gqa) {
  py::gil_scoped_acquire gil;
  int major = properties->attr("major").cast<int>();
  bool half = q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf;
  bool flash = major >= 8 && half && !mask && q.size(-1) <= 256 && !(causal && q.size(-2) != k.size(-2));
  int64_t choice = flash ? 1 : !(gqa && q.size(-3) != k.size(-3)) ? 2 : 0;
  bool cudnn = at::globalContext().userEnabledCuDNNSDP() && (major == 9 || major == 10) && half &&
               q.size(-1) <= 128 && q.size(-1) % 8 == 0 && k.size(-2) > 1;
  event("sdpa", cudnn ? "cudnn" : choice == 1 ? "flash" : choice == 2 ? "efficient" : "math");
  return choice;
}

static void replay(Graph& graph) {
  c10::InferenceMode guard(false);
  at::AutoDispatchBelowADInplaceOrView below;
  quiet++;
  for (auto& record : graph.records) {
    if (!record.op) {
      record.python();
      continue;
    }
    Stack stack = record.in;
    if (record.op->schema().name() == "aten::copy_") {
      Tensor to = stack[0].toTensor();
      copy_(to, stack[1].toTensor(), false);
      continue;
    }
    run(*record.op, stack);
    for (size_t i = 0; i < stack.size(); i++) {
      std::vector<Tensor> now, recorded;
      each(stack[i], [&](const Tensor& t) { now.push_back(t); });
      each(record.out[i], [&](const Tensor& t) { recorded.push_back(t); });
      for (size_t j = 0; j < now.size(); j++) {
        Aliases aliases;
        if (!now[j].is_same(recorded[j])) aliases.of(recorded[j]).copy_(aliases.of(now[j]));
      }
    }
  }
  quiet--;
  std::lock_guard<std::mutex> lock(mutex);
  counts[phase].replays++;
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("_local_scalar_dense", scalar_of);
  m.impl("view", static_cast<Tensor (*)(const Tensor&, at::IntArrayRef)>(at::native::view));
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("resize_", at::native::resize_);
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  m.impl("set_.source_Tensor", at::native::set_tensor_);
  // One kernel on a GPU: cuDNN's, and one that the dispatcher would otherwise compute from its parts.
  for (const char* name : {"convolution", "convolution_backward", "silu_backward"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

struct Silence final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

// Operators that have a kernel for any device, which would launch one kernel per tensor, and collectives.
static void register_by_name() {
  Silence silence;  // torch warns of kernels that replace others
  c10::WarningUtils::WarningHandlerGuard guard(&silence);
  static std::vector<std::unique_ptr<torch::Library>> libraries;
  for (const char* space : {"aten", "c10d"}) {
    bool ours = std::string(space) == "aten";
    std::string start = std::string(space) + "::" + (ours ? "_foreach_" : "");
    auto kind = torch::Library::IMPL;
    libraries.push_back(std::make_unique<torch::Library>(kind, space, DispatchKey::CUDA, __FILE__, __LINE__));
    for (auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
      if (name.name.rfind(start, 0) != 0 || (ours && name.overload_name.find("out") != std::string::npos)) continue;
      std::string own =
          name.name.substr(start.find(':') + 2) + (name.overload_name.empty() ? "" : "." + name.overload_name);
      auto kernel = ours ? torch::CppFunction::makeFromBoxedFunction<&fallback>()
                         : torch::CppFunction::makeFromBoxedFunction<&collective>();
      libraries.back()->impl(own.c_str(), std::move(kernel));
    }
  }
}

// ---------------------------------------------------------------------------------------------------- Python

static void set_phase(std::string name) {
  phase = name;
  note_peak();
}

static void fused(const std::string& name, int64_t bytes, int64_t flops) {
  if (quiet > 1) return;
  auto& c = counts[phase];
  (capturing ? c.graphed : c.launches)++;
  c.bytes += bytes;
  c.flops += flops;
  ops[phase][name]++;
}

// Give the storage of a tensor another size, as FSDP does to free gathered weights.
static void resize_storage(const Tensor& t, int64_t size) {
  auto* impl = t.storage().unsafeGetStorageImpl();
  c10::DataPtr data = memory.allocate(size);
  if (size_t kept = std::min<size_t>(size, impl->nbytes())) std::memcpy(data.get(), impl->data(), kept);
  impl->set_data_ptr_noswap(std::move(data));
  impl->set_nbytes(size);
}

static py::dict as_dict() {
  py::dict all;
  for (auto& [name, c] : counts) {
    py::dict one;
    one["launches"] = c.launches;
    one["graphed"] = c.graphed;
    one["replays"] = c.replays;
    one["syncs"] = c.syncs;
    one["h2d"] = c.h2d;
    one["h2d_bytes"] = c.h2d_bytes;
    one["d2h"] = c.d2h;
    one["bytes"] = c.bytes;
    one["flops"] = c.flops;
    one["peak"] = c.peak;
    all[name.c_str()] = one;
  }
  return all;
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  c10::SetAllocator(c10::kCUDA, &memory);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&sdpa_choice);
  register_by_name();
  m.def("set_phase", &set_phase);
  m.def("on_event", [](py::object f) { on_event = new py::object(f); });
  m.def("quiet", [](int by) { quiet += by; });
  m.def("fused", &fused);
  m.def("capturing", [] { return capturing != nullptr; });
  m.def("record", [](py::object python, std::vector<Tensor> tensors) {
    capturing->records.push_back({std::nullopt, Stack(tensors.begin(), tensors.end()), {}, std::move(python)});
  });
  m.def("resize_storage", &resize_storage);
  m.def("memory", [] { return used; });
  m.def("highest", [] { return highest; });
  m.def("reset_highest", [] { highest = used; });
  m.def("limit", [](int64_t bytes) { limit = bytes; });
  m.def("set_properties", [](py::object of_device) { properties = new py::object(of_device); });
  m.def("counts", &as_dict);
  m.def("ops", [] { return ops; });
  m.def("reset", [] {
    counts.clear();
    ops.clear();
  });
  py::class_<Graph>(m, "Graph")
      .def(py::init<>())
      .def("begin", &Graph::begin)
      .def("end", &Graph::end)
      .def("size", [](Graph& graph) { return graph.records.size(); })
      .def("replay", &replay);
}
