// The part of NVIDIA's driver interface that the engine calls, over the emulation of fibers.cpp: libcuda.so.1 and
// libnvidia-ml.so.1 for tests of the real driver path on machines without a device. Never part of the server.
//
// A stream is a list of what was asked of it, done when somebody waits for it and not before: so memory that is written too
// early, or read too early, gives wrong results here, as it may on a device. A function is found in a module only if the
// module's image, a cubin or PTX of the real packs, has it. An error of a launch sticks to its context, as on a device.
//
// What it is told by its environment:
//   EMULATED_DEVICES      how many there are (1); 0: cuInit says that there is none
//   EMULATED_CAPABILITY   90 is sm_90
//   EMULATED_MEMORY       bytes of the device
//   EMULATED_MEMORY_LATER bytes that it has once a context has been destroyed after an error
//   EMULATED_FAILS        a file: when it is there, it is removed and the launch fails
#include "cuda.hpp"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

extern "C" {
int emulator_launch(const char*, const unsigned*, unsigned, size_t, void**, uint64_t);
const size_t* emulator_sizes(const char*);
uint64_t emulator_alloc(size_t);
void emulator_free(uint64_t, size_t);
}

namespace {

enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_IMAGE = 200,
              INVALID_CONTEXT = 201, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, LAUNCH_OUT_OF_RESOURCES = 701 };

struct Context;
struct Stream { Context* context; std::vector<std::function<Result()>> asked; size_t done; };
struct Event { Stream* stream; size_t place; };
struct Module { Context* context; std::string image; };
struct Function { Module* module; std::string name; size_t shared_bytes; };
struct Context {
  Result broken = SUCCESS;
  std::vector<Stream*> streams;
  std::map<uint64_t, size_t> memory;
  std::map<std::string, Function*> functions;
  std::vector<Module*> modules;
};

std::mutex mutex;
bool initialised = false, shrunk = false;
size_t used = 0;
thread_local Context* current = nullptr;

size_t setting(const char* name, size_t otherwise) {
  const char* text = getenv(name);
  return text ? strtoull(text, nullptr, 10) : otherwise;
}
size_t memory_bytes() {
  size_t all = setting("EMULATED_MEMORY", size_t{1} << 32);
  return shrunk ? setting("EMULATED_MEMORY_LATER", all) : all;
}

// Does what was asked of the stream, up to a place.
Result catch_up(Stream* stream, size_t place) {
  Context* context = stream->context;
  while (stream->done < place && context->broken == SUCCESS) {
    Result result = stream->asked[stream->done++]();
    if (result != SUCCESS) context->broken = result;
  }
  if (stream->done == stream->asked.size()) {
    stream->asked.clear();
    // Events that were recorded before are over.
    stream->done = 0;
  }
  return context->broken;
}
Result wait_for_all(Context* context) {
  for (Stream* stream : context->streams) catch_up(stream, stream->asked.size());
  return context->broken;
}

// The bytes of an image: a cubin says where its last part ends, PTX ends with a zero.
std::string image_of(const char* at) {
  if (memcmp(at, "\177ELF", 4) != 0) return strstr(at, ".version") ? std::string(at) : std::string();
  auto word = [&](size_t from, int bytes) { uint64_t v = 0; memcpy(&v, at + from, bytes); return v; };
  uint64_t sections = word(40, 8), section_bytes = word(58, 2), count = word(60, 2);
  uint64_t end = sections + section_bytes * count, programs_end = word(32, 8) + word(54, 2) * word(56, 2);
  if (programs_end > end) end = programs_end;
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t header = sections + i * section_bytes, last = word(header + 24, 8) + word(header + 32, 8);
    if (word(header + 4, 4) != 8 && last > end) end = last;
  }
  return std::string(at, end);
}
bool has_kernel(const std::string& image, const std::string& name) {
  if (image[0] == '\177') return image.find(std::string(1, '\0') + ".text." + name + std::string(1, '\0')) != std::string::npos;
  return image.find(".entry " + name + "(") != std::string::npos;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) int
#define LOCKED std::lock_guard<std::mutex> guard(mutex); if (!initialised) return NOT_INITIALIZED
#define IN_CONTEXT LOCKED; if (!current) return INVALID_CONTEXT; if (current->broken) return current->broken

