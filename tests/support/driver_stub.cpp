// libcuda.so.1 for machines without a GPU: the part of the CUDA driver API that edgemm calls, on the host's memory.
//
// Python's cuda-bindings and PyCUDA load this in the driver's place, so that edgemm's own code runs unchanged. Kernels are
// those of the CPU emulator: EDGEMM_STUB_LIBRARIES names the libraries that hold them, separated by colons. Work is done at
// once, except in a stream that is being captured. It refuses what a driver refuses: bad devices, no context, memory it did
// not give out, blocks and shared memory beyond the limits, a cubin that is no ELF file, synchronising during a capture.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "runtime.h"

using Result = int;
using Pointer = unsigned long long;
using Work = std::function<Result()>;

namespace {

enum : Result {
  kSuccess = 0,
  kInvalidValue = 1,
  kNotInitialized = 3,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kInvalidHandle = 400,
  kNotFound = 500,
  kLaunchFailed = 719,
  kCaptureUnsupported = 900,
};

struct Stream {
  bool capturing = false;
  std::vector<Work> recorded;
};
struct Function {
  std::string name;
  std::size_t parameter_bytes;
  unsigned max_threads, shared_limit = 48 * 1024;
  decltype(&cuda_emulator_run) run;
};
struct Module {
  std::vector<Function*> functions;
};

bool initialized = false;
int contexts = 0;
int device_token;
std::map<Pointer, std::size_t> memory;
std::map<void*, std::size_t> pinned;
std::set<Stream*> streams;
std::set<void*> events;

bool inside(Pointer at, std::size_t size) {
  for (const auto& [start, length] : memory)
    if (at >= start && at + size <= start + length) return true;
  for (const auto& [start, length] : pinned)
    if (at >= reinterpret_cast<Pointer>(start) && at + size <= reinterpret_cast<Pointer>(start) + length) return true;
  return false;
}

Result put(Stream* stream, Work work) {
  if (!contexts) return kInvalidContext;
  if (stream && reinterpret_cast<std::uintptr_t>(stream) > 2) {
    if (!streams.count(stream)) return kInvalidHandle;
    if (stream->capturing) {
      stream->recorded.push_back(std::move(work));
      return kSuccess;
    }
  }
  return work();
}

unsigned environment(const char* name, unsigned otherwise) {
  const char* value = std::getenv(name);
  return value ? static_cast<unsigned>(std::atoi(value)) : otherwise;
}

}  // namespace

