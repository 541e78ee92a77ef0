// What torch asks before it uses a GPU. Loaded before torch asks for the first time.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>

#include <map>
#include <mutex>

namespace at {

// Page-locked memory: ordinary memory that remembers that it was asked for as such.
struct PinnedAllocator final : Allocator {
  DataPtr allocate(size_t size) override {
    DataPtr memory = GetCPUAllocator()->allocate(size);
    void* start = memory.get();
    {
      std::lock_guard<std::mutex> lock(mutex);
      blocks[start] = size;
    }
    auto* owner = new DataPtr(std::move(memory));
    return {start, owner, &release, Device(kCPU)};
  }

  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }

  static void release(void* owner) {
    auto* memory = static_cast<DataPtr*>(owner);
    {
      std::lock_guard<std::mutex> lock(mutex);
      blocks.erase(memory->get());
    }
    delete memory;
  }

  static bool holds(const void* data) {
    std::lock_guard<std::mutex> lock(mutex);
    auto next = blocks.upper_bound(const_cast<void*>(data));
    if (next == blocks.begin()) return false;
    auto [start, size] = *std::prev(next);
    return data < static_cast<char*>(start) + size;
  }

  static inline std::mutex mutex;
  static inline std::map<void*, size_t> blocks;
};

struct CUDAHooks : CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  bool isPinnedPtr(const void* data) const override { return PinnedAllocator::holds(data); }
  Allocator* getPinnedMemoryAllocator() const override {
    static PinnedAllocator allocator;
    return &allocator;
  }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at