EXPORT cuInit(unsigned) {
  std::lock_guard<std::mutex> guard(mutex);
  if (setting("EMULATED_DEVICES", 1) == 0) return NO_DEVICE;
  initialised = true;
  return SUCCESS;
}
#ifndef OLD_DRIVER
EXPORT cuDriverGetVersion(int* version) { *version = 12090; return SUCCESS; }
EXPORT cuDeviceGetCount(int* count) { LOCKED; *count = setting("EMULATED_DEVICES", 1); return SUCCESS; }
EXPORT cuDeviceGet(int* device, int index) { LOCKED; *device = index; return SUCCESS; }
EXPORT cuDeviceGetName(char* name, int len, int) { LOCKED; snprintf(name, len, "Emulated device"); return SUCCESS; }
EXPORT cuDeviceGetPCIBusId(char* id, int len, int device) { LOCKED; snprintf(id, len, "0000:%02X:00.0", device); return SUCCESS; }
EXPORT cuDeviceTotalMem_v2(size_t* bytes, int) { LOCKED; *bytes = memory_bytes(); return SUCCESS; }
EXPORT cuDeviceGetAttribute(int* value, int attribute, int) {
  LOCKED;
  int capability = setting("EMULATED_CAPABILITY", 90);
  if (attribute != 75 && attribute != 76) return INVALID_VALUE;
  *value = attribute == 75 ? capability / 10 : capability % 10;
  return SUCCESS;
}
EXPORT cuGetErrorName(int error, const char** name) {
  static const std::map<int, const char*> names = {
      {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {3, "CUDA_ERROR_NOT_INITIALIZED"},
      {100, "CUDA_ERROR_NO_DEVICE"}, {200, "CUDA_ERROR_INVALID_IMAGE"}, {201, "CUDA_ERROR_INVALID_CONTEXT"},
      {500, "CUDA_ERROR_NOT_FOUND"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"}};
  auto found = names.find(error);
  if (found == names.end()) return INVALID_VALUE;
  *name = found->second;
  return SUCCESS;
}
EXPORT cuGetErrorString(int, const char** text) { *text = "said by the emulated driver"; return SUCCESS; }

EXPORT cuCtxCreate_v2(Context** context, unsigned, int) { LOCKED; *context = current = new Context; return SUCCESS; }
EXPORT cuCtxSetCurrent(Context* context) { LOCKED; current = context; return SUCCESS; }
EXPORT cuCtxDestroy_v2(Context* context) {
  LOCKED;
  wait_for_all(context);
  for (auto [at, bytes] : context->memory) { emulator_free(at, bytes); used -= bytes; }
  for (Stream* stream : context->streams) delete stream;
  for (auto& [name, function] : context->functions) delete function;
  for (Module* module : context->modules) delete module;
  if (context->broken) shrunk = true;
  if (current == context) current = nullptr;
  delete context;
  return SUCCESS;
}

EXPORT cuStreamCreate(Stream** stream, unsigned) {
  IN_CONTEXT;
  *stream = new Stream{current, {}, 0};
  current->streams.push_back(*stream);
  return SUCCESS;
}
// The stream itself goes with its context: events may still name it.
EXPORT cuStreamDestroy_v2(Stream* stream) { LOCKED; return catch_up(stream, stream->asked.size()); }
EXPORT cuStreamSynchronize(Stream* stream) { IN_CONTEXT; return catch_up(stream, stream->asked.size()); }
EXPORT cuEventCreate(Event** event, unsigned) { IN_CONTEXT; *event = new Event{nullptr, 0}; return SUCCESS; }
EXPORT cuEventDestroy_v2(Event* event) { LOCKED; delete event; return SUCCESS; }
EXPORT cuEventRecord(Event* event, Stream* stream) { IN_CONTEXT; *event = {stream, stream->asked.size()}; return SUCCESS; }
EXPORT cuEventSynchronize(Event* event) {
  IN_CONTEXT;
  if (!event->stream || event->place > event->stream->asked.size()) return SUCCESS;
  return catch_up(event->stream, event->place);
}

EXPORT cuMemGetInfo_v2(size_t* free, size_t* total) {
  IN_CONTEXT;
  *total = memory_bytes();
  *free = used < *total ? *total - used : 0;
  return SUCCESS;
}
EXPORT cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  IN_CONTEXT;
  if (used + bytes > memory_bytes()) return OUT_OF_MEMORY;
  *address = emulator_alloc(bytes);
  if (!*address) return OUT_OF_MEMORY;
  current->memory[*address] = bytes;
  used += bytes;
  return SUCCESS;
}
EXPORT cuMemFree_v2(uint64_t address) {
  IN_CONTEXT;
  auto found = current->memory.find(address);
  if (found == current->memory.end()) return INVALID_VALUE;
  wait_for_all(current);
  emulator_free(address, found->second);
  used -= found->second;
  current->memory.erase(found);
  return SUCCESS;
}
EXPORT cuMemHostAlloc(void** at, size_t bytes, unsigned) { IN_CONTEXT; *at = malloc(bytes); return *at ? SUCCESS : OUT_OF_MEMORY; }
EXPORT cuMemFreeHost(void* at) { LOCKED; free(at); return SUCCESS; }

namespace {
// True when all of it is memory that the context was given.
bool is_inside(Context* context, uint64_t address, size_t bytes) {
  auto after = context->memory.upper_bound(address);
  if (after == context->memory.begin()) return false;
  auto [start, len] = *std::prev(after);
  return address + bytes <= start + len;
}
int copy(Stream* stream, void* to, const void* from, size_t bytes, uint64_t on_device) {
  if (!is_inside(stream->context, on_device, bytes)) return INVALID_VALUE;
  stream->asked.push_back([=] { memcpy(to, from, bytes); return SUCCESS; });
  return SUCCESS;
}
}  // namespace
EXPORT cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
  IN_CONTEXT;
  return copy(stream, reinterpret_cast<void*>(to), from, bytes, to);
}
EXPORT cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
  IN_CONTEXT;
  return copy(stream, to, reinterpret_cast<void*>(from), bytes, from);
}