extern "C" {

Result cuInit(unsigned) {
  initialized = true;
  return kSuccess;
}
Result cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}
Result cuGetErrorName(Result code, const char** name) {
  static const std::map<Result, const char*> names = {{kInvalidValue, "CUDA_ERROR_INVALID_VALUE"},
                                                      {kNotInitialized, "CUDA_ERROR_NOT_INITIALIZED"},
                                                      {kNoDevice, "CUDA_ERROR_NO_DEVICE"},
                                                      {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE"},
                                                      {kInvalidImage, "CUDA_ERROR_INVALID_IMAGE"},
                                                      {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"},
                                                      {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE"},
                                                      {kNotFound, "CUDA_ERROR_NOT_FOUND"},
                                                      {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED"},
                                                      {kCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}};
  const auto found = names.find(code);
  *name = found == names.end() ? nullptr : found->second;
  return found == names.end() ? kInvalidValue : kSuccess;
}
Result cuGetErrorString(Result code, const char** text) {
  if (cuGetErrorName(code, text)) *text = "an error that the stub has no words for";
  return kSuccess;
}

// ---- devices and contexts ----

Result cuDeviceGetCount(int* count) {
  if (!initialized) return kNotInitialized;
  *count = static_cast<int>(environment("EDGEMM_STUB_DEVICES", 1));
  return kSuccess;
}
Result cuDeviceGet(int* device, int index) {
  *device = index;
  return index == 0 ? kSuccess : kInvalidDevice;
}
Result cuDeviceGetName(char* name, int size, int) {
  std::strncpy(name, "Emulated GPU", static_cast<std::size_t>(size));
  return kSuccess;
}
Result cuDeviceTotalMem_v2(std::size_t* bytes, int) {
  *bytes = std::size_t{8} << 30;
  return kSuccess;
}
Result cuDeviceGetAttribute(int* value, int attribute, int) {
  const unsigned arch = environment("EDGEMM_STUB_ARCH", 87);
  switch (attribute) {
    case 75: *value = static_cast<int>(arch / 10); return kSuccess;  // COMPUTE_CAPABILITY_MAJOR
    case 76: *value = static_cast<int>(arch % 10); return kSuccess;  // COMPUTE_CAPABILITY_MINOR
    case 18: *value = 1; return kSuccess;                            // INTEGRATED
    case 16: *value = 8; return kSuccess;                            // MULTIPROCESSOR_COUNT
    default: *value = 0; return kSuccess;
  }
}
Result cuDeviceComputeCapability(int* major, int* minor, int device) {
  cuDeviceGetAttribute(major, 75, device);
  return cuDeviceGetAttribute(minor, 76, device);
}
Result cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &device_token;
  return kSuccess;
}
Result cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
Result cuCtxPushCurrent_v2(void* context) {
  if (context != &device_token) return kInvalidContext;
  ++contexts;
  return kSuccess;
}
Result cuCtxPopCurrent_v2(void** context) {
  if (!contexts) return kInvalidContext;
  if (context) *context = &device_token;
  --contexts;
  return kSuccess;
}
Result cuCtxGetDevice(int* device) {
  *device = 0;
  return contexts ? kSuccess : kInvalidContext;
}
Result cuCtxGetCurrent(void** context) {
  *context = contexts ? &device_token : nullptr;
  return kSuccess;
}
Result cuCtxSetCurrent(void*) { return kSuccess; }
Result cuCtxDetach(void*) {  // what PyCUDA ends with: it takes the context off the stack, too
  if (!contexts) return kInvalidContext;
  --contexts;
  return kSuccess;
}
Result cuCtxSynchronize() { return contexts ? kSuccess : kInvalidContext; }

// ---- memory ----

Result cuMemAlloc_v2(Pointer* address, std::size_t size) {
  if (!contexts) return kInvalidContext;
  if (!size) return kInvalidValue;
  void* block = nullptr;
  if (posix_memalign(&block, 256, size)) return 2;
  std::memset(block, 0xA5, size);  // so that what nobody wrote is seen
  *address = reinterpret_cast<Pointer>(block);
  memory[*address] = size;
  return kSuccess;
}
Result cuMemFree_v2(Pointer address) {
  if (!memory.erase(address)) return kInvalidValue;
  std::free(reinterpret_cast<void*>(address));
  return kSuccess;
}
Result cuMemHostAlloc(void** address, std::size_t size, unsigned flags) {
  if (!contexts) return kInvalidContext;
  if (!(flags & 2)) return kInvalidValue;  // edgemm always maps it
  if (posix_memalign(address, 256, size)) return 2;
  pinned[*address] = size;
  return kSuccess;
}
Result cuMemHostGetDevicePointer_v2(Pointer* address, void* host, unsigned) {
  *address = reinterpret_cast<Pointer>(host);
  return pinned.count(host) ? kSuccess : kInvalidValue;
}
Result cuMemFreeHost(void* address) {
  if (!pinned.erase(address)) return kInvalidValue;
  std::free(address);
  return kSuccess;
}
Result cuMemcpyHtoDAsync_v2(Pointer to, const void* from, std::size_t size, Stream* stream) {
  if (!inside(to, size)) return kInvalidValue;
  return put(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), from, size); return kSuccess; });
}
Result cuMemcpyDtoHAsync_v2(void* to, Pointer from, std::size_t size, Stream* stream) {
  if (!inside(from, size)) return kInvalidValue;
  return put(stream, [=] { std::memcpy(to, reinterpret_cast<void*>(from), size); return kSuccess; });
}
Result cuMemsetD8Async(Pointer at, unsigned char value, std::size_t size, Stream* stream) {
  if (!inside(at, size)) return kInvalidValue;
  return put(stream, [=] { std::memset(reinterpret_cast<void*>(at), value, size); return kSuccess; });
}

// ---- streams and events ----

Result cuStreamCreate(Stream** stream, unsigned) {
  if (!contexts) return kInvalidContext;
  streams.insert(*stream = new Stream);
  return kSuccess;
}
Result cuStreamDestroy_v2(Stream* stream) {
  if (!streams.erase(stream)) return kInvalidHandle;
  delete stream;
  return kSuccess;
}
Result cuStreamSynchronize(Stream* stream) {
  if (!stream || reinterpret_cast<std::uintptr_t>(stream) <= 2) return kSuccess;
  if (!streams.count(stream)) return kInvalidHandle;
  return stream->capturing ? kCaptureUnsupported : kSuccess;
}
Result cuEventCreate(void** event, unsigned) {
  events.insert(*event = new int);
  return kSuccess;
}
Result cuEventDestroy_v2(void* event) {
  if (!events.erase(event)) return kInvalidHandle;
  delete static_cast<int*>(event);
  return kSuccess;
}
Result cuEventRecord(void* event, Stream*) { return events.count(event) ? kSuccess : kInvalidHandle; }
Result cuStreamWaitEvent(Stream*, void* event, unsigned) { return events.count(event) ? kSuccess : kInvalidHandle; }
Result cuEventSynchronize(void* event) { return events.count(event) ? kSuccess : kInvalidHandle; }
Result cuEventElapsedTime(float* milliseconds, void*, void*) {
  *milliseconds = 0.25f;
  return kSuccess;
}
Result cuEventElapsedTime_v2(float* milliseconds, void* first, void* second) {
  return cuEventElapsedTime(milliseconds, first, second);
}

// ---- modules and launches ----