EXPORT cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, Stream* stream) {
  IN_CONTEXT;
  if (!is_inside(stream->context, at, bytes)) return INVALID_VALUE;
  stream->asked.push_back([=] { memset(reinterpret_cast<void*>(at), value, bytes); return SUCCESS; });
  return SUCCESS;
}

EXPORT cuModuleLoadData(Module** module, const void* image) {
  IN_CONTEXT;
  std::string bytes = image_of(static_cast<const char*>(image));
  if (bytes.empty()) return INVALID_IMAGE;
  *module = new Module{current, std::move(bytes)};
  current->modules.push_back(*module);
  return SUCCESS;
}
EXPORT cuModuleGetFunction(Function** function, Module* module, const char* name) {
  IN_CONTEXT;
  if (!has_kernel(module->image, name) || !emulator_sizes(name)) return NOT_FOUND;
  Function*& kept = current->functions[name];
  if (!kept) kept = new Function{module, name, 48 * 1024};
  *function = kept;
  return SUCCESS;
}
EXPORT cuFuncSetAttribute(Function* function, int attribute, int value) {
  IN_CONTEXT;
  if (attribute != 8 || value < 0 || value > 227 * 1024) return INVALID_VALUE;
  function->shared_bytes = value;
  return SUCCESS;
}
EXPORT cuLaunchKernel(Function* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                      unsigned threads_z, unsigned shared_bytes, Stream* stream, void** arguments, void**) {
  IN_CONTEXT;
  if (threads_y != 1 || threads_z != 1 || threads > 1024 || threads == 0) return INVALID_VALUE;
  if (x == 0 || y == 0 || z == 0 || y > 65535 || z > 65535) return INVALID_VALUE;
  if (shared_bytes > function->shared_bytes) return INVALID_VALUE;
  // Arguments are the caller's again when this returns.
  std::vector<std::vector<char>> kept;
  for (const size_t* size = emulator_sizes(function->name.c_str()); *size; ++size) {
    const char* from = static_cast<const char*>(arguments[kept.size()]);
    kept.emplace_back(from, from + *size);
  }
  const char* sign = getenv("EMULATED_FAILS");
  bool fails = sign && remove(sign) == 0;
  stream->asked.push_back([=, name = function->name]() mutable {
    if (fails) return ILLEGAL_ADDRESS;
    std::vector<void*> pointers;
    for (auto& argument : kept) pointers.push_back(argument.data());
    unsigned grid[] = {x, y, z};
    return emulator_launch(name.c_str(), grid, threads, shared_bytes, pointers.data(), 0) == 0 ? SUCCESS : LAUNCH_OUT_OF_RESOURCES;
  });
  // A list without an end would be memory without an end.
  if (stream->asked.size() >= 4096) return catch_up(stream, stream->asked.size());
  return SUCCESS;
}

// What is asked of NVML: use of the device's memory and time.
EXPORT nvmlInit_v2() { return 0; }
EXPORT nvmlShutdown() { return 0; }
EXPORT nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** device) { *device = const_cast<char*>(id); return *id ? 0 : 2; }
EXPORT nvmlDeviceGetUtilizationRates(void*, unsigned* rates) { rates[0] = 42; rates[1] = 17; return 0; }
EXPORT nvmlDeviceGetMemoryInfo(void*, unsigned long long* sizes) {
  std::lock_guard<std::mutex> guard(mutex);
  sizes[0] = memory_bytes();
  sizes[1] = memory_bytes() - used;
  sizes[2] = used;
  return 0;
}
#endif