Result cuModuleLoadData(Module** module, const void* image) {
  if (!contexts) return kInvalidContext;
  if (std::memcmp(image, "\x7f" "ELF", 4)) return kInvalidImage;
  *module = new Module;
  std::stringstream paths(std::getenv("EDGEMM_STUB_LIBRARIES") ? std::getenv("EDGEMM_STUB_LIBRARIES") : "");
  for (std::string path; std::getline(paths, path, ':');) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) return kInvalidImage;
    const auto list = reinterpret_cast<decltype(&cuda_emulator_kernel)>(dlsym(library, "cuda_emulator_kernel"));
    const auto run = reinterpret_cast<decltype(&cuda_emulator_run)>(dlsym(library, "cuda_emulator_run"));
    std::size_t bytes;
    unsigned threads;
    for (std::size_t i = 0; const char* name = list(i, &bytes, &threads); ++i)
      (*module)->functions.push_back(new Function{name, bytes, threads, 48 * 1024, run});
  }
  return kSuccess;
}
Result cuModuleLoadDataEx(Module** module, const void* image, unsigned, void*, void*) {
  return cuModuleLoadData(module, image);
}
Result cuModuleUnload(Module* module) {
  for (auto* function : module->functions) delete function;
  delete module;
  return kSuccess;
}
Result cuModuleGetFunction(Function** function, Module* module, const char* name) {
  for (auto* candidate : module->functions)
    if (candidate->name == name) return *function = candidate, kSuccess;
  return kNotFound;
}
Result cuFuncSetAttribute(Function* function, int attribute, int value) {
  if (attribute != 8 || value > 227 * 1024) return kInvalidValue;  // MAX_DYNAMIC_SHARED_SIZE_BYTES
  function->shared_limit = static_cast<unsigned>(value);
  return kSuccess;
}
Result cuFuncSetBlockShape(Function*, int, int, int) { return kSuccess; }  // PyCUDA says it before each launch
Result cuFuncGetAttribute(int* value, int, Function*) {
  *value = 0;
  return kSuccess;
}
Result cuLaunchKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, Stream* stream, void** parameters, void** extra) {
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx * by * bz > function->max_threads) return kInvalidValue;
  if (shared > function->shared_limit) return kInvalidValue;
  const void* first = nullptr;
  if (parameters) {
    first = parameters[0];
  } else if (extra) {  // CU_LAUNCH_PARAM_BUFFER_POINTER, the buffer, ...
    for (int i = 0; extra[i]; i += 2)
      if (extra[i] == reinterpret_cast<void*>(1)) first = extra[i + 1];
  }
  if (!first) return kInvalidValue;
  const auto* bytes = static_cast<const unsigned char*>(first);
  std::vector<unsigned char> copy(bytes, bytes + function->parameter_bytes);
  return put(stream, [=] {
    const cuda_emulator_launch launch{{gx, gy, gz}, {bx, by, bz}, shared, 0, 0, 0};
    char message[2048];
    return function->run(function->name.c_str(), copy.data(), copy.size(), &launch, nullptr, message, sizeof message)
               ? kLaunchFailed
               : kSuccess;
  });
}

// ---- graphs ----

Result cuStreamBeginCapture_v2(Stream* stream, int) {
  if (!streams.count(stream) || stream->capturing) return kInvalidHandle;
  stream->capturing = true;
  return kSuccess;
}
Result cuStreamEndCapture(Stream* stream, void** graph) {
  if (!stream->capturing) return kInvalidValue;
  stream->capturing = false;
  *graph = new std::vector<Work>(std::move(stream->recorded));
  stream->recorded.clear();
  return kSuccess;
}
Result cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  *executable = new std::vector<Work>(*static_cast<std::vector<Work>*>(graph));
  return kSuccess;
}
Result cuGraphLaunch(void* executable, Stream* stream) {
  for (const auto& work : *static_cast<std::vector<Work>*>(executable))
    if (const Result result = put(stream, work)) return result;
  return kSuccess;
}
Result cuGraphDestroy(void* graph) {
  delete static_cast<std::vector<Work>*>(graph);
  return kSuccess;
}
Result cuGraphExecDestroy(void* executable) { return cuGraphDestroy(executable); }

// How the tests look in.
std::size_t edgemm_stub_held() { return memory.size() + pinned.size() + streams.size() + events.size(); }
int edgemm_stub_contexts() { return contexts; }

Result cuGetProcAddress_v2(const char* name, void** address, int, std::uint64_t, int* status) {
  void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  std::string plain = name;
  *address = nullptr;
  for (const char* suffix : {"_v2", ""})
    if (!*address) *address = dlsym(self, (plain + suffix).c_str());
  if (plain == "cuEventElapsedTime") *address = reinterpret_cast<void*>(&cuEventElapsedTime);
  if (plain == "cuGraphInstantiate") *address = reinterpret_cast<void*>(&cuGraphInstantiateWithFlags);
  if (status) *status = *address ? 0 : 1;
  return *address ? kSuccess : kNotFound;
}
Result cuGetProcAddress(const char* name, void** address, int version, std::uint64_t flags) {
  return cuGetProcAddress_v2(name, address, version, flags, nullptr);
}

}  // extern "C"
